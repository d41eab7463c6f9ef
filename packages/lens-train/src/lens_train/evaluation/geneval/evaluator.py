"""Asks GenEval's prompts, several pictures of each, and judges what an object detector and CLIP see in them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lens_core.contracts import EvalTask
from lens_core.errors import ConfigError
from lens_train.evaluation.geneval.colours import ColourClassifier
from lens_train.evaluation.geneval.detector import ObjectDetector
from lens_train.evaluation.geneval.prompts import GenevalPrompt, read_prompts
from lens_train.evaluation.geneval.rules import does

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from lens_train.evaluation.geneval.config import GenevalEvaluatorConfig
    from lens_train.evaluation.geneval.prompts import Colour
    from lens_train.evaluation.geneval.rules import Box

__all__ = ["COUNTING", "STYLE", "GenevalEvaluator"]

STYLE = "geneval"
"""There is one wording of each prompt."""

COUNTING = "counting"
"""The tag whose detections must be surer: a doubtful object spoils a count."""


class GenevalEvaluator:
    """Tasks and verdicts.

    Args:
        config: the file of prompts and the folders of the models, which are loaded at once.

    Raises:
        LensError: a file or folder cannot be used, or the detector does not know what a prompt asks for.
    """

    def __init__(self, config: GenevalEvaluatorConfig):
        self.config = config
        self._prompts = _first_of_each(read_prompts(Path(config.prompts)), config.prompts_per_skill)
        self._detector = ObjectDetector(Path(config.detector), device=config.device)
        for line, prompt in self._prompts.items():
            for name in _classes(prompt):
                if not self._detector.knows(name):
                    message = f"the detector at {config.detector} knows no class {name!r}"
                    raise ConfigError(message, file=config.prompts, line=line)
            if not config.clip and any(wanted.colour for wanted in prompt.include):
                message = "it asks for a colour, which needs `clip`: the folder of a CLIP"
                raise ConfigError(message, file=config.prompts, line=line)
        self._colours = ColourClassifier(Path(config.clip), device=config.device) if config.clip else None

    def tasks(self) -> list[EvalTask]:
        """`samples` tasks for each prompt, in the order of the file."""
        return [
            EvalTask(
                id=f"{line:05d}-{sample}",
                skill=prompt.tag,
                prompts={STYLE: prompt.prompt},
                height=self.config.size,
                width=self.config.size,
                truth=prompt.truth(),
            )
            for line, prompt in self._prompts.items()
            for sample in range(self.config.samples)
        ]

    def score(self, task: EvalTask, image: np.ndarray) -> bool:
        """Whether the picture shows what the prompt names."""
        prompt = GenevalPrompt.model_validate(task.truth)
        counting = prompt.tag == COUNTING
        found = self._detector(
            image,
            _classes(prompt),
            threshold=self.config.counting_threshold if counting else self.config.threshold,
        )
        return does(prompt, found, partial(self._colours_of, image))

    def _colours_of(self, image: np.ndarray, name: str, boxes: Sequence[Box]) -> list[Colour]:
        assert self._colours is not None, "prompts with colours were refused without one"
        return self._colours(image, name, boxes)


def _classes(prompt: GenevalPrompt) -> set[str]:
    return {entry.name for entry in (*prompt.include, *prompt.exclude)}


def _first_of_each(prompts: dict[int, GenevalPrompt], limit: int | None) -> dict[int, GenevalPrompt]:
    taken: dict[str, int] = {}
    kept = {}
    for line, prompt in prompts.items():
        taken[prompt.tag] = taken.get(prompt.tag, 0) + 1
        if limit is None or taken[prompt.tag] <= limit:
            kept[line] = prompt
    return kept
