"""What the API process and an engine say to each other: msgspec frames over a unix socket, pixels beside it.

A frame is its length, 4 bytes big-endian, and the MessagePack of one of these. Pictures that are done do not travel
through the socket: the engine writes them into a slot of memory that both processes map, names the slot in `Drawn`, and
may use it again after `Release`. The memory has no name that anybody else could open.

Times are `time.monotonic()`, which processes of one host share.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from lens_serve.config import Tier  # noqa: TC001 (msgspec reads annotations at run time)

__all__ = [
    "MAX_FRAME",
    "Cancel",
    "Costs",
    "Draw",
    "Drawn",
    "Failed",
    "FromEngine",
    "Heartbeat",
    "ModelInfo",
    "Preview",
    "Progress",
    "Ready",
    "Reason",
    "Release",
    "StartPicture",
    "ToEngine",
]

MAX_FRAME = 80 << 20
"""Bytes; a start picture and its mask are the largest that travels: 2^24 pixels of four bytes, and texts."""


class StartPicture(msgspec.Struct, frozen=True, kw_only=True):
    """A picture to start from, uint8 [H, W, 3] of the job's size; and a mask, uint8 [H, W], 255 where it may change."""

    pixels: bytes
    strength: float
    mask: bytes | None = None


class Draw(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One picture to draw; n images are n of these.

    Args:
        id: of the job, unique.
        model: its name.
        prompt: as it is drawn, rewritten perhaps.
        negative: what to steer away from.
        height, width: in pixels, multiples of the model's stride.
        seed, index: of the noise.
        steps: of the sampler.
        guidance: 1 does without the second branch.
        tier: how exact.
        lora: a registered name.
        lora_scale: its weight.
        key: whose job it is, for fair shares.
        weight: of that key.
        arrived: when it was handed over, its prompt decided on.
        deadline: when it is of no use any more.
        previews: how many to send, spread over the way.
        start: what to start from.
    """

    id: str
    model: str
    prompt: str
    negative: str = ""
    height: int
    width: int
    seed: int
    index: int = 0
    steps: int
    guidance: float
    tier: Tier = "lossless"
    lora: str | None = None
    lora_scale: float = 1.0
    key: str = ""
    weight: float = 1.0
    arrived: float
    deadline: float | None = None
    previews: int = 0
    start: StartPicture | None = None


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Forget a job, wherever it is; nothing more is said of it. An unknown id is ignored."""

    id: str


class Release(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The picture in a slot was copied."""

    slot: int


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What `lens_serve.engine.cost.CostModel` knows of one model on one device; see there.

    FLOPs of one sequence (image tokens n, text tokens m) are `per_image·n + per_text·m + per_square·(n+m)²`.
    """

    per_image: float
    per_text: float
    per_square: float
    tick_s: float
    flops_per_s: float
    half_tokens: float
    encode_s: float
    encode_token_s: float
    decode_s: float
    decode_pixel_s: float
    corrections: dict[str, float] = {}
    error: float = 0.0


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A model that an engine has loaded, with its own defaults.

    `tiers` are those that it can keep; `sampler` is the config of its sampler, as a receipt has it.
    """

    name: str
    hash: str | None
    height: int
    width: int
    stride: int
    steps: int
    guidance: float
    dtype: str
    tiers: tuple[Tier, ...] = ("exact", "lossless", "fast")
    sampler: dict[str, Any] = {}
    loras: tuple[str, ...] = ()
    can_start: bool = True
    created: int = 0
    licence: str = ""


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The engine can draw."""

    device: str
    models: list[ModelInfo]
    costs: dict[str, Costs]
    knee_tokens: dict[str, int]


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Said before every call of a model, after every tick, and four times a second when there is nothing to do.

    Args:
        doing: what begins now: "encode", "denoise", "decode", "lora" (one is read), or "idle".
        expected_s: how long that should take.
        tick: ticks so far.
        running: jobs between their first and last step.
        waiting: jobs before their first.
        sequences, tokens: of the last tick.
        occupancy: these tokens, over those that fill the device.
        tick_s: what it took.
        predicted_s: what was predicted.
        costs: after something was learnt, by model.
        rss_bytes: resident memory.
        device_bytes: allocated on the device.
    """

    doing: str
    expected_s: float
    tick: int
    running: int
    waiting: int
    sequences: int = 0
    tokens: int = 0
    occupancy: float = 0.0
    tick_s: float = 0.0
    predicted_s: float = 0.0
    costs: dict[str, Costs] | None = None
    rss_bytes: int = 0
    device_bytes: int = 0


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A job took a step."""

    id: str
    step: int
    steps: int


class Preview(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What a picture under way looks like: uint8 [height, width, 3], usually smaller than the picture."""

    id: str
    number: int
    height: int
    width: int
    pixels: bytes


class Drawn(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A picture is done: uint8 [height, width, 3] at the start of a slot.

    Args:
        id: of the job.
        slot: where it lies.
        height, width: of the picture.
        latent_sha256: of its tokens, float32 little-endian.
        pixel_sha256: of its pixels.
        seconds: by stage: waited, encode, denoise (in ticks it took part in), decode.
        features: what a receipt says of the engine: device, dtype, kernels.
    """

    id: str
    slot: int
    height: int
    width: int
    latent_sha256: str
    pixel_sha256: str
    seconds: dict[str, float]
    features: dict[str, str]


Reason = Literal["invalid", "deadline", "memory", "not-finite", "internal"]


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A job will not be done.

    `reason`: "invalid" (the client's mistake, `message` says which), "deadline", "memory" (too large even alone),
    "not-finite" (the weights overflowed), "internal".
    """

    id: str
    reason: Reason
    message: str


ToEngine = Draw | Cancel | Release
FromEngine = Ready | Heartbeat | Progress | Preview | Drawn | Failed
