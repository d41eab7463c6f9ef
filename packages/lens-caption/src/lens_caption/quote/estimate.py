"""From sizes to tokens, dollars, hours and batch files.

What headers cannot tell is the length of the answers. Without a pilot a usual length of the recipe is taken, with a
wide range; with one, its mean and spread, the text's tokens, the image rule's error and the size of the files are
measured. A price that is not known is shown as such.
"""

from __future__ import annotations

import datetime
import math
import random
import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lens_caption.captioners.openai.picture import sent_size
from lens_caption.captioners.openai.requests import instruction_of
from lens_caption.profiles import LANES, Lane, Usage, estimate_text_tokens
from lens_caption.profiles.calibrate import TOLERANCE, Calibration, Observation, calibrate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from lens_caption.profiles import Profile
    from lens_caption.quote.survey import Survey

__all__ = ["LaneQuote", "Pilot", "Quote", "Range", "Resize", "estimate", "images_per_minute"]

Sizes = Counter[tuple[int, int]]

# Output tokens by kind of recipe: low, usual, high. The paper's dense captions have 109 words, about 140 tokens.
_ANSWERS = {
    "brief": (8, 15, 30),
    "short": (25, 45, 90),
    "dense": (100, 150, 250),
    "layered": (150, 230, 380),
    "structured": (150, 250, 450),
    "multilingual": (300, 600, 1_200),
}
_TEXT_ERROR = 0.2  # of a count of tokens without the model's tokenizer
_JPEG_BYTES_PER_PIXEL = 0.2  # at quality 85, measured on synthetic images of 512 and 768 pixels
_REQUEST_FRAME_BYTES = 400
_T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10)
_SIDES = range(2048, 255, -32)
_STEP = 0.25
_MOST_RESIZES = 5
_SEARCHED_SIZES = 2_000
_LONGEST_HOURS = 10 * 365 * 24  # the calendar ends somewhere


@dataclass(frozen=True, kw_only=True)
class Range:
    """A number that is not known exactly."""

    low: float
    expected: float
    high: float

    def __mul__(self, count: int) -> Range:
        return Range(low=self.low * count, expected=self.expected * count, high=self.high * count)


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """What became of a few images that were captioned for the quote.

    Args:
        answers: sizes as sent, and tokens, of every billed answer.
        statuses: how many outcomes of each status there were.
        jpeg_bytes_per_pixel: of the images as sent.
        seconds: from the first request to the last answer.
        dollars: what it cost at the standard price.
    """

    answers: tuple[Observation, ...]
    statuses: Counter[str]
    jpeg_bytes_per_pixel: float
    seconds: float
    dollars: Decimal


@dataclass(frozen=True, kw_only=True)
class LaneQuote:
    """One way to buy the captions; money is in US dollars.

    Args:
        dollars: low, expected and high.
        at_most: if every answer were as long as is allowed.
        hours: at the limits given, or None if they are not known.
    """

    low: Decimal
    dollars: Decimal
    high: Decimal
    at_most: Decimal
    hours: float | None


@dataclass(frozen=True, kw_only=True)
class Resize:
    """Another `max_side` and what it does: share of the pixels kept, input tokens, and dollars by lane."""

    max_side: int
    pixels: float
    input_tokens: int
    dollars: Mapping[Lane, Decimal]


@dataclass(frozen=True, kw_only=True)
class Quote:
    """The quote for one caption stage."""

    stage: str
    profile: Profile
    images: int
    dropped: Mapping[str, int]
    max_side: int
    detail: str | None
    image_tokens: int
    input_tokens: Range
    output_tokens: Range
    most_output_tokens: int
    lanes: Mapping[Lane, LaneQuote | None]
    batch_files: int
    batch_bytes: int
    images_per_minute: float | None
    limits: Mapping[str, int | None]
    resizes: tuple[Resize, ...] = ()
    pilot: Pilot | None = None
    calibration: Calibration | None = None
    warnings: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Plain data; dollars are numbers, rounded to a millionth."""
        return {
            "stage": self.stage,
            "model": self.profile.model,
            "profile": {
                "file": self.profile.file,
                "checked": str(self.profile.checked),
                "weak": dict(self.profile.weak),
                "shutdown": self.profile.shutdown and str(self.profile.shutdown),
                "successor": self.profile.successor,
            },
            "images": self.images,
            "dropped": dict(self.dropped),
            "max_side": self.max_side,
            "detail": self.detail,
            "input_tokens": _rounded(self.input_tokens) | {"of_images": self.image_tokens},
            "output_tokens": _rounded(self.output_tokens) | {"at_most": self.most_output_tokens},
            "lanes": {
                lane: lane_quote
                and {
                    "low": _number(lane_quote.low),
                    "dollars": _number(lane_quote.dollars),
                    "high": _number(lane_quote.high),
                    "at_most": _number(lane_quote.at_most),
                    "hours": lane_quote.hours and round(lane_quote.hours, 3),
                }
                for lane, lane_quote in self.lanes.items()
            },
            "batch": {"files": self.batch_files, "bytes": self.batch_bytes},
            "limits": dict(self.limits),
            "images_per_minute": self.images_per_minute and round(self.images_per_minute, 1),
            "resizes": [
                {
                    "max_side": item.max_side,
                    "pixels": round(item.pixels, 4),
                    "input_tokens": item.input_tokens,
                    "dollars": {lane: _number(dollars) for lane, dollars in item.dollars.items()},
                }
                for item in self.resizes
            ],
            "pilot": self.pilot and self._pilot_json(self.pilot),
            "warnings": list(self.warnings),
        }

    def _pilot_json(self, pilot: Pilot) -> dict[str, Any]:
        fit = self.calibration
        return {
            "answers": len(pilot.answers),
            "statuses": dict(pilot.statuses),
            "seconds": round(pilot.seconds, 2),
            "dollars": _number(pilot.dollars),
            "text_tokens": fit and round(fit.text_tokens, 1),
            "image_factor": fit and round(fit.factor, 4) if fit and fit.known else None,
            "image_rule_off": fit and round(fit.off, 4),
        }


def images_per_minute(*, rpm: int | None, tpm: int | None, input_tokens: float, reserved_output: int) -> float | None:
    """What an account's limits let through; None if neither is known.

    Args:
        rpm: requests per minute.
        tpm: tokens per minute; an answer counts with the longest that was allowed, when it is admitted.
        input_tokens: of one request.
        reserved_output: the longest answer allowed.
    """
    rates = [float(rpm)] if rpm else []
    if tpm:
        rates.append(tpm / (input_tokens + reserved_output))
    return min(rates, default=None)


def estimate(
    *,
    stage: str,
    survey: Survey,
    config: Any,
    profile: Profile,
    pilot: Pilot | None = None,
    rpm: int | None = None,
    tpm: int | None = None,
    today: datetime.date,
) -> Quote:
    """Work the quote out.

    Args:
        stage: the caption stage's name.
        survey: what headers said.
        config: the captioner's config: model, max_side, detail, max_output_tokens and the prompt are read.
        profile: of the model.
        pilot: what a few answers said, if they were bought.
        rpm: the account's requests per minute, if known.
        tpm: the account's tokens per minute, if known.
        today: the day of the question.

    Raises:
        RetiredModelError: the model is gone.
    """
    profile.refuse_if_retired(today)
    images, scale = survey.images, survey.images / survey.sizes.total()
    rpm, tpm = rpm or profile.limits.rpm, tpm or profile.limits.tpm
    fit = calibrate(pilot.answers, profile, config.detail) if pilot and pilot.answers else None
    sent = _sent(survey.sizes, config.max_side)
    ruled = _image_tokens(sent, config.detail, profile) * scale
    text = instruction_of(config)
    inputs = _input_tokens(survey, ruled, text, fit, _sampling_error(survey, sent, config, profile))
    outputs = _output_tokens(images, config, pilot)
    most_output = images * config.max_output_tokens
    rate = images_per_minute(
        rpm=rpm, tpm=tpm, input_tokens=inputs.expected / images, reserved_output=config.max_output_tokens
    )
    rate = _at_most(rate, pilot, config)
    hours = images / rate / 60 if rate else None
    per_pixel = pilot.jpeg_bytes_per_pixel if pilot and pilot.answers else _jpeg_bytes_per_pixel(config.jpeg_quality)
    upload = _batch_bytes(sent, per_pixel, text) * scale
    files = max(math.ceil(images / profile.limits.batch_requests), math.ceil(upload / profile.limits.batch_bytes))
    lanes: dict[Lane, LaneQuote | None] = {}
    for lane in LANES:
        lanes[lane] = _lane(lane, profile, inputs, outputs, most_output, hours)
    return Quote(
        stage=stage,
        profile=profile,
        images=images,
        dropped=dict(survey.dropped),
        max_side=config.max_side,
        detail=config.detail,
        image_tokens=round(fit.factor * ruled if fit else ruled),
        input_tokens=inputs,
        output_tokens=outputs,
        most_output_tokens=most_output,
        lanes=lanes,
        batch_files=files,
        batch_bytes=round(upload),
        images_per_minute=rate,
        limits={"rpm": rpm, "tpm": tpm},
        resizes=_resizes(survey, sent, config, profile, inputs, outputs, fit.factor if fit else 1.0),
        pilot=pilot,
        calibration=fit,
        warnings=tuple(_warnings(profile, survey, config, pilot, fit, hours, today)),
    )


def _sent(sizes: Sizes, max_side: int) -> Sizes:
    """The sizes after scaling: far fewer than before, as one side of all large images is the same."""
    sent: Sizes = Counter()
    for (width, height), count in sizes.items():
        sent[sent_size(width, height, max_side)] += count
    return sent


def _image_tokens(sent: Sizes, detail: str | None, profile: Profile) -> int:
    return sum(count * profile.image_tokens(width, height, detail) for (width, height), count in sent.items())


def _pixels(sent: Sizes) -> int:
    return sum(count * width * height for (width, height), count in sent.items())


def _input_tokens(survey: Survey, ruled: float, text: str, fit: Calibration | None, sampled: float) -> Range:
    if fit:
        expected = survey.images * fit.text_tokens + fit.factor * ruled
        error = 2 * expected * fit.spread / math.sqrt(fit.count) + fit.factor * sampled
    else:
        words = survey.images * estimate_text_tokens(text)
        expected, error = ruled + words, words * _TEXT_ERROR + sampled
    expected = max(0.0, expected)
    return Range(low=max(0.0, expected - error), expected=expected, high=expected + error)


def _sampling_error(survey: Survey, sent: Sizes, config: Any, profile: Profile) -> float:
    """Twice the standard error of the image tokens, where only a sample of the headers was read."""
    if survey.total is None:
        return 0.0
    lengths = [profile.image_tokens(*size, config.detail) for size, count in sent.items() for _ in range(count)]
    unseen = math.sqrt(max(0.0, 1 - len(lengths) / max(1, survey.images)))
    return 2 * survey.images * statistics.pstdev(lengths) / math.sqrt(len(lengths)) * unseen


def _output_tokens(images: int, config: Any, pilot: Pilot | None) -> Range:
    most = float(config.max_output_tokens)
    if pilot and pilot.answers:
        lengths = [item.output_tokens for item in pilot.answers]
        mean, count = statistics.fmean(lengths), len(lengths)
        if count == 1:
            return Range(low=mean / 2, expected=mean, high=min(most, mean * 2)) * images
        t = _T_95[count - 2] if count - 2 < len(_T_95) else 2.1
        unseen = math.sqrt(max(0.0, 1 - count / images))
        error = t * statistics.stdev(lengths) / math.sqrt(count) * unseen
        return Range(low=max(0.0, mean - error), expected=mean, high=min(most, mean + error)) * images
    kind = "dense" if config.instruction else str(config.prompt).rsplit("-", 1)[0]
    low, usual, high = _ANSWERS.get(kind, _ANSWERS["dense"])
    return Range(low=min(most, low), expected=min(most, usual), high=min(most, high)) * images


def _at_most(rate: float | None, pilot: Pilot | None, config: Any) -> float | None:
    """Images per minute by the account's limits, if the pilot did not show that the server or the client is slower."""
    if pilot is None or not pilot.answers or not pilot.seconds:
        return rate
    measured = 60 * len(pilot.answers) / pilot.seconds
    if rate is None:
        return measured
    # A pilot of a few requests has not filled the lanes that a run has.
    return min(rate, measured) if len(pilot.answers) >= 2 * config.concurrency else rate


def _lane(
    lane: Lane, profile: Profile, inputs: Range, outputs: Range, most_output: int, hours: float | None
) -> LaneQuote | None:
    if lane not in profile.prices:
        return None
    if lane == "batch":
        queue = profile.limits.batch_queue_tokens
        hours = 24.0 * (math.ceil(inputs.expected / queue) if queue else 1)
    return LaneQuote(
        low=_cost(profile, lane, inputs.low, outputs.low),
        dollars=_cost(profile, lane, inputs.expected, outputs.expected),
        high=_cost(profile, lane, inputs.high, outputs.high),
        at_most=_cost(profile, lane, inputs.high, most_output),
        hours=hours,
    )


def _cost(profile: Profile, lane: Lane, input_tokens: float, output_tokens: float) -> Decimal:
    return profile.cost(Usage(input_tokens=round(input_tokens), output_tokens=round(output_tokens)), lane)


def _jpeg_bytes_per_pixel(quality: int) -> float:
    """Rough: from 85 on, files double with every seven points of quality; below, they shrink more slowly."""
    return _JPEG_BYTES_PER_PIXEL * 2 ** ((quality - 85) / (7 if quality > 85 else 20))


def _batch_bytes(sent: Sizes, per_pixel: float, text: str) -> float:
    frame = _REQUEST_FRAME_BYTES + len(text.encode())
    return sent.total() * frame + 4 / 3 * per_pixel * _pixels(sent)


def _resizes(
    survey: Survey, sent: Sizes, config: Any, profile: Profile, inputs: Range, outputs: Range, factor: float
) -> tuple[Resize, ...]:
    """The largest `max_side` that costs no more than now, and smaller ones that cost less, each worth its loss.

    A smaller side is listed if it saves a quarter of what the one before it costs, or much more than it loses in
    pixels, as where a rule counts whole tiles.
    """

    def resized(side: int, sizes: Sizes, now: Sizes) -> Resize:
        then = _sent(sizes, side)
        more = _image_tokens(then, config.detail, profile) - _image_tokens(now, config.detail, profile)
        total = max(0.0, inputs.expected + factor * more * survey.images / sizes.total())
        dollars = {lane: _cost(profile, lane, total, outputs.expected) for lane in profile.prices}
        return Resize(max_side=side, pixels=_pixels(then) / _pixels(now), input_tokens=round(total), dollars=dollars)

    searched = _fewer(survey.sizes)
    searched_now = _sent(searched, config.max_side)
    tried = [resized(side, searched, searched_now) for side in _SIDES]
    larger = [item for item in tried if item.pixels > 1 and item.input_tokens <= inputs.expected + 1]
    chosen = [item.max_side for item in larger[:1]]
    before = resized(config.max_side, searched, searched_now)
    for item in tried:
        saved = 1 - item.input_tokens / max(1, before.input_tokens)
        lost = 1 - item.pixels / before.pixels
        if item.max_side < config.max_side and (saved >= _STEP or (saved >= TOLERANCE and lost <= saved / 2)):
            chosen.append(item.max_side)
            before = item
    return tuple(resized(side, survey.sizes, sent) for side in chosen[:_MOST_RESIZES])


def _fewer(sizes: Sizes) -> Sizes:
    """The sizes, or a fair draw of them if there are very many."""
    if len(sizes) <= _SEARCHED_SIZES:
        return sizes
    drawn = random.Random(0).choices(list(sizes), weights=list(sizes.values()), k=_SEARCHED_SIZES)
    return Counter(drawn)


def _warnings(
    profile: Profile,
    survey: Survey,
    config: Any,
    pilot: Pilot | None,
    fit: Calibration | None,
    hours: float | None,
    today: datetime.date,
) -> list[str]:
    until = today + datetime.timedelta(hours=min(hours or 0, _LONGEST_HOURS))
    lines = [profile.lifecycle_warning(today, until)]
    if not profile.prices:
        lines.append(f"no price of {profile.model} is known, so a run is refused until a profile of your own has one")
    for name, why in profile.weak.items():
        if name in {"prices", "image_rule", "shutdown", "limits"} and not (name == "image_rule" and fit):
            lines.append(f"{name} of {profile.model}: {why}")
    if fit and fit.off > TOLERANCE:
        factor = f"{fit.factor:.3f} times as many" if fit.known else "not as many"
        lines.append(
            f"the image rule of {profile.model} is off by {fit.off:.1%}: images are billed {factor} tokens as it says "
            f"(± {fit.spread:.1%}); the quote is corrected for it"
        )
    elif fit and not fit.known and _vary(survey, config, profile):
        lines.append("the pilot is too small, or its images are too alike, to check the image rule; try a larger one")
    if pilot and not pilot.answers:
        lines.append(f"the pilot brought no usage ({_counts(pilot.statuses)}); the quote does without it")
    elif pilot and pilot.statuses.total() > pilot.statuses["ok"]:
        lines.append(f"of the pilot's images some got no caption: {_counts(pilot.statuses)}")
    effort = config.reasoning_effort or profile.parameters.reasoning_effort
    if effort not in {None, "none"} and not pilot:
        lines.append(f"reasoning ({effort}) is billed as output, and how much of it there is, only a pilot tells")
    if survey.unchecked:
        needing = ", ".join(survey.unchecked)
        lines.append(f"not applied, because it needs more than headers: {needing}; there may be fewer images")
    if survey.total is not None:
        lines.append(f"only {survey.sizes.total() + survey.dropped.total():,} of {survey.total:,} headers were read")
    return [line for line in lines if line]


def _vary(survey: Survey, config: Any, profile: Profile) -> bool:
    """Whether the rule counts some images otherwise than others."""
    return len({profile.image_tokens(*size, config.detail) for size in _sent(survey.sizes, config.max_side)}) > 1


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


def _rounded(value: Range) -> dict[str, int]:
    return {"low": round(value.low), "expected": round(value.expected), "high": round(value.high)}


def _number(dollars: Decimal) -> float:
    return float(round(dollars, 6))
