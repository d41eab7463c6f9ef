"""Compare a profile's image rule with what servers bill, and correct for the difference.

A request's input tokens are those of its text, which is the same every time, and those of its image. From a few
answers, least squares give both: `usage = text_tokens + factor * rule`. A right rule has the factor 1 and no residual.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lens_caption.profiles.schema import Profile

__all__ = ["TOLERANCE", "Calibration", "Observation", "calibrate", "fitting_rules"]

TOLERANCE = 0.03
"""A rule that is off by more is reported."""

_FITS = 0.005
_SAME = 0.02
_SHAPES = 3


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One billed answer: the size of the image as sent, and its tokens."""

    width: int
    height: int
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What answers say of a rule.

    Args:
        text_tokens: tokens of everything but the image.
        factor: billed image tokens per token of the rule.
        known: whether the images differ enough to tell the factor from the text; if not, `factor` is 1 and
            `text_tokens` takes up the difference, which is right for images of these sizes.
        spread: standard deviation of what is left unexplained, as a share of the input tokens.
        count: answers.
    """

    text_tokens: float
    factor: float
    known: bool
    spread: float
    count: int

    @property
    def off(self) -> float:
        """By what share the rule is wrong: the factor's distance from 1, or the unexplained spread if that is more."""
        return max(abs(self.factor - 1), self.spread)

    def input_tokens(self, image_tokens: float) -> float:
        """Input tokens to expect of a request whose image the rule counts so."""
        return self.text_tokens + self.factor * image_tokens


def calibrate(observations: Iterable[Observation], profile: Profile, detail: str | None = None) -> Calibration:
    """Fit a profile's rule to answers.

    Raises:
        ValueError: there are none.
    """
    seen = list(observations)
    if not seen:
        raise ValueError("no answer to calibrate on")
    ruled = [float(profile.image_tokens(item.width, item.height, detail)) for item in seen]
    billed = [float(item.input_tokens) for item in seen]
    mean_ruled, mean_billed = math.fsum(ruled) / len(seen), math.fsum(billed) / len(seen)
    variance = math.fsum((x - mean_ruled) ** 2 for x in ruled) / len(seen)
    known = len(set(ruled)) > 1 and len(seen) >= 3 and math.sqrt(variance) > _SAME * mean_ruled
    factor = 1.0
    if known:
        shared = math.fsum((x - mean_ruled) * (y - mean_billed) for x, y in zip(ruled, billed, strict=True))
        factor = shared / len(seen) / variance
    text = mean_billed - factor * mean_ruled
    left = [y - text - factor * x for x, y in zip(ruled, billed, strict=True)]
    spread = math.sqrt(math.fsum(value * value for value in left) / len(seen)) / mean_billed if mean_billed else 0.0
    return Calibration(text_tokens=text, factor=factor, known=known, spread=spread, count=len(seen))


def fitting_rules(
    observations: Sequence[Observation], profiles: Iterable[Profile], detail: str | None = None
) -> list[str]:
    """Names of the profiles whose rule explains the answers to within half a per cent; none for images of one size."""
    if len({(item.width, item.height) for item in observations}) < _SHAPES:
        return []
    fits = [(profile.model, calibrate(observations, profile, detail)) for profile in profiles]
    return [name for name, fit in fits if fit.off <= _FITS and fit.text_tokens >= 0]
