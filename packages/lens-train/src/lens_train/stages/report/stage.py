"""The report stage: `report.html` and `summary.json`, in the artefact and at the top of the run folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lens_core.storage import urls
from lens_train.report.page import render_page
from lens_train.report.summary import summarise

if TYPE_CHECKING:
    from lens_core.pipeline.context import StageContext
    from lens_train.stages.report.config import ReportStageConfig

__all__ = ["run"]


def run(config: ReportStageConfig, context: StageContext) -> dict[str, Any]:
    """Gather what the sources say, write the summary, draw the page."""
    summary = summarise(context.inputs)
    page = render_page(config, context.inputs, summary)
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    for name, content in (("summary.json", text), ("report.html", page)):
        context.output.write_text(name, content)
        urls.write_bytes(urls.join(context.run_url, name), content.encode())
    context.progress.note(f"wrote {urls.join(context.run_url, 'report.html')}")
    return {"headline": summary["headline"]}
