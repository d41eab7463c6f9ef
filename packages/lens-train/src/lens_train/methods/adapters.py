"""LoRA, DoRA and LoKr in training, with peft's layers.

    loaded = load_start("models/lens")
    add_adapters(loaded.transformer, method, seed=0)          # before it is sharded
    ...                                                       # train: only the adapters take a gradient
    plain = finish_adapters(fresh, method, weights, folder)   # the adapter's files, and a model that has it inside

The order matters: adapters go on a module that has its weights (a DoRA begins with the lengths of their rows) and is
not yet sharded, so that each block's adapters are gathered and freed with it.
"""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lens_core.diffusion.weights.lora import fuse_loras, save_lora, unload_loras
from lens_core.errors import ConfigError, MissingExtraError
from lens_core.specs import pip_line

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lens_train.methods.config import LoraMethod

__all__ = [
    "COMFYUI_FILE",
    "LORA_FILE",
    "adapter_parameters",
    "add_adapters",
    "finish_adapters",
    "freeze",
]

NAME = "default"
LORA_FILE = "lora.safetensors"
COMFYUI_FILE = "lora-comfyui.safetensors"


def add_adapters(module: nn.Module, method: LoraMethod, *, seed: int) -> list[str]:
    """Put fresh adapters on a denoiser, in place. They change nothing yet, and alone take a gradient.

    Linears that cannot reach the output (the text half of the last block) get none. Adapters are in float32, or
    float64 beside such weights, whatever half precision the model is in.

    Args:
        module: with its weights, not sharded, without adapters.
        method: which kind, how large, and where.
        seed: of their first values; the same for the same seed.

    Returns:
        The names of the linears that got one.

    Raises:
        ConfigError: a target is no linear of the module, or can get no adapter.
        MissingExtraError: peft is not installed.
    """
    peft = _peft()
    names = _targets(module, method)
    pattern = "|".join(map(re.escape, names))
    alpha: Any = method.rank if method.alpha is None else method.alpha
    config = (
        peft.LoKrConfig(r=method.rank, alpha=alpha, target_modules=pattern)
        if method.kind == "lokr"
        else peft.LoraConfig(
            r=method.rank, lora_alpha=alpha, target_modules=pattern, use_dora=method.kind == "dora", bias="none"
        )
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, module, adapter_name=NAME)
    for parameter in adapter_parameters(module).values():
        if parameter.dtype in {torch.bfloat16, torch.float16}:
            parameter.data = parameter.data.float()
    return names


def adapter_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of all adapters, by name; they, and only they, are trained."""
    return {name: parameter for name, parameter in module.named_parameters() if _ADAPTER.search(name)}


def freeze(text_encoder: Any) -> None:
    """Keep a text encoder as it is: an adapter is for the denoiser alone, and is used with the encoder as it was."""
    text_encoder.requires_grad_(False)
    text_encoder.trainable = False


def finish_adapters(
    module: nn.Module, method: LoraMethod, weights: Mapping[str, Tensor], folder: Path | None = None
) -> nn.Module:
    """Turn trained weights into a plain model with the adapter in it, and write the adapter's own files.

    Args:
        module: a fresh denoiser of the same architecture, best on the meta device.
        method: as it was trained.
        weights: the trained module's whole state dict, adapters included. They become the module's own, and the adapter
            is added to them in place.
        folder: where `lora.safetensors` goes, which Lens, peft and diffusers read, and `lora-comfyui.safetensors`,
            which ComfyUI reads; None writes neither. A DoRA has the first only: ComfyUI divides by other lengths.

    Returns:
        The module, with plain linears, whose weights are those of the model with its adapter.

    Raises:
        ConfigError: `method` is not how the weights were trained.
        StorageError: a file cannot be written.
    """
    add_adapters(module, method, seed=0)
    try:
        module.load_state_dict(dict(weights), assign=True)
    except RuntimeError as error:
        raise ConfigError(f"the weights are not those of a {method.kind} of rank {method.rank}: {error}") from error
    if folder is not None:
        save_lora(module, folder / LORA_FILE, NAME)
        if method.kind != "dora":
            save_lora(module, folder / COMFYUI_FILE, NAME, prefix="diffusion_model.")
    with torch.no_grad():
        fuse_loras(module)
    unload_loras(module)
    return module.requires_grad_(True)


_ADAPTER = re.compile(r"\.(lora_A|lora_B|lora_magnitude_vector|lokr_w[12](_[ab])?)\.")


def _targets(module: nn.Module, method: LoraMethod) -> list[str]:
    linears = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    idle = _idle(module)
    found = []
    for target in method.targets:
        meant = [name for name in linears if name == target or name.endswith("." + target)]
        if not meant:
            raise ConfigError(
                f"method.targets: the denoiser has no linear {target!r}; it has {', '.join(_kinds(linears))}"
            )
        found += [name for name in meant if name not in idle]
    if not found:
        raise ConfigError(f"method.targets: nothing that {', '.join(method.targets)} does reaches the output")
    return list(dict.fromkeys(found))


def _idle(module: nn.Module) -> set[str]:
    """Linears whose result nothing uses: a last block's text is dropped after its attention."""
    names = set()
    for key, block in module.named_modules():
        if getattr(block, "is_last", False):
            for part in ("attn.to_add_out", "txt_mlp.w1", "txt_mlp.w2", "txt_mlp.w3"):
                names.add(f"{key}.{part}")
    return names


def _kinds(names: list[str]) -> list[str]:
    """Names without the number of their block, each once."""
    return list(dict.fromkeys(re.sub(r"^.*\.\d+\.(?=[a-z])", "", name) for name in names))


def _peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"method: lora needs the library {error.name!r}, which is not installed; "
            f"install it with: {pip_line('lens-core[diffusion]')}"
        ) from error
