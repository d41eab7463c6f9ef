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
    """The exact evaluator of the procedural scenes, and those of real models."""
    yield EvaluatorSpec(
        name="scenes",
        summary="Prompts of unseen compositions, judged by an exact detector, skill by skill.",
        config="lens_train.evaluation.scenes.config:ScenesEvaluatorConfig",
        target="lens_train.evaluation.scenes.evaluator:ScenesEvaluator",
    )
    yield EvaluatorSpec(
        name="geneval",
        summary="GenEval's prompts, judged by an object detector and CLIP from folders on this machine.",
        config="lens_train.evaluation.geneval.config:GenevalEvaluatorConfig",
        target="lens_train.evaluation.geneval.evaluator:GenevalEvaluator",
    )
    yield EvaluatorSpec(
        name="dpg",
        summary="DPG-Bench's dense prompts and questions, answered by a vision model behind an endpoint.",
        config="lens_train.evaluation.dpg.config:DpgEvaluatorConfig",
        target="lens_train.evaluation.dpg.evaluator:DpgEvaluator",
        extra="lens-train[openai]",
    )


@hookimpl
def lens_stages() -> Iterator[StageSpec]:
    """Encode, train, sample, evaluate, measure, report; and ablations of these."""
    yield StageSpec(
        name="train",
        summary="Train a text-to-image model on captioned images.",
        config="lens_train.stages.train.config:TrainStageConfig",
        target="lens_train.stages.train.stage:run",
        fingerprint="lens_train.stages.train.outside:fingerprint",
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
        name="distance",
        summary="Measure how far models' pictures of captions are from the images that the captions describe.",
        config="lens_train.stages.distance.config:DistanceStageConfig",
        target="lens_train.stages.distance.stage:run",
        takes=("model", "captions"),
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
    yield StageSpec(
        name="ablate",
        summary="Run the same small pipeline for arms that differ by a few settings, with several seeds.",
        config="lens_train.stages.ablate.config:AblateStageConfig",
        target="lens_train.stages.ablate.stage:run",
        fingerprint="lens_train.stages.ablate.stage:fingerprint",
        takes=("captions", "images", "latents", "model"),
        makes="ablation",
    )
    yield StageSpec(
        name="ablation-report",
        summary="Write what ablations showed: tables, figures, a page, with intervals.",
        config="lens_train.stages.ablation_report.config:AblationReportStageConfig",
        target="lens_train.stages.ablation_report.stage:run",
        takes=("ablation",),
        makes="report",
    )


@hookimpl
def lens_commands() -> Iterator[CommandSpec]:
    """`lens train …`, `lens plan` and `lens evaluate`."""
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
    yield CommandSpec(
        name="evaluate",
        summary="Measure how well a model follows prompts: scenes, GenEval, DPG-Bench.",
        target="lens_train.evaluation.cli:app",
    )
