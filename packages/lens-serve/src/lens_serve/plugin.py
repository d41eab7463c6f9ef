"""The door of lens-serve: what it offers, without opening any of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_core.hookspecs import hookimpl
from lens_core.specs import CommandSpec, RewriterSpec, SafetyCheckerSpec, StageSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["lens_commands", "lens_rewriters", "lens_safety_checkers", "lens_stages"]


@hookimpl
def lens_rewriters() -> Iterator[RewriterSpec]:
    """Rewriters that know any subject: by an API, and by a model on this machine."""
    yield RewriterSpec(
        name="openai",
        summary="Any language model behind an OpenAI-style endpoint rewrites prompts by a versioned template.",
        config="lens_serve.rewriters.openai.config:OpenAIRewriterConfig",
        target="lens_serve.rewriters.openai.rewriter:OpenAIRewriter",
        extra="lens-serve[openai]",
    )
    yield RewriterSpec(
        name="transformers-lm",
        summary="A Hugging Face language model in a folder on this machine, by the same template.",
        config="lens_serve.rewriters.transformers_lm.config:TransformersLmConfig",
        target="lens_serve.rewriters.transformers_lm.rewriter:TransformersLmRewriter",
    )


@hookimpl
def lens_safety_checkers() -> Iterator[SafetyCheckerSpec]:
    """One for prompts, one for pictures."""
    yield SafetyCheckerSpec(
        name="block-list",
        summary="Refuses prompts that hold words or phrases of a list.",
        config="lens_serve.safety.block_list.config:BlockListConfig",
        target="lens_serve.safety.block_list.checker:BlockList",
    )
    yield SafetyCheckerSpec(
        name="image-classifier",
        summary="Refuses pictures that a Hugging Face image classifier, by its folder, is sure enough about.",
        config="lens_serve.safety.image_classifier.config:ImageClassifierConfig",
        target="lens_serve.safety.image_classifier.checker:ImageClassifier",
    )


@hookimpl
def lens_stages() -> Iterator[StageSpec]:
    """A pipeline may end in a server."""
    yield StageSpec(
        name="serve",
        summary="Serve trained models behind the OpenAI Images API, until the run is stopped.",
        config="lens_serve.stages.serve.config:ServeStageConfig",
        target="lens_serve.stages.serve.stage:run",
        takes=("model",),
        makes="service",
    )


@hookimpl
def lens_commands() -> Iterator[CommandSpec]:
    """`lens serve` and `lens verify`."""
    yield CommandSpec(
        name="serve",
        summary="Serve models behind the OpenAI Images API, with a page to try them.",
        target="lens_serve.cli:app",
    )
    yield CommandSpec(
        name="verify",
        summary="Draw an image again from its receipt, and compare.",
        target="lens_serve.cli:verify_app",
    )
