"""Tiny models to serve: they draw noise of a kind, within milliseconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

SIDE = 16
"""The size that a tiny model was "trained" on, in pixels; others must be multiples of `STRIDE`."""
STRIDE = 4
STEPS = 3
GUIDANCE = 3.0


def tiny_model(folder: Path, **options: Any) -> Path:
    """Save a random model with the pixels autoencoder and a small text encoder in `folder`, and return that.

    The options are those of `core.diffusion.packs.random_model`: steps, guidance, shift, prediction, seed.
    """
    from core.diffusion.packs import random_model
    from lens_core.registry import load_registry

    random_model(folder, load_registry(), **{"steps": STEPS, "guidance": GUIDANCE, **options})
    return folder


def half_model(folder: Path) -> Path:
    """A tiny model stored in bfloat16 but for its text encoder, with a random autoencoder of diffusers."""
    import json

    import torch
    from diffusers import AutoencoderKL

    from lens_core.diffusion.model_folder import load_model_folder
    from lens_core.diffusion.weights.checkpoint import save_weights

    save_weights(load_model_folder(str(tiny_model(folder))).transformer.to(torch.bfloat16), folder / "transformer")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vae = AutoencoderKL(**blocks, block_out_channels=(8, 8, 16), norm_num_groups=4, latent_channels=3)
    vae.to(torch.bfloat16).save_pretrained(folder / "vae")
    lens = json.loads((folder / "lens.json").read_text())
    (folder / "lens.json").write_text(json.dumps({**lens, "autoencoder": {"type": "autoencoder-kl", "patch": 4}}))
    return folder


def tiny_lora(file: Path, seed: int = 0, strength: float = 0.5, *, dora: bool = False) -> Path:
    """Save a random LoRA (or DoRA) for such models in `file`, and return that."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for block in range(2):
        key = f"transformer.transformer_blocks.{block}.attn.img_qkv"
        tensors[f"{key}.lora_A.weight"] = torch.randn(2, 32, generator=generator)
        tensors[f"{key}.lora_B.weight"] = torch.randn(96, 2, generator=generator) * strength
        if dora:
            tensors[f"{key}.lora_magnitude_vector"] = 1 + torch.rand(96, generator=generator)
    save_file(tensors, file, metadata={"format": "pt"})
    return file
