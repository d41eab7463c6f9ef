"""What do the tiers `exact` and `fast` cost and gain, beside `lossless`? And how near do the pictures of `fast` come?

An exact job shares no call of the denoiser, so that its bits depend on nobody; a lossless one shares it with whoever
takes a step too. The more of the device a picture fills by itself, the less is lost. A fast job computes guidance's
second branch in every other step only.

    python benchmarks/serve_tiers.py --preset nano --sizes 32x32 64x64 128x128 --together 8 --threads 2
    python benchmarks/serve_tiers.py --model runs/quickstart/model-dense --prompts prompts.txt

The first is about time: weights and features are random, the tiers take steps in turn, and the fastest rounds count,
where others disturb. `exact` and `fast` are seconds for the same steps over those of `lossless`. The second is about
pictures: the peak signal-to-noise ratio of fast to lossless ones, in dB over the pixels, each prompt with its own seed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from lens_core.config.prediction import PredictionConfig
from lens_core.diffusion import LoadedModel, Request, load_model_folder
from lens_core.diffusion.device import pick_device, pick_dtype
from lens_core.diffusion.drawing import Drawing, Pack
from lens_core.diffusion.models.lens.config import PRESETS
from lens_core.diffusion.resolutions import parse_size
from lens_core.diffusion.text_to_image import decode, denoise, encode
from lens_core.registry import load_registry
from lens_serve.engine.calibration import synchronize

TEXT_TOKENS, TEXT_WIDTH = 32, 64


def random_model(preset: str, patch: int, device: torch.device, dtype: torch.dtype | None) -> LoadedModel:
    """A model of that size whose text features are given."""
    registry = load_registry()
    config = registry.parse("models", {"type": "lens", "preset": preset})
    autoencoder = registry.build("autoencoders", registry.parse("autoencoders", {"type": "pixels", "patch": patch}))
    transformer = registry.build(
        "models", config, in_channels=autoencoder.channels, enc_hidden_dim=TEXT_WIDTH, num_text_layers=1
    )
    transformer.init_weights(0)
    model = LoadedModel(
        transformer=transformer.to(dtype).eval(),
        text_encoder=None,
        autoencoder=autoencoder,
        sampler=registry.parse("samplers", {"type": "flow-euler", "steps": 1000}),
        prediction=PredictionConfig(type="velocity"),
        image_size=(64, 64),
        guidance=1.0,
        guidance_rescale=True,
        registry=registry,
    )
    return model.to(device)


def drawings(
    model: LoadedModel, size: tuple[int, int], guidance: float, count: int, *, fast: bool = False
) -> list[Drawing]:
    """Pictures of one size, with different noise."""
    sampler = model.registry.build("samplers", model.sampler)
    text, nothing = [torch.randn(TEXT_TOKENS, TEXT_WIDTH)], [torch.zeros(0, TEXT_WIDTH)]
    return [
        Drawing(
            model,
            Request(height=size[0], width=size[1], seed=seed, text=text, negative_text=nothing),
            sampler=sampler,
            guidance=guidance,
            reuse_guidance=fast,
        )
        for seed in range(count)
    ]


def compare(model: LoadedModel, size: tuple[int, int], guidance: float, count: int, repeats: int) -> dict[str, Any]:
    """Seconds of a step of all pictures, both ways."""
    companies = {
        "lossless": [drawings(model, size, guidance, count)],
        "exact": [[drawing] for drawing in drawings(model, size, guidance, count)],
        "fast": [drawings(model, size, guidance, count, fast=True)],
    }
    packs = {tier: [Pack(model, company) for company in some] for tier, some in companies.items()}
    best = dict.fromkeys(packs, float("inf"))
    for _ in range(repeats):
        for tier, some in packs.items():
            synchronize(model.device)
            began = time.perf_counter()
            for _ in range(2):  # one with the second branch, one without
                some = [Pack(model, pack.drawings) if pack.stale else pack for pack in some]
                for pack in some:
                    pack.step()
            synchronize(model.device)
            best[tier] = min(best[tier], (time.perf_counter() - began) / 2)
            packs[tier] = some
    tokens = (size[0] // model.autoencoder.stride) * (size[1] // model.autoencoder.stride)
    return {
        "size": f"{size[1]}x{size[0]}",
        "tokens": tokens,
        "guidance": guidance,
        "lossless_s": round(best["lossless"], 5),
        "exact": round(best["exact"] / best["lossless"], 3),
        "fast": round(best["fast"] / best["lossless"], 3),
    }


def nearness(folder: str, prompts: list[str], guidance: float | None) -> dict[str, Any]:
    """How near the pictures of `fast` come to those of `lossless`, prompt by prompt."""
    model = load_model_folder(folder)
    height, width = model.image_size
    requests = [Request(prompt=text, height=height, width=width, seed=seed) for seed, text in enumerate(prompts)]
    encoded = encode(model, requests, guidance=guidance)
    pictures = []
    for fast in (False, True):
        tokens = denoise(model, encoded, guidance=guidance, reuse_guidance=fast)
        pictures.append([pixels.float().clamp(-1, 1) for pixels in decode(model, encoded, tokens)])
    psnr = [10 * math.log10(4 / float((a - b).square().mean())) for a, b in zip(*pictures, strict=True)]
    return {
        "model": Path(folder).name,
        "steps": model.sampler.model_dump()["steps"],
        "guidance": model.guidance if guidance is None else guidance,
        "prompts": len(prompts),
        "psnr_db": {"median": round(statistics.median(psnr), 1), "worst": round(min(psnr), 1)},
    }


@torch.inference_mode()
def main() -> None:
    """Print one line of JSON for each size and guidance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano", choices=PRESETS)
    parser.add_argument("--patch", type=int, default=8, help="pixels on a token's side")
    parser.add_argument("--sizes", nargs="+", default=["32x32", "64x64", "128x128", "256x256"])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--together", type=int, default=8, help="pictures")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--model", help="a model folder: compare pictures, not times")
    parser.add_argument("--prompts", type=Path, help="a file with one prompt in each line")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.model:
        prompts = options.prompts.read_text(encoding="utf-8").splitlines()
        for guidance in options.guidance:
            print(json.dumps(nearness(options.model, prompts, guidance)))
        return
    model = random_model(options.preset, options.patch, pick_device(options.device), pick_dtype(options.dtype))
    rows = []
    for text in options.sizes:
        for guidance in options.guidance:
            size = parse_size(text, multiple=options.patch)
            rows.append(compare(model, size, guidance, options.together, options.repeats))
            print(json.dumps(rows[-1]), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
