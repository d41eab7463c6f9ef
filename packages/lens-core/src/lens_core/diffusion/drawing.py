"""Pictures under way: several of them take a step together, whatever their sizes, prompts, times and guidance.

A `Drawing` is one picture between noise and image; it holds all that its next step needs. A `Pack` is the drawings
that share calls of the denoiser: `step` takes each of them one step further, after which they may go on in other packs.
Drawing a file, evaluating a model and serving many users are loops around this.

Suffixes: N image tokens, T text tokens, C channels, E text width, G segments, U different times, H and W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lens_core.diffusion.counter_noise import noise
from lens_core.diffusion.guidance import guide
from lens_core.diffusion.prediction import to_velocity
from lens_core.diffusion.ragged import RaggedBatch, offsets_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_core.contracts.diffusion import Sampler
    from lens_core.diffusion.loaded_model import LoadedModel
    from lens_core.diffusion.requests import Request

__all__ = ["Drawing", "Pack"]


class Drawing:
    """A picture between noise and image.

    Args:
        model: whose device, prediction and guidance to use.
        request: what to draw; its features are filled in.
        sampler: whose way to go.
        guidance: 1 does without the second branch.
        clean_NC: the tokens of the request's start, if it has one.
        reuse_guidance: compute the second branch in every other step only, and take the difference that it made in the
            step before for the others: a quarter less work, for pictures that differ a little. It changes slowly along
            the way (arXiv 2410.19355).
        reference_rounding: tell the denoiser the time as the released pipeline does: in thousandths, in the dtype of
            the weights.

    Attributes:
        times_S: the way's times, on the CPU; `time` is where it is, on the device.
    """

    def __init__(
        self,
        model: LoadedModel,
        request: Request,
        *,
        sampler: Sampler,
        guidance: float,
        clean_NC: Tensor | None = None,
        reuse_guidance: bool = False,
        reference_rounding: bool = False,
    ):
        self.request = request
        self.guidance = guidance
        self._reuse_guidance = reuse_guidance
        self._difference_NC: Tensor | None = None
        self.grid = request.grid(model.autoencoder.stride)
        self._rounded_to = model.dtype if reference_rounding else None
        size = self.grid[0] * self.grid[1]
        grid_S = _remaining(request, sampler.times(size))
        self.times_S = grid_S
        self.steps = len(grid_S) - 1
        self.taken = 0
        self.done = False
        # Told ahead, so that what depends on times alone can be computed once for the whole way.
        self.seen_S = self._seen(grid_S[:-1])
        drawn = noise(request.seed, request.index, (size, model.autoencoder.channels))
        noise_NC = (drawn if request.noise_NC is None else request.noise_NC.float().cpu()).to(model.device)
        times_S = grid_S.to(model.device)
        x_NC = noise_NC
        self._hold: tuple[Tensor, Tensor] | None = None
        if clean_NC is not None:
            clean_NC = clean_NC.to(model.device)
            x_NC = torch.lerp(clean_NC, noise_NC, times_S[0])
            if request.start is not None and request.start.mask_HW is not None:
                self._hold = (_free(request.start.mask_HW, self.grid).to(model.device), noise_NC - clean_NC)
        self._walk = sampler.walk(x_NC, times_S)
        self.tokens_NC, self.time = next(self._walk)
        self._last = (self.tokens_NC, torch.zeros_like(x_NC), self.time)

    @property
    def guided(self) -> bool:
        """Whether the next step needs the second branch."""
        return self.guidance != 1.0 and not (self._reuse_guidance and self.taken % 2)

    @property
    def seen(self) -> Tensor:
        """The time of the next step as the denoiser is told it, a number."""
        return self._seen(self.time)

    @property
    def promised_NC(self) -> Tensor:
        """The picture's tokens as the last step saw them coming: what to show of a picture that is under way."""
        x_NC, velocity_NC, time = self._last
        return x_NC - time * velocity_NC

    def go(self, model: LoadedModel, cond_NC: Tensor, uncond_NC: Tensor | None) -> None:
        """Take a step, by what the denoiser said of the branches at `tokens_NC` and `time`."""
        cond_NC = to_velocity(model.prediction, cond_NC, self.tokens_NC, self.time)
        if uncond_NC is not None:
            uncond_NC = to_velocity(model.prediction, uncond_NC, self.tokens_NC, self.time)
            if self._reuse_guidance:
                self._difference_NC = cond_NC - uncond_NC
        elif self._difference_NC is not None:
            uncond_NC = cond_NC - self._difference_NC
        if uncond_NC is not None:
            cond_NC = guide(cond_NC, uncond_NC, self.guidance, rescale=model.guidance_rescale)
        if self._hold is not None:
            # What a mask protects goes straight from its noise to its image, whatever the sampler's steps.
            free_N1, straight_NC = self._hold
            cond_NC = torch.where(free_N1, cond_NC, straight_NC)
        self._last = (self.tokens_NC, cond_NC, self.time)
        try:
            self.tokens_NC, self.time = self._walk.send(cond_NC)
        except StopIteration as end:
            if end.value is None:  # what it raised before was its end
                raise RuntimeError("the sampler was lost in an earlier step") from None
            self.tokens_NC, self.time, self.done = end.value, torch.zeros_like(self.time), True
        self.taken += 1

    def _seen(self, times: Tensor) -> Tensor:
        if self._rounded_to is None:
            return times
        return ((1000 * times).to(self._rounded_to) / 1000).float()


class Pack:
    """Drawings that take steps together. They all must have the same number of text layers, and none may be done.

    Args:
        model: what draws.
        drawings: at least one.
    """

    def __init__(self, model: LoadedModel, drawings: Sequence[Drawing]):
        self.model, self.drawings = model, list(drawings)
        self._guided = [drawing for drawing in self.drawings if drawing.guided]
        sequences = [*self.drawings, *self._guided]
        texts = [d.request.text or [] for d in self.drawings] + [d.request.negative_text or [] for d in self._guided]
        lengths = [d.grid[0] * d.grid[1] for d in sequences]
        self._lengths = lengths
        self._moment = RaggedBatch(
            image=self._image(),
            text=[torch.cat([x.to(model.device, model.dtype) for x in layer]) for layer in zip(*texts, strict=True)],
            image_offsets=offsets_of(lengths),
            text_offsets=offsets_of([len(text[0]) if text else 0 for text in texts]),
            grids=torch.tensor([drawing.grid for drawing in sequences]),
            timestep=self._timestep(),
        )
        self._table, self._rows = self._modulation()

    @property
    def stale(self) -> bool:
        """Whether the drawings cannot take their next step in this pack: one is done, or needs other branches."""
        return any(one.done for one in self.drawings) or [one for one in self.drawings if one.guided] != self._guided

    def step(self) -> None:
        """Take every drawing one step further."""
        moment = self._moment.at(self._image(), self._timestep())
        ahead = {}
        if self._table is not None:
            sequences = [*self.drawings, *self._guided]
            rows_G = torch.stack([self._rows[id(drawing)][drawing.taken] for drawing in sequences])
            ahead = {"modulation": self._table.take(rows_G)}
        output = self.model.transformer.forward_ragged(moment, **ahead).float()
        parts = output.split(self._lengths)
        second = dict(zip(map(id, self._guided), parts[len(self.drawings) :], strict=True))
        for drawing, cond_NC in zip(self.drawings, parts, strict=False):
            drawing.go(self.model, cond_NC, second.get(id(drawing)))

    def _image(self) -> Tensor:
        return torch.cat([d.tokens_NC for d in (*self.drawings, *self._guided)]).to(self.model.dtype)

    def _timestep(self) -> Tensor:
        return torch.stack([d.seen for d in (*self.drawings, *self._guided)])

    def _modulation(self) -> tuple[Any, dict[int, Tensor]]:
        """What the model computes ahead for all times of these drawings, and each drawing's rows of it."""
        times_U, which = torch.cat([drawing.seen_S for drawing in self.drawings]).unique(return_inverse=True)
        rows = which.split([drawing.steps for drawing in self.drawings])
        table = self.model.modulation(times_U)
        return table, dict(zip(map(id, self.drawings), rows, strict=True))


def _remaining(request: Request, times_S: Tensor) -> Tensor:
    """The part of a time grid that a request's start leaves."""
    if request.start is None:
        return times_S
    steps = len(times_S) - 1
    return times_S[steps - max(1, round(steps * request.start.strength)) :]


def _free(mask_HW: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which tokens may change [N, 1]: those of whose pixels any may."""
    return (F.adaptive_max_pool2d(mask_HW[None].float(), grid).flatten() > 0)[:, None]
