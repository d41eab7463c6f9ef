"""Models answer an evaluator's tasks in every prompt style: pictures are drawn, judged and counted.

All models draw a task from the same noise. Pictures are judged a few dozen at a time and then let go, so that a suite
of thousands takes no more memory than a small one.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from lens_core.contracts import verdicts
from lens_core.diffusion.text_to_image import Request, generate
from lens_train.evaluation.scores import Answer, scores_of
from lens_train.evaluation.sheet import Sheet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from lens_core.config.base import ComponentConfig
    from lens_core.contracts import EvalTask, Evaluator
    from lens_core.diffusion.loaded_model import LoadedModel
    from lens_core.storage.artifacts import OutputFolder

__all__ = ["ANSWERS", "SCORES", "Examinee", "measure", "pictures_of"]

SCORES = "scores.json"
ANSWERS = "answers.parquet"
_AT_ONCE = 64
_COLUMNS = ("model", "style", "skill", "task", "prompt", "correct")


@dataclass(frozen=True, kw_only=True)
class Examinee:
    """A model that is measured.

    Args:
        name: in the table.
        load: gives the model, on its device; what an earlier one took may be free by then.
        own_style: the style of the captions that it was trained on, if that is known.
    """

    name: str
    load: Callable[[], LoadedModel]
    own_style: str | None = None


def pictures_of(tasks: Sequence[EvalTask]) -> int:
    """How many pictures a model draws for them."""
    return sum(len(task.prompts) for task in tasks)


def measure(
    examinees: Sequence[Examinee],
    evaluator: Evaluator,
    output: OutputFolder,
    *,
    seed: int,
    steps: int | None = None,
    sampler: ComponentConfig | None = None,
    guidance: float | None = None,
    on_picture: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Ask, draw, judge, count; leaves `scores.json`, `answers.parquet` and the sheets.

    Args:
        examinees: one after the other.
        evaluator: asks and judges.
        output: where to write.
        seed: of the noise, which the task's number completes.
        steps: sampler steps; None takes the model's.
        sampler: None takes the model's.
        guidance: None takes the model's.
        on_picture: called with the number of pictures drawn so far.

    Returns:
        what `scores.json` holds.
    """
    tasks = evaluator.tasks()
    styles = list(dict.fromkeys(style for task in tasks for style in task.prompts))
    skills = list(dict.fromkeys(skill for task in tasks for skill in task.skills))
    answers: list[Answer] = []
    done = 0
    for examinee in examinees:
        model = examinee.load()
        chosen = model.chosen_sampler(sampler, steps)
        for style in styles:
            sheet = Sheet(skills)
            asked = [(number, task) for number, task in enumerate(tasks) if style in task.prompts]
            for first in range(0, len(asked), _AT_ONCE):
                some = asked[first : first + _AT_ONCE]
                images = generate(
                    model,
                    [_request(task, style, model, seed=seed, index=number) for number, task in some],
                    sampler=chosen,
                    guidance=guidance,
                    on_batch=lambda count, done=done: on_picture(done + count),  # type: ignore[misc]
                )
                done += len(images)
                for (_, task), image in zip(some, images, strict=True):
                    given = verdicts(task, evaluator.score(task, image))
                    sheet.add(image, given)
                    answers += [
                        Answer(
                            model=examinee.name,
                            style=style,
                            skill=skill,
                            task=task.id,
                            prompt=task.prompts[style],
                            correct=correct,
                        )
                        for skill, correct in given
                    ]
            output.write_bytes(f"sheets/{examinee.name}-{style}.png", sheet.png())
        del model  # before the next one is loaded
    stream = io.BytesIO()
    pq.write_table(pa.table({name: [getattr(one, name) for one in answers] for name in _COLUMNS}), stream)
    output.write_bytes(ANSWERS, stream.getvalue())
    scores = {
        "format_version": 1,
        "interval": "Wilson 95 % over prompts",
        "training_seeds": 1,
        "skills": skills,
        "styles": styles,
        "models": [{"name": examinee.name, "own_style": examinee.own_style} for examinee in examinees],
        **scores_of(answers),
    }
    output.write_json(SCORES, scores)
    return scores


def _request(task: EvalTask, style: str, model: LoadedModel, *, seed: int, index: int) -> Request:
    height, width = model.image_size
    return Request(
        prompt=task.prompts[style], height=task.height or height, width=task.width or width, seed=seed, index=index
    )
