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
from lens_train.evaluation.rewriting import texts_of
from lens_train.evaluation.scores import Answer, scores_of
from lens_train.evaluation.sheet import Sheet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from lens_core.config.base import ComponentConfig
    from lens_core.contracts import EvalTask, Evaluator
    from lens_core.diffusion.loaded_model import LoadedModel
    from lens_core.storage.artifacts import OutputFolder
    from lens_train.evaluation.rewriting import Rewriting

__all__ = ["ANSWERS", "SCORES", "Examinee", "measure", "num_pictures"]

SCORES = "scores.json"
ANSWERS = "answers.parquet"
_AT_ONCE = 64
_COLUMNS = ("model", "style", "skill", "task", "prompt", "given", "correct")


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


def num_pictures(tasks: Sequence[EvalTask]) -> int:
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
    rewriting: Rewriting | None = None,
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
        rewriting: what models are given instead; judged is what was asked.
        on_picture: called with the number of pictures drawn so far.

    Returns:
        what `scores.json` holds.
    """
    tasks = evaluator.tasks()
    styles = list(dict.fromkeys(style for task in tasks for style in task.prompts))
    skills = list(dict.fromkeys(skill for task in tasks for skill in task.skills))
    given = rewriting.texts if rewriting else {text: text for text in texts_of(tasks)}
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
                    [_request(task, given[task.prompts[style]], model, seed=seed, index=n) for n, task in some],
                    sampler=chosen,
                    guidance=guidance,
                    on_batch=lambda count, done=done: on_picture(done + count),  # type: ignore[misc]
                )
                done += len(images)
                for (_, task), image in zip(some, images, strict=True):
                    judged = verdicts(task, evaluator.score(task, image))
                    sheet.add(image, judged)
                    answers += [
                        Answer(
                            model=examinee.name,
                            style=style,
                            skill=skill,
                            task=task.id,
                            prompt=task.prompts[style],
                            given=given[task.prompts[style]],
                            correct=correct,
                        )
                        for skill, correct in judged
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
        "rewriter": rewriting.by.model_dump(mode="json") if rewriting else None,
        "rewritten": {style: rewriting.changed(_asked(tasks, style)) if rewriting else 0 for style in styles},
        "skills": skills,
        "styles": styles,
        "models": [{"name": examinee.name, "own_style": examinee.own_style} for examinee in examinees],
        **scores_of(answers),
    }
    output.write_json(SCORES, scores)
    return scores


def _asked(tasks: Sequence[EvalTask], style: str) -> set[str]:
    return {task.prompts[style] for task in tasks if style in task.prompts}


def _request(task: EvalTask, prompt: str, model: LoadedModel, *, seed: int, index: int) -> Request:
    height, width = model.image_size
    return Request(prompt=prompt, height=task.height or height, width=task.width or width, seed=seed, index=index)
