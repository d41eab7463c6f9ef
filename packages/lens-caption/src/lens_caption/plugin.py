"""The door of lens-caption: what it offers, without opening any of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_core.hookspecs import hookimpl
from lens_core.specs import CaptionerSpec, CommandSpec, StageSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["lens_captioners", "lens_commands", "lens_stages"]


@hookimpl
def lens_captioners() -> Iterator[CaptionerSpec]:
    """Captioners by rule, from the images' metadata, by API, and by a model on this machine."""
    yield CaptionerSpec(
        name="scene-graph",
        summary="Words an exact scene graph, as alt-text, briefly or densely; for the procedural scenes.",
        config="lens_caption.captioners.scene_graph.config:SceneGraphConfig",
        target="lens_caption.captioners.scene_graph.captioner:SceneGraphCaptioner",
    )
    yield CaptionerSpec(
        name="metadata",
        summary="Takes captions that a data set brings, such as a WebDataset's .txt, from the images' metadata.",
        config="lens_caption.captioners.metadata.config:MetadataConfig",
        target="lens_caption.captioners.metadata.captioner:MetadataCaptioner",
    )
    yield CaptionerSpec(
        name="openai",
        summary="Any vision model behind an OpenAI-style endpoint: OpenAI, vLLM, SGLang, Ollama, llama.cpp.",
        config="lens_caption.captioners.openai.config:OpenAIConfig",
        target="lens_caption.captioners.openai.captioner:OpenAICaptioner",
        extra="lens-caption[openai]",
    )
    yield CaptionerSpec(
        name="transformers-vlm",
        summary="A Hugging Face vision-language model in a folder on this machine.",
        config="lens_caption.captioners.transformers_vlm.config:TransformersVlmConfig",
        target="lens_caption.captioners.transformers_vlm.captioner:TransformersVlmCaptioner",
        extra="lens-caption[transformers]",
    )


@hookimpl
def lens_stages() -> Iterator[StageSpec]:
    """The stage that adds a caption layer to a set of images."""
    yield StageSpec(
        name="caption",
        summary="Caption every image of a set, as a layer beside the pixels.",
        config="lens_caption.stages.caption.config:CaptionStageConfig",
        target="lens_caption.stages.caption.stage:run",
        fingerprint="lens_caption.captioners.own:fingerprint",
        assist="lens_caption.scale.worker:work",
        takes=("images",),
        makes="captions",
    )
    yield StageSpec(
        name="check-captions",
        summary="Put captions through gates, and have a sample judged; what fails is rejected, in a layer of its own.",
        config="lens_caption.stages.check_captions.config:CheckCaptionsConfig",
        target="lens_caption.stages.check_captions.stage:run",
        takes=("captions",),
        makes="captions",
    )
    yield StageSpec(
        name="revise-captions",
        summary="Have captions compared with their images and corrected by a model, as a layer of their own.",
        config="lens_caption.stages.revise_captions.config:ReviseCaptionsConfig",
        target="lens_caption.stages.revise_captions.stage:run",
        fingerprint="lens_caption.captioners.own:fingerprint",
        takes=("captions",),
        makes="captions",
    )
    yield StageSpec(
        name="change-captions",
        summary="Make caption arms by rule: shorter, mixed, shuffled, with less said or with errors; and measure them.",
        config="lens_caption.stages.change_captions.config:ChangeCaptionsConfig",
        target="lens_caption.stages.change_captions.stage:run",
        takes=("captions",),
        makes="captions",
    )
    yield StageSpec(
        name="caption-review",
        summary="Make a caption layer of what people decided with `lens caption review`.",
        config="lens_caption.review.config:CaptionReviewStageConfig",
        target="lens_caption.review.stage:run",
        fingerprint="lens_caption.review.stage:fingerprint",
        takes=("captions",),
        makes="captions",
    )
    yield StageSpec(
        name="caption-report",
        summary="Write one page about captions: lengths, failures, cost, repetition, and a gallery.",
        config="lens_caption.report.config:CaptionReportStageConfig",
        target="lens_caption.report.stage:run",
        takes=("captions",),
        makes="caption-report",
    )
    yield StageSpec(
        name="export",
        summary="Write images and their captions for other tools: WebDataset, Parquet, Hugging Face, Lance.",
        config="lens_caption.export.config:ExportStageConfig",
        target="lens_caption.export.stage:run",
        takes=("captions",),
        makes="export",
    )


@hookimpl
def lens_commands() -> Iterator[CommandSpec]:
    """`lens caption …`."""
    yield CommandSpec(
        name="caption",
        summary="Try captioners, look models up, and quote a run before it costs anything.",
        target="lens_caption.cli:app",
    )
