"""Caption prompts, versioned: text files beside this module, whose hash goes into every caption's provenance."""

from __future__ import annotations

from importlib import resources
from typing import Literal

__all__ = ["PromptName", "load_prompt"]

PromptName = Literal["dense-1", "brief-1"]


def load_prompt(name: PromptName) -> str:
    """The text of a prompt."""
    return (resources.files(__package__) / f"{name}.txt").read_text(encoding="utf-8").strip()
