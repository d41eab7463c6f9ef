"""A dataset that Hugging Face datasets has saved to disk: Arrow streams, and JSON files that say what is in them.

    dataset_dict.json                  {"splits": ["train", "test"]}, if there are several; each is a folder
    state.json                         {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], …}
    dataset_info.json                  {"features": {"image": {"_type": "Image"}, …}, "license": …, …}
    data-00000-of-00001.arrow          the rows

A dataset of Parquet files, as the Hub keeps them, is read by the source `parquet`.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lens_core.contracts import ImageRecord
from lens_core.datasets import files
from lens_core.errors import ConfigError, StorageError
from lens_core.storage import urls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lens_core.datasets.huggingface.config import HuggingFaceConfig

__all__ = ["HuggingFace"]


class HuggingFace:
    """One record per row; all other columns but bytes are metadata, with labels by their names."""

    def __init__(self, config: HuggingFaceConfig, *, base: str = ".", seed: int = 0):
        self.config = config
        self.url = urls.resolve(config.url, base)

    def __iter__(self) -> Iterator[ImageRecord]:
        folder = self._folder()
        info = _json(urls.join(folder, "dataset_info.json"))
        features = info.get("features") or {}
        column = self._image_column(features, folder)
        labels = {name: spec["names"] for name, spec in features.items() if _type(spec) == "ClassLabel"}
        licence = self.config.licence or str(info.get("license") or "")
        number = 0
        for url in self._files(folder):
            for batch in _batches(url):
                if column not in batch.schema.names:
                    raise ConfigError(f"{url} has no column {column!r}; it has: {', '.join(batch.schema.names)}")
                images = batch.column(column)
                others = [name for name, spec in features.items() if name != column and _type(spec) != "Image"]
                rows = batch.select([name for name in others if name in batch.schema.names]).to_pylist()
                for row, facts in enumerate(rows or [{}] * len(batch)):
                    yield ImageRecord(
                        name=f"{number:08d}",
                        read=partial(_read, images, row, folder),
                        licence=licence,
                        source_url=f"{url}#{number}",
                        metadata=files.plain({name: _named(facts[name], labels.get(name)) for name in facts}),
                    )
                    number += 1

    def fingerprint(self) -> str:
        """Hash of the Arrow files' paths, sizes and times."""
        return files.fingerprint(self._files(self._folder()))

    def _folder(self) -> str:
        """The folder of the split."""
        several = urls.join(self.url, "dataset_dict.json")
        if not urls.exists(several):
            return self.url
        splits = [str(name) for name in _json(several).get("splits", [])]
        split = self.config.split or (splits[0] if len(splits) == 1 else None)
        if split not in splits:
            what = f"there is no split {split!r}" if split else "name a 'split'"
            raise ConfigError(f"{self.url}: {what}; it has: {', '.join(splits)}")
        return urls.join(self.url, split)

    def _files(self, folder: str) -> list[str]:
        state = _json(urls.join(folder, "state.json"))
        try:
            return [urls.join(folder, entry["filename"]) for entry in state["_data_files"]]
        except (KeyError, TypeError) as error:
            raise StorageError(f"{folder}/state.json names no data files") from error

    def _image_column(self, features: dict[str, Any], folder: str) -> str:
        if self.config.image:
            return self.config.image
        found = [name for name, spec in features.items() if _type(spec) == "Image"]
        if len(found) != 1:
            known = ", ".join(found or features) or "none"
            raise ConfigError(f"{folder}: say which column is the 'image'; it has: {known}")
        return found[0]


def _read(images: Any, row: int, folder: str) -> bytes:
    return files.image_bytes(images[row].as_py(), folder)


def _batches(url: str) -> Iterator[pa.RecordBatch]:
    """Record batches one after the other; a local file is mapped, so that only what is used is read."""
    try:
        source = pa.memory_map(str(urls.local_path(url))) if urls.is_local(url) else urls.open_read(url)
        with source, pa.ipc.open_stream(source) as reader:
            yield from reader
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{url} cannot be read: {' '.join(str(error).split())}") from error


def _json(url: str) -> dict[str, Any]:
    try:
        data = json.loads(urls.read_text(url))
    except ValueError as error:
        raise StorageError(f"{url} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise StorageError(f"{url} is not a JSON object")
    return data


def _type(spec: Any) -> str:
    return str(spec.get("_type", "")) if isinstance(spec, dict) else ""


def _named(value: Any, names: list[str] | None) -> Any:
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value
