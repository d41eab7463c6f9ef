"""How much faster is this pipeline than a straightforward one with the same weights?

Denoises the same noise with the same captions twice, in turn: by this pipeline, which pads nothing, computes modulation
ahead, and has no second branch at guidance 1; and by a padded one, written here in the manner of the released code.

    python benchmarks/inference.py --preset nano 100m --threads 2 --out runs/benchmarks/inference.json
    python benchmarks/inference.py --preset 3.8b --device cuda --dtype bfloat16 --compile --size 1024x1024 --batch 1 \
        --steps 20 4 --guidance 5 1 --repeats 10 --out runs/benchmarks/inference-3.8b.json

Weights are random, and so are the features of the captions where the preset's text encoder is a large one. Prints the
ratio beside the one that FLOPs alone predict; FLOPs, and the rate as a share of one large product's; peak memory; and
what each stage takes, encoding to PNG. Times are medians; where others disturb, look at the fastest rounds.

Suffixes: B pictures, G pictures of both branches; N image tokens of a picture, T text tokens of a caption, S those of
the longest, J = N + S; C token channels, E text width, D model width; A heads, P channels per head.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import shlex
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lens_core.diffusion import LensPipeline, Request
from lens_core.diffusion.device import pick_device
from lens_core.diffusion.models.lens.config import PRESETS
from lens_core.diffusion.receipt import png_with_receipt
from lens_core.diffusion.resolutions import parse_size
from lens_core.diffusion.text_to_image import decode, denoise, encode
from lens_core.registry import load_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SIDES = ("lens", "padded")
SIDE_TOKENS = 16
"""Image tokens of a picture's side, where no size is given."""


# --- the rival: the released model in rectangular batches ---------------------------------------------------------


class PaddedLens(nn.Module):
    """The same model as one would write it for batches of one size; its state dict is that of the release."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.heads, self.axes = config["num_attention_heads"], config["axes_dims_rope"]
        dim, width = self.heads * config["attention_head_dim"], config["enc_hidden_dim"]
        layers, channels = len(config["selected_layer_index"]), config["in_channels"]
        self.img_in = nn.Linear(channels, dim)
        self.txt_norm = nn.ModuleList(Norm(width, 1e-5) for _ in range(layers))
        self.txt_in = nn.Linear(layers * width, dim)
        timestep = named(linear_1=nn.Linear(256, dim), linear_2=nn.Linear(dim, dim))
        self.time_text_embed = named(timestep_embedder=timestep)
        self.transformer_blocks = nn.ModuleList(PaddedBlock(dim, self.heads) for _ in range(config["num_layers"]))
        self.norm_out = named(linear=nn.Linear(dim, 2 * dim))
        self.proj_out = nn.Linear(dim, config["patch_size"] ** 2 * (config["out_channels"] or channels))

    @classmethod
    def sharing(cls, model: nn.Module) -> PaddedLens:
        """Over the very weights of our model."""
        with torch.device("meta"):
            rival = cls(model.config)
        rival.load_state_dict(model.state_dict(), assign=True)
        return rival.eval().requires_grad_(False)

    def forward(self, x_GNC: Tensor, text: list[Tensor], bias_G11J: Tensor, t_G: Tensor, rope_JP2: Tensor) -> Tensor:
        """Velocity [G, N, C]; `text` [G, S, E] per layer, and `bias_G11J` is -inf where a row holds no token."""
        img_GND = self.img_in(x_GNC)
        normed = [norm(layer_GSE) for norm, layer_GSE in zip(self.txt_norm, text, strict=True)]
        txt_GSD = self.txt_in(torch.cat(normed, dim=-1))
        embedder = self.time_text_embed.timestep_embedder
        frequency_K = torch.exp(-math.log(1e4) / 128 * torch.arange(128, device=t_G.device))
        angle_GK = 1000 * (t_G.float()[:, None] * frequency_K)
        wave_GK = torch.cat([angle_GK.cos(), angle_GK.sin()], dim=-1).to(x_GNC.dtype)
        temb_GD = F.silu(embedder.linear_2(F.silu(embedder.linear_1(wave_GK))))
        for block in self.transformer_blocks:
            txt_GSD, img_GND = block(txt_GSD, img_GND, temb_GD, bias_G11J, rope_JP2)
        scale, shift = self.norm_out.linear(temb_GD)[:, None].chunk(2, dim=-1)
        return self.proj_out(F.layer_norm(img_GND, img_GND.shape[-1:], eps=1e-6) * (1 + scale) + shift)


class PaddedBlock(nn.Module):
    """A dual-stream block. Every one of them computes its text half."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, self.width, hidden = heads, dim // heads, int(dim / 3 * 8)
        self.attn = named(
            **{name: Norm(self.width, 1e-6) for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")},
            img_qkv=nn.Linear(dim, 3 * dim),
            txt_qkv=nn.Linear(dim, 3 * dim),
            to_out=nn.ModuleList([nn.Linear(dim, dim), nn.Identity()]),
            to_add_out=nn.Linear(dim, dim),
        )
        for stream in ("img", "txt"):
            self.add_module(f"{stream}_mod", nn.Sequential(nn.Identity(), nn.Linear(dim, 6 * dim)))
            self.add_module(f"{stream}_norm1", Norm(dim, 1e-6))
            self.add_module(f"{stream}_norm2", Norm(dim, 1e-6))
            products = {name: nn.Linear(dim, hidden, bias=False) for name in ("w1", "w3")}
            self.add_module(f"{stream}_mlp", named(**products, w2=nn.Linear(hidden, dim, bias=False)))

    def forward(
        self, txt_GSD: Tensor, img_GND: Tensor, temb_GD: Tensor, bias_G11J: Tensor, rope_JP2: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Text [G, S, D] and image [G, N, D], in this order."""
        attn, image_tokens = self.attn, img_GND.shape[1]
        i_shift1, i_scale1, i_gate1, i_shift2, i_scale2, i_gate2 = self.img_mod(temb_GD)[:, None].chunk(6, dim=-1)
        t_shift1, t_scale1, t_gate1, t_shift2, t_scale2, t_gate2 = self.txt_mod(temb_GD)[:, None].chunk(6, dim=-1)
        img_qkv = attn.img_qkv(self.img_norm1(img_GND) * (1 + i_scale1) + i_shift1)
        txt_qkv = attn.txt_qkv(self.txt_norm1(txt_GSD) * (1 + t_scale1) + t_shift1)
        i_q, i_k, i_v = img_qkv.unflatten(-1, (3, self.heads, self.width)).unbind(2)
        t_q, t_k, t_v = txt_qkv.unflatten(-1, (3, self.heads, self.width)).unbind(2)
        q = rotated(torch.cat([attn.norm_q(i_q), attn.norm_added_q(t_q)], dim=1), rope_JP2)
        k = rotated(torch.cat([attn.norm_k(i_k), attn.norm_added_k(t_k)], dim=1), rope_JP2)
        v = torch.cat([i_v, t_v], dim=1)
        q, k, v = (heads_GJAP.transpose(1, 2) for heads_GJAP in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_G11J).transpose(1, 2).flatten(2)
        img_GND = img_GND + i_gate1 * attn.to_out[0](out[:, :image_tokens])
        txt_GSD = txt_GSD + t_gate1 * attn.to_add_out(out[:, image_tokens:])
        img_GND = img_GND + i_gate2 * mlp(self.img_mlp, self.img_norm2(img_GND) * (1 + i_scale2) + i_shift2)
        txt_GSD = txt_GSD + t_gate2 * mlp(self.txt_mlp, self.txt_norm2(txt_GSD) * (1 + t_scale2) + t_shift2)
        return txt_GSD, img_GND


class Norm(nn.Module):
    """RMS norm by whatever is faster: PyTorch's is one kernel on a GPU, and on a CPU slower than these operations."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Over the last axis, in float32."""
        if x.is_cuda:
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square() / x.shape[-1]
        return (x * torch.rsqrt(square + self.eps)).to(x.dtype) * self.weight


def named(**modules: nn.Module) -> Any:
    """A module that only gives its children their keys."""
    parent = nn.Module()
    for name, module in modules.items():
        parent.add_module(name, module)
    return parent


def mlp(parts: Any, x: Tensor) -> Tensor:
    """SwiGLU."""
    return parts.w2(F.silu(parts.w1(x)) * parts.w3(x))


def rotated(x_GJAP: Tensor, rope_JP2: Tensor) -> Tensor:
    """Adjacent channels turned as a complex number, in float32."""
    pairs = x_GJAP.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # which fuses real operations, and cannot do complex ones
        (a, b), (cos, sin) = pairs.unbind(-1), rope_JP2[:, None].unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x_GJAP.dtype)
    turned = torch.view_as_complex(pairs) * torch.view_as_complex(rope_JP2)[:, None]
    return torch.view_as_real(turned).flatten(-2).to(x_GJAP.dtype)


def rope(grid: tuple[int, int], text_tokens: int, axes: Sequence[int]) -> Tensor:
    """Cosines and sines [J, P/2, 2] for a picture with its middle at 0, and a caption that goes on from its corner."""
    height, width = grid
    rows, columns = torch.arange(height) - (height - height // 2), torch.arange(width) - (width - width // 2)
    image_N3 = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), rows, columns)
    text_S = torch.arange(text_tokens) + max(height // 2, width // 2)
    place_J3 = torch.cat([image_N3, text_S[:, None].expand(-1, 3)]).float()
    angles = [
        place_J3[:, axis, None] * (1 / 10_000 ** (torch.arange(0, size, 2) / size)) for axis, size in enumerate(axes)
    ]
    angle_JP = torch.cat(angles, dim=-1)
    return torch.stack([angle_JP.cos(), angle_JP.sin()], dim=-1)


@torch.inference_mode()
def denoise_padded(
    model: PaddedLens, requests: Sequence[Request], grid: tuple[int, int], times_S: Tensor, scale: float
) -> Tensor:
    """Image tokens [B, N, C] in float32: Euler's steps with both branches in every call, at guidance 1 too."""
    weight = model.proj_out.weight
    x_BNC = torch.stack([request.noise_NC for request in requests]).to(weight.device)
    length_G = torch.tensor([len(request.text[0]) for request in requests] + [0] * len(requests))
    text = []
    for layer in zip(*(request.text for request in requests), strict=True):
        prompts_BSE = pad_sequence(layer, batch_first=True).to(weight.device, weight.dtype)
        text.append(torch.cat([prompts_BSE, torch.zeros_like(prompts_BSE)]))
    longest = text[0].shape[1]
    hidden_GS = torch.arange(longest) >= length_G[:, None]
    bias_GJ = F.pad(torch.zeros(hidden_GS.shape).masked_fill(hidden_GS, -torch.inf), (grid[0] * grid[1], 0))
    bias_G11J = bias_GJ[:, None, None].to(weight.device, weight.dtype)
    rope_JP2 = rope(grid, longest, model.axes).to(weight.device)
    for t, t_next in itertools.pairwise(times_S.to(weight.device)):
        both_GNC = torch.cat([x_BNC, x_BNC]).to(weight.dtype)
        output = model(both_GNC, text, bias_G11J, t.expand(len(both_GNC)), rope_JP2)
        cond, uncond = output.float().chunk(2)
        guided = uncond + scale * (cond - uncond)
        guided = guided * (cond.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True).clamp_min(1e-12))
        x_BNC = x_BNC + (t_next - t) * guided
    return x_BNC


# --- what FLOPs predict --------------------------------------------------------------------------------------------


def token_flops(
    config: dict[str, Any], image_lengths: Sequence[int], text_lengths: Sequence[int], *, last_text_half: bool
) -> float:
    """FLOPs of all matrix products of a call but the timestep's; the last block's text half changes no picture."""
    d = config["num_attention_heads"] * config["attention_head_dim"]
    blocks, channels = config["num_layers"], config["in_channels"]
    out = config["patch_size"] ** 2 * (config["out_channels"] or channels)
    features = config["enc_hidden_dim"] * len(config["selected_layer_index"])
    qkv, rest = 3 * d * d, d * d + 3 * d * int(d / 3 * 8)
    n, m = sum(image_lengths), sum(text_lengths)
    squares = sum((image + text) ** 2 for image, text in zip(image_lengths, text_lengths, strict=True))
    image = n * (channels * d + blocks * (qkv + rest) + d * out)
    text = m * (features * d + blocks * (qkv + rest) - (0 if last_text_half else rest))
    return 2.0 * (image + text + 2 * blocks * squares * d)


def timestep_flops(config: dict[str, Any], rows: int) -> float:
    """FLOPs of the embedding of so many timesteps and of all modulation by them."""
    d = config["num_attention_heads"] * config["attention_head_dim"]
    return 2.0 * rows * (256 * d + d * d + config["num_layers"] * 12 * d * d + 2 * d * d)


def flops(config: dict[str, Any], tokens: int, captions: Sequence[int], steps: int, scale: float) -> dict[str, float]:
    """FLOPs of denoising, by side."""
    count, longest = len(captions), max(captions)
    texts = [*captions, *([0] * count if scale != 1 else [])]
    lens = token_flops(config, [tokens] * len(texts), texts, last_text_half=False)
    padded = token_flops(config, [tokens] * 2 * count, [longest] * 2 * count, last_text_half=True)
    return {
        "lens": steps * lens + timestep_flops(config, steps),
        "padded": steps * (padded + timestep_flops(config, 2 * count)),
    }


# --- what is measured ----------------------------------------------------------------------------------------------


class Bench:
    """Both sides over one model, and what they are to draw.

    Args:
        preset: of the denoiser. `nano` has pixels for tokens and a small text encoder, `100m` pixels, and larger ones
            FLUX.2's autoencoder; where there is no encoder, features are as gpt-oss' are: four layers of 2880.
        options: of the command line.
    """

    def __init__(self, preset: str, options: argparse.Namespace):
        self.device, self.dtype = pick_device(options.device), getattr(torch, options.dtype)
        self.registry = load_registry()
        self.generator = torch.Generator().manual_seed(0)
        low, high = options.captions
        self.captions = torch.randint(low, high + 1, (options.batch,), generator=self.generator).tolist()
        torch.manual_seed(0)
        encoder = self._encoder() if preset == "nano" else None
        vae = self._vae("pixels" if preset in {"nano", "100m"} else "flux2")
        self.pipe = LensPipeline(self._transformer(preset, options.layers, vae, encoder), vae, text_encoder=encoder)
        self.model = self.pipe.model
        # Everything is on the device already, so the modulation layers stay there: the table is computed on it.
        self.model.to(self.device, modulation_table=True)
        self.rival = PaddedLens.sharing(self.pipe.transformer)
        backend = options.attention
        if backend == "auto":
            backend = "varlen" if self.device.type == "cuda" and self.dtype != torch.float32 else "reference"
        self.attention = backend
        self.pipe.transformer.set_attention_backend(backend)
        if options.compile:
            self.pipe.transformer.compile_blocks()
            for block in self.rival.transformer_blocks:
                block.compile()
        stride = self.model.autoencoder.stride
        side = SIDE_TOKENS * stride
        self.height, self.width = parse_size(options.size or f"{side}x{side}", multiple=stride)
        self.grid = (self.height // stride, self.width // stride)
        self.requests = [self._request(length) for length in self.captions]
        self.encoded = encode(self.model, self.requests, guidance=5.0)

    def run(self, side: str, steps: int, scale: float) -> Tensor:
        """Image tokens [B, N, C] of all pictures."""
        sampler = self.registry.parse("samplers", {"type": "flow-euler", "shift": "released", "steps": steps})
        if side == "padded":
            times_S = self.registry.build("samplers", sampler).times(self.grid[0] * self.grid[1])
            return denoise_padded(self.rival, self.encoded, self.grid, times_S, scale)
        self.model.forget_modulation()  # so that its time counts
        return torch.stack(denoise(self.model, self.encoded, sampler=sampler, guidance=scale))

    def flops(self, steps: int, scale: float) -> dict[str, float]:
        """FLOPs by side."""
        return flops(self.pipe.transformer.config, self.grid[0] * self.grid[1], self.captions, steps, scale)

    def other_stages(self, tokens_BNC: Tensor) -> dict[str, float | None]:
        """Seconds of what both sides have in common: encoding, decoding, writing PNGs."""
        found: dict[str, float | None] = {"encode": None}
        if self.model.text_encoder is not None:
            found["encode"], _ = self.seconds(lambda: encode(self.model, self.requests, guidance=1.0))
        found["decode"], pixels = self.seconds(lambda: decode(self.model, self.requests, list(tokens_BNC)))
        found["png"], _ = self.seconds(lambda: [png(pixels_CHW) for pixels_CHW in pixels])
        return found

    def seconds(self, job: Callable[[], Any]) -> tuple[float, Any]:
        """How long a job takes until the device is done with it, and its result."""
        self._wait()
        started = time.perf_counter()
        result = job()
        self._wait()
        return time.perf_counter() - started, result

    def peak_rate(self) -> float:
        """FLOP/s of one large product in the model's dtype, the best of three."""
        size = 8192 if self.device.type == "cuda" else 2048
        a, b = (torch.randn(size, size, device=self.device, dtype=self.dtype) for _ in range(2))
        return 2 * size**3 / min(self.seconds(lambda: torch.mm(a, b))[0] for _ in range(3))

    def memory(self, side: str, steps: int, scale: float) -> dict[str, int]:
        """Bytes of the GPU or the process at the highest: in all, and over the weights and what else there was."""
        if self.device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.run(side, steps, scale)
            peak = torch.cuda.max_memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # forgets the highest so far
            before = status("VmRSS")
            self.run(side, steps, scale)
            peak = status("VmHWM")
        return {"peak_bytes": peak, "over_weights_bytes": peak - before}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _encoder(self) -> Any:
        """A small encoder for captions of one-letter words, which are a token each."""
        config = self.registry.parse("text_encoders", {"type": "small", "max_tokens": 4096})
        encoder = self.registry.spec("text_encoders", "small").load_target().fit(config, ["a b c d e f g h"])
        return encoder.eval().requires_grad_(False).to(self.device, self.dtype)

    def _vae(self, kind: str) -> Any:
        if kind == "pixels":
            return self.registry.build("autoencoders", self.registry.parse("autoencoders", {"type": "pixels"}))
        with self.device:
            vae = self.registry.spec("autoencoders", kind).load_target().vae_class()  # of the released sizes
        for name, module in vae.named_children():
            if name != "bn":  # statistics stay in float32, as when a folder is read
                module.to(self.dtype)
        return vae.eval().requires_grad_(False)

    def _transformer(self, preset: str, layers: int | None, vae: Any, encoder: Any) -> Any:
        config = self.registry.parse("models", {"type": "lens", "preset": preset, "num_layers": layers})
        with self.device:
            transformer = self.registry.build(
                "models",
                config,
                in_channels=vae.channels if hasattr(vae, "channels") else 4 * vae.config.latent_channels,
                enc_hidden_dim=encoder.width if encoder else 2880,
                num_text_layers=encoder.num_layers if encoder else 4,
            )
        return transformer.to(self.dtype).requires_grad_(False)

    def _request(self, length: int) -> Request:
        tokens, channels = self.grid[0] * self.grid[1], self.model.autoencoder.channels
        noise_NC = torch.randn(tokens, channels, generator=self.generator)
        if self.model.text_encoder is not None:
            letters = torch.randint(8, (length,), generator=self.generator).tolist()
            prompt = " ".join("abcdefgh"[letter] for letter in letters)
            return Request(prompt=prompt, height=self.height, width=self.width, noise_NC=noise_NC)
        width, layers = self.rival.txt_norm[0].weight.shape[0], len(self.rival.txt_norm)
        text = [torch.randn(length, width, generator=self.generator).to(self.device, self.dtype) for _ in range(layers)]
        return Request(height=self.height, width=self.width, noise_NC=noise_NC, text=text)


def png(pixels_CHW: Tensor) -> bytes:
    """A picture as a file."""
    bytes_CHW = ((pixels_CHW.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return png_with_receipt(bytes_CHW.permute(1, 2, 0).cpu().numpy(), {})


def status(key: str) -> int:
    """A number of bytes that the kernel keeps about this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def measure(bench: Bench, steps: int, scale: float, repeats: int) -> dict[str, Any]:
    """Time both sides in turn, so that both meet the same machine, and the other stages."""
    tokens = {side: bench.run(side, steps, scale) for side in SIDES}  # which also warms up
    bench.other_stages(tokens["lens"])
    rounds: dict[str, list[Any]] = {name: [] for name in (*SIDES, "encode", "decode", "png")}
    peak = 0.0
    for number in range(repeats):
        peak = max(peak, bench.peak_rate())
        for side in SIDES if number % 2 else reversed(SIDES):
            rounds[side].append(bench.seconds(lambda side=side: bench.run(side, steps, scale))[0])
        for name, seconds in bench.other_stages(tokens["lens"]).items():
            rounds[name].append(seconds)
    work = bench.flops(steps, scale)
    median = {name: None if values[0] is None else statistics.median(values) for name, values in rounds.items()}
    shared = {name: median[name] for name in ("encode", "decode", "png")}
    return {
        "steps": steps,
        "guidance": scale,
        "ratio": median["padded"] / median["lens"],
        "flops_ratio": work["padded"] / work["lens"],
        "ratio_of_fastest": min(rounds["padded"]) / min(rounds["lens"]),
        "difference": float((tokens["lens"] - tokens["padded"]).abs().max()),
        "peak_gflops": peak / 1e9,
        "shared_stages_s": shared,
        **{
            side: {
                "denoise_s": median[side],
                "all_stages_s": median[side] + sum(seconds or 0.0 for seconds in shared.values()),
                "gflop": work[side] / 1e9,
                "peak_share": work[side] / median[side] / peak,
                "rounds_s": rounds[side],
            }
            for side in SIDES
        },
    }


# --- the command ---------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, write."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parsed(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.memory_of:
        bench = Bench(options.preset[0], options)
        print(json.dumps(bench.memory(options.memory_of, options.steps[0], options.guidance[0])))
        return {}
    result: dict[str, Any] = {
        "benchmark": "inference",
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "benchmarks/inference.py", *arguments]),
        "machine": {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "presets": {},
    }
    for preset in options.preset:
        bench = Bench(preset, options)
        if bench.device.type == "cuda":
            result["machine"]["gpu"] = torch.cuda.get_device_name()
        found = result["presets"][preset] = {
            "captions": bench.captions,
            "grid": bench.grid,
            "pixels": [bench.height, bench.width],
            "dtype": options.dtype,
            "attention": bench.attention,
            "compiled": options.compile,
            "runs": [],
        }
        print(
            f"{preset}, {options.dtype} on {bench.device}: {len(bench.captions)} pictures of {math.prod(bench.grid)} "
            f"tokens with captions of {', '.join(map(str, bench.captions))}"
        )
        for steps, scale in zip(options.steps, options.guidance, strict=True):
            row = measure(bench, steps, scale, options.repeats)
            for side in SIDES:
                row[side] |= memory(bench, side, preset, steps, scale, arguments)
            found["runs"].append(row)
            print(told(row), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    return result


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; `steps` and `guidance` have one value for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", nargs="+", default=["nano"], choices=PRESETS)
    parser.add_argument("--layers", type=int, default=None, help="fewer blocks than the preset, to try something out")
    parser.add_argument("--size", default=None, help="WIDTHxHEIGHT in pixels; by default 16x16 tokens")
    parser.add_argument("--guidance", type=float, nargs="+", default=[5.0, 1.0], help="a run for each")
    parser.add_argument("--steps", type=int, nargs="+", default=[4], help="of all runs, or of each")
    parser.add_argument("--batch", type=int, default=8, help="pictures")
    parser.add_argument("--captions", type=span, default=(20, 300), metavar="MIN-MAX", help="text tokens, drawn evenly")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile the blocks of both sides")
    parser.add_argument(
        "--attention",
        default="auto",
        choices=["auto", "reference", "varlen", "flex"],
        help="of this pipeline; auto is varlen for bfloat16 on a GPU, else reference",
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds that are timed, after one that is not")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if len(options.steps) == 1:
        options.steps *= len(options.guidance)
    if len(options.steps) != len(options.guidance):
        parser.error(f"--steps has {len(options.steps)} values for {len(options.guidance)} of --guidance")
    return options


def span(text: str) -> tuple[int, int]:
    """Two numbers: 20-300."""
    low, high = map(int, text.split("-"))
    if not 0 < low <= high:
        raise ValueError(text)
    return low, high


def memory(bench: Bench, side: str, preset: str, steps: int, scale: float, arguments: Sequence[str]) -> dict[str, int]:
    """Peak memory of a side: on a CPU in a process of its own, since what one side frees the next would use again."""
    if bench.device.type == "cuda":
        return bench.memory(side, steps, scale)
    case = ["--preset", preset, "--steps", str(steps), "--guidance", str(scale), "--memory-of", side]
    command = [sys.executable, __file__, *arguments, *case]  # of an option given twice, the last counts
    answer: dict[str, int] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return answer


def told(row: dict[str, Any]) -> str:
    """A run in a few lines."""
    lines = [
        f"\n{row['steps']} steps, guidance {row['guidance']:g}: {row['ratio']:.2f}x the padded pipeline's speed "
        f"({row['ratio_of_fastest']:.2f}x by the fastest rounds), and {row['flops_ratio']:.2f}x by FLOPs alone; "
        f"the latents differ by {row['difference']:.1e} at most",
        f"{'':22}{'lens':>12}{'padded':>12}",
    ]

    def line(name: str, unit: str, values: Sequence[float | None]) -> None:
        cells = "".join(f"{'-' if value is None else format(value, ',.1f'):>12}" for value in values)
        lines.append(f"  {name:<20}{cells} {unit}")

    shared = {name: seconds and 1e3 * seconds for name, seconds in row["shared_stages_s"].items()}
    line("encode", "ms", [shared["encode"]] * 2)
    line("denoise", "ms", [1e3 * row[side]["denoise_s"] for side in SIDES])
    line("  fastest", "ms", [1e3 * min(row[side]["rounds_s"]) for side in SIDES])
    line("decode", "ms", [shared["decode"]] * 2)
    line("PNG", "ms", [shared["png"]] * 2)
    line("all", "ms", [1e3 * row[side]["all_stages_s"] for side in SIDES])
    line("denoising", "GFLOP", [row[side]["gflop"] for side in SIDES])
    line("of one large product", f"% of {row['peak_gflops']:,.0f} GFLOP/s", [100 * row[s]["peak_share"] for s in SIDES])
    line("peak memory", "MB", [row[side]["peak_bytes"] / 1e6 for side in SIDES])
    line("  over weights", "MB", [row[side]["over_weights_bytes"] / 1e6 for side in SIDES])
    return "\n".join(lines)


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
