"""Asks for scenes of unseen composition, and checks skill by skill what came out.

Every scene is asked for in every style, so that a model cannot win by the wording alone. The skills:

* single: the one object, right in colour and shape, and nothing else
* two: both objects, and nothing else
* count: as many objects as asked for
* colour: the right colours, whatever the shapes
* position: every object in its quadrant
* relation: the first object where it was said to be, seen from the second
* whole: everything, sizes and background too
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from lens_core.contracts import EvalTask
from lens_core.datasets.scenes.detector import detect
from lens_core.datasets.scenes.language import describe
from lens_core.datasets.scenes.world import Scene, relation, sample_scene

if TYPE_CHECKING:
    import numpy as np

    from lens_core.datasets.scenes.detector import Detection
    from lens_train.evaluation.scenes.config import ScenesEvaluatorConfig, Skill

__all__ = ["ScenesEvaluator"]

_NUM_OBJECTS: dict[str, tuple[int, ...]] = {
    "single": (1,),
    "two": (2,),
    "count": (1, 2, 3),
    "colour": (2, 3),
    "position": (1, 2),
    "relation": (2,),
    "whole": (3,),
}


class ScenesEvaluator:
    """Tasks and verdicts; the same config gives the same tasks."""

    def __init__(self, config: ScenesEvaluatorConfig):
        self.config = config

    def tasks(self) -> list[EvalTask]:
        """`prompts_per_skill` tasks for each skill, in the order of the config."""
        return [
            self._task(skill, number) for skill in self.config.skills for number in range(self.config.prompts_per_skill)
        ]

    def score(self, task: EvalTask, image: np.ndarray) -> bool:
        """Whether the picture shows what the task's skill asks of it."""
        return _holds(task.skills[0], Scene.from_json(task.truth["scene"]), detect(image))

    def _task(self, skill: Skill, number: int) -> EvalTask:
        counts = _NUM_OBJECTS[skill]
        # Each skill has scenes of its own; the seed is offset so that they are not those of another skill.
        seed = self.config.seed * 1000 + list(_NUM_OBJECTS).index(skill)
        scene = sample_scene(seed, number, split="held-out", num_objects=counts[number % len(counts)])
        name = f"{skill}-{number:04d}"
        return EvalTask(
            id=name,
            skill=skill,
            prompts={style: describe(scene, style, seed=self.config.seed, key=name) for style in self.config.styles},
            height=self.config.size,
            width=self.config.size,
            truth={"scene": scene.to_json()},
        )


def _holds(skill: str, truth: Scene, found: Detection) -> bool:
    wanted, got = truth.objects, found.scene.objects
    alone = found.unclear == 0
    if skill in {"single", "two"}:
        return alone and found.scene.composition == truth.composition
    if skill == "count":
        return alone and len(got) == len(wanted)
    if skill == "colour":
        return alone and Counter(item.colour for item in got) == Counter(item.colour for item in wanted)
    if skill == "position":
        placed = {(item.colour, item.shape, item.quadrant) for item in got}
        return {(item.colour, item.shape, item.quadrant) for item in wanted} <= placed
    if skill == "relation":
        first, second = wanted
        there = {(item.colour, item.shape): item for item in got}
        a, b = there.get((first.colour, first.shape)), there.get((second.colour, second.shape))
        return a is not None and b is not None and relation(a, b) == relation(first, second)
    exact = {(item.colour, item.shape, item.size, item.quadrant) for item in wanted}
    same = exact == {(item.colour, item.shape, item.size, item.quadrant) for item in got}
    return alone and same and found.scene.background == truth.background
