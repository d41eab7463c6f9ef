"""The door of lens-train: what it offers, without opening any of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_core.hookspecs import hookimpl
from lens_core.specs import EvaluatorSpec, StageSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["lens_evaluators", "lens_stages"]


@hookimpl
def lens_evaluators() -> Iterator[EvaluatorSpec]:
    """The exact evaluator of the procedural scenes."""
    yield EvaluatorSpec(
        name="scenes",
        summary="Prompts of unseen compositions, judged by an exact detector, skill by skill.",
        config="lens_train.evaluation.scenes.config:ScenesEvaluatorConfig",
        target="lens_train.evaluation.scenes.evaluator:ScenesEvaluator",
    )


@hookimpl
def lens_stages() -> Iterator[StageSpec]:
    """Train, sample, evaluate, report."""
    yield StageSpec(
        name="train",
        summary="Train a text-to-image model on captioned images.",
        config="lens_train.stages.train.config:TrainStageConfig",
        target="lens_train.stages.train.stage:run",
        takes=("captions",),
        makes="model",
    )
    yield StageSpec(
        name="sample",
        summary="Draw a gallery of prompts with trained models.",
        config="lens_train.stages.sample.config:SampleStageConfig",
        target="lens_train.stages.sample.stage:run",
        takes=("model",),
        makes="samples",
    )
    yield StageSpec(
        name="evaluate",
        summary="Measure how well models follow prompts, skill by skill.",
        config="lens_train.stages.evaluate.config:EvaluateStageConfig",
        target="lens_train.stages.evaluate.stage:run",
        takes=("model",),
        makes="scores",
    )
    yield StageSpec(
        name="report",
        summary="Write one page about a run: pictures, curves, tables, lineage.",
        config="lens_train.stages.report.config:ReportStageConfig",
        target="lens_train.stages.report.stage:run",
        takes=("model", "samples", "scores"),
        makes="report",
    )
