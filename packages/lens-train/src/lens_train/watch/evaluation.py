"""An evaluator in the loop: it asks for pictures and judges them, and what it finds may fail the run.

score_SKILL   share of what is asked of a skill that is drawn right, over all the styles that the evaluator asks in

The noise is that of the stage `evaluate`, so that its table continues these curves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lens_core.contracts import verdicts
from lens_core.diffusion.text_to_image import Request
from lens_core.errors import ConfigError, LensError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lens_core.contracts import Evaluator
    from lens_train.watch.config import EvaluationConfig
    from lens_train.watch.drawing import Drawer

__all__ = ["Evaluation"]


class Evaluation:
    """Watches scores.

    Args:
        draw: by the model in training.
        evaluator: asks and judges.
        config: how often, and what scores the run has to end with.

    Raises:
        ConfigError: a score is asked for that the evaluator does not give.
    """

    def __init__(self, draw: Drawer, evaluator: Evaluator, config: EvaluationConfig):
        self.every = config.every
        self._draw = draw
        self._evaluator = evaluator
        self._at_least = config.at_least
        tasks = evaluator.tasks()
        self._asked = [(number, task, style) for number, task in enumerate(tasks) for style in task.prompts]
        skills = {skill for task in tasks for skill in task.skills}
        if unknown := sorted(set(config.at_least) - skills):
            raise ConfigError(
                f"the evaluator has no skill {unknown[0]!r}; it has {', '.join(sorted(skills))}",
                key="watch.evaluate.at_least",
            )

    def look(self, step: int) -> dict[str, float]:
        """The scores."""
        height, width = self._draw.image_size
        images = self._draw(
            [
                Request(
                    prompt=task.prompts[style],
                    height=task.height or height,
                    width=task.width or width,
                    index=number,
                )
                for number, task, style in self._asked
            ]
        )
        world, given = self._draw.world, []
        for place, ((_, task, _), image) in enumerate(zip(self._asked, images, strict=True)):
            # Ranks share the judging as well, which may be the work of another model.
            if place % world.size == world.rank:
                given += [float(verdict) for _, verdict in verdicts(task, self._evaluator.score(task, image))]
            else:
                given += [0.0] * len(task.skills)
        right: dict[str, list[float]] = {}
        skills = [skill for _, task, _ in self._asked for skill in task.skills]
        for skill, verdict in zip(skills, world.sum_over(torch.tensor(given)).tolist(), strict=True):
            right.setdefault(skill, []).append(verdict)
        return {f"score_{skill}": sum(own) / len(own) for skill, own in right.items()}

    def judge(self, seen: Mapping[str, float]) -> None:
        """See `Watcher`; the line names every skill that falls short."""
        short = [
            f"{skill} {seen[f'score_{skill}']:.3g} of {least:g}"
            for skill, least in self._at_least.items()
            if seen[f"score_{skill}"] < least
        ]
        if short:
            raise LensError(f"scores fall short of watch.evaluate.at_least at the end: {', '.join(short)}")
