"""LoRAs on a module, with peft's layers.

    load_lora(model, Path("watercolour.safetensors"), name="watercolour")
    load_lora(model, Path("portraits.safetensors"), name="portraits", scale=0.5)   # both are on
    set_loras(model, {"watercolour": 0.8})                                         # the other is off
    fuse_loras(model)                                                              # no cost per step any more

A loaded LoRA stands beside its linears until it is unloaded, so that it can be weighed and switched at any time.
`lora_file` says which files fit: DoRA and LoKr are read too. A LoKr is then a LoRA like any other. A DoRA is on or off.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lens_core.diffusion.weights.checkpoint import write_safetensors
from lens_core.diffusion.weights.lora_file import DIFFUSERS_METADATA, Factors, read_lora
from lens_core.errors import ConfigError, MissingExtraError
from lens_core.specs import pip_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["fuse_loras", "load_lora", "lora_tensors", "save_lora", "set_loras", "unfuse_loras", "unload_loras"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def load_lora(
    module: nn.Module, source: Path | str | Mapping[str, Tensor], *, name: str = "default", scale: float = 1.0
) -> list[str]:
    """Put a LoRA on a module, beside those that are there already.

    Its weights take device and dtype of the linears, and no gradient; the module's own weights stay as they are.

    Args:
        module: a denoiser, or any module with linears.
        source: a .safetensors file, a folder that peft or diffusers wrote, or tensors by the names that a file has.
        name: what `set_loras` and `save_lora` call it.
        scale: how strongly it acts; 1 is as trained.

    Returns:
        The names of the linears that it changes.

    Raises:
        ArtifactError: the file is damaged, fits nothing in the module, or not altogether; the message names the keys.
            The module is as it was.
        ConfigError: the name is taken or no name, the scale is no number or a DoRA's is not 1, the file is no
            .safetensors file, or loras are fused.
        MissingExtraError: peft is not installed.
    """
    peft = _peft()
    layers = _layers(module)
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name for a LoRA: letters, digits, - and _, please")
    if name in _names(layers):
        raise ConfigError(f"there is a LoRA {name!r} already: unload_loras, or give this one another name")
    _check_scales({name: scale})
    _check_not_fused(layers)
    linears = {key: layer.get_base_layer() for key, layer in layers.items()}
    inside = tuple(key + "." for key in layers)
    for key, part in module.named_modules():
        if isinstance(part, nn.Linear) and not key.startswith(inside):
            linears[key] = part
    found = read_lora(source, {key: linear for key, linear in linears.items() if isinstance(linear, nn.Linear)})
    is_dora = any(factors.magnitude_O is not None for factors in found.values())
    _check_dora_scales({name: scale} if is_dora else {})

    active = _active(layers)
    trained = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    # peft would warn that the module has configs already, and each time freeze the module's own weights.
    configs = module.__dict__.pop("peft_config", {})
    try:
        peft.inject_adapter_in_model(_config(peft, found), module, adapter_name=name, low_cpu_mem_usage=True)
        module.peft_config = {**configs, **module.peft_config}  # type: ignore[dict-item, assignment]
        layers = _layers(module)
        _fill(layers, found, name, scale)
        _activate(layers, [*active, name])
    except BaseException:  # out of memory, or interrupted
        _withdraw(module, name, configs, active)
        raise
    finally:
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
    return list(found)


def set_loras(module: nn.Module, scales: Mapping[str, float]) -> None:
    """Say which of the loaded LoRAs act, and how strongly. Those that are not named are off.

    Args:
        module: the module that carries them.
        scales: by name; 1 is as trained, 0 is off, and negative ones turn it round.

    Raises:
        ConfigError: there is no LoRA of that name, a scale is no number or a DoRA's is not 1, or LoRAs are fused.
    """
    layers = _layers(module)
    _check_known(layers, scales)
    _check_scales(scales)
    _check_dora_scales({name: scale for name, scale in scales.items() if _is_dora(layers, name)})
    _check_not_fused(layers)
    for layer in layers.values():
        for name, scale in scales.items():
            layer.set_scale(name, scale)
    _activate(layers, list(scales))


def fuse_loras(module: nn.Module) -> None:
    """Add the LoRAs that are on, with their scales, to the module's own weights. What is fused already stays so.

    In half precision the sum is rounded; `unfuse_loras` then gives back the weights but for that rounding.
    """
    for layer in _adapted(module).values():
        if not layer.merged:
            layer.merge()


def unfuse_loras(module: nn.Module) -> None:
    """Subtract what `fuse_loras` added; the LoRAs are on as before."""
    for layer in _adapted(module).values():
        if layer.merged:
            layer.unmerge()


def unload_loras(module: nn.Module) -> None:
    """Take all LoRAs off: the module has its plain linears again.

    What is fused stays in the weights. So `fuse_loras` and then this make a model of its own, which can be saved.
    """
    for key, layer in _adapted(module).items():
        owner, _, name = key.rpartition(".")
        setattr(module.get_submodule(owner), name, layer.get_base_layer())
    module.__dict__.pop("peft_config", None)


def save_lora(module: nn.Module, path: Path, name: str = "default", *, prefix: str = "transformer.") -> None:
    """Write one LoRA, DoRA or LoKr of a module, as diffusers does, or for ComfyUI.

    Keys are `<prefix><linear>.lora_A.weight`. Readers disagree on where alpha stands, so that there is none: B is
    multiplied by alpha / rank. What `set_loras` said does not enter. A DoRA has `.lora_magnitude_vector` besides, a
    LoKr has `.lokr_w1` and the like instead, which peft's own layers hold while it is trained.

    Args:
        module: the module that carries it, or peft's wrapper around it.
        path: a .safetensors file.
        name: which LoRA.
        prefix: before each key; ComfyUI takes `diffusion_model.` for every model.

    Raises:
        ConfigError: there is no such LoRA, its form cannot be written, or `path` is no .safetensors file.
        StorageError: the file cannot be written.
    """
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: a LoRA is written as a .safetensors file")
    write_safetensors(path, *lora_tensors(module, name, prefix=prefix))


def lora_tensors(
    module: nn.Module, name: str = "default", *, prefix: str = "transformer."
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of the file that `save_lora` writes; see there."""
    layers = {key: layer for key, layer in _adapted(module).items() if name in layer._get_available_adapters()}
    if not layers:
        _check_known(_adapted(module), [name])
    weights: dict[str, Tensor] = {}
    ranks: dict[str, Any] = {}
    for key, layer in layers.items():
        linear = key.removeprefix("base_model.model.")
        if not hasattr(layer, "lora_A"):
            weights |= {f"{prefix}{linear}.{part}": tensor for part, tensor in _lokr_parts(layer, name).items()}
            continue
        rank, is_dora = layer.r[name], name in layer.lora_magnitude_vector
        if layer.lora_bias.get(name) or (name in layer.lora_variant and not is_dora):
            raise ConfigError(f"the LoRA {name!r} is no plain one: its form cannot be written")
        trained = layer.lora_alpha[name] / (math.sqrt(rank) if layer.use_rslora[name] else rank)
        weights[f"{prefix}{linear}.lora_A.weight"] = layer.lora_A[name].weight.detach()
        weights[f"{prefix}{linear}.lora_B.weight"] = layer.lora_B[name].weight.detach() * trained
        if is_dora:
            weights[f"{prefix}{linear}.lora_magnitude_vector"] = layer.lora_magnitude_vector[name].weight.detach()
        ranks[linear] = rank
    metadata = {"format": "pt"}
    if ranks:
        metadata[DIFFUSERS_METADATA] = json.dumps(_diffusers_config(ranks, _is_dora(layers, name)))
    return weights, metadata


def _fill(layers: Mapping[str, Any], found: Mapping[str, Factors], name: str, scale: float) -> None:
    """Give the layers of a LoRA its weights."""
    for key, factors in found.items():
        weight = layers[key].get_base_layer().weight
        for linear, factor in ((layers[key].lora_A[name], factors.down_RI), (layers[key].lora_B[name], factors.up_OR)):
            linear.weight = nn.Parameter(factor.to(weight.device, weight.dtype), requires_grad=False)
        if factors.magnitude_O is not None:
            magnitude_O = factors.magnitude_O.to(weight.device, weight.dtype)
            layers[key].lora_magnitude_vector[name].weight = nn.Parameter(magnitude_O, requires_grad=False)
        layers[key].set_scale(name, scale)


def _withdraw(module: nn.Module, name: str, configs: Mapping[str, Any], active: list[str]) -> None:
    """Take off a LoRA that was put on in part; linears that carry no other are plain again."""
    layers = _layers(module)
    _activate(layers, active)  # first, since peft turns on another for one that is deleted while it is on
    for key, layer in layers.items():
        layer.delete_adapter(name)
        layer.lora_variant.pop(name, None)
        if not layer._get_available_adapters():
            owner, _, own = key.rpartition(".")
            setattr(module.get_submodule(owner), own, layer.get_base_layer())
    module.__dict__.pop("peft_config", None)
    if configs:
        module.peft_config = configs  # type: ignore[assignment]


def _lokr_parts(layer: Any, name: str) -> dict[str, Tensor]:
    """The factors of a LoKr under their own names; the first is multiplied by alpha / rank, since there is no alpha."""
    parts: dict[str, Tensor] = {}
    for part in layer.adapter_layer_names:
        if name in getattr(layer, part):
            parts[part] = getattr(layer, part)[name].detach()
    if "lokr_t2" in parts:
        raise ConfigError(f"the LoKr {name!r} is a convolution's: its form cannot be written")
    first = "lokr_w1" if "lokr_w1" in parts else "lokr_w1_a"
    return parts | {first: parts[first] * (layer.alpha[name] / layer.r[name])}


def _config(peft: Any, found: Mapping[str, Factors]) -> Any:
    """Exactly these linears, each with its rank and alpha. Peft takes regexes for names."""
    first = next(iter(found.values()))
    return peft.LoraConfig(
        r=first.rank,
        lora_alpha=first.alpha,
        target_modules=_any_of(found),
        rank_pattern=_patterns({key: factors.rank for key, factors in found.items() if factors.rank != first.rank}),
        alpha_pattern=_patterns({key: factors.alpha for key, factors in found.items() if factors.alpha != first.alpha}),
        init_lora_weights=False,
        use_dora=first.magnitude_O is not None,
        inference_mode=True,
    )


def _patterns(values: Mapping[str, float]) -> dict[str, float]:
    """A regex per value rather than per name: peft tries each on each module."""
    names = defaultdict(list)
    for name, value in values.items():
        names[value].append(name)
    return {f"^({_any_of(some)})": value for value, some in names.items()}


def _any_of(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, names))


def _diffusers_config(ranks: Mapping[str, int], is_dora: bool) -> dict[str, Any]:
    """What diffusers makes a `LoraConfig` of: the most frequent rank, and the linears that have another."""
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {key: own for key, own in ranks.items() if own != rank}
    same = {"r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": others, "use_dora": is_dora}
    return {f"transformer.{field}": value for field, value in (same | {"target_modules": list(ranks)}).items()}


def _layers(module: nn.Module) -> dict[str, Any]:
    """The linears that carry LoRAs, by name."""
    layer_class = _peft().tuners.lora.LoraLayer
    return {key: part for key, part in module.named_modules() if isinstance(part, layer_class)}


def _adapted(module: nn.Module) -> dict[str, Any]:
    """The linears that carry anything of peft's: LoRAs, or a LoKr in training."""
    layer_class = _peft().tuners.tuners_utils.BaseTunerLayer
    return {key: part for key, part in module.named_modules() if isinstance(part, layer_class)}


def _names(layers: Mapping[str, Any]) -> list[str]:
    return sorted({name for layer in layers.values() for name in layer._get_available_adapters()})


def _is_dora(layers: Mapping[str, Any], name: str) -> bool:
    return any(name in getattr(layer, "lora_magnitude_vector", ()) for layer in layers.values())


def _active(layers: Mapping[str, Any]) -> list[str]:
    """All layers agree, also on names that they do not have."""
    return list(next(iter(layers.values())).active_adapters) if layers else []


def _activate(layers: Mapping[str, Any], names: list[str]) -> None:
    for layer in layers.values():
        trained = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
        layer.set_adapter(names)
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)


def _check_known(layers: Mapping[str, Any], names: Iterable[str]) -> None:
    have = _names(layers)
    for name in names:
        if name not in have:
            there = f"there are {', '.join(map(repr, have))}" if have else "none is loaded"
            raise ConfigError(f"there is no LoRA {name!r}: {there}")


def _check_scales(scales: Mapping[str, float]) -> None:
    for name, scale in scales.items():
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
            raise ConfigError(f"the scale {scale!r} of the LoRA {name!r} is no finite number")


def _check_dora_scales(scales: Mapping[str, float]) -> None:
    """A DoRA's rows have the length that goes with the whole of it: peft's scale would bend it, not weaken it."""
    for name, scale in scales.items():
        if scale != 1:
            raise ConfigError(f"{name!r} is a DoRA, which is on or off: its scale is 1, not {scale}")


def _check_not_fused(layers: Mapping[str, Any]) -> None:
    if any(layer.merged for layer in layers.values()):
        raise ConfigError("the LoRAs are fused into the weights: unfuse_loras first")


def _peft() -> Any:
    """Peft, when it is needed: it brings transformers along."""
    try:
        return importlib.import_module("peft")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"LoRAs need the library {error.name!r}, which is not installed; "
            f"install it with: {pip_line('lens-core[diffusion]')}"
        ) from error
