"""The ablation-report stage: `report.html`, `report.md` with its `figures/`, and the numbers in `tables/`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lens_core import __version__
from lens_core.storage import urls
from lens_train.ablation.export import as_csv, as_json
from lens_train.ablation.findings import find
from lens_train.ablation.measurements import load_ablation
from lens_train.ablation.page import html_page, markdown_page
from lens_train.ablation.sections import sections_of

if TYPE_CHECKING:
    from lens_core.pipeline.context import StageContext
    from lens_train.stages.ablation_report.config import AblationReportStageConfig

__all__ = ["run"]


def run(config: AblationReportStageConfig, context: StageContext) -> dict[str, Any]:
    """Read the rows, compute, draw, write."""
    findings = find({artifact.name: load_ablation(artifact) for artifact in context.inputs}, config)
    sections = sections_of(findings, config)
    figures = [figure for section in sections for figure in section.figures]
    made_by = f"Lens {__version__}, from " + ", ".join(
        f"{artifact.name} {artifact.hash[:12]}" for artifact in context.inputs
    )
    output = context.output
    for figure in figures:
        output.write_bytes(f"figures/{figure.file}", figure.png)
    output.write_text("tables/accuracy.csv", as_csv(findings))
    output.write_json("tables/findings.json", as_json(findings))
    output.write_text("report.md", markdown_page(config.title, sections, made_by=made_by))
    output.write_text("report.html", html_page(config.title, sections, made_by=made_by))
    context.progress.note(f"wrote {urls.join(output.url, 'report.html')}")
    return {"ablations": len(context.inputs), "figures": len(figures)}
