"""The model folder: everything that sampling, evaluating and serving read, and nothing else.

    lens.json                    what the parts are and how they belong together
    model_index.json             the diffusers index of the parts
    transformer/                 config.json, diffusion_pytorch_model.safetensors
    text_encoder/                config.json, model.safetensors, and the encoder's own files (tokenizer.json)
    vae/, scheduler/             config.json, scheduler_config.json

Weights are safetensors, loaded strictly. The folder may carry more (a manifest, metrics): readers ignore it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file

from lens_core import __version__
from lens_core.config.components import AutoencoderField, ModelField, SamplerField, TextEncoderField  # noqa: TC001
from lens_core.config.prediction import PredictionConfig  # noqa: TC001 (pydantic reads these at run time)
from lens_core.errors import ArtifactError, StorageError
from lens_core.registry import Registry, load_registry
from lens_core.storage import urls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch
    from torch import nn

    from lens_core.config.base import ComponentConfig
    from lens_core.contracts.diffusion import Autoencoder

__all__ = ["FORMAT_VERSION", "LENS_JSON", "LoadedModel", "load_model_folder", "save_model_folder"]

FORMAT_VERSION = 1
LENS_JSON = "lens.json"
_WEIGHTS = {"transformer": "diffusion_pytorch_model.safetensors", "text_encoder": "model.safetensors"}


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """The parts of a model folder, ready to draw with.

    Args:
        transformer: the denoiser.
        text_encoder: prompts to features.
        autoencoder: between tokens and pixels.
        sampler: the config of the sampler that the model asks for.
        prediction: what the denoiser's output means.
        image_size: (height, width) in pixels that it was trained on.
        guidance: the guidance scale that the model asks for.
        guidance_rescale: see `lens_core.diffusion.guidance.guide`.
        lens: the whole `lens.json`.
        url: where it came from.
        registry: where further components, such as another sampler, come from.
    """

    transformer: Any
    text_encoder: Any
    autoencoder: Autoencoder
    sampler: ComponentConfig
    prediction: PredictionConfig
    image_size: tuple[int, int]
    guidance: float
    guidance_rescale: bool
    lens: dict[str, Any]
    url: str
    registry: Registry

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.transformer.parameters()).device

    def to(self, device: torch.device) -> LoadedModel:
        """Move the weights."""
        self.transformer.to(device)
        self.text_encoder.to(device)
        return self


def save_model_folder(
    folder: Path,
    *,
    transformer: nn.Module,
    model: ComponentConfig,
    text_encoder: Any,
    autoencoder: ComponentConfig,
    sampler: ComponentConfig,
    prediction: PredictionConfig,
    image_size: tuple[int, int],
    guidance: float,
    guidance_rescale: bool,
    parents: list[dict[str, str]],
    licence: str,
) -> None:
    """Write a model folder. The folder is made; the caller moves it into place when it is complete.

    Args:
        folder: an empty or new folder.
        transformer: the denoiser with its final weights.
        model: the denoiser's config.
        text_encoder: the encoder with its final weights.
        autoencoder: the autoencoder's config.
        sampler: the sampler's config.
        prediction: what the output means.
        image_size: (height, width) trained on.
        guidance: recommended guidance scale.
        guidance_rescale: whether guidance keeps each token's length.
        parents: name, type and hash of the artefacts it was made from.
        licence: what the weights may be used for.
    """
    (folder / "transformer").mkdir(parents=True)
    (folder / "text_encoder").mkdir()
    transformer_config = {"_class_name": type(transformer).__name__, **transformer.config}  # type: ignore[dict-item]
    _write_json(folder / "transformer" / "config.json", transformer_config)
    save_file(_plain(transformer), folder / "transformer" / _WEIGHTS["transformer"])
    _write_json(folder / "text_encoder" / "config.json", text_encoder.config.model_dump(mode="json"))
    for name, text in text_encoder.files().items():
        (folder / "text_encoder" / name).write_text(text, encoding="utf-8")
    save_file(_plain(text_encoder), folder / "text_encoder" / _WEIGHTS["text_encoder"])
    for part, name, config in (
        ("vae", "config.json", autoencoder),
        ("scheduler", "scheduler_config.json", sampler),
    ):
        (folder / part).mkdir()
        _write_json(folder / part / name, config.model_dump(mode="json"))
    index = {
        "_class_name": "LensPipeline",
        "_lens_version": __version__,
        "scheduler": ["lens_core", sampler.type],
        "text_encoder": ["lens_core", text_encoder.config.type],
        "transformer": ["lens_core", type(transformer).__name__],
        "vae": ["lens_core", autoencoder.type],
    }
    _write_json(folder / "model_index.json", index)
    lens = {
        "format_version": FORMAT_VERSION,
        "model": model.model_dump(mode="json", exclude_none=True),
        "autoencoder": autoencoder.model_dump(mode="json"),
        "text_encoder": text_encoder.config.model_dump(mode="json"),
        "sampler": sampler.model_dump(mode="json"),
        "prediction": prediction.model_dump(mode="json"),
        "image_size": list(image_size),
        "guidance": {"scale": guidance, "rescale": guidance_rescale},
        "template": None,
        "parents": parents,
        "licence": licence,
    }
    _write_json(folder / LENS_JSON, lens)


def load_model_folder(url: str, *, registry: Registry | None = None) -> LoadedModel:
    """Read a model folder onto the CPU, in evaluation mode.

    Args:
        url: a folder or fsspec URL.
        registry: where the parts' implementations come from; by default, what is installed.

    Raises:
        ArtifactError: there is no model, or it is damaged; the message names the file and the key.
        LensError: a part's plugin or library is missing.
    """
    registry = registry or load_registry()
    lens = _read_json(url, LENS_JSON, missing=f"{url} is no model folder (it has no {LENS_JSON})")
    if lens.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{urls.join(url, LENS_JSON)} has format version {lens.get('format_version')}; "
            f"this Lens reads version {FORMAT_VERSION}"
        )
    try:
        said = _LensJson.model_validate(lens, context={"registry": registry})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{urls.join(url, LENS_JSON)}: {key}: {first['msg']}") from error
    autoencoder = registry.build("autoencoders", said.autoencoder)
    encoder_class = registry.spec("text_encoders", said.text_encoder.type).load_target()
    encoder = encoder_class.from_files(said.text_encoder, _TextFiles(urls.join(url, "text_encoder")))
    transformer = registry.build(
        "models",
        said.model,
        in_channels=autoencoder.channels,
        enc_hidden_dim=encoder.width,
        num_text_layers=encoder.num_layers,
    )
    _load_weights(transformer, url, "transformer")
    _load_weights(encoder, url, "text_encoder")
    return LoadedModel(
        transformer=transformer.eval(),
        text_encoder=encoder.eval(),
        autoencoder=autoencoder,
        sampler=said.sampler,
        prediction=said.prediction,
        image_size=said.image_size,
        guidance=said.guidance.scale,
        guidance_rescale=said.guidance.rescale,
        lens=lens,
        url=url,
        registry=registry,
    )


class _Guidance(BaseModel):
    scale: float
    rescale: bool


class _LensJson(BaseModel):
    """What is read of a `lens.json`; fields of a later day are ignored."""

    model: ModelField
    autoencoder: AutoencoderField
    text_encoder: TextEncoderField
    sampler: SamplerField
    prediction: PredictionConfig
    image_size: tuple[PositiveInt, PositiveInt]
    guidance: _Guidance


class _TextFiles(Mapping[str, str]):
    """The files beside an encoder's weights, each read when the encoder asks for it: there may be others."""

    def __init__(self, folder: str):
        self.folder = folder
        self.names = urls.ls(folder)

    def __getitem__(self, name: str) -> str:
        where = urls.join(self.folder, name)
        if name not in self.names:
            raise ArtifactError(f"{where} is missing")
        return urls.read_text(where)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _load_weights(module: nn.Module, url: str, part: str) -> None:
    where = urls.join(url, part, _WEIGHTS[part])
    try:
        weights = load_file(urls.local_path(where)) if urls.is_local(url) else load(urls.read_bytes(where))
    except (OSError, StorageError) as error:
        raise ArtifactError(f"{where} cannot be read: {error}") from error
    except SafetensorError as error:
        raise ArtifactError(f"{where} is damaged or truncated: {error}") from error
    own = module.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    wrong = [key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape]
    if missing or extra or wrong:
        detail = (
            f"{missing[0]!r} is missing"
            if missing
            else f"{extra[0]!r} is unknown"
            if extra
            else f"{wrong[0]!r} has shape {tuple(weights[wrong[0]].shape)}, not {tuple(own[wrong[0]].shape)}"
        )
        count = len(missing) + len(extra) + len(wrong)
        raise ArtifactError(
            f"{where} does not fit its config: {detail}" + (f" (and {count - 1} more)" if count > 1 else "")
        )
    module.load_state_dict(weights, strict=True)


def _plain(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def _read_json(url: str, name: str, *, missing: str) -> dict[str, Any]:
    where = urls.join(url, name)
    if not urls.exists(where):
        raise ArtifactError(missing)
    try:
        value = json.loads(urls.read_bytes(where))
    except ValueError as error:
        raise ArtifactError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{where} is not a JSON object")
    return value


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
