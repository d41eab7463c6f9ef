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
import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, PositiveInt, ValidationError

from lens_core.config.base import first_mistake
from lens_core.config.components import AutoencoderField, ModelField, SamplerField, TextEncoderField  # noqa: TC001
from lens_core.config.prediction import PredictionConfig  # noqa: TC001 (pydantic reads these at run time)
from lens_core.diffusion.diffusers_layout import model_index, scheduler_config
from lens_core.diffusion.loaded_model import LoadedModel
from lens_core.diffusion.model_source import local_model
from lens_core.diffusion.released import is_released, released_lens, text_features_of
from lens_core.diffusion.weights.checkpoint import load_weights, save_weights
from lens_core.errors import ArtifactError, ConfigError
from lens_core.registry import Registry, load_registry

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from lens_core.config.base import ComponentConfig

__all__ = ["FORMAT_VERSION", "LENS_JSON", "load_model_folder", "save_model_folder"]

FORMAT_VERSION = 1
LENS_JSON = "lens.json"


def save_model_folder(
    folder: Path,
    *,
    transformer: nn.Module,
    model: ComponentConfig,
    text_encoder: Any,
    autoencoder: Any,
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
        text_encoder: the encoder with its final weights; None where calls bring features.
        autoencoder: the autoencoder.
        sampler: the sampler's config.
        prediction: what the output means.
        image_size: (height, width) trained on.
        guidance: recommended guidance scale.
        guidance_rescale: whether guidance keeps each token's length.
        parents: name, type and hash of the artefacts it was made from.
        licence: what the weights may be used for.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; a model is saved in a folder of its own")
    (folder / "transformer").mkdir(parents=True)
    transformer_config = {"_class_name": type(transformer).__name__, **transformer.config}  # type: ignore[dict-item]
    _write_json(folder / "transformer" / "config.json", transformer_config)
    save_weights(transformer, folder / "transformer")
    if text_encoder is not None:
        text_encoder.save(folder)
    autoencoder.save(folder)
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler_config(sampler))
    _write_json(folder / "model_index.json", model_index(transformer, text_encoder, autoencoder, sampler))
    lens = {
        "format_version": FORMAT_VERSION,
        "model": model.model_dump(mode="json", exclude_none=True),
        "autoencoder": _settings(autoencoder),
        "text_encoder": None if text_encoder is None else _settings(text_encoder),
        "sampler": sampler.model_dump(mode="json"),
        "prediction": prediction.model_dump(mode="json"),
        "image_size": list(image_size),
        "guidance": {"scale": guidance, "rescale": guidance_rescale},
        "template": getattr(text_encoder, "template", None),
        "parents": parents,
        "licence": licence,
    }
    _write_json(folder / LENS_JSON, lens)


def load_model_folder(
    url: str,
    *,
    registry: Registry | None = None,
    dtype: torch.dtype | None = None,
    denoiser_dtype: torch.dtype | None = torch.float32,
) -> LoadedModel:
    """Read a model folder onto the CPU, in evaluation mode.

    A folder in the released layout without `lens.json` loads too, but for its text encoder: see `lens import`.

    Args:
        url: a folder, an fsspec URL, or owner/name on the Hugging Face hub.
        registry: where the parts' implementations come from; by default, what is installed.
        dtype: of all weights. By default `denoiser_dtype` for the denoiser, and as stored for pretrained parts.
        denoiser_dtype: where `dtype` says nothing; None as stored.

    Raises:
        ArtifactError: there is no model, or it is damaged; the message names the file and the key.
        LensError: a part's plugin or library is missing.
    """
    registry = registry or load_registry()
    with ExitStack() as source:
        loaded = _load(source.enter_context(local_model(url)), url, registry, dtype, denoiser_dtype)
        if loaded.text_encoder is not None:
            # A pretrained encoder is saved by copying what it was loaded from: that must be there as long as it is.
            weakref.finalize(loaded.text_encoder, source.pop_all().close)
        return loaded


def _load(
    folder: Path, url: str, registry: Registry, dtype: torch.dtype | None, denoiser_dtype: torch.dtype | None
) -> LoadedModel:
    where = folder / LENS_JSON
    if where.exists() or not is_released(folder):
        lens = _read_json(where, missing=f"{url} is no model folder (it has no {LENS_JSON})")
    else:
        lens = released_lens(folder)
    if lens.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{where} has format version {lens.get('format_version')}; this Lens reads version {FORMAT_VERSION}"
        )
    try:
        said = _LensJson.model_validate(lens, context={"registry": registry})
    except ValidationError as error:
        key, message = first_mistake(error)
        raise ArtifactError(f"{where}: {key}: {message}") from error

    autoencoder = (
        registry.spec("autoencoders", said.autoencoder.type)
        .load_target()
        .from_folder(said.autoencoder, folder, dtype=dtype)
    )
    encoder, width, layers = None, 0, 0
    if said.text_encoder is not None and where.exists():
        encoder_class = registry.spec("text_encoders", said.text_encoder.type).load_target()
        encoder = encoder_class.from_folder(said.text_encoder, folder, template=said.template, dtype=dtype)
        encoder.eval()
        width, layers = encoder.width, encoder.num_layers
    else:
        width, layers = text_features_of(folder)
    with torch.device("meta"):  # memory is taken as the weights are read
        transformer = registry.build(
            "models",
            said.model,
            in_channels=autoencoder.channels,
            enc_hidden_dim=width,
            num_text_layers=layers,
        )
    load_weights(transformer, folder / "transformer", dtype=dtype or denoiser_dtype)
    return LoadedModel(
        transformer=transformer.eval(),
        text_encoder=encoder,
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
    text_encoder: TextEncoderField | None
    sampler: SamplerField
    prediction: PredictionConfig
    image_size: tuple[PositiveInt, PositiveInt]
    guidance: _Guidance
    template: dict[str, str] | None = None


def _settings(part: Any) -> dict[str, Any]:
    """A part's config without the place where it was trained from: its weights are in the folder now."""
    settings: dict[str, Any] = part.config.model_dump(mode="json", exclude={"path"})
    return settings


def _read_json(path: Path, *, missing: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ArtifactError(missing) from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} is not a JSON object")
    return value


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
