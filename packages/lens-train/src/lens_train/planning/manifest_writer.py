"""Builds a manifest, sample by sample, in constant memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from lens_core.errors import ArtifactError, StorageError
from lens_train.planning.layout import (
    CAPTIONS,
    FORMAT_VERSION,
    HEAD,
    PACK_CAPTION,
    PACK_SAMPLE,
    RANKING,
    SAMPLES,
    TEXTS,
)
from lens_train.planning.manifest import Manifest
from lens_train.planning.ranking import write_ranking

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["ManifestWriter"]

MAX_SIZES = 16_384


class ManifestWriter:
    """Builds a manifest; what a `with` block has not closed when it ends is thrown away.

    Args:
        folder: where it will be. Until `close` everything lies beside it, in `<folder>.partial`.

    Raises:
        ArtifactError: the folder is there already.
    """

    def __init__(self, folder: Path):
        if folder.exists():
            raise ArtifactError(f"{folder} is there already; remove it to build the manifest again")
        self._folder = folder
        self._partial = folder.with_name(folder.name + ".partial")
        self._files: dict[str, _HashedFile] = {}
        with self._told():
            shutil.rmtree(self._partial, ignore_errors=True)  # the rest of a build that was killed
            self._partial.mkdir(parents=True)
            self._files = {name: _HashedFile(self._partial / name) for name in (SAMPLES, CAPTIONS, TEXTS)}
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._captions = 0
        self._trained_on = hashlib.sha256()

    def __enter__(self) -> ManifestWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()

    def add(
        self,
        *,
        key: str,
        shard: int,
        offset: int,
        size: int,
        height: int,
        width: int,
        captions: Sequence[tuple[str, int]],
    ) -> None:
        """Append a sample.

        Args:
            key: sha256 (hex) of the image's bytes.
            shard: place of the shard in the list that `close` is given.
            offset: where the bytes begin in the shard.
            size: how many there are.
            height: in pixels, as trained on: a multiple of the autoencoder's stride.
            width: likewise.
            captions: (text, tokens) of each; may be empty.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        self._sizes[height, width] += 1
        with self._told():
            record = (bytes.fromhex(key), offset, self._captions, shard, size, height, width, len(captions))
            self._files[SAMPLES].write(PACK_SAMPLE(*record))
            # The hash leaves out where the bytes lie: a move, or latents in their place, changes no plan.
            self._trained_on.update(PACK_SAMPLE(record[0], 0, self._captions, 0, 0, *record[5:]))
            for text, tokens in captions:
                data = text.encode()
                self._files[CAPTIONS].write(PACK_CAPTION(self._files[TEXTS].bytes, len(data), tokens))
                self._files[TEXTS].write(data)
        self._captions += len(captions)

    def close(self, shards: Sequence[str]) -> Manifest:
        """Rank the samples, and put the manifest where it belongs.

        Args:
            shards: the shards' names.

        Raises:
            ArtifactError: there are no samples, or too many different sizes.
            StorageError: the disk is full, or the folder cannot be written.
        """
        sizes = sorted(self._sizes, key=lambda size: (size[0] * size[1], size))
        with self._told():
            if not self._sizes:
                raise ArtifactError(f"{self._folder}: there is nothing to train on")
            if len(self._sizes) > MAX_SIZES:
                raise ArtifactError(
                    f"{self._folder}: {len(self._sizes):,} different sizes are more than the {MAX_SIZES:,} that can be "
                    "ranked; fit the images to a table of sizes"
                )
            for file in self._files.values():
                file.close()
            write_ranking(self._partial / SAMPLES, self._partial / CAPTIONS, self._partial / RANKING, sizes)
            files = {name: {"bytes": file.bytes, "sha256": file.digest} for name, file in self._files.items()}
            content = [self._trained_on.hexdigest(), files[CAPTIONS]["sha256"], files[TEXTS]["sha256"]]
            head = {
                "format_version": FORMAT_VERSION,
                "hash": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
                "shards": list(shards),
                "sizes": [[*size, self._sizes[size]] for size in sizes],
                "files": files | {RANKING: {"bytes": (self._partial / RANKING).stat().st_size}},
            }
            (self._partial / HEAD).write_text(json.dumps(head, indent=2) + "\n", encoding="utf-8")
            self._partial.rename(self._folder)
        return Manifest(self._folder)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._discard()
            raise StorageError(f"cannot write the manifest {self._folder}: {error.strerror}") from error
        except ArtifactError:
            self._discard()
            raise

    def _discard(self) -> None:
        for file in self._files.values():
            file.discard()
        shutil.rmtree(self._partial, ignore_errors=True)


class _HashedFile:
    """A file that is written once, from front to back."""

    def __init__(self, path: Path):
        self._file = path.open("wb", buffering=1 << 20)
        self._sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.bytes += len(data)

    @property
    def digest(self) -> str:
        return self._sha256.hexdigest()

    def discard(self) -> None:
        with suppress(OSError):  # what cannot be written need not be
            self._file.close()

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())  # what the head vouches for is on disk before it
        self._file.close()
