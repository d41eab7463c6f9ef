"""The caption-review stage: decisions become a caption layer like any other, which later stages can name."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from lens_caption.review.decisions import read_decisions
from lens_caption.review.layer import only_layer, reviewed_rows
from lens_core.storage import urls
from lens_core.storage.captions import write_captions

if TYPE_CHECKING:
    from lens_caption.review.config import CaptionReviewStageConfig
    from lens_core.pipeline.context import StageContext
    from lens_core.registry import Registry

__all__ = ["fingerprint", "run"]


def run(config: CaptionReviewStageConfig, context: StageContext) -> dict[str, Any]:
    """Write the layer.

    Raises:
        ConfigError: there is no such layer.
        ArtifactError: the file of decisions is damaged.
    """
    (captions,) = context.inputs
    reviewed = only_layer(captions, config.reviewed)
    path = urls.local_path(urls.resolve(config.decisions, context.base))
    decisions = read_decisions(path)
    if not decisions:
        context.progress.note(
            f"no decisions yet; make some with: lens caption review {captions.url} --decisions {path}"
        )
    counts: Counter[str] = Counter()
    rows = reviewed_rows(
        captions,
        decisions,
        reviewed=reviewed,
        layer=config.layer or context.name,
        undecided=config.undecided,
        counts=counts,
    )
    write_captions(context.output, rows)
    if counts["stale"]:
        context.progress.note(
            f"{counts['stale']} decisions are about captions that were made anew since; review them again"
        )
    return {name: counts[name] for name in ("accept", "edit", "reject", "undecided", "stale")}


def fingerprint(config: CaptionReviewStageConfig, *, registry: Registry, base: str, seed: int) -> str:
    """Of the decisions themselves, so that a new one is noticed and a touched file is not."""
    path = urls.local_path(urls.resolve(config.decisions, base))
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "none"
