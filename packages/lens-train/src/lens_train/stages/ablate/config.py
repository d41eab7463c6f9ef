"""Settings of the ablate stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from lens_core.config.base import Config, Url
from lens_core.config.stage import NestedStages, StageConfig
from lens_core.registry import load_registry
from lens_train.ablation.overlay import NAME, Overlay
from lens_train.loop.budget import Budget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_core.registry import Registry

__all__ = ["AblateStageConfig", "ArmConfig"]


def _folder_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError("an arm's name is that of a folder, too: lower-case letters, digits, '-', '_'")
    return name


class ArmConfig(Config):
    """What one arm has of its own."""

    style: str | None = Field(
        None, description="The prompt style that is the arm's own, that of the captions it is trained on; null: none."
    )
    set: dict[str, Any] = Field(
        {},
        description="Changes of the cell, as `lens run --set` makes them: a path such as model.optimizer.lr, a value.",
    )


class AblateStageConfig(StageConfig):
    """Run the same small pipeline for arms that differ by a few settings, each with every seed."""

    type: Literal["ablate"] = "ablate"
    source: str | list[str] = Field(description="Earlier stages that the cell's stages may take from.")
    cell: list[dict[str, Any]] = Field(
        min_length=1,
        description="The stages that are run for every arm and seed; their sources are earlier ones of these, or those "
        "named in `source`.",
    )
    arms: dict[Annotated[str, AfterValidator(_folder_name)], ArmConfig] = Field(
        min_length=1,
        description="What is compared, by name: its own prompt `style`, if it has one, and what it changes (`set`).",
    )
    equal: Budget | None = Field(
        None,
        description="The budget of every train stage of every cell, so that arms cost the same: flops, steps, samples "
        "or tokens. An arm may `set` equal.flops for itself.",
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field(
        [0, 1, 2], min_length=1, description="Each arm is run with each of them as the pipeline's seed."
    )
    workers: int = Field(1, gt=0, le=64, description="Cells at once; more than one: each in a process of its own.")
    devices: list[Annotated[str, Field(pattern=r"^(cpu|cuda:\d+)$")]] | None = Field(
        None, min_length=1, description="Instead of `workers`, one worker for each of these, such as [cuda:0, cuda:1]."
    )
    results: Url | None = Field(
        None,
        min_length=1,
        description="A folder or URL, relative to the pipeline's file, that keeps what each finished cell found. A "
        "cell whose result is there, of the same settings, is not run again, in whatever run folder.",
    )

    @field_validator("seeds")
    @classmethod
    def _once_each(cls, seeds: list[int]) -> list[int]:
        if repeated := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            raise ValueError(f"the seed {repeated[0]} stands there twice")
        return seeds

    @field_validator("equal")
    @classmethod
    def _equal_work(cls, equal: Budget | None) -> Budget | None:
        if equal and equal.kind == "minutes":
            raise ValueError("minutes make no two arms equal; give flops, steps, samples or tokens")
        return equal

    @model_validator(mode="after")
    def _good_cells(self, info: ValidationInfo) -> AblateStageConfig:
        if self.devices and self.workers > 1:
            raise ValueError("give workers, or devices with a worker each, not both")
        registry = info.context["registry"] if info.context else load_registry()
        for overlay in self.overlays():
            overlay.stages(registry)
        return self

    def overlays(self) -> list[Overlay]:
        """Each arm's changes of the cell, in order."""
        equal = self.equal.model_dump(exclude_none=True) if self.equal else None
        return [Overlay(arm=name, cell=self.cell, equal=equal, changes=arm.set) for name, arm in self.arms.items()]

    def nested(self, registry: Registry) -> Sequence[NestedStages]:
        """One run of stages for each arm."""
        return [NestedStages(stages=overlay.stages(registry), place=overlay.place) for overlay in self.overlays()]
