"""What a plugin hands over: frozen descriptions, one type per kind of component.

A spec holds dotted paths (`package.module:attribute`) as strings, so that a plugin's door stays light: the
config model is imported when a pipeline names the component, the implementation when it is built.

    CaptionerSpec(
        name="openai",
        summary="Any vision model behind an OpenAI-style endpoint.",
        config="lens_caption.captioners.openai.config:OpenAIConfig",
        target="lens_caption.captioners.openai.captioner:OpenAICaptioner",
        extra="lens-caption[openai]",
    )
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lens_core.errors import LensError, MissingExtraError, PluginError

if TYPE_CHECKING:
    from lens_core.config.base import Config

__all__ = [
    "KINDS",
    "AutoencoderSpec",
    "CaptionerSpec",
    "CommandSpec",
    "ComponentSpec",
    "DatasetSpec",
    "EvaluatorSpec",
    "FilterSpec",
    "ModelSpec",
    "RewriterSpec",
    "SafetyCheckerSpec",
    "SamplerSpec",
    "StageSpec",
    "TextEncoderSpec",
    "load_dotted",
    "pip_line",
]

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9.]+)*")
_DOTTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class ComponentSpec:
    """A component's name in YAML, one line about it, and where its two halves live.

    Args:
        name: lower-case kebab, unique among the installed components of its kind.
        summary: one sentence, shown by `lens plugins list`.
        config: dotted path of the pydantic model that validates the component's block; imports nothing heavy.
        target: dotted path of what `Registry.build` calls with the config.
        extra: the requirement whose extra brings the component's libraries, for the "missing library" message.

    Raises:
        ValueError: the name is not kebab-case or a path is not `module:attribute`.
    """

    name: str
    summary: str
    config: str
    target: str
    extra: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"component name {self.name!r} is not lower-case kebab-case")
        for path in (self.config, self.target):
            if not _DOTTED.fullmatch(path):
                raise ValueError(f"{self.name}: {path!r} is not of the form 'package.module:attribute'")

    def load_config(self) -> type[Config]:
        """Import the config model (light)."""
        model: type[Config] = load_dotted(self.config, asked_by=self.name, extra=self.extra)
        return model

    def load_target(self) -> Any:
        """Import the implementation (possibly heavy).

        Raises:
            MissingExtraError: a library is not installed; the message carries the pip line.
            PluginError: the dotted path names nothing.
        """
        return load_dotted(self.target, asked_by=self.name, extra=self.extra)


class DatasetSpec(ComponentSpec):
    """Offers a `lens_core.contracts.Dataset`: a source of images."""


class FilterSpec(ComponentSpec):
    """Offers a `lens_core.contracts.Filter`: keeps an image or says why not."""


class CaptionerSpec(ComponentSpec):
    """Offers a `lens_core.contracts.Captioner`: turns a batch of images into texts."""


class ModelSpec(ComponentSpec):
    """Offers a denoiser over ragged batches."""


class AutoencoderSpec(ComponentSpec):
    """Offers an autoencoder between pixels and tokens."""


class TextEncoderSpec(ComponentSpec):
    """Offers a text encoder: prompts to features."""


class SamplerSpec(ComponentSpec):
    """Offers a sampler: a time grid, and a walk along it from noise to image."""


class RewriterSpec(ComponentSpec):
    """Offers a `lens_core.contracts.Rewriter`: turns a short prompt into one like the training captions."""


class SafetyCheckerSpec(ComponentSpec):
    """Offers a `lens_core.contracts.SafetyChecker`: refuses prompts and pictures, with a reason."""


class EvaluatorSpec(ComponentSpec):
    """Offers a `lens_core.contracts.Evaluator`: prompts and a verdict on each image made from them."""


@dataclass(frozen=True, kw_only=True)
class StageSpec(ComponentSpec):
    """Offers a pipeline stage; `target` is a function `run(config, context) -> stats`.

    Args:
        takes: the artefact types that `source` may name.
        makes: the artefact type that the stage leaves behind.
        fingerprint: dotted path of `fingerprint(config, *, registry, base, seed) -> str` for a stage that reads from
            outside the run: a text that changes when what it would read has changed.
        assist: dotted path of `assist(config, context) -> None`, for a stage whose work machines can share
            (`StageConfig.lease_s`): it does a share of the work that another machine's `run` brings to an end, and
            returns when nothing is left, or when the stage is done. It writes no artefact.
    """

    takes: tuple[str, ...] = ()
    makes: str
    fingerprint: str | None = None
    assist: str | None = None


@dataclass(frozen=True, kw_only=True)
class CommandSpec:
    """Offers a sub-command of `lens`; `target` is the dotted path of a typer app."""

    name: str
    summary: str
    target: str
    extra: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or not _DOTTED.fullmatch(self.target):
            raise ValueError(f"command {self.name!r}: a kebab-case name and a 'package.module:attribute' target")

    def load_target(self) -> Any:
        """Import the typer app."""
        return load_dotted(self.target, asked_by=self.name, extra=self.extra)


KINDS: dict[str, type[ComponentSpec] | type[CommandSpec]] = {
    "datasets": DatasetSpec,
    "filters": FilterSpec,
    "captioners": CaptionerSpec,
    "models": ModelSpec,
    "autoencoders": AutoencoderSpec,
    "text_encoders": TextEncoderSpec,
    "samplers": SamplerSpec,
    "rewriters": RewriterSpec,
    "safety_checkers": SafetyCheckerSpec,
    "evaluators": EvaluatorSpec,
    "stages": StageSpec,
    "commands": CommandSpec,
}
"""Every kind of component, by the word that follows `lens_` in its hook."""


def load_dotted(path: str, *, asked_by: str, extra: str | None) -> Any:
    """Import `package.module:attribute`, telling a missing library from a broken module.

    Raises:
        MissingExtraError: some other library is not installed.
        PluginError: the module or the attribute does not exist, or the module is broken.
    """
    module_name, attribute = path.split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(missing + "."):
            raise PluginError(
                f"{asked_by}: its plugin names the module {module_name!r}, which does not exist"
            ) from error
        hint = f"; install it with: {pip_line(extra)}" if extra else ""
        raise MissingExtraError(f"{asked_by} needs the library {missing!r}, which is not installed{hint}") from error
    except LensError:
        raise
    except Exception as error:  # a foreign module may raise anything while it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(f"{asked_by}: the module {module_name!r} cannot be imported: {reason}") from error
    if not hasattr(module, attribute):
        raise PluginError(f"{asked_by}: {module_name} has no {attribute!r}")
    return getattr(module, attribute)


def pip_line(requirement: str) -> str:
    """The command that brings an extra. The Lens packages are on no index: theirs names the folder in a checkout."""
    name = requirement.split("[")[0]
    if name in {"lens-core", "lens-caption", "lens-train", "lens-serve"}:
        return f"pip install -c constraints.txt -e 'packages/{requirement}'"
    return f"pip install '{requirement}'"
