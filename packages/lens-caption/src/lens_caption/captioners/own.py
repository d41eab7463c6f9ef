"""What users bring themselves: folders of their own recipes and profiles, which lie beside the pipeline's file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lens_caption.prompts import own_recipe, recipe_for_images
from lens_core.storage import urls

if TYPE_CHECKING:
    from lens_caption.stages.caption.config import CaptionStageConfig
    from lens_caption.stages.revise_captions.config import ReviseCaptionsConfig
    from lens_core.config.base import Config
    from lens_core.registry import Registry

__all__ = ["fingerprint", "languages", "seen_from"]

C = TypeVar("C", bound="Config")


def seen_from(config: C, base: str) -> C:
    """Settings whose `recipes` and `profiles`, where they have such, are seen from the folder of the pipeline's file.

    Args:
        config: of a captioner, or of a judge.
        base: that folder.

    Raises:
        StorageError: a folder is not on this machine.
    """
    named = {name: folder for name in ("recipes", "profiles") if (folder := getattr(config, name, None))}
    return config.model_copy(
        update={name: str(urls.local_path(urls.resolve(folder, base))) for name, folder in named.items()}
    )


def fingerprint(config: CaptionStageConfig | ReviseCaptionsConfig, *, registry: Registry, base: str, seed: int) -> str:
    """Of a recipe of one's own, whose file may change while its name stays; empty where the recipe is a built-in one.

    Raises:
        ConfigError: the recipe's file is wrong.
    """
    captioner: Any = seen_from(config.captioner, base)
    folder = getattr(captioner, "recipes", None)
    recipe = own_recipe(captioner.prompt, Path(folder)) if folder else None
    return recipe.hash if recipe else ""


def languages(captioner: Config, base: str) -> dict[str, str]:
    """The languages that a captioner's recipe asks for, by layer; a layer alone has no name.

    Args:
        captioner: its settings.
        base: the folder of the pipeline's file.
    """
    if not hasattr(captioner, "recipes"):  # it asks by no recipe
        return {}
    asks: Any = seen_from(captioner, base)
    layers = recipe_for_images(asks.prompt, folder=asks.recipes, instruction=asks.instruction).layers
    return {layer.name if len(layers) > 1 else "": layer.language for layer in layers if layer.language}
