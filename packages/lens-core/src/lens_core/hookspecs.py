"""The whole extension surface of Lens: one hook per kind, without arguments, returning descriptions.

A plugin is a module (its *door*) under the entry-point group `lens.plugins` that implements some of these with
`@hookimpl`. A door imports nothing heavy; what a hook yields are the frozen specs of `lens_core.specs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lens_core import specs

__all__ = ["PROJECT", "hookimpl"]

PROJECT = "lens"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def lens_datasets() -> Iterable[specs.DatasetSpec]:  # type: ignore[empty-body]
    """Offer datasets: sources of images, such as a folder or a procedural world."""


@hookspec
def lens_filters() -> Iterable[specs.FilterSpec]:  # type: ignore[empty-body]
    """Offer filters: each keeps an image or gives the reason why not."""


@hookspec
def lens_captioners() -> Iterable[specs.CaptionerSpec]:  # type: ignore[empty-body]
    """Offer captioners: things that turn a batch of images into texts."""


@hookspec
def lens_models() -> Iterable[specs.ModelSpec]:  # type: ignore[empty-body]
    """Offer denoisers: networks that map a ragged batch to a velocity."""


@hookspec
def lens_autoencoders() -> Iterable[specs.AutoencoderSpec]:  # type: ignore[empty-body]
    """Offer autoencoders: between pixels and the tokens a denoiser works on."""


@hookspec
def lens_text_encoders() -> Iterable[specs.TextEncoderSpec]:  # type: ignore[empty-body]
    """Offer text encoders: from prompts to features, one row per text token."""


@hookspec
def lens_samplers() -> Iterable[specs.SamplerSpec]:  # type: ignore[empty-body]
    """Offer samplers: a time grid, and a walk along it from noise to image."""


@hookspec
def lens_rewriters() -> Iterable[specs.RewriterSpec]:  # type: ignore[empty-body]
    """Offer rewriters: from a user's short prompt to one like the captions a model was trained on."""


@hookspec
def lens_safety_checkers() -> Iterable[specs.SafetyCheckerSpec]:  # type: ignore[empty-body]
    """Offer safety checkers: each may refuse a prompt, or a picture that was made of one."""


@hookspec
def lens_evaluators() -> Iterable[specs.EvaluatorSpec]:  # type: ignore[empty-body]
    """Offer evaluators: prompts, and a verdict on each image made from them."""


@hookspec
def lens_stages() -> Iterable[specs.StageSpec]:  # type: ignore[empty-body]
    """Offer pipeline stages: steps that take artefacts and leave one behind."""


@hookspec
def lens_commands() -> Iterable[specs.CommandSpec]:  # type: ignore[empty-body]
    """Offer sub-commands of `lens`: a name, a summary and the dotted path of a typer app."""
