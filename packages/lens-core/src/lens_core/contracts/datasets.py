"""Images on their way in: what a dataset yields and what a filter sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np

T = TypeVar("T", float, str, bytes)

__all__ = ["Candidate", "Dataset", "Filter", "ImageInfo", "ImageRecord", "Verdict"]


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """One image of a source. Its bytes are read late, by calling `read`, or `head` where the beginning will do.

    Args:
        name: what a person would call it: a path below the source, or an index.
        read: gives the stored bytes; may raise `OSError` or `StorageError`.
        read_head: gives so many of the first bytes, or all if there are fewer; None where that is no cheaper.
        licence: licence identifier or text, if the source knows it.
        source_url: where the image came from.
        metadata: JSON-able facts that travel with the image, such as a scene graph.
    """

    name: str
    read: Callable[[], bytes]
    read_head: Callable[[int], bytes] | None = None
    licence: str = ""
    source_url: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def head(self, size: int) -> tuple[bytes, bool]:
        """The first bytes, and whether they are all; raises as `read` does.

        Args:
            size: how many are enough; there may be more.
        """
        if self.read_head is None:
            return self.read(), True
        data = self.read_head(size)
        return data, len(data) < size


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """What a file's header says: size in pixels as displayed (after EXIF rotation), and format ("jpeg", "png", …)."""

    width: int
    height: int
    format: str


class Dataset(Protocol):
    """A source of images; built as `target(config, base=..., seed=...)`.

    `base` is the folder that relative paths in the config are relative to. Two passes yield the same records.
    """

    def __iter__(self) -> Iterator[ImageRecord]:
        """Yield the records in a fixed order."""
        ...

    def fingerprint(self) -> str:
        """A cheap text that changes when the records would, of names, sizes and times, say; "" if they never do."""
        ...


class Candidate(Protocol):
    """An image under examination; `lens_core.images.Candidate` is the implementation."""

    name: str
    data: bytes

    @property
    def info(self) -> ImageInfo:
        """Size and format, read from the header alone; raises `ImageError` if there is no image header."""
        ...

    def pixels(self) -> np.ndarray:
        """uint8 [height, width, 3]; raises `ImageError` with the reason if the bytes cannot be decoded."""
        ...

    def small(self) -> np.ndarray:
        """uint8 [height, width, 3], scaled so that the longer side has 512 pixels; raises `ImageError`.

        Filters measure on this copy: it is made once for all of them, and images of all sizes compare.
        """
        ...

    def measure(self, name: str, compute: Callable[[], T]) -> T:
        """What `compute` gives for this image, remembered by `name`: it is not computed twice, in later runs either.

        Args:
            name: of the measure, with everything that it depends on beside the image's bytes: a version, a setting, a
                model's hash. Thresholds do not belong there, so that they can be changed without measuring again.
            compute: makes the number, text or bytes; only called if the value is not known.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a filter says about an image.

    Args:
        reason: None keeps the image; a text drops it and is what the user reads.
        score: what was measured, if the filter measures; kept for images that stay, too.
        threshold: the bound that dropped it.
    """

    reason: str | None = None
    score: float | None = None
    threshold: float | None = None


class Filter(Protocol):
    """Keeps an image or drops it with a reason; built as `target(config)`.

    A filter that compares images with earlier ones may also have a method `kept(candidate)`, which is called, in the
    order of the source, for each image that *all* filters have kept. `check` itself must not change the filter.

    The config of one that reads a file, such as a model, may have a method `fingerprint() -> str`: a cheap text that
    changes when the file does, so that a stage that is done is done again.
    """

    def check(self, candidate: Candidate) -> Verdict:
        """Judge an image."""
        ...
