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
    from collections.abc import Iterator

    from lens_core.datasets.webdataset.config import WebDatasetConfig

__all__ = ["WebDataset"]

MAX_METADATA = 1 << 20


class WebDataset:
    """One record per sample that has an image; the rest of a damaged tar is one record that cannot be read."""

    def __init__(self, config: WebDatasetConfig, *, base: str = ".", seed: int = 0):
        self.config = config
        self.url = urls.resolve(config.url, base)

    def __iter__(self) -> Iterator[ImageRecord]:
        shards = self._shards()
        prefix = self.url.rstrip("/") + "/"
        for url in shards:
            shard = files.as_text(url.removeprefix(prefix) if url != self.url else url.rsplit("/", 1)[-1])
            names: set[str] = set()
            try:
                for sample in Tar(url).samples():
                    record = self._record(sample, url, shard)
                    if record is not None and record.name not in names:
                        names.add(record.name)
                        yield record
            except StorageError as error:
                yield ImageRecord(name=f"{shard} (what is left of it)", read=files.failing(files.as_text(str(error))))

    def fingerprint(self) -> str:
        """Hash of the tars' paths, sizes and times."""
        return files.fingerprint(self._shards())

    def _shards(self) -> list[str]:
        return files.find(self.url, ".tar")

    def _record(self, sample: Sample, url: str, shard: str) -> ImageRecord | None:
        ending = next((ending for ending in self.config.images if ending in sample.files), None)
        if ending is None:
            return None
        name = f"{shard}/{sample.name}.{ending}"
        facts: dict[str, Any] = {}
        for kept in self.config.metadata:
            if kept not in sample.files:
                continue
            data = sample.files[kept](MAX_METADATA + 1)
            if len(data) > MAX_METADATA:
                where = f"{files.as_text(url)}#{sample.name}.{kept}"
                reason = f"{where} has more than {MAX_METADATA:,} bytes; leave {kept!r} out of `metadata`"
                return ImageRecord(name=name, read=files.failing(reason))
            facts.update(_facts(kept, data))
        return ImageRecord(
            name=name,
            read=sample.files[ending],
            read_head=sample.files[ending],
            licence=self.config.licence,
            source_url=f"{files.as_text(url)}#{sample.name}.{ending}",
            metadata=facts,
        )


def _facts(ending: str, data: bytes) -> dict[str, Any]:
    text = data.decode(errors="replace")
    try:
        facts = json.loads(text) if ending.rsplit(".", 1)[-1] == "json" else text
        return files.plain(facts if isinstance(facts, dict) else {ending: facts})
    except (ValueError, RecursionError):
        return files.plain({ending: text})
