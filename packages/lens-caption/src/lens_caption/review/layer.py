"""The reviewed layer: the captions as a person left them, as new rows. The original is never touched."""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Any, Literal

from lens_caption.layers import caption_batches
from lens_caption.review import REJECTED
from lens_caption.review.decisions import caption_sha256
from lens_core.errors import ConfigError
from lens_core.storage.captions import CaptionRow

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Mapping

    from lens_caption.review.decisions import Decision
    from lens_core.storage.artifacts import Artifact

__all__ = ["only_layer", "reviewed_rows"]


def reviewed_rows(
    captions: Artifact,
    decisions: Mapping[tuple[str, str], Decision],
    *,
    reviewed: str,
    layer: str,
    undecided: Literal["keep", "drop"],
    counts: Counter[str],
) -> Iterator[CaptionRow]:
    """The rows of the new layer, in the order of the old one.

    An accepted or edited caption is `ok`, a rejected one `rejected`. A decision about a caption that reads otherwise by
    now is not applied: it counts as `stale`, and its caption as undecided.

    Args:
        captions: the artefact with the reviewed layer.
        decisions: by image and layer.
        reviewed: name of the layer that was reviewed.
        layer: name of the new layer.
        undecided: whether captions that nobody decided about are in the new layer, as they are.
        counts: is told how many rows there were of each kind.
    """
    for batch in caption_batches(captions):
        for values in zip(*batch.values(), strict=True):
            row = dict(zip(batch, values, strict=True))
            if row["layer"] != reviewed:
                continue
            decision = decisions.get((row["key"], reviewed))
            if decision is not None and decision.caption_sha256 != caption_sha256(row["text"]):
                counts["stale"] += 1
                decision = None
            counts[decision.action if decision else "undecided"] += 1
            if decision is None and undecided == "drop":
                continue
            yield _row(row, decision, layer)


def only_layer(captions: Artifact, name: str | None) -> str:
    """The layer to review: the one asked for, or the only one there is.

    Raises:
        ConfigError: it is not there, or there are several and none was named.
    """
    layers: dict[str, None] = {}
    for batch in caption_batches(captions, ("layer",)):
        layers |= dict.fromkeys(batch["layer"])
    there = ", ".join(layers) or "none"
    if name is not None:
        if name not in layers:
            raise ConfigError(f"{captions.url} has no caption layer {name!r} (it has: {there})")
        return name
    if len(layers) != 1:
        raise ConfigError(
            f"{captions.url} has the caption layers {there}: say which one is reviewed (--layer, 'layer')"
        )
    return next(iter(layers))


def _row(row: Mapping[str, Any], decision: Decision | None, layer: str) -> CaptionRow:
    provenance = {**json.loads(row["provenance"]), "review": decision.action if decision else "none"}
    text, status, detail = row["text"], row["status"], row["detail"]
    if decision is not None:
        provenance |= {
            "reviewed_layer": row["layer"],
            "reviewer": decision.reviewer,
            "reviewed_at": datetime.datetime.fromtimestamp(decision.time, datetime.UTC).isoformat(timespec="seconds"),
            "caption_sha256": decision.caption_sha256,
        }
        if decision.action == "reject":
            text, status, detail = "", REJECTED, "rejected by a reviewer"
        elif decision.action == "edit":
            text, status, detail = decision.text, "ok", ""
    return CaptionRow(key=row["key"], layer=layer, text=text, status=status, detail=detail, provenance=provenance)
