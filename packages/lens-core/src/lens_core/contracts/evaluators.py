"""Prompts, and verdicts on the images made from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

__all__ = ["EvalTask", "Evaluator"]


@dataclass(frozen=True, kw_only=True)
class EvalTask:
    """One question put to a model.

    Args:
        id: unique within the evaluator.
        skill: the row of the table that the verdict counts in.
        prompts: the same request worded in each prompt style.
        height: of the image to make, in pixels.
        width: of the image to make, in pixels.
        truth: JSON-able facts that the verdict needs.
    """

    id: str
    skill: str
    prompts: Mapping[str, str]
    height: int
    width: int
    truth: Mapping[str, Any] = field(default_factory=dict)


class Evaluator(Protocol):
    """Asks and judges; built as `target(config)`."""

    def tasks(self) -> Sequence[EvalTask]:
        """The same tasks in the same order at every call."""
        ...

    def score(self, task: EvalTask, image: np.ndarray) -> bool:
        """Whether `image` (uint8 [height, width, 3]) does what the task asks."""
        ...
