"""The manifest: what can be trained on, as columns in memory-mapped files.

Planning 10⁸ samples must neither load nor scan them, so a manifest is a folder of files of fixed records
(`planning.layout`) of which only the pages that are asked for are read:

    with ManifestWriter(folder) as writer:
        writer.add(key=row.key, shard=0, offset=512, size=90_000, height=512, width=768, captions=[("A cat.", 7)])
        manifest = writer.close(["shard-00000.tar"])
    manifest.caption_text(manifest.captions_of(0)[0])  # "A cat."

Height and width are those that the sample is trained at. The writer works beside the folder, under a temporary name:
there is a manifest, or there is none.
"""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_core.errors import ArtifactError
from lens_train.planning.layout import CAPTION, CAPTIONS, FORMAT_VERSION, HEAD, NUMBER, RANKING, SAMPLE, SAMPLES, TEXTS

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Manifest"]


class Manifest:
    """A finished manifest, opened without reading it.

    Args:
        folder: a local folder.

    Raises:
        ArtifactError: a file is missing, or has not the length that it had when it was written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        head = _read_head(folder)
        self.hash = head.hash
        """sha256 (hex) of the samples, as trained on, and their captions; where their bytes lie is not in it."""
        self.shards = head.shards
        self.sizes = head.sizes
        """(height, width, samples) of every size that occurs: by area, then height. The ranking has them in turn."""
        self.samples: NDArray[Any] = _mapped(folder / SAMPLES, SAMPLE, head)
        """The records of the samples."""
        self.captions: NDArray[Any] = _mapped(folder / CAPTIONS, CAPTION, head)
        """The records of the captions."""
        self.ranking: NDArray[np.uint32] = _mapped(folder / RANKING, NUMBER, head)
        """Sample numbers in the order of their cost: by size, then by length of text."""
        self._texts = _mapped(folder / TEXTS, np.dtype("u1"), head)

    def __reduce__(self) -> tuple[type[Manifest], tuple[Path]]:
        """Another process opens it anew."""
        return type(self), (self.folder,)

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, column: NDArray[Any], rows: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Records from all over `samples`, `captions` or `ranking`.

        Their pages are asked for together, which a disk answers ten times as fast as one after the other.
        """
        if len(column):
            mapped: mmap.mmap = column.base.obj  # type: ignore[union-attr]
            for page in np.unique(np.asarray(rows, dtype=np.int64) * column.itemsize // mmap.PAGESIZE).tolist():
                mapped.madvise(mmap.MADV_WILLNEED, page * mmap.PAGESIZE, mmap.PAGESIZE)
        return column[rows]

    def key(self, number: int) -> str:
        """The sha256 (hex) of the image's bytes."""
        return self.samples["key"][number].tobytes().hex()

    @property
    def shard(self) -> NDArray[np.uint32]:
        """Of each sample, the place of its shard's name in `shards`."""
        return self.samples["shard"]

    @property
    def offset(self) -> NDArray[np.int64]:
        """Of each sample, where its bytes begin in the shard."""
        return self.samples["offset"]

    @property
    def size(self) -> NDArray[np.uint32]:
        """Of each sample, how many bytes it has."""
        return self.samples["size"]

    @property
    def height(self) -> NDArray[np.uint16]:
        """Of each sample, the height in pixels that it is trained at."""
        return self.samples["height"]

    @property
    def width(self) -> NDArray[np.uint16]:
        """Of each sample, the width in pixels that it is trained at."""
        return self.samples["width"]

    def captions_of(self, number: int) -> range:
        """The rows of a sample's captions."""
        start = int(self.samples["caption_start"][number])
        return range(start, start + int(self.samples["captions"][number]))

    @property
    def caption_tokens(self) -> NDArray[np.uint32]:
        """Of each caption, how many tokens it has."""
        return self.captions["tokens"]

    def caption_text(self, row: int) -> str:
        """A caption."""
        start, size, _ = self.captions[row].tolist()
        return self._texts[start : start + size].tobytes().decode()


@dataclass(frozen=True, kw_only=True)
class _Head:
    hash: str
    shards: list[str]
    sizes: list[tuple[int, int, int]]
    bytes: dict[str, int]


def _read_head(folder: Path) -> _Head:
    try:
        head = json.loads((folder / HEAD).read_bytes())
        version = head["format_version"]
        if version == FORMAT_VERSION:
            return _Head(
                hash=head["hash"],
                shards=head["shards"],
                sizes=[(height, width, count) for height, width, count in head["sizes"]],
                bytes={name: head["files"][name]["bytes"] for name in (SAMPLES, CAPTIONS, RANKING, TEXTS)},
            )
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{folder} has no {HEAD}: it is no training manifest; build it again") from None
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(f"{folder / HEAD} is damaged; build the manifest again") from None
    raise ArtifactError(
        f"{folder / HEAD} is of format {version}, and this version of Lens reads {FORMAT_VERSION}; "
        "build the manifest again"
    )


def _mapped(file: Path, dtype: np.dtype[Any], head: _Head) -> NDArray[Any]:
    expected = head.bytes[file.name]
    try:
        found = file.stat().st_size
    except FileNotFoundError:
        raise ArtifactError(f"{file} is missing; build the manifest again") from None
    if found != expected:
        raise ArtifactError(f"{file} has {found:,} bytes instead of {expected:,}; build the manifest again")
    if not expected:  # which cannot be mapped
        return np.empty(0, dtype)
    with file.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    # Records are asked for here and there: to read on behind them would be in vain.
    mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype=dtype)
