"""What the filters ask of a model, and which class runs which path. Light: torch and ONNX enter in `load_*` only.

model = load_classifier("models/nsfw", asked_by="nsfw", device="cpu")
model.labels          # ["normal", "nsfw"]
model(pixels_HW3)     # float32 [2], the raw outputs
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lens_core.errors import ArtifactError, ConfigError
from lens_core.specs import load_dotted

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Classifier",
    "Embedder",
    "found",
    "labels_of",
    "load_classifier",
    "load_embedder",
    "model_files",
    "model_hash",
    "read_json",
]


class Embedder(Protocol):
    """An image to a vector; `hash` names the weights."""

    hash: str

    def __call__(self, pixels_HW3: np.ndarray) -> np.ndarray:
        """float32 [size]."""
        ...


class Classifier(Embedder, Protocol):
    """An image to one raw output per label."""

    labels: list[str]
    multi_label: bool


def load_classifier(path: str, *, asked_by: str, device: str) -> Classifier:
    """The image classifier in a folder or ONNX file.

    Raises:
        ConfigError: there is no such path.
        ArtifactError: a file is missing or damaged.
        MissingExtraError: the library that runs it is not installed.
    """
    name, extra = ("onnx", "onnx") if path.endswith(".onnx") else ("hugging_face", "vision")
    return _load(f"lens_core.filters.vision.{name}:Classifier", path, asked_by, device, extra)  # type: ignore[no-any-return]


def load_embedder(path: str, *, asked_by: str, device: str) -> Embedder:
    """The vision model in a folder; raises as `load_classifier`."""
    return _load("lens_core.filters.vision.hugging_face:Embedder", path, asked_by, device, "vision")  # type: ignore[no-any-return]


def found(path: str, *, asked_by: str) -> Path:
    """Where a model is.

    Raises:
        ConfigError: there is no such path.
    """
    if not Path(path).exists():
        raise ConfigError(f"{asked_by}: there is no model at {path!r}; give the path of a folder on this machine")
    return Path(path)


def model_files(place: Path) -> list[Path]:
    """What a model's answers depend on: in its folder, or beside its ONNX file."""
    folder, weights = (place.parent, f"{place.stem}*") if place.suffix == ".onnx" else (place, "*.safetensors")
    return [*folder.glob(weights), *folder.glob("*config.json")]


def _load(target: str, path: str, asked_by: str, device: str, extra: str) -> Any:
    place = found(path, asked_by=asked_by)
    return load_dotted(target, asked_by=asked_by, extra=f"lens-core[{extra}]")(place, device=device)


def read_json(file: Path) -> dict[str, Any]:
    """A model's JSON file.

    Raises:
        ArtifactError: it is absent or no JSON object.
    """
    try:
        data = json.loads(file.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read ({error.strerror}); the filter needs it") from error
    except ValueError as error:
        raise ArtifactError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{file} is not a JSON object")
    return data


def labels_of(config: dict[str, Any], count: int) -> list[str]:
    """Names of a classifier's outputs by its config.json, or their numbers if it does not name them."""
    names = config.get("id2label") or {}
    return [str(names.get(str(number), number)) for number in range(count)]


def model_hash(files: list[Path]) -> str:
    """16 hex digits that change when a model's files do."""
    digest = hashlib.sha256()
    for file in sorted(files):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]
