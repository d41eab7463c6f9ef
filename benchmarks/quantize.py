"""What do eight-bit linears and compiled blocks cost and save?

One call of the denoiser with random weights on a batch of eight pictures of 256 tokens with captions of 20 to 300:
as it is, with its linears in int8 and in FP8, and each of these with its blocks compiled.

    python benchmarks/quantize.py --presets nano 100m --dtype bfloat16 --out runs/benchmarks/quantize.json

Prints for each the time of a call and its ratio to the plain model's, what the first call took over that (which is
compilation), the bytes of weights, and how far the velocity is from float32's: 1 minus the cosine, and the relative
length of the difference. Variants are timed in turn, so that all meet the same machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from lens_core.diffusion import LensTransformer2DModel, RaggedBatch
from lens_core.diffusion.models.lens.config import LensModelConfig
from lens_core.diffusion.models.lens.model import build
from lens_core.diffusion.quantize import quantize_linears
from lens_core.diffusion.ragged import offsets_of

SIDE = 16
CAPTIONS = (20, 60, 100, 140, 180, 220, 260, 300)
PARTS = {"nano": (192, 256, 1), "100m": (128, 2880, 4), "toy-1.2b": (128, 2880, 4), "3.8b": (128, 2880, 4)}
"""Channels of the autoencoder, width and layers of the text encoder that a preset is used with."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--presets", nargs="+", default=["nano", "100m"], choices=list(PARTS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of what is not quantised")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--attention", default=None, help="by default varlen for bfloat16 on a GPU, else reference")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--without-compile", action="store_true", help="skip the compiled variants")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    if options.attention is None:
        options.attention = "varlen" if device.type == "cuda" and dtype == torch.bfloat16 else "reference"
    result: dict[str, Any] = {
        "benchmark": "quantize",
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        "attention": options.attention,
    }
    for preset in options.presets:
        result[preset] = measure(preset, dtype, device, options)
        for name, row in result[preset].items():
            first, size = f"first call {row['first_s']:.1f} s", f"weights {row['weight_bytes'] / 1e6:,.1f} MB"
            error = f"1-cos {row['one_minus_cosine']:.1e}, relative error {row['relative_error']:.1e}"
            print(f"{preset:>8} {name:<14} {row['ms']:8.1f} ms ({row['speedup']:.2f}x)  {first}  {size}  {error}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


@torch.inference_mode()
def measure(preset: str, dtype: torch.dtype, device: torch.device, options: Any) -> dict[str, dict[str, float]]:
    """All variants of one preset."""
    channels, width, layers = PARTS[preset]
    torch._dynamo.reset()  # what other presets compiled counts against the limit of one piece of code
    torch.manual_seed(0)
    with device:
        exact = build(
            LensModelConfig.model_validate({"type": "lens", "preset": preset}),
            in_channels=channels,
            enc_hidden_dim=width,
            num_text_layers=layers,
        ).eval()
    expected = exact.forward_ragged(batch(channels, width, layers, torch.float32, device))
    plain = exact.to(dtype)
    plain.set_attention_backend(options.attention)
    inputs = batch(channels, width, layers, dtype, device)
    variants: dict[str, LensTransformer2DModel] = {"plain": plain}
    for kind in ("int8", "fp8"):
        variants[kind] = copy.deepcopy(plain)
        quantize_linears(variants[kind], kind)  # type: ignore[arg-type]
    if not options.without_compile:
        for name in list(variants):
            variants[f"{name} compiled"] = copy.deepcopy(variants[name])
            variants[f"{name} compiled"].compile_blocks()
    rows = {}
    for name, model in variants.items():
        first_s = seconds(model, inputs)
        output = model.forward_ragged(inputs).float()
        rows[name] = {
            "ms": math.inf,
            "first_s": first_s,
            "weight_bytes": sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())),
            "one_minus_cosine": 1 - float(F.cosine_similarity(output.double(), expected.double(), dim=-1).mean()),
            "relative_error": float((output - expected).norm() / expected.norm()),
        }
    for _ in range(options.repeats):
        for name, model in variants.items():
            rows[name]["ms"] = min(rows[name]["ms"], 1e3 * seconds(model, inputs))
    for row in rows.values():
        row["speedup"] = rows["plain"]["ms"] / row["ms"]
    return rows


def batch(channels: int, width: int, layers: int, dtype: torch.dtype, device: torch.device) -> RaggedBatch:
    """Eight pictures, each at another moment."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    count, tokens = len(CAPTIONS), SIDE**2
    return RaggedBatch(
        image=normal(count * tokens, channels),
        text=[normal(sum(CAPTIONS), width) for _ in range(layers)],
        image_offsets=offsets_of([tokens] * count),
        text_offsets=offsets_of(CAPTIONS),
        grids=torch.tensor([[SIDE, SIDE]] * count),
        timestep=torch.linspace(0.1, 1, count).to(device, dtype),
    )


def seconds(model: LensTransformer2DModel, inputs: RaggedBatch) -> float:
    """One call, to its end."""
    started = time.perf_counter()
    model.forward_ragged(inputs)
    if inputs.image.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
