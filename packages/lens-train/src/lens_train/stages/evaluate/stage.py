"""The evaluate stage: every model answers every task in every prompt style; each cell of the table gets an interval.

All models draw a task from the same noise. A model's *own* style is the one of the captions it was trained on, read
from its lineage.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lens_core.diffusion.device import pick_device
from lens_core.diffusion.model_folder import load_model_folder
from lens_core.diffusion.text_to_image import Request, generate
from lens_core.intervals import wilson_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_core.contracts import EvalTask
    from lens_core.pipeline.context import StageContext
    from lens_core.storage.artifacts import Artifact
    from lens_train.stages.evaluate.config import EvaluateStageConfig

__all__ = ["ANSWERS", "SCORES", "own_style", "run"]

SCORES = "scores.json"
ANSWERS = "answers.parquet"
_SHEET_COLUMNS = 8


def run(config: EvaluateStageConfig, context: StageContext) -> dict[str, Any]:
    """Ask, draw, judge, count."""
    evaluator = context.registry.build("evaluators", config.evaluator)
    tasks: Sequence[EvalTask] = evaluator.tasks()
    styles = list(dict.fromkeys(style for task in tasks for style in task.prompts))
    skills = list(dict.fromkeys(task.skill for task in tasks))
    device = pick_device(config.device)
    context.progress.start(len(context.inputs) * sum(len(task.prompts) for task in tasks), "pictures judged")
    answers: dict[str, list[Any]] = {name: [] for name in ("model", "style", "skill", "task", "prompt", "correct")}
    done = 0
    for artifact in context.inputs:
        model = load_model_folder(artifact.url, registry=context.registry).to(device)
        sampler = config.sampler or model.sampler
        if config.steps:
            sampler = context.registry.parse("samplers", {**sampler.model_dump(), "steps": config.steps})
        for style in styles:
            asked = [(number, task) for number, task in enumerate(tasks) if style in task.prompts]
            requests = [
                Request(
                    prompt=task.prompts[style], height=task.height, width=task.width, seed=config.seed, index=number
                )
                for number, task in asked
            ]
            images = generate(
                model,
                requests,
                sampler=sampler,
                guidance=config.guidance,
                on_batch=lambda count, done=done: context.progress.update(done + count),  # type: ignore[misc]
            )
            done += len(images)
            verdicts = [evaluator.score(task, image) for (_, task), image in zip(asked, images, strict=True)]
            for (_, task), correct in zip(asked, verdicts, strict=True):
                row = (artifact.name, style, task.skill, task.id, task.prompts[style], correct)
                for name, value in zip(answers, row, strict=True):
                    answers[name].append(value)
            context.output.write_bytes(f"sheets/{artifact.name}-{style}.png", _sheet(asked, images, verdicts, skills))
    cells = _cells(answers)
    stream = io.BytesIO()
    pq.write_table(pa.table(answers), stream)
    context.output.write_bytes(ANSWERS, stream.getvalue())
    context.output.write_json(
        SCORES,
        {
            "format_version": 1,
            "interval": "Wilson 95 % over prompts",
            "training_seeds": 1,
            "skills": skills,
            "styles": styles,
            "models": [{"name": artifact.name, "own_style": own_style(artifact)} for artifact in context.inputs],
            "cells": cells,
        },
    )
    return {"pictures": done, "models": len(context.inputs)}


def own_style(model: Artifact) -> str | None:
    """The style of the captions a model was trained on, if its captioner has one."""
    captioner = model.parent("captions").config.get("captioner", {})
    style = captioner.get("style")
    return style if isinstance(style, str) else None


def _cells(answers: dict[str, list[Any]]) -> list[dict[str, Any]]:
    counts: dict[tuple[str, str, str], list[int]] = {}
    keys = zip(answers["model"], answers["style"], answers["skill"], strict=True)
    for key, correct in zip(keys, answers["correct"], strict=True):
        cell = counts.setdefault(key, [0, 0])
        cell[0] += bool(correct)
        cell[1] += 1
    cells = []
    for (model, style, skill), (correct, n) in counts.items():
        low, high = wilson_interval(correct, n)
        cells.append(
            {
                "model": model,
                "style": style,
                "skill": skill,
                "correct": correct,
                "n": n,
                "accuracy": correct / n,
                "low": low,
                "high": high,
            }
        )
    return cells


def _sheet(
    asked: list[tuple[int, EvalTask]], images: list[np.ndarray], verdicts: list[bool], skills: list[str]
) -> bytes:
    """The first pictures of each skill, a row a skill, framed green where right and red where wrong."""
    scale, frame = 2, 3
    rows = []
    for skill in skills:
        cells: list[np.ndarray] = []
        for (_, task), image, correct in zip(asked, images, verdicts, strict=True):
            if task.skill == skill and len(cells) < _SHEET_COLUMNS:
                large = image.repeat(scale, axis=0).repeat(scale, axis=1)
                colour = np.array((40, 160, 80) if correct else (210, 50, 50), dtype=np.uint8)
                framed = np.empty((large.shape[0] + 2 * frame, large.shape[1] + 2 * frame, 3), dtype=np.uint8)
                framed[:] = colour
                framed[frame:-frame, frame:-frame] = large
                cells.append(framed)
        cells += [np.full_like(cells[0], 255)] * (_SHEET_COLUMNS - len(cells))
        rows.append(np.concatenate(cells, axis=1))
    stream = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(stream, "PNG")
    return stream.getvalue()
