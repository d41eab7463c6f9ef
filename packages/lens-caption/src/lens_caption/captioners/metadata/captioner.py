"""Captions that the images bring with them: what their source said of them, in one field of the metadata.

Text is only stripped, as answers of models are: it may have several lines, and comes back from an export as it was.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lens_core.contracts import CaptionOutcome, ImageItem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_caption.captioners.metadata.config import MetadataConfig

__all__ = ["MetadataCaptioner"]

_SHOWN_LETTERS = 200


class MetadataCaptioner:
    """Takes the text of one field of each image's metadata."""

    deterministic = True

    def __init__(self, config: MetadataConfig):
        self.config = config

    def caption(self, images: Sequence[ImageItem]) -> list[CaptionOutcome]:
        """One outcome per image; an image without the field is a bad image, one whose field holds no text is empty."""
        return [self._one(item) for item in images]

    def close(self) -> None:
        """There is nothing to release."""

    def _one(self, item: ImageItem) -> CaptionOutcome:
        field = self.config.field
        try:
            value = _value(item.metadata, field)
        except KeyError:
            there = textwrap.shorten(", ".join(sorted(item.metadata)), _SHOWN_LETTERS, placeholder=" …") or "none"
            detail = f"its metadata has no field {field!r} (there is: {there})"
            return CaptionOutcome(key=item.key, status="bad-image", detail=detail)
        if isinstance(value, list) and value:
            value = value[0]
        text = value.strip() if isinstance(value, str) else ""
        if not text:
            return CaptionOutcome(key=item.key, status="empty", detail=f"the field {field!r} holds no text")
        provenance = {"captioner": "metadata", "field": field}
        return CaptionOutcome(key=item.key, status="ok", text=text, provenance=provenance)


def _value(facts: Mapping[str, Any], field: str) -> Any:
    """What stands under a field; raises `KeyError`."""
    # A field's own name may have dots: the file 7.caption.txt of a WebDataset becomes the field caption.txt.
    if field in facts:
        return facts[field]
    head, dot, rest = field.partition(".")
    inner = facts.get(head)
    if dot and isinstance(inner, Mapping):
        return _value(inner, rest)
    raise KeyError(field)
