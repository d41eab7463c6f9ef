"""Scores: shares by skill over all styles, from the noise of the stage `evaluate`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lens_core.contracts import EvalTask
from lens_core.errors import LensError
from lens_train.parallel.world import World
from lens_train.watch.config import EvaluationConfig
from lens_train.watch.evaluation import Evaluation


class Lengths:
    """Wants a picture as bright as its truth says."""

    def tasks(self):
        wanted = [("long", 4, 7), ("long", 4, 0), ("short", 1, 2)]
        return [
            EvalTask(
                id=str(number),
                skill=skill,
                prompts={"dense": "x" * dense, "brief": "x" * brief},
                height=8,
                width=16,
                truth={"length": 4},
            )
            for number, (skill, dense, brief) in enumerate(wanted)
        ]

    def score(self, task, image):
        return image.shape == (task.height, task.width, 3) and int(image[0, 0, 0]) == task.truth["length"]


class AsBrightAsThePromptIsLong:
    """Draws, as the model in training does."""

    world = World(device=torch.device("cpu"))
    image_size = (8, 16)

    def __init__(self):
        self.asked = []

    def __call__(self, requests):
        self.asked.extend((request.prompt, request.seed, request.index) for request in requests)
        return [np.full((request.height, request.width, 3), len(request.prompt), np.uint8) for request in requests]


def test_scores_are_shares_over_tasks_and_styles():
    draw = AsBrightAsThePromptIsLong()
    at_least = {"long": 0.5, "short": 0.1}
    evaluation = Evaluation(draw, Lengths(), EvaluationConfig(evaluator="scenes", every=5, at_least=at_least))
    seen = evaluation.look(5)
    assert evaluation.every == 5
    assert seen == {"score_long": 0.5, "score_short": 0.0}
    assert draw.asked == [("xxxx", 0, 0), ("x" * 7, 0, 0), ("xxxx", 0, 1), ("", 0, 1), ("x", 0, 2), ("xx", 0, 2)]
    with pytest.raises(LensError) as caught:
        evaluation.judge(seen)
    assert str(caught.value) == "scores fall short of watch.evaluate.at_least at the end: short 0 of 0.1"
    evaluation.judge(seen | {"score_short": 0.1})
