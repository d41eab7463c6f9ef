"""A job: one picture, from what was asked for to its pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from lens_core.config.base import first_mistake
from lens_core.diffusion.requests import Request, Start, check_requests
from lens_core.errors import ConfigError
from lens_serve.engine.cost import Branch
from lens_serve.engine.forecast import guessed_tokens
from lens_serve.engine.previews import Moments
from lens_serve.engine.scheduler import Entry

if TYPE_CHECKING:
    from collections.abc import Hashable

    from lens_core.contracts.diffusion import Sampler
    from lens_core.diffusion.drawing import Drawing
    from lens_serve.engine.loaded import EngineModel
    from lens_serve.engine.messages import Draw

__all__ = ["Job", "Stage", "job_of"]


class Stage(Enum):
    """What a job waits for."""

    TEXT = "text"
    STEPS = "steps"
    PIXELS = "pixels"
    SLOT = "slot"


@dataclass(eq=False, kw_only=True)
class Job:
    """One picture on its way.

    Args:
        draw: what was asked for.
        model: that draws it.
        request: the same in the model's terms; its features are filled in when they are known.
        sampler: whose way to go.
        stage: what it waits for.
        alone: it ran out of memory once, and goes on without company.
        held_until: a time before which nobody calls a model for it.
        shown: previews that were sent.
        seconds: of the calls that it took part in, by stage.
        drawing, entry, moments: from `Stage.STEPS` on.
        picture_HW3: at `Stage.SLOT`.
    """

    draw: Draw
    model: EngineModel
    request: Request
    sampler: Sampler
    stage: Stage = Stage.TEXT
    alone: bool = False
    held_until: float = 0.0
    shown: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"encode": 0.0, "denoise": 0.0, "decode": 0.0})
    drawing: Drawing = field(init=False)
    entry: Entry = field(init=False)
    moments: Moments = field(init=False)
    picture_HW3: np.ndarray = field(init=False)

    @property
    def exact(self) -> bool:
        """Whether its bits must not depend on who else is there."""
        return self.draw.tier == "exact"

    @property
    def shares(self) -> bool:
        """Whether it takes part in calls with others."""
        return not (self.exact or self.alone)

    @property
    def guided(self) -> bool:
        """Whether its steps have a second branch."""
        return self.draw.guidance != 1.0

    @property
    def pixels(self) -> int:
        """Of its picture."""
        return self.draw.height * self.draw.width

    @property
    def group(self) -> Hashable:
        """Only jobs of equal groups share a call of the denoiser.

        An exact job is a group of its own. A call's rounding depends on the shape of the whole call (which kernel
        a library picks, how it cuts sums into parts), so the one way to the same bits on every device and with every
        library is the same call: this job's branches and nobody else's.
        """
        group = (self.draw.model, self.draw.lora, self.draw.lora_scale if self.draw.lora else 1.0)
        return group if self.shares else (*group, self.draw.id)

    @property
    def guessed_sequences(self) -> tuple[Branch, ...]:
        """Its branches, while nobody has counted the tokens of its texts."""
        return self.sequences(guessed_tokens(self.request.prompt), guessed_tokens(self.request.negative))

    def sequences(self, text_tokens: int, negative_tokens: int) -> tuple[Branch, ...]:
        """Its branches, by their tokens."""
        height, width = self.request.grid(self.model.info.stride)
        branches = (text_tokens, negative_tokens) if self.guided else (text_tokens,)
        return tuple(Branch(image_tokens=height * width, text_tokens=tokens) for tokens in branches)

    def begin(self) -> None:
        """Make what its steps need, once its texts are encoded."""
        self.drawing = self.model.begin(self)
        self.moments = Moments(self.draw.previews, float(self.drawing.time))
        lengths = [len(layers[0]) if layers else 0 for layers in (self.request.text, self.request.negative_text)]
        draw = self.draw
        self.entry = Entry(
            id=draw.id,
            model=draw.model,
            group=self.group,
            sequences=self.sequences(*lengths),
            steps=self.drawing.steps,
            pixels=self.pixels,
            reuses_guidance=draw.tier == "fast",
            key=draw.key,
            weight=draw.weight,
            arrived=draw.arrived,
            deadline=draw.deadline,
        )


def job_of(draw: Draw, model: EngineModel, *, most_bytes: int) -> Job:
    """The job of a message.

    Raises:
        ConfigError: it asks for something that the model cannot do.
    """
    info = model.info
    if draw.tier not in info.tiers:
        raise ConfigError(f"the model {info.name} has no tier {draw.tier}; it has {', '.join(info.tiers)}")
    if draw.lora is not None and draw.lora not in info.loras:
        raise ConfigError(f"the model {info.name} has no LoRA {draw.lora!r}")
    if not (math.isfinite(draw.guidance) and math.isfinite(draw.lora_scale)):
        raise ConfigError(f"a guidance of {draw.guidance} or a LoRA's scale of {draw.lora_scale} is no finite number")
    if draw.height * draw.width * 3 > most_bytes:
        raise ConfigError(f"a picture of {draw.width}x{draw.height} does not fit into {most_bytes} bytes")
    request = Request(
        prompt=draw.prompt,
        height=draw.height,
        width=draw.width,
        seed=draw.seed,
        index=draw.index,
        negative=draw.negative if draw.guidance != 1.0 else "",
        start=_start_of(draw),
    )
    check_requests([request], model.loaded.autoencoder)
    try:
        sampler = model.sampler(draw.steps)
    except ValidationError as error:
        raise ConfigError(f"{draw.steps} steps: {first_mistake(error)[1]}") from error
    return Job(draw=draw, model=model, request=request, sampler=sampler)


def _start_of(draw: Draw) -> Start | None:
    if draw.start is None:
        return None
    size = draw.height, draw.width
    pixels, mask = draw.start.pixels, draw.start.mask
    if len(pixels) != size[0] * size[1] * 3 or (mask is not None and len(mask) != size[0] * size[1]):
        raise ConfigError(f"the picture to start from, or its mask, is not of {draw.width}x{draw.height} pixels")
    return Start.of(
        np.frombuffer(pixels, np.uint8).reshape(*size, 3),
        strength=draw.start.strength,
        mask_HW=None if mask is None else np.frombuffer(mask, np.uint8).reshape(size) >= 128,
    )
