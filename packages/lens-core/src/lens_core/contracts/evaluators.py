"""Prompts, and verdicts on the images made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

__all__ = ["EvalTask", "Evaluator", "verdicts"]


@dataclass(frozen=True, kw_only=True)
class EvalTask:
    """One request to a model, and what is asked of the picture.

    Args:
        id: unique within the evaluator.
        skill: the row of the table that the verdict counts in; of a task that asks several things, the row of each.
        prompts: the same request worded in each prompt style.
        height: of the image to make, in pixels; None: what the model was trained at.
        width: of the image to make, in pixels; None: what the model was trained at.
        truth: JSON-able facts that the verdict needs.
    """

    id: str
    skill: str | tuple[str, ...]
    prompts: Mapping[str, str]
    height: int | None
    width: int | None
    truth: Mapping[str, Any] = field(default_factory=dict)

    @property
    def skills(self) -> tuple[str, ...]:
        """The row of each verdict."""
        return (self.skill,) if isinstance(self.skill, str) else self.skill


class Evaluator(Protocol):
    """Asks and judges; built as `target(config)`."""

    def tasks(self) -> Sequence[EvalTask]:
        """The same tasks in the same order at every call."""
        ...

    def score(self, task: EvalTask, image: np.ndarray) -> bool | Sequence[bool]:
        """Whether `image` (uint8 [height, width, 3]) does what the task asks; a verdict for each of several skills."""
        ...


def verdicts(task: EvalTask, score: bool | Sequence[bool]) -> list[tuple[str, bool]]:
    """Each thing that the task asked: its skill, and whether the image does it.

    Raises:
        ValueError: there are not as many verdicts as the task has skills.
    """
    given = score if isinstance(score, Sequence) else (score,)
    return [(skill, bool(verdict)) for skill, verdict in zip(task.skills, given, strict=True)]
