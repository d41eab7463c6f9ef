"""The caption-report stage: `captions.html` and `captions.json`, in the artefact and at the top of the run folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lens_caption.layers import sources
from lens_caption.report.page import render_page
from lens_caption.report.summary import ShardIndex, gather, summary_of
from lens_core.errors import LensError
from lens_core.storage import urls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lens_caption.report.config import CaptionReportStageConfig
    from lens_core.pipeline.context import StageContext
    from lens_core.storage.artifacts import Artifact

__all__ = ["PAGE", "SUMMARY", "report_on", "run"]

PAGE = "captions.html"
SUMMARY = "captions.json"


def run(config: CaptionReportStageConfig, context: StageContext) -> dict[str, Any]:
    """Count, choose what to show, draw the page.

    Raises:
        ConfigError: the sources are of different images.
        LensError: the sources hold no captions at all.
    """
    context.progress.start(None, "captions")

    def seen(rows: int) -> None:
        context.progress.update(rows)
        context.stop_if_asked()

    summary, page = report_on(config, context.inputs, seed=context.seed, seen=seen)
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    for name, content in ((SUMMARY, text), (PAGE, page)):
        context.output.write_text(name, content)
        urls.write_bytes(urls.join(context.run_url, name), content.encode())
    context.progress.note(f"wrote {urls.join(context.run_url, PAGE)}")
    return {
        name: {key: numbers[key] for key in ("images", "ok", "input_tokens", "output_tokens", "cost_usd")}
        for name, numbers in summary["layers"].items()
    }


def report_on(
    config: CaptionReportStageConfig,
    inputs: Iterable[Artifact],
    *,
    seed: int,
    seen: Callable[[int], None] = lambda _: None,
) -> tuple[dict[str, Any], str]:
    """The summary and the page of some caption artefacts."""
    source = sources(inputs)
    shards = ShardIndex(source.images)
    layers = gather(source.captions, shards, samples=config.samples, seed=seed, seen=seen)
    if not layers:
        raise LensError(f"{config.name}: the sources hold no captions")
    summary = summary_of(layers, source.captions, len(shards))
    return summary, render_page(config, summary, layers, source.images)
