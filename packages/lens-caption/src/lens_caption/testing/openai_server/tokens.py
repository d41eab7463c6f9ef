"""What a request costs: the published rules for images, a simple count for text, and list prices.

A copy of its own, on purpose: it shares no line with `lens_caption.profiles`, so that a mistake in one shows in the
other. Text counts one token per 4.5 bytes of UTF-8, begun tokens included; a message adds 3 and a request 3. Real
tokenizers differ; what matters to a rehearsal is that the client does not know the count beforehand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MODELS", "ModelFacts", "PriceList", "facts_of", "image_tokens", "message_tokens", "text_tokens"]

Detail = Literal["low", "high", "auto", "original"]

PER_MESSAGE = 3
PER_REQUEST = 3


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the server knows of a model.

    Args:
        tiles: tokens per image, and per tile of 512 pixels; None for a model that counts patches.
        patches: tokens per patch of 32 pixels.
        cap: the most patches that are counted; None counts them all.
        price: dollars per million input and output tokens on the standard tier; the others cost half.
        shutdown: the day on which it goes, as `GET /v1/models` says it.
        reasons: whether it knows `reasoning_effort`.
        effort: the effort when a request names none.
    """

    tiles: tuple[int, int] | None = None
    patches: Fraction = Fraction(1)
    cap: int | None = None
    price: tuple[Decimal, Decimal] | None = None
    shutdown: str | None = None
    reasons: bool = False
    effort: str = "none"


def _facts(price: str, **fields: object) -> ModelFacts:
    dollars_in, dollars_out = map(Decimal, price.split("/"))
    return ModelFacts(price=(dollars_in, dollars_out), **fields)  # type: ignore[arg-type]


_GPT_6 = {"patches": Fraction(12, 10), "cap": 1536, "reasons": True, "effort": "medium"}

MODELS: dict[str, ModelFacts] = {
    "gpt-4.1": _facts("2.00/8.00", tiles=(85, 170), shutdown="2027-01-14"),
    "gpt-4.1-mini": _facts("0.40/1.60", patches=Fraction(162, 100), cap=1536, shutdown="2027-01-14"),
    "gpt-4.1-nano": _facts("0.10/0.40", patches=Fraction(246, 100), cap=1536, shutdown="2026-10-23"),
    "gpt-4o": _facts("2.50/10.00", tiles=(85, 170)),
    "gpt-4o-mini": _facts("0.15/0.60", tiles=(2833, 5667)),
    "gpt-5.1": _facts("1.25/10.00", tiles=(70, 140), reasons=True),
    "gpt-5.2": _facts("1.75/14.00", patches=Fraction(12, 10), cap=1536, reasons=True),
    "gpt-6.1-sol": _facts("2.00/10.00", **_GPT_6),
    "gpt-6-luna": _facts("0.10/0.50", **_GPT_6),
}
"""By name; a name with a date behind it, such as gpt-4.1-2025-04-14, is the same model."""


def facts_of(model: str, like: Mapping[str, str]) -> ModelFacts:
    """What is known of a model; an unknown one counts patches of 32 pixels, and has no price.

    Args:
        model: as a request names it.
        like: models of one's own, and which known one each resembles.
    """
    model = like.get(model, model)
    undated, _, _ = model.partition("-20")
    return MODELS.get(undated, ModelFacts())


def image_tokens(facts: ModelFacts, width: int, height: int, detail: str = "auto") -> int:
    """Tokens of an image of this size, as received; `auto` counts as `high`."""
    if facts.tiles is not None:
        base, per_tile = facts.tiles
        if detail == "low":
            return base
        longest, shortest = max(width, height), min(width, height)
        scale = min(Fraction(1), Fraction(2048, longest))
        scale *= min(Fraction(1), Fraction(768) / (scale * shortest))
        across, down = int(width * scale) or 1, int(height * scale) or 1
        return base + per_tile * math.ceil(across / 512) * math.ceil(down / 512)
    if detail == "low" and facts.cap is not None:
        # Nothing is published for `low` in patch models: a picture of 512 pixels is what it has always meant.
        width, height = min(width, 512), min(height, 512)
    patches = math.ceil(width / 32) * math.ceil(height / 32)
    cap = 10_000 if detail == "original" and facts.reasons else facts.cap
    return math.ceil(facts.patches * min(patches, cap or patches))


def text_tokens(text: str) -> int:
    """Tokens of a text: one per 4.5 bytes."""
    return math.ceil(len(text.encode()) * 2 / 9)


def message_tokens(texts: list[str], messages: int) -> int:
    """Tokens of all texts of a request with its frame."""
    return sum(map(text_tokens, texts)) + PER_MESSAGE * messages + PER_REQUEST


class PriceList:
    """Dollars for tokens; prices of one's own come before the published ones.

    Args:
        own: dollars per million input and output tokens, by model.
        like: models of one's own, and which known one each resembles.
    """

    def __init__(self, own: Mapping[str, tuple[Decimal | str, Decimal | str]], like: Mapping[str, str]):
        self._own = {model: (Decimal(pair[0]), Decimal(pair[1])) for model, pair in own.items()}
        self._like = dict(like)

    def cost(self, model: str, tier: str, input_tokens: int, output_tokens: int) -> Decimal | None:
        """What an answer costs; None if the model has no price. Flex and batch cost half."""
        price = self._own.get(model) or facts_of(model, self._like).price
        if price is None:
            return None
        cost = (input_tokens * price[0] + output_tokens * price[1]) / 1_000_000
        return cost / 2 if tier in {"flex", "batch"} else cost
