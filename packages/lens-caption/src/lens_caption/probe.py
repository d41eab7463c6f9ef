"""A live rehearsal: a few generated images to a real endpoint, and what it says compared with the model's profile.

The requests are those that a run would send; what matters beside their answers stands in the headers.
"""

from __future__ import annotations

import asyncio
import io
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import quote as url_quote

import numpy as np
from PIL import Image

from lens_caption.captioners.openai.captioner import OpenAICaptioner
from lens_caption.engine.client import Client, LostError, NotSentError
from lens_caption.profiles import Profile, Usage, list_profiles
from lens_caption.profiles.calibrate import TOLERANCE, Calibration, Observation, calibrate, fitting_rules
from lens_core.contracts import ImageItem
from lens_core.errors import ConfigError, LensError
from lens_core.images import header
from lens_core.storage.shards import image_key

if TYPE_CHECKING:
    import datetime
    from collections.abc import Mapping

    from lens_caption.captioners.openai.config import OpenAIConfig
    from lens_caption.engine.request import PreparedRequest

__all__ = ["Answer", "ProbeReport", "probe", "probe_images", "rate_limits"]

# Shares of max_side: enough shapes to tell one rule from another.
_SHAPES = (
    (1, 1),
    (1, 0.75),
    (0.67, 1),
    (0.5, 0.5),
    (1, 0.5),
    (0.34, 0.34),
    (0.8, 0.6),
    (0.5, 1),
    (0.25, 0.9),
    (0.7, 0.7),
)
_IN_FLIGHT = 4
_LIMIT_HEADERS = [f"{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back for one image; `usage` is None if it failed, and `error` says why."""

    width: int
    height: int
    seconds: float
    status: int
    usage: Usage | None = None
    model: str = ""
    tier: str = ""
    charged: Decimal | None = None
    limits: Mapping[str, str] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """What an endpoint said of itself, beside what the profile says of it."""

    endpoint: str
    profile: Profile
    answers: tuple[Answer, ...]
    calibration: Calibration | None
    fitting: tuple[str, ...]
    dollars: Decimal
    findings: tuple[str, ...]

    @property
    def limits(self) -> dict[str, str]:
        """The rate-limit headers of the last answer that had any, without their prefix."""
        return next((dict(answer.limits) for answer in reversed(self.answers) if answer.limits), {})

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        good = [answer for answer in self.answers if answer.usage]
        seconds = sorted(answer.seconds for answer in good)
        fit = self.calibration
        return {
            "endpoint": self.endpoint,
            "asked_model": self.profile.model,
            "served_models": sorted({answer.model for answer in good if answer.model}),
            "service_tiers": sorted({answer.tier for answer in good if answer.tier}),
            "requests": len(self.answers),
            "answers": len(good),
            "errors": dict(Counter(answer.error for answer in self.answers if answer.error)),
            "limits": self.limits,
            "latency_s": {
                "median": round(statistics.median(seconds), 3) if seconds else None,
                "longest": round(seconds[-1], 3) if seconds else None,
            },
            "usage": {
                "input_tokens": sum(answer.usage.input_tokens for answer in good if answer.usage),
                "cached_input_tokens": sum(answer.usage.cached_input_tokens for answer in good if answer.usage),
                "output_tokens": sum(answer.usage.output_tokens for answer in good if answer.usage),
            },
            "image_rule": fit
            and {
                "text_tokens": round(fit.text_tokens, 1),
                "factor": round(fit.factor, 4) if fit.known else None,
                "spread": round(fit.spread, 4),
                "off": round(fit.off, 4),
                "fits": list(self.fitting),
            },
            "dollars_by_profile": float(self.dollars),
            "findings": list(self.findings),
        }


def probe(config: OpenAIConfig, profile: Profile, *, count: int, budget: Decimal, today: datetime.date) -> ProbeReport:
    """Send generated images and compare.

    Args:
        config: the captioner's config, as in a pipeline.
        profile: of the model.
        count: images to send.
        budget: US dollars that must cover the worst case.
        today: for the model's shutdown.

    Raises:
        ConfigError: the budget does not cover the worst case.
        UnknownPriceError: the price is not known.
        RetiredModelError: the model is gone.
        LensError: there is no key, or the endpoint refuses everything.
    """
    profile.refuse_if_retired(today)
    captioner = OpenAICaptioner(config)
    try:
        items = [ImageItem(key=image_key(data), data=data) for data in probe_images(count, config.max_side)]
        requests = [captioner.request_for(item) for item in items]
        worst = sum((profile.cost(_most(request)) for request in requests), Decimal(0))
        if worst > budget:
            raise ConfigError(
                f"{count} images could cost ${worst:.2f}, which is more than --budget {budget}; raise it, or send fewer"
            )
        answers, announced = asyncio.run(_ask(captioner, items, requests))
    finally:
        captioner.close()
    seen = [
        Observation(
            width=answer.width,
            height=answer.height,
            input_tokens=answer.usage.input_tokens,
            output_tokens=answer.usage.output_tokens,
        )
        for answer in answers
        if answer.usage
    ]
    fit = calibrate(seen, profile, config.detail) if seen else None
    dollars = sum((profile.cost(answer.usage) for answer in answers if answer.usage), Decimal(0))
    fitting = tuple(fitting_rules(seen, list_profiles(), config.detail)) if seen else ()
    findings = _findings(config, profile, answers, fit, fitting, dollars)
    findings += _lifecycle(profile, announced, today)
    return ProbeReport(
        endpoint=config.base_url,
        profile=profile,
        answers=tuple(answers),
        calibration=fit,
        fitting=fitting,
        dollars=dollars,
        findings=tuple(findings),
    )


def probe_images(count: int, max_side: int) -> list[bytes]:
    """Generated PNG images of several shapes, none larger than `max_side`, no two alike."""
    images = []
    for index in range(count):
        across, down = _SHAPES[index % len(_SHAPES)]
        width, height = max(16, round(across * max_side)), max(16, round(down * max_side))
        down_H1 = np.arange(height)[:, None] * 255 // height
        across_1W = np.arange(width)[None, :] * 255 // width
        pixels_HW3 = np.stack(np.broadcast_arrays(down_H1, across_1W, index * 37 % 256), axis=-1).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels_HW3).save(stream, "PNG", compress_level=1)
        images.append(stream.getvalue())
    return images


def rate_limits(headers: Mapping[str, str]) -> dict[str, str]:
    """The `x-ratelimit-*` headers that say something, without their prefix."""
    lower = {name.lower(): value for name, value in headers.items()}
    found = {name: _printable(lower.get(f"x-ratelimit-{name}") or "") for name in _LIMIT_HEADERS}
    return {name: value for name, value in found.items() if value}


def _most(request: PreparedRequest) -> Usage:
    return Usage(input_tokens=request.input_tokens, output_tokens=request.max_output_tokens)


async def _ask(
    captioner: OpenAICaptioner, items: list[ImageItem], requests: list[PreparedRequest]
) -> tuple[list[Answer], str | None]:
    """The answers, and what the endpoint's list of models says of the model's end."""
    room = asyncio.Semaphore(_IN_FLIGHT)

    async def one(item: ImageItem, request: PreparedRequest) -> Answer:
        async with room:
            return await _send(client, captioner, item, request)

    async with Client(captioner.endpoint) as client:
        first = await one(items[0], requests[0])
        if first.status in {401, 403, 404}:
            raise LensError(f"{captioner.endpoint.url} refuses the model {captioner.endpoint.model!r}: {first.error}")
        rest = await asyncio.gather(*map(one, items[1:], requests[1:]))
        try:
            model = (await client.get(f"/models/{url_quote(captioner.config.model, safe='')}")).json
        except (LostError, NotSentError):
            model = None
    announced = model.get("shutdown_date") if isinstance(model, dict) else None
    return [first, *rest], _printable(announced) if isinstance(announced, str) else None


async def _send(client: Client, captioner: OpenAICaptioner, item: ImageItem, request: PreparedRequest) -> Answer:
    size = header(item.data)
    common: dict[str, Any] = {"width": size.width, "height": size.height}
    started = time.monotonic()
    try:
        reply = await client.post(request.path, request.body)
    except (LostError, NotSentError) as error:
        return Answer(**common, seconds=time.monotonic() - started, status=0, error=_printable(error))
    common |= {
        "seconds": time.monotonic() - started,
        "status": reply.status,
        "limits": rate_limits(reply.headers),
    }
    usage = captioner.read(item.key, reply.json)[1] if reply.status == 200 and isinstance(reply.json, dict) else None
    if usage is None:
        return Answer(**common, error=_error(reply.status, reply.json))
    charged = reply.json["usage"].get("cost")
    return Answer(
        **common,
        usage=usage,
        model=_printable(reply.json.get("model") or ""),
        tier=_printable(reply.json.get("service_tier") or ""),
        charged=Decimal(str(charged)) if isinstance(charged, int | float) else None,
    )


def _error(status: int, answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    text = error.get("message") if isinstance(error, dict) else None
    nothing = "no JSON in the answer" if answer is None else "no usage in the answer"
    return f"HTTP {status}: {_printable(text or nothing)}"


def _printable(text: object) -> str:
    """One short line of what a server said, without what a terminal would obey."""
    line = "".join(character if character.isprintable() else " " for character in str(text))
    return " ".join(line.split())[:200]


def _findings(
    config: OpenAIConfig,
    profile: Profile,
    answers: list[Answer],
    fit: Calibration | None,
    fitting: tuple[str, ...],
    dollars: Decimal,
) -> list[str]:
    good = [answer for answer in answers if answer.usage]
    lines = []
    if fit is None:
        lines.append("no answer had a usage: neither the image rule nor the price could be compared")
    elif fit.off > TOLERANCE:
        how = f"billed {fit.factor:.3f} tokens for each of the profile's" if fit.known else "too few shapes to say how"
        also = f"; these profiles' rules do fit: {', '.join(fitting)}" if fitting else "; no profile's rule fits"
        lines.append(f"the image rule of the profile is off by {fit.off:.1%} ({how}){also}")
    else:
        lines.append(f"the image rule of the profile fits, to {fit.off:.1%}")
    odd = sorted({answer.model for answer in good if answer.model and not profile.describes(answer.model)})
    if odd and profile.model != "local":
        lines.append(f"asked for {config.model}, served by {', '.join(odd)}, which the profile does not name")
    charges = [answer.charged for answer in good if answer.charged is not None]
    if charges and len(charges) == len(good):
        charged = sum(charges, Decimal(0))
        if abs(charged - dollars) > dollars * Decimal(str(TOLERANCE)):
            lines.append(f"the endpoint charged ${charged:.6f}, by the profile's price it would be ${dollars:.6f}")
        else:
            lines.append(f"the price of the profile fits: the endpoint charged ${charged:.6f}")
    elif good:
        lines.append(
            f"by the profile's price this cost ${dollars:.6f}; the endpoint names no price: compare with its bill"
        )
    lines += [f"{name} of the profile: {why}" for name, why in profile.weak.items()]
    return lines


def _lifecycle(profile: Profile, announced: str | None, today: datetime.date) -> list[str]:
    warning = profile.lifecycle_warning(today)
    lines = [warning] if warning else []
    if announced and announced[:10] != str(profile.shutdown):
        lines.append(
            f"the endpoint announces the shutdown for {announced}, the profile says {profile.shutdown or 'none'}"
        )
    return lines
