"""GenEval's file of prompts: a JSON object a line, with what has to be in the picture.

    {"tag": "counting", "prompt": "a photo of two clocks",
     "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}]}
    {"tag": "position", "prompt": "a photo of a cat left of a dog",
     "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}]}

`include` lists objects that must be there, of a colour or at a place seen from an earlier entry of the list; `exclude`
what there must be fewer of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lens_core.config.base import first_mistake
from lens_core.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["COLOURS", "Colour", "Exclusion", "GenevalPrompt", "Inclusion", "Relation", "read_prompts"]

Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"]
COLOURS: tuple[Colour, ...] = get_args(Colour)
"""All that is told apart."""

Relation = Literal["left of", "right of", "above", "below"]

_MAX_LINE = 1 << 16


class Exclusion(BaseModel):
    """There must be fewer than `count` objects of the class."""

    model_config = ConfigDict(populate_by_name=True)

    name: str = Field(alias="class", min_length=1)
    count: int = Field(ge=1)


class Inclusion(Exclusion):
    """There must be `count` objects of the class, as described; `position` names an entry before this one."""

    colour: Colour | None = Field(None, alias="color")
    position: tuple[Relation, int] | None = None


class GenevalPrompt(BaseModel):
    """A line of the file."""

    tag: str = Field(min_length=1, max_length=64, pattern=r"^\S+$")
    prompt: str = Field(min_length=1)
    include: list[Inclusion] = Field(min_length=1)
    exclude: list[Exclusion] = []

    @model_validator(mode="after")
    def _positions_look_back(self) -> GenevalPrompt:
        for number, wanted in enumerate(self.include):
            if wanted.position and not 0 <= wanted.position[1] < number:
                raise ValueError(f"include {number} is placed by include {wanted.position[1]}, which is not before it")
        return self

    def truth(self) -> dict[str, Any]:
        """The line as JSON, to be read again by `model_validate`."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def read_prompts(file: Path) -> dict[int, GenevalPrompt]:
    """The prompts by line number; empty lines are passed over.

    Raises:
        ConfigError: the file cannot be read, is empty, or a line is wrong; it says which.
    """
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(file)) from error
    prompts: dict[int, GenevalPrompt] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if len(line) > _MAX_LINE:
            raise ConfigError(f"longer than {_MAX_LINE} bytes", file=str(file), line=number)
        try:
            prompts[number] = GenevalPrompt.model_validate_json(line)
        except ValidationError as error:
            key, message = first_mistake(error)
            raise ConfigError(message, file=str(file), line=number, key=key) from error
    if not prompts:
        raise ConfigError("there is no prompt in it", file=str(file))
    return prompts
