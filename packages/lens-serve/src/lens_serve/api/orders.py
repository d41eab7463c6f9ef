"""Orders: requests that are held to the server's bounds, with nothing left open."""

from __future__ import annotations

import secrets
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lens_serve.api.errors import ApiError, suggestion
from lens_serve.api.schemas import GenerationLens
from lens_serve.engine.messages import Draw

if TYPE_CHECKING:
    from lens_serve.admission.keys import Key
    from lens_serve.api.places import Place
    from lens_serve.api.schemas import Generation, Pictures, Quality
    from lens_serve.config import Bounds, ServeSettings, Tier
    from lens_serve.engine.messages import ModelInfo, StartPicture
    from lens_serve.images.encoders import ImageFormat
    from lens_serve.server import Server

__all__ = ["Order", "generation_order", "min_side", "model_of", "order_of", "size_of"]

_LARGEST_SEED = 2**53
"""Of those that the server draws: JavaScript reads no larger integer exactly."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """A request that is within bounds, with nothing left open.

    Args:
        key: whose it is.
        model: what draws.
        prompt, negative: as asked.
        n: images; number i is drawn from noise (seed, i).
        height, width: in pixels.
        seed: asked for, or drawn.
        steps, guidance, tier, lora, lora_scale: how to draw.
        rewrite: whether to rewrite the prompt; None: as the server does.
        rewrite_seed: of the rewriter's choices; the client's, so that one which was drawn rewrites nothing anew.
        quality: what was asked for in OpenAI's words.
        format, compression: of the files; None: the least loss.
        url: answer with URLs.
        previews: of each image.
        deadline: when it is of no use any more, by `time.monotonic()`.
        user: as the client calls its user.
        place: what is said of a place that was promised earlier.
        start: what to start from.
        id: our own name for it.
    """

    key: Key
    model: ModelInfo
    prompt: str
    negative: str
    n: int
    height: int
    width: int
    seed: int
    steps: int
    guidance: float
    tier: Tier
    lora: str | None
    lora_scale: float
    rewrite: bool | None
    rewrite_seed: int
    quality: Quality
    format: ImageFormat
    compression: int | None
    url: bool
    previews: int
    deadline: float | None
    user: str | None
    place: Place
    start: StartPicture | None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def size(self) -> str:
        """WIDTHxHEIGHT."""
        return f"{self.width}x{self.height}"

    @property
    def image_tokens(self) -> int:
        """Of one image."""
        return (self.height // self.model.stride) * (self.width // self.model.stride)

    @property
    def facts(self) -> dict[str, Any]:
        """What the log tells of it."""
        drawn = {"model": self.model.name, "size": self.size, "steps": self.steps, "n": self.n}
        return {"order": self.id, **drawn, "prompt": self.prompt}

    def draws(self, prompt: str) -> list[Draw]:
        """One for each image, of a prompt as asked or as rewritten; an engine takes them to wait from now on."""
        return [
            Draw(
                id=f"{self.id}-{index}",
                model=self.model.name,
                prompt=prompt,
                negative=self.negative,
                height=self.height,
                width=self.width,
                seed=self.seed,
                index=index,
                steps=self.steps,
                guidance=self.guidance,
                tier=self.tier,
                lora=self.lora,
                lora_scale=self.lora_scale,
                key=self.key.id,
                weight=self.key.weight,
                arrived=time.monotonic(),
                deadline=self.deadline,
                previews=self.previews,
                start=self.start,
            )
            for index in range(self.n)
        ]


def model_of(server: Server, name: str | None) -> ModelInfo:
    """The model that a request names, or the first.

    Raises:
        ApiError: 404 for one that is not served; 503 while it loads.
    """
    names = [model.name for model in server.settings.models]
    name = names[0] if name is None else name
    if name not in names:
        message = f"The model '{name}' does not exist. {suggestion(name, names)}"
        raise ApiError(404, message, code="model_not_found", param="model")
    if name not in server.engines.models:
        raise ApiError(503, "The model is loading; try again.", code="loading", headers={"retry-after": "2"})
    return server.engines.models[name]


def size_of(
    asked: str | None, model: ModelInfo, bounds: Bounds, *, auto: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Height and width in pixels of "WIDTHxHEIGHT"; of "auto", those in `auto` or the model's own.

    Raises:
        ApiError: 400 for a size out of bounds.
    """
    if asked in (None, "auto"):
        height, width = auto or (model.height, model.width)
    else:
        width, height = map(int, asked.split("x"))
    low, high, stride = min_side(model, bounds), bounds.max_side, model.stride
    if not (low <= width <= high and low <= height <= high):
        problem = f"sides are {low} to {high} pixels"
    elif width % stride or height % stride:
        problem = f"sides are multiples of {stride}"
    elif width * height > bounds.max_pixels:
        problem = f"an image has at most {bounds.max_pixels} pixels"
    else:
        return height, width
    raise ApiError(400, f"Invalid 'size': {width}x{height}, but {problem}.", code="invalid_value", param="size")


def min_side(model: ModelInfo, bounds: Bounds) -> int:
    """The smallest side, in pixels."""
    return bounds.min_side or min(256, model.height, model.width)


def generation_order(server: Server, asked: Generation, *, key: Key, place: Place) -> Order:
    """The order that a request for images from words alone comes to.

    Raises:
        ApiError: 400 for what is out of bounds, 404 for an unknown model or LoRA, 503 while the model loads.
    """
    model = model_of(server, asked.model)
    size = size_of(asked.size, model, server.settings.bounds)
    return order_of(server, asked, asked.lens or GenerationLens(), model=model, size=size, key=key, place=place)


def order_of(
    server: Server,
    asked: Pictures,
    lens: GenerationLens,
    *,
    model: ModelInfo,
    size: tuple[int, int],
    key: Key,
    place: Place,
    start: StartPicture | None = None,
) -> Order:
    """The order that a request comes to.

    Raises:
        ApiError: 400 for what is out of bounds, 404 for an unknown LoRA.
    """
    settings = server.settings
    _check_bounds(asked, lens, settings)
    if lens.lora is not None and lens.lora not in model.loras:
        message = f"The model '{model.name}' has no LoRA '{lens.lora}'. {suggestion(lens.lora, model.loras)}"
        raise ApiError(404, message, code="lora_not_found", param="lens.lora")
    if lens.tier is not None and lens.tier not in model.tiers:
        message = f"The model '{model.name}' has no tier '{lens.tier}' here, but {' and '.join(model.tiers)}."
        raise ApiError(400, message, code="invalid_value", param="lens.tier")
    if asked.response_format == "url" and server.store is None:
        message = "This server stores no images; leave 'response_format' out."
        raise ApiError(400, message, code="invalid_value", param="response_format")
    if asked.output_format in (None, "png") and asked.output_compression not in (None, 100):
        message = "'output_compression' is of 'jpeg' and 'webp'; a PNG loses nothing."
        raise ApiError(400, message, code="invalid_value", param="output_compression")
    quality: Quality = "medium" if asked.quality is None or asked.quality == "auto" else asked.quality
    by_quality = {"low": max(1, model.steps // 2), "medium": model.steps, "high": 2 * model.steps}[quality]
    height, width = size
    return Order(
        key=key,
        model=model,
        prompt=asked.prompt,
        negative=lens.negative_prompt or "",
        n=asked.n or 1,
        height=height,
        width=width,
        seed=secrets.randbelow(_LARGEST_SEED) if lens.seed is None else lens.seed,
        steps=lens.steps or min(by_quality, settings.bounds.max_steps),
        guidance=model.guidance if lens.guidance is None else lens.guidance,
        tier=lens.tier or settings.engine.tier,
        lora=lens.lora,
        lora_scale=1.0 if lens.lora_scale is None else lens.lora_scale,
        rewrite=lens.rewrite,
        rewrite_seed=lens.seed or 0,
        quality=quality,
        format=asked.output_format or "png",
        compression=asked.output_compression,
        url=asked.response_format == "url",
        previews=(asked.partial_images or 0) if asked.stream else 0,
        deadline=None if lens.deadline_ms is None else time.monotonic() + lens.deadline_ms / 1000,
        user=asked.safety_identifier or asked.user,
        place=place,
        start=start,
    )


def _check_bounds(asked: Pictures, lens: GenerationLens, settings: ServeSettings) -> None:
    bounds = settings.bounds
    for param, value, limit, unit in (
        ("prompt", len(asked.prompt), bounds.max_prompt_chars, "characters"),
        ("lens.negative_prompt", len(lens.negative_prompt or ""), bounds.max_prompt_chars, "characters"),
        ("n", asked.n or 1, bounds.max_images, "images"),
        ("lens.steps", lens.steps or 1, bounds.max_steps, "steps"),
        ("lens.guidance", lens.guidance or 1.0, bounds.max_guidance, ""),
    ):
        if value > limit:
            message = f"Invalid '{param}': {value}, but at most {f'{limit} {unit}'.strip()} are allowed."
            raise ApiError(400, message, code="invalid_value", param=param)
