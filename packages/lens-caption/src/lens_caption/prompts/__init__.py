"""Caption recipes, versioned: what is asked of a model, and how its answer becomes caption layers.

A recipe is a YAML file beside this module, named NAME-VERSION; its hash goes into every caption's provenance. A file is
never changed once captions were bought with it: better words are a new version. One of the user's own may change, and
its hash then begins the stage anew.
"""

from lens_caption.prompts.recipes import (
    RECIPES,
    AnswerError,
    Layer,
    PromptName,
    Recipe,
    load_prompt,
    load_recipe,
    own_recipe,
    recipe_for_images,
)

__all__ = [
    "RECIPES",
    "AnswerError",
    "Layer",
    "PromptName",
    "Recipe",
    "load_prompt",
    "load_recipe",
    "own_recipe",
    "recipe_for_images",
]
