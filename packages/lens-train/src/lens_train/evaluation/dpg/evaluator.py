"""Asks dense prompts, and lets a vision model answer the questions that belong to each.

A question whose parent is answered no is not asked, and counts as no: if there is no bus, it is not red either. The
verdict on a picture is one for each of its questions, in the row of the question's category.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lens_core.contracts import EvalTask
from lens_train.evaluation.dpg.endpoint import VisionEndpoint, data_url
from lens_train.evaluation.dpg.prompts import read_items

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from lens_train.evaluation.dpg.config import DpgEvaluatorConfig
    from lens_train.evaluation.dpg.prompts import Item

__all__ = ["STYLE", "DpgEvaluator", "answers_of"]

STYLE = "dpg"
"""There is one wording of each prompt."""


class DpgEvaluator:
    """Tasks and verdicts.

    Args:
        config: the file of prompts, and who answers.

    Raises:
        LensError: the file cannot be used, or OpenAI's key is missing.
    """

    def __init__(self, config: DpgEvaluatorConfig):
        self.config = config
        self._items = {item.id: item for item in read_items(Path(config.prompts))}
        self._endpoint = VisionEndpoint(config)

    def tasks(self) -> list[EvalTask]:
        """`samples` tasks for each prompt, in the order of the file."""
        return [
            EvalTask(
                id=f"{item.id}-{sample}",
                skill=tuple(question.category for question in item.questions),
                prompts={STYLE: item.prompt},
                height=self.config.size,
                width=self.config.size,
                truth={"item": item.id},
            )
            for item in self._items.values()
            for sample in range(self.config.samples)
        ]

    def score(self, task: EvalTask, image: np.ndarray) -> tuple[bool, ...]:
        """Whether each of the prompt's questions is answered yes."""
        item = self._items[task.truth["item"]]
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            return answers_of(item, partial(self._endpoint.says_yes, data_url(image)), pool)


def answers_of(item: Item, says_yes: Callable[[str], bool], pool: ThreadPoolExecutor) -> tuple[bool, ...]:
    """The answers in the order of the item's questions.

    Questions that wait for each other in a circle are asked together, and are true together.

    Args:
        item: whose questions.
        says_yes: answers a question; several are asked at once.
        pool: asks them.
    """
    answers: dict[int, bool] = {}
    waiting = list(item.questions)
    while waiting:
        ready = [one for one in waiting if all(parent in answers for parent in one.parents)] or waiting
        waiting = [one for one in waiting if one not in ready]
        asked = [one for one in ready if all(answers.get(parent, True) for parent in one.parents)]
        answers |= dict.fromkeys((one.id for one in ready), False)
        answers |= zip((one.id for one in asked), pool.map(says_yes, [one.text for one in asked]), strict=True)
        while false := [one.id for one in asked if answers[one.id] and not all(answers[p] for p in one.parents)]:
            answers |= dict.fromkeys(false, False)
    return tuple(answers[question.id] for question in item.questions)
