"""How long a piece of work will take: predicted from its FLOPs, and corrected by what such work really took.

A tick, in which several sequences take one step together, takes

    tick_s + FLOPs / (flops_per_s · tokens / (tokens + half_tokens))

seconds: a fixed part, and arithmetic at a rate that grows with the tokens and is half of its limit at `half_tokens`.
Texts and pictures are encoded and decoded in a fixed part and one per token or pixel. Each prediction is multiplied by
a correction that is learnt while the engine works, one for each power of two of tokens or pixels.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lens_serve.engine.messages import Costs

__all__ = ["Branch", "CostModel", "Price", "calibrate", "lean_steps"]

_LEARN = 0.2
"""How far a correction goes towards what was measured just now, in logarithms."""

_SURPRISE = math.log(2)
"""No measurement counts as further off than this factor, so that a single one moves a correction by 15 % at most."""

_FORGET = 0.05

_NEAR_PLATEAU = 0.8
"""Of the best rate, the fixed part of a tick counted in. That is about where arithmetic alone is at nine tenths: on an
H100, where one picture of 1024² does 86 % of what four do at once. Larger ticks gain little and keep everybody in them
waiting: twice that size, in the simulation at load 0.8, takes the share of prompt answers from 93 to 78 %.
"""


@dataclass(frozen=True)
class Branch:
    """One branch of one picture, as long as the denoiser sees it."""

    image_tokens: int
    text_tokens: int

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.image_tokens + self.text_tokens


class Price(NamedTuple):
    """Seconds before correction, and the name of the correction."""

    seconds: float
    bucket: str


class CostModel:
    """Seconds of one model's work on one device.

    Args:
        costs: what was measured of them, and learnt before.

    Attributes:
        error: how far predictions are off, the mean of |log(measured / predicted)| in which old ones fade.
    """

    def __init__(self, costs: Costs):
        self._costs = costs
        self._corrections = dict(costs.corrections)
        self.error = costs.error

    def flops(self, sequence: Branch) -> float:
        """Of one step of a sequence."""
        costs = self._costs
        linear = costs.per_image * sequence.image_tokens + costs.per_text * sequence.text_tokens
        return linear + costs.per_square * sequence.tokens**2

    def tick_price(self, sequences: Iterable[Branch]) -> Price:
        """Of a tick, for `seconds`; the same as long as the model lives."""
        flops, tokens = 0.0, 0
        for sequence in sequences:
            flops += self.flops(sequence)
            tokens += sequence.tokens
        if not tokens:
            return Price(0.0, "tick:0")
        costs = self._costs
        rate = costs.flops_per_s * tokens / (tokens + costs.half_tokens)
        return Price(costs.tick_s + flops / rate, _bucket("tick", tokens))

    def decode_price(self, pixels: int) -> Price:
        """Of decoding one picture, for `seconds`."""
        costs = self._costs
        return Price(costs.decode_s + costs.decode_pixel_s * pixels, _bucket("decode", pixels))

    def seconds(self, price: Price) -> float:
        """What a price means by now."""
        return price[0] * self._corrections.get(price[1], 1.0)

    def tick_s(self, sequences: Iterable[Branch]) -> float:
        """Of a tick in which these sequences take a step."""
        return self.seconds(self.tick_price(sequences))

    def encode_s(self, text_tokens: int) -> float:
        """Of encoding texts of so many tokens in one go; nothing for no text."""
        return self.seconds(self._encode_price(text_tokens))

    def decode_s(self, pixels: int) -> float:
        """Of decoding one picture."""
        return self.seconds(self.decode_price(pixels))

    def solo_s(self, sequences: Iterable[Branch], steps: int, pixels: int, text_tokens: int | None = None) -> float:
        """Of a whole job that has the device for itself.

        Args:
            sequences: its branches.
            steps: of the sampler.
            pixels: of the picture.
            text_tokens: that are encoded; None: those of the branches.
        """
        branches = tuple(sequences)
        if text_tokens is None:
            text_tokens = sum(sequence.text_tokens for sequence in branches)
        return self.encode_s(text_tokens) + steps * self.tick_s(branches) + self.decode_s(pixels)

    def observe_tick(self, sequences: Iterable[Branch], seconds: float) -> None:
        """Learn from a tick."""
        self._observe(self.tick_price(sequences), seconds)

    def observe_encode(self, text_tokens: int, seconds: float) -> None:
        """Learn from an encoding."""
        self._observe(self._encode_price(text_tokens), seconds)

    def observe_decode(self, pixels: int, seconds: float) -> None:
        """Learn from a decoding."""
        self._observe(self.decode_price(pixels), seconds)

    def costs(self) -> Costs:
        """All that is known by now, for another process or a later one."""
        return msgspec.structs.replace(self._costs, corrections=dict(self._corrections), error=self.error)

    def _encode_price(self, text_tokens: int) -> Price:
        costs = self._costs
        seconds = costs.encode_s + costs.encode_token_s * text_tokens if text_tokens else 0.0
        return Price(seconds, _bucket("encode", text_tokens))

    def _observe(self, price: Price, seconds: float) -> None:
        if price.seconds <= 0 or not 0 < seconds < math.inf:
            return
        surprise = math.log(seconds / self.seconds(price))
        self.error += _FORGET * (abs(surprise) - self.error)
        bounded = min(max(surprise, -_SURPRISE), _SURPRISE)
        self._corrections[price.bucket] = self._corrections.get(price.bucket, 1.0) * math.exp(_LEARN * bounded)


def calibrate(
    measure: Callable[[list[Branch]], float], costs: Costs, ladder: Iterable[list[Branch]], *, repeats: int = 3
) -> tuple[Costs, int]:
    """Fit a model's costs to ticks of growing size, and find the size that fills the device.

    It takes `repeats` calls of `measure` for each rung of the ladder; the median counts. So a first call that compiles
    does no harm, and how long it all takes is in the hands of who chose the ladder.

    Args:
        measure: makes a tick of these sequences and says how many seconds it took.
        costs: whose FLOPs are right; `tick_s`, `flops_per_s` and `half_tokens` are replaced.
        ladder: what to measure, at least one rung.
        repeats: calls for each rung.

    Returns:
        The costs, without corrections, and the knee: the fewest tokens measured at which the device did at least 80 %
        of the FLOPs per second that it did at its best.
    """
    rungs = [list(rung) for rung in ladder]
    model = CostModel(costs)
    flops = np.array([sum(map(model.flops, rung)) for rung in rungs])
    tokens = np.array([sum(sequence.tokens for sequence in rung) for rung in rungs])
    seconds = np.array([statistics.median(measure(rung) for _ in range(repeats)) for rung in rungs])
    tick_s, per_flop, per_flop_and_token = _fit(flops, tokens, seconds)
    fitted = msgspec.structs.replace(
        costs,
        tick_s=tick_s,
        flops_per_s=1 / per_flop,
        half_tokens=per_flop_and_token / per_flop,
        corrections={},
        error=0.0,
    )
    rates = flops / seconds
    return fitted, int(tokens[rates >= _NEAR_PLATEAU * rates.max()].min())


def lean_steps(taken: int, steps: int) -> int:
    """How many steps are left that do without the second branch, in the tier `fast`: every other one, not the first."""
    return steps // 2 - taken // 2


def _fit(flops: np.ndarray, tokens: np.ndarray, seconds: np.ndarray) -> tuple[float, float, float]:
    """Least squares of relative errors in seconds = a + b·FLOPs + c·FLOPs/tokens, with b > 0 and none of them negative.

    What would be negative is left out: of the choices of terms that have no such, the best is taken.
    """
    terms = np.stack([np.ones_like(flops), flops, flops / tokens], axis=1) / seconds[:, None]
    scale = np.linalg.norm(terms, axis=0)
    best, least = (0.0, float(np.mean(seconds / flops)), 0.0), math.inf
    for chosen in ([0, 1, 2], [0, 1], [1, 2], [1]):
        solution = np.zeros(3)
        solution[chosen] = np.linalg.lstsq(terms[:, chosen] / scale[chosen], np.ones(len(flops)), rcond=None)[0]
        residual = float(np.sum((terms / scale @ solution - 1) ** 2))
        if solution.min() >= 0 and solution[1] > 0 and residual < least:
            tick_s, per_flop, per_flop_and_token = map(float, solution / scale)
            best, least = (tick_s, per_flop, per_flop_and_token), residual
    return best


def _bucket(kind: str, amount: int) -> str:
    """Named after the power of two that is not above the amount."""
    return f"{kind}:{1 << (amount.bit_length() - 1) if amount else 0}"
