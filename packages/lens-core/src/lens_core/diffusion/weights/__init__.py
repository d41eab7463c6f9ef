"""Weights on disk: folders as diffusers writes them, single files as ComfyUI does, LoRA as trainers do.

    stored.py       one safetensors file: its header, checked, and its tensors, read a few megabytes at a time
    checkpoint.py   a module's weights in a folder, in one file or in shards with an index
    single_file.py  a denoiser in one file, alone or among other models
    lora_file.py    whose keys a LoRA file has, and what they mean for a module
    lora.py         LoRAs on a module: load, weigh, fuse, take off, save

Safetensors only. A file is checked whole before a module is touched: an error leaves the module as it was.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lens_core.diffusion.weights.checkpoint import load_weights, save_weights
    from lens_core.diffusion.weights.lora import fuse_loras, load_lora, save_lora, set_loras, unfuse_loras, unload_loras
    from lens_core.diffusion.weights.single_file import load_single_file, save_single_file

__all__ = [
    "fuse_loras",
    "load_lora",
    "load_single_file",
    "load_weights",
    "save_lora",
    "save_single_file",
    "save_weights",
    "set_loras",
    "unfuse_loras",
    "unload_loras",
]

# Found on first use (PEP 562): the denoiser loads and saves itself by `checkpoint`, and `single_file` makes denoisers.
_HOMES = {name: "checkpoint" if name.endswith("weights") else "single_file" for name in __all__ if "lora" not in name}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'lora')}"), name)
