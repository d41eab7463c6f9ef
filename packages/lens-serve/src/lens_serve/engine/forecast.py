"""What a job will take, told by the process that accepts it: only the engine counts the tokens of its text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_serve.engine.cost import Branch, lean_steps

if TYPE_CHECKING:
    from lens_serve.engine.cost import CostModel, Price
    from lens_serve.engine.messages import Draw, ModelInfo

__all__ = ["Forecast", "guessed_tokens"]

_CHARS_PER_TOKEN = 4
"""Of English prose, about."""


def guessed_tokens(text: str) -> int:
    """How many tokens a text is about; none only of no text."""
    return -(-len(text) // _CHARS_PER_TOKEN)


class Forecast:
    """Of one job.

    Args:
        draw: what is asked for.
        model: that it is drawn by.

    Attributes:
        steps: that it takes: fewer than its sampler has, if it starts from a picture.
    """

    def __init__(self, draw: Draw, model: ModelInfo):
        self.steps = draw.steps if draw.start is None else max(1, round(draw.steps * draw.start.strength))
        image = (draw.height // model.stride) * (draw.width // model.stride)
        texts = (draw.prompt, draw.negative) if draw.guidance != 1 else (draw.prompt,)
        self._branches = tuple(Branch(image, guessed_tokens(text)) for text in texts)
        self._reuses_guidance = draw.tier == "fast"
        self._text_tokens = sum(branch.text_tokens for branch in self._branches)
        self._pixels = draw.height * draw.width
        self._starts = draw.start is not None
        self._is_exact = draw.tier == "exact"
        self._prices: dict[tuple[int, int], Price] = {}  # by branches and who shares a tick: asked for again and again

    def solo_s(self, cost: CostModel) -> float:
        """Seconds of the job when it has an engine for itself."""
        return self.remaining_s(cost, steps_left=self.steps, begun=False, jobs=1, knee_tokens=1)

    def remaining_s(self, cost: CostModel, *, steps_left: int, begun: bool, jobs: int, knee_tokens: int) -> float:
        """Seconds of an engine that the job still takes when it shares ticks with others.

        A tick is cheaper by the job the fuller it is, up to the knee. The others are taken to be like this one: where
        they are not, what is too much for one is too little for another. Exact jobs share ticks with none.

        Args:
            cost: of the model, always of the same engine.
            steps_left: of the job.
            begun: its text is encoded, and the picture that it starts from.
            jobs: that the engine has, this one included.
            knee_tokens: of a tick that fills the device.
        """

        def step_s(branches: tuple[Branch, ...]) -> float:
            tokens = sum(branch.tokens for branch in branches)
            alike = 1 if self._is_exact else max(1, min(jobs, knee_tokens // tokens))
            if (len(branches), alike) not in self._prices:
                self._prices[len(branches), alike] = cost.tick_price(branches * alike)
            return cost.seconds(self._prices[len(branches), alike]) / alike

        lean = lean_steps(self.steps - steps_left, self.steps) if self._reuses_guidance else 0
        steps_s = (steps_left - lean) * step_s(self._branches) + lean * step_s(self._branches[:1])
        decode_s = cost.decode_s(self._pixels)
        # A picture takes about as long to encode as to decode.
        begin_s = 0.0 if begun else cost.encode_s(self._text_tokens) + (decode_s if self._starts else 0.0)
        return begin_s + steps_s + decode_s
