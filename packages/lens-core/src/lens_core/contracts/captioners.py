"""Images in, texts out: what a captioner receives and returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["CaptionOutcome", "Captioner", "ImageItem", "Status"]

Status = Literal["ok", "refusal", "content-filter", "truncated", "empty", "schema-invalid", "transport", "bad-image"]
"""What became of one image; only `ok` carries a caption that may be trained on."""


@dataclass(frozen=True, kw_only=True)
class ImageItem:
    """One stored image: `key` is the sha256 of `data`, `metadata` what its source said of it."""

    key: str
    data: bytes
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CaptionOutcome:
    """What became of one image.

    Args:
        key: the image's key.
        status: `ok`, or why there is no caption.
        text: the caption, empty unless `status` is `ok`.
        detail: one line for people about what went wrong.
        provenance: flat facts about how the text came to be (captioner, served model, prompt hash, tokens).
        layers: all captions by the name of their layer, where one answer gives several; `text` is the first.
    """

    key: str
    status: Status
    text: str = ""
    detail: str = ""
    provenance: Mapping[str, str | int | float] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)


class Captioner(Protocol):
    """Turns a batch of images into texts; built as `target(config)`.

    `deterministic` says whether the same image and config always give the same text; the contract test holds it to
    that. A captioner that gives several captions an image names their layers in an attribute `layers`, a tuple: only
    those of `CaptionOutcome.layers` are kept. One that asks a server may also be a
    `lens_caption.engine.request.RequestCaptioner`: then the engine sends its requests, within limits and budget,
    instead of calling `caption`.
    """

    deterministic: bool

    def caption(self, images: Sequence[ImageItem]) -> list[CaptionOutcome]:
        """One outcome per image, in order. One bad image never raises; a hopeless setting raises `LensError`."""
        ...

    def close(self) -> None:
        """Release connections; calling it twice is fine."""
        ...
