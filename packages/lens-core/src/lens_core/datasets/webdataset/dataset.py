"""Images in tar files as WebDataset writes them, in the order of the files; bytes are read late."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lens_core.contracts import ImageRecord
from lens_core.datasets import files
from lens_core.datasets.webdataset.tar import Sample, Tar
from lens_core.errors import StorageError
from lens_core.storage import urls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lens_core.datasets.webdataset.config import WebDatasetConfig

__all__ = ["WebDataset"]


class WebDataset:
    """One record per sample that has an image; the rest of a damaged tar is one record that cannot be read."""

    def __init__(self, config: WebDatasetConfig, *, base: str = ".", seed: int = 0):
        self.config = config
        self.url = urls.resolve(config.url, base)

    def __iter__(self) -> Iterator[ImageRecord]:
        shards = self._shards()
        prefix = self.url.rstrip("/") + "/"
        for url in shards:
            shard = url.removeprefix(prefix) if url != self.url else url.rsplit("/", 1)[-1]
            names: set[str] = set()
            try:
                for sample in Tar(url).samples():
                    record = self._record(sample, url, shard)
                    if record is not None and record.name not in names:
                        names.add(record.name)
                        yield record
            except StorageError as error:
                yield ImageRecord(name=f"{shard} (what is left of it)", read=_failing(str(error)))

    def fingerprint(self) -> str:
        """Hash of the tars' paths, sizes and times."""
        return files.fingerprint(self._shards())

    def _shards(self) -> list[str]:
        return files.find(self.url, ".tar")

    def _record(self, sample: Sample, url: str, shard: str) -> ImageRecord | None:
        ending = next((ending for ending in self.config.images if ending in sample.files), None)
        if ending is None:
            return None
        facts: dict[str, Any] = {}
        for name in self.config.metadata:
            if name in sample.files:
                facts.update(_facts(name, sample.files[name]()))
        return ImageRecord(
            name=f"{shard}/{sample.name}.{ending}",
            read=sample.files[ending],
            read_head=sample.files[ending],
            licence=self.config.licence,
            source_url=f"{url}#{sample.name}.{ending}",
            metadata=files.plain(facts),
        )


def _facts(ending: str, data: bytes) -> dict[str, Any]:
    text = data.decode(errors="replace")
    if ending.rsplit(".", 1)[-1] != "json":
        return {ending: text}
    try:
        facts = json.loads(text)
    except ValueError:
        return {ending: text}
    return facts if isinstance(facts, dict) else {ending: facts}


def _failing(reason: str) -> Callable[[], bytes]:
    def read() -> bytes:
        raise StorageError(reason)

    return read
