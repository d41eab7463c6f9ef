"""Recipes: the words, the shape of the answer, and the layers that are read from it.

    recipe = load_recipe("layered-1")
    recipe.instruction, recipe.schema    # what a request is built from
    recipe.read(answer)                  # {"brief": "…", "short": "…", "dense": "…"}

A recipe with a schema asks for structured output; its answer is parsed and checked here as well, because not every
server keeps to a schema, and nothing is mended: half an answer is no answer.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field, ValidationError

from lens_caption.prompts.schema import AnswerError, check_answer, refuse_loose
from lens_core.config.base import Config, first_mistake
from lens_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

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

PromptName = Literal["dense-1", "brief-1"]

RECIPES = (
    "brief-1",
    "short-1",
    "dense-1",
    "dense-2",
    "layered-1",
    "structured-1",
    "multilingual-1",
    "check-1",
    "revise-1",
)
"""The built-in recipes."""

_NAME = re.compile(r"([a-z0-9]+(?:-[a-z0-9]+)*)-([1-9][0-9]*)")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_FENCED = re.compile(r"```(?:json)?(.*)```", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A caption layer and where it comes from.

    Args:
        name: of the layer.
        field: the field of a structured answer that holds it; None takes the whole answer.
        language: ISO 639-1 code of the language it is asked for in, or None where the recipe does not say.
    """

    name: str
    field: str | None = None
    language: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is asked of a model about one image.

    Args:
        name: of the recipe, without its version.
        version: counts up from 1; other words are another version.
        summary: one line for people.
        system: the system message, or None for none.
        instruction: the words that go with each image, with `$name` where an input goes.
        inputs: names of what `fill` puts into the instruction.
        schema: JSON schema of the answer, in the strict dialect, or None for plain text.
        layers: what an answer gives, the main one first.
    """

    name: str
    version: int
    summary: str
    system: str | None
    instruction: str
    inputs: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None
    layers: tuple[Layer, ...]

    @property
    def id(self) -> str:
        """Such as "dense-2"."""
        return f"{self.name}-{self.version}"

    @functools.cached_property
    def hash(self) -> str:
        """First 16 hex digits of the sha256 of all that a model sees of it, and of how its answer is read."""
        # The order of a schema's properties is the order in which a model writes them: it belongs to the recipe.
        layers = [[layer.name, layer.field, layer.language] for layer in self.layers]
        content = [self.system, self.instruction, self.schema, layers]
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def fill(self, **inputs: Any) -> str:
        """The instruction with its inputs put in, as JSON, so that what they say stays data.

        Raises:
            ValueError: an input is missing or unknown.
        """
        if inputs.keys() != set(self.inputs):
            raise ValueError(f"{self.id} takes {', '.join(self.inputs) or 'no inputs'}, not {', '.join(inputs)}")
        if not self.inputs:
            return self.instruction
        texts = {name: json.dumps(value, ensure_ascii=False, indent=1) for name, value in inputs.items()}
        return Template(self.instruction).substitute(texts)

    def answer_format(self) -> dict[str, Any] | None:
        """How the responses API is told of the schema (`text.format`); chat wraps `name`, `strict`, `schema` once more.

        None for plain text.
        """
        if self.schema is None:
            return None
        name = self.id.replace("-", "_")
        return {"type": "json_schema", "name": name, "strict": True, "schema": dict(self.schema)}

    def parse(self, answer: str) -> Any:
        """The answer as the schema has it; for a recipe without one, its text.

        Raises:
            AnswerError: the answer is not JSON, or not of the schema.
        """
        if self.schema is None:
            return answer.strip()
        fenced = _FENCED.fullmatch(answer.strip())
        try:
            value = json.loads(fenced[1] if fenced else answer, object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError) as error:
            raise AnswerError(f"the answer is not JSON: {error}") from error
        check_answer(self.schema, value)
        return value

    def read(self, answer: str) -> dict[str, str]:
        """The texts of the layers, by name; a field that is no text becomes JSON, and null or an empty list no text.

        Raises:
            AnswerError: the answer is not JSON, not of the schema, or a layer's text is empty or no Unicode text.
        """
        value = self.parse(answer)
        found = {layer.name: value if layer.field is None else value[layer.field] for layer in self.layers}
        texts = {name: _text(said) for name, said in found.items()}
        if any(_HALF_CHARACTER.search(text) for text in texts.values()):
            raise AnswerError("the answer has half a character in it (a lone surrogate)")
        # What the schema lets be null may be missing, but not the caption itself.
        main = self.layers[0].name
        empty = [name for name, said in found.items() if not texts[name] and (name == main or isinstance(said, str))]
        if empty:
            raise AnswerError(f"the answer has nothing for the layer {empty[0]!r}")
        return texts


class _LayerFile(Config):
    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    field: str | None = None
    language: str | None = Field(None, pattern=r"^[a-z]{2}$")


class _RecipeFile(Config):
    summary: str = Field(min_length=1)
    system: str | None = Field(None, min_length=1)
    instruction: str = Field(min_length=1)
    inputs: tuple[str, ...] = ()
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    layers: tuple[_LayerFile, ...] = Field(min_length=1)


def load_recipe(name: str, *, folder: Path | None = None) -> Recipe:
    """A recipe by name and version, such as "dense-2".

    Args:
        name: of a built-in recipe, or of a file in `folder` without its ending.
        folder: of one's own recipes, looked at first.

    Raises:
        ConfigError: there is none of that name, or its file is wrong.
    """
    own = own_recipe(name, folder) if folder else None
    if own:
        return own
    if name not in RECIPES:
        where = f", nor in {folder}" if folder else ""
        raise ConfigError(f"there is no recipe {name!r}{where} (built in: {', '.join(RECIPES)})", key="prompt")
    return _built_in(name)


def own_recipe(name: str, folder: Path) -> Recipe | None:
    """The recipe of a name in a folder of one's own; None if it has none.

    Raises:
        ConfigError: its file is wrong.
    """
    file = folder / f"{name}.yaml"
    if not _NAME.fullmatch(name) or not file.is_file():
        return None
    return _parse(name, file.read_text(encoding="utf-8"), str(file))


def recipe_for_images(prompt: str, *, folder: str | None, instruction: str | None) -> Recipe:
    """What a captioner asks about each image: a recipe by name, or words of one's own.

    Raises:
        ConfigError: there is no such recipe, or it needs more than an image.
    """
    if instruction:
        own = (Layer(name="own"),)
        return Recipe(name="own", version=1, summary="", system=None, instruction=instruction, schema=None, layers=own)
    recipe = load_recipe(prompt, folder=Path(folder) if folder else None)
    if recipe.inputs:
        raise ConfigError(f"the recipe {recipe.id} needs {', '.join(recipe.inputs)} beside the image", key="prompt")
    return recipe


def load_prompt(name: PromptName) -> str:
    """The words of a recipe that is plain text."""
    return load_recipe(name).instruction


@functools.cache
def _built_in(name: str) -> Recipe:
    file = resources.files(__package__) / f"{name}.yaml"
    return _parse(name, file.read_text(encoding="utf-8"), str(file))


def _parse(id_: str, text: str, file: str) -> Recipe:
    match = _NAME.fullmatch(id_)
    if not match:
        raise ConfigError("a recipe's file is named NAME-VERSION.yaml, such as dense-2.yaml", file=file)
    try:
        found = _RecipeFile.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"it is not YAML: {' '.join(str(error).split())}", file=file) from error
    except ValidationError as error:
        key, message = first_mistake(error)
        raise ConfigError(message, file=file, key=key) from error
    if found.schema_ is not None:
        try:
            refuse_loose(found.schema_)
        except ValueError as error:
            raise ConfigError(str(error), file=file, key="schema") from error
    _refuse_misfits(found, file)
    return Recipe(
        name=match[1],
        version=int(match[2]),
        summary=found.summary,
        system=found.system,
        instruction=found.instruction.strip(),
        inputs=found.inputs,
        schema=found.schema_,
        layers=tuple(Layer(name=item.name, field=item.field, language=item.language) for item in found.layers),
    )


def _refuse_misfits(found: _RecipeFile, file: str) -> None:
    """Layers must exist in the schema and differ in name; inputs must stand in the instruction."""
    names = [layer.name for layer in found.layers]
    if len(set(names)) < len(names):
        raise ConfigError("two layers have one name", file=file, key="layers")
    fields = set((found.schema_ or {}).get("properties", {}))
    for layer in found.layers:
        if layer.field is not None and layer.field not in fields:
            raise ConfigError(
                f"layer {layer.name!r} reads the field {layer.field!r}, which the schema lacks", file=file
            )
    # Without inputs nothing is put in, and a dollar is a dollar.
    template = Template(found.instruction)
    if found.inputs and (not template.is_valid() or set(template.get_identifiers()) != set(found.inputs)):
        raise ConfigError(f"$name must stand for each of {', '.join(found.inputs)} and no other", file=file)


def _text(value: Any) -> str:
    if value is None or value == []:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a field occurs twice")
    return dict(pairs)
