"""The door of lens-train: what it offers, without opening any of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_core.hookspecs import hookimpl
from lens_core.specs import CommandSpec, EvaluatorSpec, StageSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["lens_commands", "lens_evaluators", "lens_stages"]


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
    """Encode, train, sample, evaluate, report."""
    yield StageSpec(
        name="train",
        summary="Train a text-to-image model on captioned images.",
        config="lens_train.stages.train.config:TrainStageConfig",
        target="lens_train.stages.train.stage:run",
        takes=("captions", "model", "latents"),
        makes="model",
    )
    yield StageSpec(
        name="encode",
        summary="Run images through an autoencoder once, so that training need not.",
        config="lens_train.stages.encode.config:EncodeStageConfig",
        target="lens_train.stages.encode.stage:run",
        takes=("images",),
        makes="latents",
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


@hookimpl
def lens_commands() -> Iterator[CommandSpec]:
    """`lens train …` and `lens plan`."""
    yield CommandSpec(
        name="train",
        summary="Ask training runs about themselves; `lens run` is what trains.",
        target="lens_train.cli:app",
    )
    yield CommandSpec(
        name="plan",
        summary="Say what a recipe's training takes: memory, FLOPs, time on 1 to 512 GPUs.",
        target="lens_train.estimate.cli:app",
    )
