"""A denoiser in one file, as ComfyUI keeps models: the released keys, bare or under a prefix.

ComfyUI's Lens has the released module names, so no key is renamed. A file from `models/diffusion_models` holds the
denoiser alone, bare or under `diffusion_model.`; a whole checkpoint holds it under `model.diffusion_model.` beside
a text encoder and an autoencoder, which are left where they are. Other writers use `transformer.` or `net.`. So the
prefix is taken from the file: it is whatever stands before `transformer_blocks.0.attn.img_qkv.weight`.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import torch

from lens_core.diffusion.models.lens.model import LensTransformer2DModel
from lens_core.diffusion.weights.checkpoint import fill, plain_weights, write_safetensors
from lens_core.diffusion.weights.stored import SafetensorsFile, StoredTensor
from lens_core.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["infer_config", "load_single_file", "save_single_file"]

_SIGN = "transformer_blocks.0.attn.img_qkv.weight"
_NEIGHBOURS = ("text_encoders.", "text_encoder.", "cond_stage_model.", "conditioner.", "vae.", "first_stage_model.")
_QUANTISED = re.compile(r"scaled_fp8|.*\.(comfy_quant|scale_weight|scale_input|weight_scale(_2)?|input_scale)")
_METADATA = "lens_config"
_UNSEEN = ("patch_size", "out_channels", "axes_dims_rope", "selected_layer_index")
_RELEASED_AXES = {64: [8, 28, 28]}  # by channels per head
_RELEASED_LAYERS = {(2880, 4): [5, 11, 17, 23]}  # by width and number of text layers


def load_single_file(
    path: Path, *, dtype: torch.dtype | None = torch.float32, config: Mapping[str, Any] | None = None
) -> LensTransformer2DModel:
    """The denoiser in a single file, on the CPU and in evaluation mode.

    Args:
        path: the file. Other models in it are ignored.
        dtype: of the weights; None keeps that of the file.
        config: fields of `LensTransformer2DModel` that are not to be taken from the file; see `infer_config`.

    Raises:
        ArtifactError: the file is damaged, holds no denoiser, or not all of it; the message names the key or byte.
        ConfigError: `config` has a field that does not exist, lacks one that the file cannot tell, or describes no
            model.
    """
    file = SafetensorsFile(path)
    prefix = _prefix(file)
    keys = {key.removeprefix(prefix): key for key in file.tensors if key.startswith(prefix)}
    if not prefix:
        keys = {key: key for key in keys if not key.startswith(_NEIGHBOURS)}
    if quantised := [key for key in keys if _QUANTISED.fullmatch(key)]:
        raise ArtifactError(f"{path} is quantised (it has {quantised[0]!r}): take the bf16 or fp32 file of the model")
    fields = infer_config({key: file.tensors[name] for key, name in keys.items()}, path=path)
    fields |= _noted(file) | dict(config or {})
    if fields["axes_dims_rope"] is None:
        raise ConfigError(
            f"{path} does not say how its heads of {fields['attention_head_dim']} channels encode positions: "
            "give config={'axes_dims_rope': [frame, height, width]}"
        )
    try:
        with torch.device("meta"):
            model = LensTransformer2DModel(**fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    fill(model, {key: (file, name) for key, name in keys.items()}, where=path, dtype=dtype)
    return model.eval()


def save_single_file(module: LensTransformer2DModel, path: Path, *, prefix: str = "") -> None:
    """Write a denoiser as a single file, in the dtype that its weights have.

    Args:
        module: the denoiser.
        path: the file; it is written under a temporary name and then renamed.
        prefix: before each key; `model.diffusion_model.` is that of a whole checkpoint of ComfyUI.

    Raises:
        ConfigError: the module carries LoRAs.
        StorageError: the file cannot be written.
    """
    config = {field: module.config[field] for field in _UNSEEN}
    metadata = {"format": "pt", "modelspec.architecture": "lens", _METADATA: json.dumps(config)}
    write_safetensors(path, {prefix + key: tensor for key, tensor in plain_weights(module).items()}, metadata)


def infer_config(tensors: Mapping[str, StoredTensor], *, path: Path) -> dict[str, Any]:
    """The fields of a denoiser whose tensors are given by their released names.

    Widths, channels and numbers of layers are the tensors' shapes. Three fields cannot be seen. `patch_size` is 2 as
    in every release where the output's rows allow it, else 1; it changes nothing but the config. `selected_layer_index`
    has the released numbers for four layers of gpt-oss, else 0, 1, 2…; only how many there are matters here.
    `axes_dims_rope` is the released (8, 28, 28) for heads of 64 channels, and None for others: a wrong guess would
    load and draw nonsense.

    Args:
        tensors: dtype and shape by name.
        path: the file that messages name.

    Raises:
        ArtifactError: a tensor that tells is missing, or shapes contradict each other.
    """

    def shape(key: str, size: int) -> tuple[int, ...]:
        if key not in tensors:
            raise ArtifactError(f"{path} does not hold all of a denoiser: {key!r} is missing")
        if len(tensors[key].shape) != size or 0 in tensors[key].shape:
            raise ArtifactError(f"{path} holds no denoiser of Lens: {key!r} has shape {tensors[key].shape}")
        return tensors[key].shape

    dim, in_channels = shape("img_in.weight", 2)
    (head_dim,) = shape("transformer_blocks.0.attn.norm_q.weight", 1)
    (width,) = shape("txt_norm.0.weight", 1)
    rows, _ = shape("proj_out.weight", 2)
    if dim % head_dim:
        raise ArtifactError(f"{path} holds no denoiser of Lens: width {dim} is no multiple of {head_dim} per head")
    text_layers = _count(tensors, "txt_norm")
    patch_size = 1 if rows % 4 else 2
    return {
        "patch_size": patch_size,
        "in_channels": in_channels,
        "out_channels": rows // patch_size**2,
        "num_layers": _count(tensors, "transformer_blocks"),
        "num_attention_heads": dim // head_dim,
        "attention_head_dim": head_dim,
        "enc_hidden_dim": width,
        "axes_dims_rope": _RELEASED_AXES.get(head_dim),
        "selected_layer_index": _RELEASED_LAYERS.get((width, text_layers), list(range(text_layers))),
    }


def _prefix(file: SafetensorsFile) -> str:
    found = sorted(key.removesuffix(_SIGN) for key in file.tensors if key.endswith(_SIGN))
    found = [prefix for prefix in found if not prefix or prefix.endswith(".")]
    if not found:
        some = ", ".join(map(repr, list(file.tensors)[:3])) or "nothing"
        raise ArtifactError(f"{file.path} holds no denoiser of Lens: no key ends with {_SIGN!r} (it holds {some})")
    if len(found) > 1:
        raise ArtifactError(f"{file.path} holds {len(found)} denoisers, under {' and '.join(map(repr, found))}")
    return found[0]


def _count(tensors: Mapping[str, StoredTensor], part: str) -> int:
    """How many different numbers follow `part`; a gap shows later, as a key that is missing."""
    return len({key.split(".")[1] for key in tensors if key.startswith(part + ".")})


def _noted(file: SafetensorsFile) -> dict[str, Any]:
    """What `save_single_file` wrote of the fields that shapes do not show."""
    if _METADATA not in file.metadata:
        return {}
    try:
        noted = dict(json.loads(file.metadata[_METADATA]))
        fields = {field: noted[field] for field in _UNSEEN if field in noted}
        numbers = [*fields.get("axes_dims_rope", []), *fields.get("selected_layer_index", [])]
        numbers += [fields.get("patch_size", 1), fields.get("out_channels") or 1]
    except (ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{file.path}: its metadata {_METADATA!r} cannot be read: {error}") from error
    if not all(type(number) is int and 0 <= number < 2**16 for number in numbers):
        raise ArtifactError(f"{file.path}: its metadata {_METADATA!r} holds no numbers of a denoiser")
    return fields
