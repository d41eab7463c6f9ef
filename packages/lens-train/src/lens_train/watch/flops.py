"""How much of the hardware training uses: MFU and HFU.

    MFU = FLOPs that the model needs for the real tokens / (seconds · peak · ranks)
    HFU = FLOPs that were carried out                    / (seconds · peak · ranks)

Both count matrix products only, 2 FLOPs per multiply-add. What the model needs is the closed form of
`lens_core.diffusion.flops`: forward and backward without recomputation, each token charged for the one stream that it
passes, modulation once per sample, attention within a sample. What is carried out has two things more: the tokens that
fill a pack up to its fixed size (a caller counts them as a segment), and what activation checkpointing computes again.

    none, selective   nothing: selective keeps the result of every matrix product
    full              the forward pass of every block
    budget            a compiler decides; counted as none, so that HFU is then a lower bound

With adapters there is no gradient for the frozen weights, and what is needed depends on where the adapters sit. So it
is counted rather than derived: a step of a copy on the meta device, a few times, gives the polynomial.

Suffixes in the text: n and m image and text tokens of a segment, S = n + m, d the model's width, h the MLP's.
"""

from __future__ import annotations

import re
import time
from dataclasses import asdict, astuple, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lens_core.diffusion.ragged import RaggedBatch, offsets_of
from lens_core.errors import ConfigError
from lens_train.parallel.activations import checkpoint_activations
from lens_train.parallel.config import ParallelConfig
from lens_train.parallel.meta import meta_copy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "PEAKS",
    "CountedFlops",
    "Policy",
    "count_flops",
    "meta_batch",
    "peak_flops",
    "peak_of",
    "stated_peak",
    "utilisation",
]

Policy = Literal["none", "selective", "full", "budget"]

PEAKS: dict[str, float] = {
    "B300": 2250e12,
    "GB300": 2500e12,
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "A6000": 154.8e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
    "MI325X": 1307.4e12,
    "MI300X": 1307.4e12,
    "MI250X": 191.5e12,  # one of its two halves, which is what a process sees
}
"""Dense bfloat16 FLOP/s with float32 accumulation, by a part of the device's name, as its maker states them."""


def utilisation(flops: float, seconds: float, peak: float, ranks: int = 1) -> float:
    """The share of the hardware's peak: MFU or HFU, by which FLOPs are given.

    Args:
        flops: of all ranks together.
        seconds: that they took.
        peak: FLOP/s of one rank's device.
        ranks: how many there are.
    """
    return flops / (seconds * peak * ranks)


@dataclass(frozen=True, kw_only=True)
class CountedFlops:
    """FLOPs of a training step as a polynomial of what is in it.

    Args:
        per_step: whatever is in it: a DoRA's lengths, a LoKr's product.
        per_segment: modulation.
        per_image: of an image token.
        per_text: of a text token.
        per_pair: of attention, for each of S² pairs of a segment's tokens.
    """

    per_step: float
    per_segment: float
    per_image: float
    per_text: float
    per_pair: float

    def plus(self, other: CountedFlops, times: float = 1.0) -> CountedFlops:
        """The sum with another, taken a number of times."""
        both = zip(astuple(self), astuple(other), strict=True)
        return CountedFlops(**dict(zip(asdict(self), (mine + times * theirs for mine, theirs in both), strict=True)))

    def __call__(self, image_lengths: Sequence[int], text_lengths: Sequence[int]) -> float:
        """FLOPs of a step on segments of these lengths."""
        squares = sum((n + m) ** 2 for n, m in zip(image_lengths, text_lengths, strict=True))
        return (
            self.per_step
            + self.per_segment * len(image_lengths)
            + self.per_image * sum(image_lengths)
            + self.per_text * sum(text_lengths)
            + self.per_pair * squares
        )


def count_flops(transformer: nn.Module, *, policy: Policy = "none") -> CountedFlops:
    """Count a denoiser's training step on the meta device, with the gradients that its parameters ask for.

    Args:
        transformer: as it is trained, adapters and all, but not yet sharded nor checkpointed. It is not touched.
        policy: what the backward pass computes again; "none" gives what the model needs.
    """
    twin: Any = meta_copy(transformer)
    blocks = list(twin.transformer_blocks)
    if policy == "full":
        checkpoint_activations(blocks, ParallelConfig(activation_checkpointing="full"))
    if len({_kind(block) for block in blocks[1:-1]}) > 1 or len(blocks) < 4:
        return _count(twin)
    # The blocks between the first and the last are alike: one of them stands for all.
    twin.transformer_blocks = nn.ModuleList([blocks[0], blocks[-1]])
    ends = _count(twin)
    twin.transformer_blocks = nn.ModuleList([blocks[0], blocks[1], blocks[-1]])
    return ends.plus(_count(twin).plus(ends, -1), len(blocks) - 2)


def _kind(block: nn.Module) -> tuple[Any, ...]:
    return tuple((name, part.shape, part.requires_grad) for name, part in block.named_parameters())


def _count(twin: Any) -> CountedFlops:
    """By second differences over steps on the meta device."""

    def counted(n: int, m: int, segments: int = 1) -> float:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            twin.forward_ragged(meta_batch(twin.config, n, m, segments)).sum().backward()
        return float(counter.get_total_flops())

    # One size of segments, so that no attention backend pads.
    k = 16
    base, wider, widest = counted(k, k), counted(2 * k, k), counted(3 * k, k)
    per_pair = (widest - 2 * wider + base) / (2 * k * k)
    per_image = (wider - base - per_pair * 5 * k * k) / k
    per_text = (counted(k, 2 * k) - base - per_pair * 5 * k * k) / k
    tokens = per_image * k + per_text * k + per_pair * 4 * k * k
    per_segment = counted(k, k, segments=2) - base - tokens
    return CountedFlops(
        per_step=base - tokens - per_segment,
        per_segment=per_segment,
        per_image=per_image,
        per_text=per_text,
        per_pair=per_pair,
    )


def peak_flops(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> tuple[float, bool]:
    """FLOP/s that a device can reach, and whether its maker says so; else it is what a large matrix product reaches.

    Args:
        device: of one rank.
        dtype: of the products; the table is for half precision.
    """
    if device.type == "cuda" and dtype in {torch.bfloat16, torch.float16}:
        peak = stated_peak(torch.cuda.get_device_name(device))
        if peak:
            return peak, True
    return _measured(device, dtype), False


def stated_peak(device_name: str) -> float | None:
    """The peak of a device by the name that its driver gives; None if it is not in the table."""
    # Longest first: an "H100 PCIe" is an "H100" too. A letter or digit after the part makes another device of it.
    for part in sorted(PEAKS, key=len, reverse=True):
        if re.search(rf"\b{re.escape(part)}\b", device_name):
            return PEAKS[part]
    return None


def peak_of(name: str) -> float:
    """The peak of a GPU by its name, for plans.

    Raises:
        ConfigError: it is not in the table.
    """
    if name not in PEAKS:
        raise ConfigError(f"the peak of {name!r} is not known; known are {', '.join(PEAKS)}")
    return PEAKS[name]


def _measured(device: torch.device, dtype: torch.dtype) -> float:
    """The best of a few square products, long enough to be timed and short enough not to be noticed."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        _finish(device)
        started = time.perf_counter()
        a @ b
        _finish(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def meta_batch(config: Mapping[str, Any], n: int, m: int, segments: int) -> RaggedBatch:
    """A batch without numbers: so many segments of `n` image and `m` text tokens."""
    with torch.device("meta"):
        image = torch.empty(n * segments, config["in_channels"])
        text = [torch.empty(m * segments, config["enc_hidden_dim"]) for _ in config["selected_layer_index"]]
        timestep = torch.empty(segments)
    return RaggedBatch(
        image=image,
        text=text,
        image_offsets=offsets_of([n] * segments),
        text_offsets=offsets_of([m] * segments),
        grids=torch.tensor([[1, n]] * segments),
        timestep=timestep,
    )
