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
    """Captioners by rule and by API."""
    yield CaptionerSpec(
        name="scene-graph",
        summary="Words an exact scene graph, as alt-text, briefly or densely; for the procedural scenes.",
        config="lens_caption.captioners.scene_graph.config:SceneGraphConfig",
        target="lens_caption.captioners.scene_graph.captioner:SceneGraphCaptioner",
    )
    yield CaptionerSpec(
        name="openai",
        summary="Any vision model behind an OpenAI-style endpoint: OpenAI, vLLM, SGLang, Ollama, llama.cpp.",
        config="lens_caption.captioners.openai.config:OpenAIConfig",
        target="lens_caption.captioners.openai.captioner:OpenAICaptioner",
        extra="lens-caption[openai]",
    )


@hookimpl
def lens_stages() -> Iterator[StageSpec]:
    """The stage that adds a caption layer to a set of images."""
    yield StageSpec(
        name="caption",
        summary="Caption every image of a set, as a layer beside the pixels.",
        config="lens_caption.stages.caption.config:CaptionStageConfig",
        target="lens_caption.stages.caption.stage:run",
        takes=("images",),
        makes="captions",
    )


@hookimpl
def lens_commands() -> Iterator[CommandSpec]:
    """`lens caption …`."""
    yield CommandSpec(
        name="caption",
        summary="Try a captioner on single images.",
        target="lens_caption.cli:app",
    )
