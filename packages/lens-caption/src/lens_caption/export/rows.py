"""What is exported of an image, the same in every format.

| column | |
|---|---|
| `key`, `name` | the image key, and what the source called the image |
| `width`, `height`, `format`, `licence`, `source_url`, `metadata` | as in the index of the shards; `metadata` is JSON |
| `text` | the caption, from the first layer that has one; null if none has |
| `text_LAYER` | each layer's caption, where there are several layers |
| `captions` | JSON: of each layer its `status`, `detail` and `provenance` |
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lens_core.storage.captions import CaptionRow
    from lens_core.storage.shards import ImageRow

__all__ = ["ExportRow", "chosen_text", "extension", "text_columns"]


@dataclass(frozen=True, kw_only=True)
class ExportRow:
    """An image, the text chosen for it, and all that its layers say."""

    image: ImageRow
    text: str | None
    captions: Mapping[str, CaptionRow]

    @property
    def file_name(self) -> str:
        """A name for the image's file; the source's own name may be anything and stays a column."""
        return f"{self.image.key}.{extension(self.image.format)}"

    def columns(self, layers: Sequence[str]) -> dict[str, Any]:
        """The row of a flat table, without the image's bytes."""
        image = self.image
        told = {
            layer: {"status": row.status, "detail": row.detail, "provenance": dict(row.provenance)}
            for layer, row in self.captions.items()
        }
        return {
            "key": image.key,
            "name": image.name,
            "width": image.width,
            "height": image.height,
            "format": image.format,
            "licence": image.licence,
            "source_url": image.source_url,
            "metadata": json.dumps(dict(image.metadata), sort_keys=True, ensure_ascii=False),
            "text": self.text,
            **{column: self._said(layer) for layer, column in text_columns(layers).items()},
            "captions": json.dumps(told, sort_keys=True, ensure_ascii=False),
        }

    def document(self) -> dict[str, Any]:
        """The same as one JSON object, for formats that nest."""
        image = self.image
        return {
            "key": image.key,
            "name": image.name,
            "width": image.width,
            "height": image.height,
            "format": image.format,
            "licence": image.licence,
            "source_url": image.source_url,
            "metadata": dict(image.metadata),
            "text": self.text,
            "captions": {
                layer: {
                    "text": self._said(layer),
                    "status": row.status,
                    "detail": row.detail,
                    "provenance": dict(row.provenance),
                }
                for layer, row in self.captions.items()
            },
        }

    def _said(self, layer: str) -> str | None:
        row = self.captions.get(layer)
        return row.text if row is not None and row.status == "ok" else None


def chosen_text(captions: Iterable[CaptionRow]) -> str | None:
    """The first caption there is; what a reviewer rejected is not replaced by another layer's."""
    for row in captions:
        if row.status == "ok":
            return row.text
        if row.provenance.get("review") == "reject":
            return None
    return None


def text_columns(layers: Sequence[str]) -> dict[str, str]:
    """Column of each layer's text; a single layer needs none besides `text`."""
    return {layer: f"text_{layer}" for layer in layers} if len(layers) > 1 else {}


def extension(format_: str) -> str:
    """The usual ending of a file of that format."""
    return {"jpeg": "jpg", "mpo": "jpg", "tiff": "tif"}.get(format_, format_)
