"""How fast are pictures made? This pipeline against a padded one, with the same weights and the same noise.

The rival is written here in the manner of the released pipeline: captions padded to the longest of the batch and
masked, the batch doubled for guidance whatever its scale, modulation computed in every call. It uses PyTorch's fused
attention and norms, and no loop over samples. Both sides start from the same latents, take turns, and must end alike.

    python benchmarks/inference.py --preset nano --out runs/benchmarks/inference.json
    python benchmarks/inference.py --preset 3.8b --size 1024x1024 --batch 1 --captions 140-140 --steps 20 \\
        --dtype bfloat16 --device cuda --attention varlen --compile

Prints for each guidance scale the ratio of the rival's time to ours, the ratio that FLOPs alone predict, the achieved
share of what this machine reaches on one large product, and a table of stages.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lens_core.diffusion import LensTransformer2DModel, LoadedModel, Request
from lens_core.diffusion.autoencoders.wrap import wrap_vae
from lens_core.diffusion.device import pick_device, pick_dtype
from lens_core.diffusion.flops import denoiser_flops
from lens_core.diffusion.models.lens.config import PRESETS, load_preset
from lens_core.diffusion.models.lens.model import rope_table
from lens_core.diffusion.receipt import png_with_receipt
from lens_core.diffusion.text_to_image import decode, denoise
from lens_core.registry import load_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TEXT = {"3.8b": (2880, 4), "toy-1.2b": (1024, 1), "100m": (1024, 1), "nano": (128, 1)}
"""Width and layers of the text features by preset."""


class Padded:
    """The same model as a padded pipeline runs it, over the same weights."""

    def __init__(self, model: LensTransformer2DModel):
        self.model, self.heads = model, model.config["num_attention_heads"]

    def velocity(self, x_BNC: Tensor, text: list[Tensor], mask_BS: Tensor, t_B: Tensor, rope: Tensor) -> Tensor:
        """One call: image [B, N, C], text features [B, S, E] per layer, its mask, times, rotations [N+S, 1, P/2]."""
        m = self.model
        img = m.img_in(x_BNC)
        txt = m.txt_in(torch.cat([norm_of(norm, layer) for norm, layer in zip(m.txt_norm, text, strict=True)], dim=-1))
        temb = m.time_text_embed(t_B, img.dtype)
        seen = torch.cat([mask_BS.new_ones(len(img), img.shape[1]), mask_BS], dim=1)
        bias = torch.zeros(seen.shape, dtype=img.dtype, device=img.device).masked_fill_(~seen, float("-inf"))
        for block in m.transformer_blocks:
            img, txt = self.block(block, img, txt, temb, bias[:, None, None], rope)
        scale, shift = m.norm_out.linear(F.silu(temb)).chunk(2, dim=-1)
        normed = F.layer_norm(img, img.shape[-1:], eps=1e-6)
        return m.proj_out(normed * (1 + scale[:, None]) + shift[:, None])

    def block(self, block: Any, img: Tensor, txt: Tensor, temb: Tensor, bias: Tensor, rope: Tensor) -> Any:
        """One dual-stream block; the text half is computed in the last block too."""
        attn, n = block.attn, img.shape[1]
        i = block.img_mod(temb)[:, None].chunk(6, dim=-1)
        t = block.txt_mod(temb)[:, None].chunk(6, dim=-1)
        qkv_i = attn.img_qkv(norm_of(block.img_norm1, img) * (1 + i[1]) + i[0]).unflatten(-1, (3, self.heads, -1))
        qkv_t = attn.txt_qkv(norm_of(block.txt_norm1, txt) * (1 + t[1]) + t[0]).unflatten(-1, (3, self.heads, -1))
        q = torch.cat([norm_of(attn.norm_q, qkv_i[:, :, 0]), norm_of(attn.norm_added_q, qkv_t[:, :, 0])], dim=1)
        k = torch.cat([norm_of(attn.norm_k, qkv_i[:, :, 1]), norm_of(attn.norm_added_k, qkv_t[:, :, 1])], dim=1)
        v = torch.cat([qkv_i[:, :, 2], qkv_t[:, :, 2]], dim=1)
        q, k, v = (x.transpose(1, 2) for x in (turned(q, rope), turned(k, rope), v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        img = img + i[2] * attn.to_out[0](out[:, :n])
        txt = txt + t[2] * attn.to_add_out(out[:, n:])
        img = img + i[5] * block.img_mlp(norm_of(block.img_norm2, img) * (1 + i[4]) + i[3])
        txt = txt + t[5] * block.txt_mlp(norm_of(block.txt_norm2, txt) * (1 + t[4]) + t[3])
        return img, txt

    @torch.inference_mode()
    def denoise(
        self, requests: Sequence[Request], grid: tuple[int, int], times_S: Tensor, scale: float
    ) -> list[Tensor]:
        """Euler's steps with a doubled batch; the empty negative prompt is masked out."""
        weight = self.model.proj_out.weight
        x = torch.stack([request.noise_NC for request in requests]).to(weight.device)
        longest = max(len(request.text[0]) for request in requests)
        features, mask = [], torch.zeros(2 * len(x), longest, dtype=torch.bool, device=weight.device)
        for layer in range(len(requests[0].text)):
            padded = torch.zeros(2 * len(x), longest, requests[0].text[layer].shape[-1], dtype=weight.dtype)
            for b, request in enumerate(requests):
                padded[b, : len(request.text[layer])] = request.text[layer]
                mask[b, : len(request.text[layer])] = True
            features.append(padded.to(weight.device))
        rope_N, rope_S = rope_table(torch.tensor([grid]), torch.tensor([0, longest]), self.model.axes_dims_rope)
        rope = torch.cat([rope_N, rope_S]).to(weight.device)
        for t, t_next in zip(times_S[:-1].tolist(), times_S[1:].tolist(), strict=True):
            both = torch.cat([x, x]).to(weight.dtype)
            times = torch.full((len(both),), t, device=weight.device)
            cond, uncond = self.velocity(both, features, mask, times, rope).float().chunk(2)
            guided = uncond + scale * (cond - uncond)
            guided *= cond.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            x = x + (t_next - t) * guided
        return list(x)


def norm_of(norm: Any, x: Tensor) -> Tensor:
    """PyTorch's own RMS norm with a module's weight."""
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)


def turned(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate adjacent pairs, in float32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rope).flatten(-2).to(x.dtype)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="nano")
    parser.add_argument("--size", default=None, help="WIDTHxHEIGHT in pixels; default: 256 image tokens")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance", type=float, nargs="+", default=[5.0, 1.0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--captions", default="20-300", help="text tokens, shortest and longest, drawn evenly")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--attention", default="reference", choices=["reference", "varlen", "flex"])
    parser.add_argument("--compile", action="store_true", help="compile our blocks")
    parser.add_argument("--table", action="store_true", help="compute our modulation ahead")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = build(options)
    requests, grid = make_requests(options, model)
    result: dict[str, Any] = {
        "benchmark": "inference",
        "date": date.today().isoformat(),
        "options": {key: value for key, value in vars(options).items() if key != "out"},
        "machine": machine(model.device),
        "guidance": [],
    }
    result["peak_gflops"] = peak(model) / 1e9
    for scale in options.guidance:
        measured = measure(model, requests, grid, scale, options)
        measured["peak_share"] = measured["flops"] / measured["ours_s"] / 1e9 / result["peak_gflops"]
        result["guidance"].append(measured)
        report(measured, options)
    result["stages"] = stages(model, requests, options)
    result["peak_memory_bytes"] = (
        torch.cuda.max_memory_allocated()
        if model.device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    print("stages, in seconds: " + ", ".join(f"{name} {value:.3f}" for name, value in result["stages"].items()))
    print(f"peak memory: {result['peak_memory_bytes'] / 1e9:.2f} GB, of the whole process with both sides")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def build(options: argparse.Namespace) -> LoadedModel:
    """The preset with random weights, and the autoencoder that goes with it."""
    registry, fields = load_registry(), load_preset(options.preset)
    device, dtype = pick_device(options.device), pick_dtype(options.dtype)
    width, layers = TEXT[options.preset]
    autoencoder: Any
    if fields["patch_size"] == 1:
        autoencoder = registry.build("autoencoders", registry.parse("autoencoders", {"type": "pixels", "patch": 8}))
    else:
        from diffusers import AutoencoderKLFlux2  # noqa: PLC0415 (slow to import, and nano does without)

        autoencoder = wrap_vae(AutoencoderKLFlux2().eval().requires_grad_(False).to(dtype))
    with torch.device(device):
        transformer = LensTransformer2DModel(
            **fields,
            in_channels=autoencoder.channels,
            out_channels=autoencoder.channels // fields["patch_size"] ** 2,
            enc_hidden_dim=width,
            selected_layer_index=range(layers),
        ).to(dtype)
    transformer.requires_grad_(False)
    transformer.set_attention_backend(options.attention)
    if options.compile:
        transformer.compile_blocks()
    model = LoadedModel(
        transformer=transformer.eval(),
        text_encoder=None,
        autoencoder=autoencoder,
        sampler=registry.parse("samplers", {"type": "flow-euler", "steps": options.steps, "shift": "released"}),
        image_size=(16 * autoencoder.stride,) * 2,
        guidance=1.0,
        guidance_rescale=True,
        registry=registry,
    )
    return model.to(device, modulation_table=options.table)


def make_requests(options: argparse.Namespace, model: LoadedModel) -> tuple[list[Request], tuple[int, int]]:
    """Requests with random features and noise, and their common grid."""
    stride, generator = model.autoencoder.stride, torch.Generator().manual_seed(0)
    width, height = (int(side) for side in options.size.split("x")) if options.size else (16 * stride, 16 * stride)
    shortest, longest = (int(length) for length in options.captions.split("-"))
    lengths = torch.linspace(shortest, longest, options.batch).round().int().tolist()
    features, layers = TEXT[options.preset]
    grid = (height // stride, width // stride)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    requests = [
        Request(
            height=height,
            width=width,
            text=[normal(length, features).to(model.dtype) for _ in range(layers)],
            negative_text=[torch.zeros(0, features) for _ in range(layers)],
            noise_NC=normal(grid[0] * grid[1], model.autoencoder.channels),
        )
        for length in lengths
    ]
    return requests, grid


def measure(
    model: LoadedModel, requests: list[Request], grid: tuple[int, int], scale: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Both sides in turn; medians."""
    padded = Padded(model.transformer)
    times_S = model.registry.build("samplers", model.sampler).times(grid[0] * grid[1])
    sides: dict[str, Callable[[], list[Tensor]]] = {
        "ours": lambda: denoise(model, requests, guidance=scale, max_batch_tokens=10**9),
        "padded": lambda: padded.denoise(requests, grid, times_S, scale),
    }
    first = {name: torch.stack(side()) for name, side in sides.items()}  # and warm-up
    difference = float((first["ours"] - first["padded"]).abs().max() / first["padded"].abs().max())
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.repeats):
        for name, side in sides.items():
            taken[name].append(seconds(side, model.device))
    ours, theirs = (statistics.median(taken[name]) for name in ("ours", "padded"))
    flops = calls_flops(model, requests, grid, scale) * options.steps
    return {
        "guidance": scale,
        "ours_s": ours,
        "padded_s": theirs,
        "ratio": theirs / ours,
        "ratio_by_flops": padded_flops(model, requests, grid) * options.steps / flops,
        "flops": flops,
        "relative_difference": difference,
    }


def calls_flops(model: LoadedModel, requests: list[Request], grid: tuple[int, int], scale: float) -> float:
    """FLOPs of one of our calls: no padding, and no second branch without guidance."""
    area, texts = grid[0] * grid[1], [len(request.text[0]) for request in requests if request.text]
    texts += [0] * len(requests) if scale != 1 else []
    return denoiser_flops(model.transformer.config, [area] * len(texts), texts) / 3


def padded_flops(model: LoadedModel, requests: list[Request], grid: tuple[int, int]) -> float:
    """FLOPs of one call of the rival: both branches, each with the longest text."""
    longest = max(len(request.text[0]) for request in requests if request.text)
    count = 2 * len(requests)
    return denoiser_flops(model.transformer.config, [grid[0] * grid[1]] * count, [longest] * count) / 3


def stages(model: LoadedModel, requests: list[Request], options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each stage of our side at the first guidance scale; features are given, so nothing is encoded."""
    scale = options.guidance[0]
    tokens = denoise(model, requests, guidance=scale, max_batch_tokens=10**9)
    taken = {"denoise": seconds(lambda: denoise(model, requests, guidance=scale, max_batch_tokens=10**9), model.device)}
    decode(model, requests, tokens)
    taken["decode"] = seconds(lambda: decode(model, requests, tokens), model.device)
    pixels = decode(model, requests, tokens)
    arrays = [
        ((p.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy() for p in pixels
    ]
    taken["png"] = seconds(lambda: [png_with_receipt(array, {}) for array in arrays], model.device)
    return taken


def report(measured: dict[str, Any], options: argparse.Namespace) -> None:
    """Two lines."""
    print(
        f"guidance {measured['guidance']:g}: {measured['ratio']:.2f} times the padded pipeline's speed "
        f"({measured['padded_s']:.3f} s against {measured['ours_s']:.3f} s for {options.batch} pictures); "
        f"FLOPs alone predict {measured['ratio_by_flops']:.2f}"
    )
    print(
        f"  {measured['flops'] / 1e12:.3g} TFLOP, {measured['peak_share']:.0%} of one large product's rate; "
        f"both sides end alike to {measured['relative_difference']:.1e}"
    )


def peak(model: LoadedModel) -> float:
    """FLOP/s of one large product in the dtype of the weights."""
    size = 8192 if model.device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=model.device, dtype=model.dtype) for _ in range(2))
    torch.mm(a, b)
    return 2 * size**3 / min(seconds(lambda: torch.mm(a, b), model.device) for _ in range(5))


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Time of a call, with everything it has put on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def machine(device: torch.device) -> dict[str, Any]:
    """What it ran on."""
    if device.type == "cuda":
        return {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    return {"processor": platform.processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}


if __name__ == "__main__":
    main()
