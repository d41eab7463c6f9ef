"""What a profile says of a model, and what can be worked out from it."""

from __future__ import annotations

import datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator

from lens_caption.profiles.rules import patch_tokens, tile_tokens
from lens_core.config.base import Config
from lens_core.errors import ConfigError

__all__ = [
    "LANES",
    "Lane",
    "Limits",
    "Parameters",
    "PatchesRule",
    "Price",
    "Profile",
    "RetiredModelError",
    "TilesRule",
    "UnknownModelError",
    "UnknownPriceError",
    "Usage",
]

Lane = Literal["standard", "flex", "batch"]
"""The ways to buy an answer: at once, at once when there is room, and within a day."""

LANES: tuple[Lane, ...] = get_args(Lane)
SOON_DAYS = 90
MILLION = 1_000_000


class UnknownModelError(ConfigError):
    """No profile describes this model at this endpoint."""


class UnknownPriceError(ConfigError):
    """What a lane of a model costs is not known, so nothing may be bought there."""


class RetiredModelError(ConfigError):
    """The model is no longer served."""


def _exact(value: Any) -> Any:
    return str(value) if isinstance(value, float) else value


Dollars = Annotated[Decimal, BeforeValidator(_exact), Field(ge=0)]


class Usage(Config):
    """Tokens as an answer's `usage` counts them; cached input is a part of the input."""

    input_tokens: int = Field(ge=0)
    output_tokens: int = Field(ge=0)
    cached_input_tokens: int = Field(0, ge=0)
    tier: str = Field("", description="The service tier that the answer names.")


class Price(Config):
    """US dollars per million tokens in one lane."""

    input_per_million: Dollars
    output_per_million: Dollars
    cached_input_per_million: Dollars | None = Field(None, description="null charges cached input as any other.")

    def cost(self, usage: Usage) -> Decimal:
        """US dollars, to the last digit."""
        cached = min(usage.cached_input_tokens, usage.input_tokens)
        cached_price = (
            self.input_per_million if self.cached_input_per_million is None else self.cached_input_per_million
        )
        total = (
            (usage.input_tokens - cached) * self.input_per_million
            + cached * cached_price
            + usage.output_tokens * self.output_per_million
        )
        return total / MILLION


class TilesRule(Config):
    """Counts tiles; see `tile_tokens`."""

    rule: Literal["tiles"]
    base: int = Field(ge=0)
    per_tile: int = Field(ge=0)
    tile: int = Field(512, gt=0)
    fit: int = Field(2048, gt=0)
    short_side: int = Field(768, gt=0)
    low: int | None = Field(None, ge=0, description="Tokens of any image at detail low; null counts it as high.")

    def tokens(self, width: int, height: int, detail: str | None) -> int:
        """Tokens of an image of this size, as sent."""
        if detail == "low" and self.low is not None:
            return self.low
        return tile_tokens(
            width,
            height,
            base=self.base,
            per_tile=self.per_tile,
            tile=self.tile,
            fit=self.fit,
            short_side=self.short_side,
        )


class PatchesRule(Config):
    """Counts patches; see `patch_tokens`."""

    rule: Literal["patches"]
    side: int = Field(32, gt=0)
    factor: Dollars = Decimal(1)
    cap: int | None = Field(None, gt=0)
    original_cap: int | None = Field(None, gt=0, description="The cap at detail original; null is the usual one.")
    low: int | None = Field(None, ge=0, description="Tokens of any image at detail low; null counts it as high.")

    def tokens(self, width: int, height: int, detail: str | None) -> int:
        """Tokens of an image of this size, as sent."""
        if detail == "low" and self.low is not None:
            return self.low
        cap = self.original_cap if detail == "original" and self.original_cap is not None else self.cap
        return patch_tokens(width, height, side=self.side, factor=self.factor, cap=cap)


class Parameters(Config):
    """Which parameters the model takes."""

    output_limit: Literal["max_completion_tokens", "max_tokens"] = Field(
        "max_completion_tokens", description="What the chat API calls the limit on the answer's length."
    )
    temperature: Literal["yes", "no", "without-reasoning"] = "yes"
    reasoning_effort: str | None = Field(None, description="What captions ask for; null: the model does not reason.")
    details: list[str] = Field(["low", "high", "auto"], description="Values of an image's detail.")


class Limits(Config):
    """Rate limits, where they are known; those of an account stand in the headers of its answers."""

    rpm: int | None = Field(None, gt=0, description="Requests per minute.")
    tpm: int | None = Field(None, gt=0, description="Tokens per minute, the longest allowed answer counted in.")
    batch_requests: int = Field(50_000, gt=0, description="Requests in one batch file.")
    batch_bytes: int = Field(200_000_000, gt=0, description="Bytes of one batch file.")
    batch_queue_tokens: int | None = Field(None, gt=0, description="Input tokens that may wait in batches at once.")


class Profile(Config):
    """One model at one kind of endpoint."""

    model: str = Field(min_length=1, description="The model's name.")
    names: list[str] = Field([], description="Other names of it, with * and ?, such as dated snapshots.")
    hosts: list[str] = Field(["*"], min_length=1, description="Host names that serve it, with * and ?.")
    checked: datetime.date = Field(description="When a person last looked all this up.")
    sources: list[str] = Field(min_length=1, description="Where it was looked up.")
    weak: dict[str, str] = Field({}, description="By field: why one should not rely on it.")
    parameters: Parameters = Parameters()
    image_rule: Annotated[TilesRule | PatchesRule, Field(discriminator="rule")] = Field(
        description="How an image is counted."
    )
    prices: dict[Lane, Price] = Field({}, description="By lane; a lane that is absent has no known price.")
    limits: Limits = Limits()
    shutdown: datetime.date | None = Field(None, description="First day on which it is no longer served.")
    successor: str | None = None
    file: str = Field("", exclude=True, description="Where the profile was read; not part of the file.")

    @field_validator("weak")
    @classmethod
    def _weak_fields_exist(cls, weak: dict[str, str]) -> dict[str, str]:
        unknown = [name for name in weak if name not in cls.model_fields]
        if unknown:
            raise ValueError(f"there is no field {unknown[0]!r}")
        return weak

    def describes(self, model: str) -> bool:
        """Whether `model` is one of this profile's names."""
        return any(fnmatchcase(model, name) for name in (self.model, *self.names))

    def served_by(self, host: str) -> bool:
        """Whether `host` is one of this profile's hosts."""
        return any(fnmatchcase(host.lower(), pattern.lower()) for pattern in self.hosts)

    def image_tokens(self, width: int, height: int, detail: str | None = None) -> int:
        """Input tokens of an image of this size, as sent.

        Args:
            width: in pixels.
            height: in pixels.
            detail: the request's image detail; None and "auto" count as "high".
        """
        return self.image_rule.tokens(width, height, detail)

    def price(self, lane: Lane = "standard") -> Price:
        """The prices of a lane.

        Raises:
            UnknownPriceError: there are none.
        """
        if lane not in self.prices:
            known = ", ".join(self.prices) or "none"
            raise UnknownPriceError(
                f"the price of {self.model} in the lane {lane!r} is not known (known: {known}), and an unknown price "
                f"is not zero; write a profile with its price (docs: how-to/quote-a-run)",
                file=self.file or None,
            )
        return self.prices[lane]

    def cost(self, usage: Usage, lane: Lane = "standard") -> Decimal:
        """US dollars that this usage costs.

        Raises:
            UnknownPriceError: the lane has no known price.
        """
        return self.price(lane).cost(usage)

    def refuse_if_retired(self, today: datetime.date) -> None:
        """Stop before the first request to a model that is gone.

        Raises:
            RetiredModelError: it shut down; a profile of one's own with another `shutdown` says otherwise.
        """
        if self.shutdown is not None and self.shutdown <= today:
            raise RetiredModelError(
                f"{self.model} shut down on {self.shutdown}{self._instead()}; if it is served to you all the same, "
                f"say so in a profile of your own (like: {self.model}, shutdown: null)",
                file=self.file or None,
            )

    def lifecycle_warning(self, today: datetime.date, until: datetime.date | None = None) -> str | None:
        """A line about the model's end, if that comes before or soon after the run's.

        Args:
            today: the day of the question.
            until: when the run would end; None means today.

        Raises:
            RetiredModelError: it is gone already.
        """
        self.refuse_if_retired(today)
        until = until or today
        if self.shutdown is None or self.shutdown > until + datetime.timedelta(days=SOON_DAYS):
            return None
        when = f"{self.model} shuts down on {self.shutdown}, in {(self.shutdown - today).days} days"
        late = f", before this run would end ({until})" if self.shutdown <= until else ""
        return f"{when}{late}{self._instead()}"

    def _instead(self) -> str:
        return f"; its successor is {self.successor}" if self.successor else ""
