"""What the kinds that speak torch must be able to do.

Suffixes: B images, N image tokens in all, T text tokens in all, L text layers, C token channels, E text width.
torch itself is imported by the implementations only.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor

    from lens_core.config.base import ComponentConfig
    from lens_core.diffusion.ragged import RaggedBatch

__all__ = ["Autoencoder", "Denoiser", "Sampler", "TextEncoder", "Walk"]


class Denoiser(Protocol):
    """A network from a ragged batch to a velocity.

    Built as `target(config, in_channels=, enc_hidden_dim=, num_text_layers=)`, to be filled from safetensors often on
    the meta device: so its state dict holds all that it holds. `config` is what a `transformer/config.json` says.

    Who trains and serves it makes use of what else it may have: `transformer_blocks`, an `nn.ModuleList` that is
    sharded and compiled block by block; `compile_blocks()` and `enable_gradient_checkpointing()`, ways of its own to
    do these; `block_flops(image_lengths, text_lengths)`, FLOPs of the blocks' forward pass, which the metric `hfu`
    counts where they are computed again; `choose_attention(device, dtype)`, a backend that suits; `modulation(times)`,
    all that depends on the time alone, and `modulation_modules()`, what computes it.
    """

    config: dict[str, Any]

    def forward_ragged(self, batch: RaggedBatch) -> Tensor:
        """The network's output [N, C]; a sample's result does not depend on its neighbours in the batch."""
        ...

    def init_weights(self, seed: int) -> None:
        """Set weights to train from scratch, the same for the same seed."""
        ...

    def training_flops(
        self, image_lengths: Sequence[int], text_lengths: Sequence[int], *, text_gradient: bool
    ) -> float:
        """Matmul FLOPs of one training step on segments of these lengths, forward and backward."""
        ...


class Autoencoder(Protocol):
    """Between pixels and tokens. `stride` is in pixels per token side.

    Built as `target(config)` to train with: a pretrained one loads its weights from where its config says. It may be
    an `nn.Module`.
    """

    config: ComponentConfig
    stride: int
    channels: int

    @classmethod
    def from_folder(cls, config: Any, folder: Path, *, dtype: torch.dtype | None) -> Self:
        """The autoencoder of a model folder, which reads `vae/` there; `dtype` is of its weights, None as stored."""
        ...

    def save(self, folder: Path) -> None:
        """Write `vae/` of a model folder."""
        ...

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixels in [-1, 1] to tokens [B, h·w, C], rows of the token grid first."""
        ...

    def decode(self, tokens_BNC: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens back to pixels [B, 3, H, W]; grid is (h, w) in tokens."""
        ...


class TextEncoder(Protocol):
    """Prompts to features: a list of `num_layers` tensors [T, `width`] over the tokens of all prompts.

    An `nn.Module`. A frozen one (`trainable` is False) takes no gradient.
    """

    config: ComponentConfig
    num_layers: int
    width: int
    trainable: bool

    @classmethod
    def fit(cls, config: Any, captions: Iterable[str], *, seed: int = 0) -> Self:
        """An encoder to train with: a fresh one for these captions, or a pretrained one from where its config says.

        Captions may be a hundred million, and can be gone through once: one that needs none does not touch them.
        """
        ...

    @classmethod
    def from_folder(
        cls, config: Any, folder: Path, *, template: Mapping[str, str] | None, dtype: torch.dtype | None
    ) -> Self:
        """The encoder of a model folder: it reads `text_encoder/` there, `tokenizer/` if it needs one.

        Args:
            config: its settings.
            folder: the model folder.
            template: the strings that `lens.json` has for the prompt's template.
            dtype: of the weights; None as stored.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write `text_encoder/` of a model folder, and `tokenizer/` if it needs one."""
        ...

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; an empty text has none."""
        ...

    def __call__(self, ids_T: Tensor, offsets: Tensor) -> list[Tensor]:
        """Features; `offsets` int32 [G+1] says where each text begins."""
        ...

    def training_flops(self, lengths: Sequence[int]) -> float:
        """Matmul FLOPs of one training step for prompts of these lengths; 0 if the encoder is frozen."""
        ...


Walk = Generator["tuple[Tensor, Tensor]", "Tensor", "Tensor"]
"""A sampler's way: yields (x, t), is sent the velocity there, returns the image."""


class Sampler(Protocol):
    """A time grid and a way along it; built as `target(config)`. Knows neither pixels nor prompts."""

    def times(self, num_tokens: int) -> Tensor:
        """The grid from 1 (noise) to 0 (image) for an image of `num_tokens` tokens: float32 [steps + 1]."""
        ...

    def walk(self, x: Tensor, times: Tensor) -> Walk:
        """The way from `x` [N, C] along `times` [steps + 1]: yields each (x, t) whose velocity it wants, and returns
        where it ends.

        Whoever follows it may take other walks' steps in between, so all that it remembers is its own.
        """
        ...
