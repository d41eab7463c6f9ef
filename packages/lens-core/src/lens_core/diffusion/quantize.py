"""Linears of the blocks in eight bits: half of what bfloat16 takes, a quarter of float32.

    quantize_linears(model.transformer, "int8")   # weights alone; on every device
    quantize_linears(model.transformer, "fp8")    # products in FP8 too, on GPUs that have them

Suffixes: N tokens; O output and I input channels of a linear.

Only the attention's and the MLPs' linears, which see each token, are touched. Modulation, the timestep and the first
and last layers stay as they are: what goes wrong there goes wrong for all tokens alike, and shows as a grid.

A row of the weight, an output channel, has one scale, that of its largest entry. With s the scale, a weight w moves by
at most s/2 as int8, and as fp8 by |w|/16, or s/1024 where w is next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lens_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FP8Linear", "Int8Linear", "QuantizedLinear", "quantize_linears"]

LINEARS = (
    "attn.img_qkv",
    "attn.txt_qkv",
    "attn.to_out.0",
    "attn.to_add_out",
    *(f"{stream}_mlp.{name}" for stream in ("img", "txt") for name in ("w1", "w2", "w3")),
)
"""What is quantised of a block."""

QUANTIZED = "the linears are quantised: save the model, load weights, or load and fuse LoRAs before quantize_linears"
TINY = torch.finfo(torch.float32).tiny


def quantize_linears(transformer: nn.Module, kind: Literal["int8", "fp8"]) -> int:
    """Replace the linears of the blocks by quantised ones, one after the other, where they are.

    A quantised model draws, and that is all: to save it, to load weights or LoRAs into it, raises `ConfigError`.

    Args:
        transformer: a Lens denoiser with its weights, in any dtype and on any device.
        kind: "int8" halves memory, and computes in the model's dtype. "fp8" computes in FP8 (e4m3) as well, with a
            scale per token, on GPUs of compute capability 8.9 or more; elsewhere it takes longer than "int8" does.

    Returns:
        How many linears were replaced.

    Raises:
        ConfigError: there is no such kind, or no linear to replace: the model is of another architecture, has no
            weights yet, is quantised already, or carries LoRAs. It is as it was.
    """
    kinds: dict[str, type[QuantizedLinear]] = {"int8": Int8Linear, "fp8": FP8Linear}
    if kind not in kinds:
        raise ConfigError(f"linears can be quantised to {' or '.join(kinds)}, not to {kind!r}")
    found = [(block, name, _plain_linear(block, name)) for block in _blocks(transformer) for name in LINEARS]
    for block, name, linear in found:
        owner, _, attribute = name.rpartition(".")
        setattr(block.get_submodule(owner), attribute, kinds[kind](linear))
    return len(found)


class QuantizedLinear(nn.Linear):
    """A linear that keeps its weight in eight bits. It has no `weight`: who asks for one is told why.

    Args:
        linear: the linear to take over; its bias is shared.
    """

    codes: torch.dtype
    """What a weight is stored as."""
    largest: float
    """The code of a row's largest weight."""

    codes_OI: Tensor
    scale_O1: Tensor

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_parameter("bias", linear.bias)
        codes_OI, scale_O1 = self.encode(linear.weight.detach())
        self.register_buffer("codes_OI", codes_OI)
        self.register_buffer("scale_O1", scale_O1)
        self.train(linear.training)

    @classmethod
    def encode(cls, rows_OI: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, and for each row the float32 scale [O, 1] that they are to be multiplied by."""
        rows_OI = rows_OI.float()
        scale_O1 = (rows_OI.abs().amax(-1, keepdim=True) / cls.largest).clamp_min(TINY)
        codes_OI = (rows_OI / scale_O1).clamp(-cls.largest, cls.largest)
        return (codes_OI if cls.codes.is_floating_point else codes_OI.round()).to(cls.codes), scale_O1

    def decode(self, dtype: torch.dtype) -> Tensor:
        """The weight [O, I] that the codes stand for."""
        return self.codes_OI.to(dtype).mul_(self.scale_O1)

    def forward(self, x_NI: Tensor) -> Tensor:
        """The product with the decoded weight, and the bias."""
        return F.linear(x_NI, self.decode(x_NI.dtype), self.bias)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """There is none.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(QUANTIZED)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise ConfigError(QUANTIZED)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Codes and scales move with the model, but keep their dtype whatever becomes of the model's."""

        def keep(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            same = isinstance(tensor, nn.Parameter) or changed.dtype == tensor.dtype
            return changed if same else tensor.to(changed.device)

        super()._apply(keep, recurse)
        return self


class Int8Linear(QuantizedLinear):
    """Weights in int8, decoded for each product: PyTorch's own kernel for these is made for a handful of tokens."""

    codes = torch.int8
    largest = 127.0


class FP8Linear(QuantizedLinear):
    """Weights in FP8; and so are the tokens, each with a scale of its own, where the device multiplies them."""

    codes = torch.float8_e4m3fn
    largest = 448.0

    def forward(self, x_NI: Tensor) -> Tensor:
        """The product, in FP8 if it can be; where a gradient is asked for, it cannot."""
        fits = self.in_features % 16 == 0 and self.out_features % 16 == 0
        if fits and len(x_NI) and not x_NI.requires_grad and _multiplies_fp8(x_NI.device):
            return self.multiply(x_NI)
        return super().forward(x_NI)

    def multiply(self, x_NI: Tensor) -> Tensor:
        """The product of FP8 tokens and FP8 weights, summed in float32 and rounded to bfloat16."""
        codes_NI, scale_N1 = self.encode(x_NI)
        y_NO = torch._scaled_mm(
            codes_NI,
            self.codes_OI.t(),
            scale_a=scale_N1,
            scale_b=self.scale_O1.t(),
            bias=None if self.bias is None else self.bias.to(torch.bfloat16),
            out_dtype=torch.bfloat16,
        )
        return y_NO.to(x_NI.dtype)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _multiplies_fp8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def _blocks(transformer: nn.Module) -> list[nn.Module]:
    blocks = getattr(transformer, "transformer_blocks", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise ConfigError(f"{type(transformer).__name__} has no transformer_blocks whose linears could be quantised")
    return list(blocks)


def _plain_linear(block: nn.Module, name: str) -> nn.Linear:
    try:
        linear = block.get_submodule(name)
    except AttributeError as error:
        raise ConfigError(f"{type(block).__name__} has no {name!r}: only Lens blocks can be quantised") from error
    if isinstance(linear, QuantizedLinear):
        raise ConfigError(f"{name!r} is quantised already: load the model anew for another kind")
    if hasattr(linear, "base_layer"):
        raise ConfigError(f"{name!r} carries LoRAs: fuse_loras and then unload_loras before quantize_linears")
    if type(linear) is not nn.Linear:
        raise ConfigError(f"{name!r} is a {type(linear).__name__}: only plain linears can be quantised")
    if linear.weight.is_meta:
        raise ConfigError(f"{name!r} has no weight yet: load the model before quantize_linears")
    return linear
