"""Folders in the released layout: what their configs say, in the words of `lens.json`.

They have model_index.json, transformer/, text_encoder/, tokenizer/, vae/ and scheduler/, and no `lens.json`. Two
strings of the prompt template are not in them either: `lens import` finds those.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lens_core.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LICENCE", "check_released", "is_released", "released_lens", "text_features_of"]

LICENCE = (
    "The release is MIT by its files; its model card asks for research use only. "
    "The licence of the FLUX.2 autoencoder is unclear."
)

_AUTOENCODERS = {"AutoencoderKLFlux2": "flux2", "AutoencoderKL": "autoencoder-kl"}
_ARCHITECTURE = ("num_layers", "num_attention_heads", "attention_head_dim", "axes_dims_rope")
_ALWAYS = {"patch_size": 2, "gate_mlp": True, "rms_norm": True, "multi_layer_encoder_feature": True}
_PARTS = (
    "model_index.json",
    "transformer/config.json",
    "text_encoder/config.json",
    "tokenizer",
    "vae/config.json",
    "scheduler/scheduler_config.json",
)


def is_released(folder: Path) -> bool:
    """Whether a folder has all that the released layout has."""
    return all((folder / part).exists() for part in _PARTS)


def check_released(folder: Path) -> None:
    """Say what is missing.

    Raises:
        ArtifactError: something is.
    """
    for part in _PARTS:
        if not (folder / part).exists():
            raise ArtifactError(f"{folder} is no folder in the released layout: {part} is missing")


def released_lens(
    folder: Path, *, steps: int = 20, guidance: float = 5.0, template: dict[str, str] | None = None
) -> dict[str, Any]:
    """The `lens.json` of a released folder.

    Args:
        folder: the folder.
        steps: sampler steps.
        guidance: guidance scale.
        template: the prompt template's strings, if they are known.

    Raises:
        ArtifactError: a config is damaged, or describes what was never released.
    """
    model, text_encoder = _network(folder)
    return {
        "format_version": 1,
        "model": model,
        "autoencoder": {"type": _autoencoder(folder)},
        "text_encoder": text_encoder,
        "sampler": {"type": "flow-euler", "steps": steps, "shift": "released"},
        "prediction": {"type": "velocity"},
        "image_size": [1024, 1024],
        "guidance": {"scale": guidance, "rescale": True},
        "template": template,
        "parents": [],
        "licence": LICENCE,
    }


def text_features_of(folder: Path) -> tuple[int, int]:
    """Width and number of layers of the text features that a model folder's denoiser takes, by its config.

    Raises:
        ArtifactError: the config does not say.
    """
    where = folder / "transformer" / "config.json"
    config = _read(where)
    try:
        return int(config["enc_hidden_dim"]), len(config["selected_layer_index"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{where} has no enc_hidden_dim and selected_layer_index: it is no Lens denoiser's"
        ) from error


def _network(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`model` and `text_encoder` of `lens.json`, from the two configs.

    Raises:
        ArtifactError: they are damaged, or describe what was never released.
    """
    where = folder / "transformer" / "config.json"
    transformer, language = _read(where), _read(folder / "text_encoder" / "config.json")
    if transformer.get("_class_name") != "LensTransformer2DModel":
        raise ArtifactError(f"{where}: _class_name is {transformer.get('_class_name')!r}, not LensTransformer2DModel")
    if language.get("model_type") != "gpt_oss":
        raise ArtifactError(
            f"{folder / 'text_encoder' / 'config.json'}: model_type is {language.get('model_type')!r}, not gpt_oss"
        )
    for key, value in _ALWAYS.items():
        if transformer.get(key, value) != value:
            raise ArtifactError(f"{where}: {key} is {transformer[key]!r}; every release has {value!r}")
    for key in (*_ARCHITECTURE, "selected_layer_index"):
        if key not in transformer:
            raise ArtifactError(f"{where}: {key} is missing")
    if transformer.get("enc_hidden_dim") != language.get("hidden_size"):
        raise ArtifactError(
            f"{where}: enc_hidden_dim is {transformer.get('enc_hidden_dim')!r}, but the text encoder's hidden_size is "
            f"{language.get('hidden_size')!r}"
        )
    model = {"type": "lens", "preset": "3.8b"} | {
        key: transformer[key] for key in (*_ARCHITECTURE, "selected_layer_index")
    }
    return model, {"type": "gpt-oss", "layers": transformer["selected_layer_index"]}


def _autoencoder(folder: Path) -> str:
    where = folder / "vae" / "config.json"
    name = _read(where).get("_class_name")
    if name not in _AUTOENCODERS:
        raise ArtifactError(f"{where}: _class_name is {name!r}; Lens knows {', '.join(_AUTOENCODERS)}")
    return _AUTOENCODERS[name]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} is not a JSON object")
    return value
