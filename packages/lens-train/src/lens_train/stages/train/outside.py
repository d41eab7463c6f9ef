"""What a train stage reads outside its run: the model in `start`. Light: a stage that is done asks for it too."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from lens_core.config.base import config_hash
from lens_core.storage import urls
from lens_core.storage.artifacts import MANIFEST

if TYPE_CHECKING:
    from lens_core.registry import Registry
    from lens_train.stages.train.config import TrainStageConfig

__all__ = ["fingerprint"]


def fingerprint(config: TrainStageConfig, *, registry: Registry, base: str, seed: int) -> str:
    """A text that changes with the model that training goes on from; empty if it begins with a fresh one.

    Raises:
        StorageError: there is no such folder.
    """
    if not config.start:
        return ""
    url = urls.resolve(config.start, base)
    files = [MANIFEST] if urls.exists(urls.join(url, MANIFEST)) else urls.walk(url)  # a manifest has all hashes
    states = {file: _state(urls.join(url, file)) for file in files if file.endswith((".json", ".safetensors"))}
    return config_hash(states)


def _state(url: str) -> str:
    """Of a file: its content, or for weights, which are large, what tells cheaply that it has changed."""
    return urls.version(url) if url.endswith(".safetensors") else hashlib.sha256(urls.read_bytes(url)).hexdigest()
