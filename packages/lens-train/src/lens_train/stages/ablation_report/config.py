"""Settings of the ablation-report stage."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from lens_core.config.base import Config
from lens_core.config.stage import StageConfig

__all__ = ["AblationReportStageConfig", "AxisConfig", "KindConfig", "NoiseConfig", "PriceConfig"]

Arm = Annotated[str, Field(min_length=1, max_length=200)]
Label = Annotated[str, Field(min_length=1, max_length=120)]
_SKILLS: Any = Field(
    default_factory=list, max_length=16, description="Skills that it is read at; none: those of `headline`."
)


class KindConfig(Config):
    """One kind of caption along an axis: a curve."""

    name: Label = Field(description="What it is called, such as dense.")
    arms: list[Arm] = Field(
        min_length=3, max_length=32, description="Its arms along the axis, each as ABLATION/ARM; their order is free."
    )


class AxisConfig(Config):
    """Two kinds of caption at several sizes: what the one is worth in sizes of the other."""

    label: Label = Field(description="What grows, such as 'parameters' or 'training images'.")
    metric: Literal["parameters", "training_images", "training_flops", "samples", "tokens"] = Field(
        "parameters", description="The measured value that places an arm on the axis."
    )
    long: KindConfig = Field(description="The kind whose worth is asked for.")
    short: KindConfig = Field(description="Its rival.")
    skills: list[Label] = _SKILLS


class NoiseConfig(Config):
    """Arms with more and more wrong facts: how many cancel the gain over a rival."""

    label: Label = Field("share of wrong facts", description="What grows.")
    shares: dict[Arm, Annotated[float, Field(ge=0, le=1)]] = Field(
        min_length=2,
        max_length=32,
        description="By arm, as ABLATION/ARM, the share that was wrong; 0: the clean arm.",
    )
    rival: Arm = Field(description="The arm, as ABLATION/ARM, whose accuracy is to be kept above.")
    skills: list[Label] = _SKILLS


class PriceConfig(Config):
    """What the captions would have cost, had a model with this price list written them."""

    name: Label = Field("GPT-4.1, list prices of April 2025", description="Whose prices, and of when.")
    input_per_million: float = Field(2.0, ge=0, description="US dollars per million tokens of input.")
    output_per_million: float = Field(8.0, ge=0, description="US dollars per million tokens of output.")
    image_tokens: float = Field(765, ge=0, description="Input tokens of an image; 765 is one of 1024 × 1024 pixels.")
    tokens_per_word: float = Field(1.3, gt=0, le=10, description="Output tokens of a word of a caption.")

    def of_caption(self, words: float) -> float:
        """US dollars of an image's caption of so many words."""
        output = words * self.tokens_per_word * self.output_per_million
        return (self.image_tokens * self.input_per_million + output) / 1e6


class AblationReportStageConfig(StageConfig):
    """Write what ablations showed: tables, figures and a page, with intervals."""

    type: Literal["ablation-report"] = "ablation-report"
    source: str | list[str] = Field(description="The ablations to report on; the first one is the main one.")
    title: Label = Field("Ablations", description="Heading of the page and of its first figure.")
    baselines: dict[Arm, Arm | Annotated[list[Arm], Field(min_length=1)] | dict[Arm, Arm]] = Field(
        default_factory=dict,
        description="By ablation the arm that others are compared with, as ARM or ABLATION/ARM, or several of them, "
        "one after the other, or for each arm its own. Else the first arm.",
    )
    headline: list[Label] = Field(
        ["single", "two"],
        max_length=4,
        description="Skills that the first table and the figures show; none where no evaluator judged.",
    )
    axes: list[AxisConfig] = Field(default_factory=list, max_length=8, description="Scales to compare captions along.")
    noise: list[NoiseConfig] = Field(default_factory=list, max_length=8, description="Kinds of mistakes to weigh.")
    prices: PriceConfig = Field(PriceConfig(), description="For the hypothetical cost of captions.")
    pictures: int = Field(4, ge=0, le=16, description="Prompts whose pictures are shown side by side.")
