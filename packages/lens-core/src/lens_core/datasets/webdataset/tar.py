"""Samples in a tar: file names are read in passing, contents later, from where they lie."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from lens_core.datasets import files
from lens_core.errors import StorageError
from lens_core.storage import urls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Sample", "Tar"]


@dataclass(frozen=True)
class Sample:
    """Neighbouring files of one name; `files` maps the ending, in lower case, to a function that reads it.

    The function reads all of the file, or no more than the bytes that it is asked for.
    """

    name: str
    files: dict[str, Callable[..., bytes]] = field(default_factory=dict)


class Tar:
    """A tar behind a URL."""

    def __init__(self, url: str):
        self.url = url
        self._stream: BinaryIO | None = None

    def samples(self) -> Iterator[Sample]:
        """The samples in their order.

        Raises:
            StorageError: the tar is absent, or damaged from here on; what came before was sound.
        """
        sample: Sample | None = None
        try:
            with urls.told(self.url, "read"), tarfile.open(fileobj=self._open(), mode="r:") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined] # or it would keep them all
                    folder, _, file = files.as_text(member.name).rpartition("/")
                    stem, _, ending = file.partition(".")
                    if not member.isfile() or not ending or file.startswith("."):
                        continue
                    name = f"{folder}/{stem}".lstrip("/")
                    ending = ending.lower()
                    if sample is not None and (sample.name != name or ending in sample.files):
                        yield sample
                        sample = None
                    sample = sample or Sample(name)
                    sample.files[ending] = partial(self._read, member.offset_data, member.size)
                if sample is not None:
                    yield sample
        except (tarfile.TarError, OverflowError, StorageError) as error:
            if sample is not None:
                yield sample
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{self.url} is no tar, or damaged: {error}") from error
        finally:
            self._close()

    def _read(self, offset: int, size: int, most: int | None = None) -> bytes:
        """A file's content, or its first bytes; while the samples are gone through, from the stream that is open."""
        size = size if most is None else min(size, most)
        if self._stream is not None:
            return self._read_from(self._stream, offset, size)
        with urls.open_read(self.url) as stream:
            return self._read_from(stream, offset, size)

    def _read_from(self, stream: BinaryIO, offset: int, size: int) -> bytes:
        with urls.told(self.url, "read"):
            if offset + size > stream.seek(0, io.SEEK_END):  # a damaged header may ask for more than there is memory
                raise StorageError(f"{self.url} is truncated")
            stream.seek(offset)
            return stream.read(size)

    def _open(self) -> BinaryIO:
        self._close()
        self._stream = urls.open_read(self.url)
        return self._stream

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
