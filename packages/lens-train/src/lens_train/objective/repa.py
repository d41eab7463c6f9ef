"""Representation alignment (REPA): hidden image tokens learn to tell what a vision model sees in the clean image.

    loss of a sample = - mean over its tokens of cos(projector(h), y)

h is the denoiser's token after some block, at the sample's noise level; y the frozen vision model's feature at the same
place; the projector an MLP of three layers that is trained along and then thrown away. Source: arXiv 2410.06940.

The image is scaled so that the vision model has just one patch for each token, whatever the image's size and shape.

Suffixes: N image tokens of a batch, D model width, F features, G samples, B images of one size, H and W pixels.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from PIL.Image import Resampling
from torch import Tensor, nn

from lens_core.errors import ArtifactError
from lens_core.filters.vision.hugging_face import Embedder
from lens_core.filters.vision.preprocess import Preprocessor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lens_train.objective.config import RepaConfig

__all__ = ["PatchFeatures", "Repa", "projector"]


class PatchFeatures:
    """A frozen vision transformer's features of an image's patches, without those of class and register tokens.

    Args:
        folder: the model, and the `preprocessor_config.json` that says how pixels are normalised.
        stride: pixels per side of a token, each of which gets one patch.
        device: where it computes.
        dtype: what it computes in; features are float32.

    Raises:
        ArtifactError: the folder holds no such model.
    """

    def __init__(self, folder: Path, *, stride: int, device: torch.device, dtype: torch.dtype):
        self._processor = Preprocessor.from_folder(folder)
        self._model: Any = Embedder(folder, device=str(device)).model.requires_grad_(False)
        self._stride, self._device, self._dtype = stride, device, dtype
        self._patch: Any = getattr(self._model.config, "patch_size", None)
        takes = inspect.signature(self._model.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
        lacks = f"{folder}: {type(self._model).__name__} has no feature for each patch of an image of any size"
        if not isinstance(self._patch, int):
            raise ArtifactError(f"{lacks}; give a vision transformer such as DINOv2 or DINOv3")
        try:
            self.width: int = self(torch.zeros(1, 3, 2 * stride, 3 * stride, device=device)).shape[-1]
        except Exception as error:  # models have their own ways to refuse a size
            raise ArtifactError(f"{lacks}: {' '.join(str(error).split())[:200]}") from error

    @torch.no_grad()
    def __call__(self, pixels_B3HW: Tensor) -> Tensor:
        """Features [B, h·w, F], rows of the token grid first; pixels are 0 to 255."""
        rows, columns = (side // self._stride for side in pixels_B3HW.shape[-2:])
        mode = "bilinear" if self._processor.resample == Resampling.BILINEAR else "bicubic"
        size = (rows * self._patch, columns * self._patch)
        # Antialiased, and without the overshoot that 8-bit pixels cannot have: as the image processors scale.
        scaled_B3HW = F.interpolate(pixels_B3HW.float(), size, mode=mode, antialias=True).clamp(0, 255)
        mean_311, std_311 = (
            torch.tensor(values, device=self._device)[:, None, None]
            for values in (self._processor.mean, self._processor.std)
        )
        values_B3HW = (scaled_B3HW * self._processor.scale - mean_311) / std_311
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            tokens_BSF: Tensor = self._model(pixel_values=values_B3HW, **self._options).last_hidden_state
        # Class and register tokens stand before the patches in all of these models.
        return tokens_BSF[:, -rows * columns :].float().reshape(len(tokens_BSF), rows * columns, -1)


class Repa:
    """The term; see `lens_train.objective.terms.Term`.

    Args:
        config: its settings.
        features: what the vision model sees.
        hidden: the denoiser's width.
        seed: of the projector's weights.
    """

    name = "repa"

    def __init__(self, config: RepaConfig, features: PatchFeatures, *, hidden: int, seed: int):
        self.weight, self.until, self.block = config.weight, config.until, config.block
        self.goals = features
        self._widths = (hidden, config.width, config.width, features.width)
        self.module: nn.Module = projector(self._widths, seed)

    def losses(self, hidden_ND: Tensor, goals_NF: Tensor, lengths: Sequence[int]) -> Tensor:
        """Minus the mean cosine of each sample [G], from -1 to 1, in the goals' precision."""
        cosine_N = F.cosine_similarity(self.module(hidden_ND).to(goals_NF.dtype), goals_NF, dim=-1)
        return -torch.segment_reduce(cosine_N, "mean", lengths=torch.tensor(lengths, device=cosine_N.device))

    def training_flops(self, image_tokens: int) -> float:
        """Of the projector: three products for each weight, 2 FLOPs each."""
        return 6.0 * image_tokens * sum(a * b for a, b in pairwise(self._widths))


def projector(widths: Sequence[int], seed: int) -> nn.Sequential:
    """Linears with SiLU between them; Xavier-uniform with zero biases, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        linear = nn.Linear(before, after)
        nn.init.xavier_uniform_(linear.weight, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.SiLU()]
    return nn.Sequential(*layers[:-1])
