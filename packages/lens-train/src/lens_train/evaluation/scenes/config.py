"""Settings of the scenes evaluator."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig

__all__ = ["SKILLS", "ScenesEvaluatorConfig", "Skill"]

Skill = Literal["single", "two", "count", "colour", "position", "relation", "whole"]
SKILLS: tuple[Skill, ...] = ("single", "two", "count", "colour", "position", "relation", "whole")


class ScenesEvaluatorConfig(ComponentConfig):
    """Prompts for held-out compositions in every style, judged by the exact detector."""

    type: Literal["scenes"] = "scenes"
    prompts_per_skill: int = Field(100, gt=0, le=100_000, description="Scenes asked for per skill.")
    skills: list[Skill] = Field(list(SKILLS), min_length=1, description="What is judged.")
    styles: list[Literal["alt-text", "brief", "dense"]] = Field(
        ["alt-text", "brief", "dense"], min_length=1, description="How prompts are worded."
    )
    size: int = Field(32, ge=32, le=256, multiple_of=16, description="Height and width of the pictures in pixels.")
    seed: int = Field(0, ge=0, description="Which held-out scenes.")
