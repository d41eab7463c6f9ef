"""What a language model is told about rewriting, and what becomes of its answer.

A template is a YAML file with `summary`, `system` and `user`; its name ends in its version, and other words are another
version. What a user wrote is data: it goes in between two marks that it cannot contain, since they are made of its own
hash. What comes back is data as well: a text of one line, without control characters, that is only ever drawn.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import unicodedata
from importlib import resources
from pathlib import Path
from string import Template as Blanks
from typing import Any

from pydantic import Field, ValidationError, field_validator

from lens_core.config.base import Config
from lens_core.config.yaml import parse_yaml
from lens_core.errors import ConfigError

__all__ = ["TEMPLATES", "Template", "load_template", "paragraph"]

TEMPLATES = ("dense-1",)
"""The built-in templates."""

_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*-[1-9][0-9]*")
_DIRECTIONS = re.compile("[\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")
"""Characters that turn text around, or that hide text: nobody who reads the prompt would see them."""

_DROPPED = {"Cc", "Cs", "Co", "Cn"}


class Template(Config):
    """What a language model is told."""

    name: str = Field(pattern=f"^{_NAME.pattern}$", description="With its version at the end.")
    summary: str = Field(min_length=1, description="One line for people.")
    system: str = Field(min_length=1, description="The rules.")
    user: str = Field(min_length=1, description="What goes with each prompt, with $prompt and $mark in it.")

    @field_validator("user")
    @classmethod
    def _has_a_place_for_the_prompt(cls, text: str) -> str:
        if sorted(set(Blanks(text).get_identifiers())) != ["mark", "prompt"] or not Blanks(text).is_valid():
            raise ValueError("it should have $prompt and $mark in it, and no other $")
        return text

    @functools.cached_property
    def id(self) -> str:
        """For receipts: name, version, and the sha256 of all that a model sees of it."""
        seen = json.dumps([self.system, self.user], ensure_ascii=False, separators=(",", ":"))
        return f"{self.name} sha256:{hashlib.sha256(seen.encode()).hexdigest()}"

    def fill(self, prompt: str) -> str:
        """The user's turn for one prompt."""
        mark = f"[request {hashlib.sha256(prompt.encode(errors='replace')).hexdigest()[:12]}]"
        return Blanks(self.user).substitute(prompt=prompt, mark=mark)

    def messages(self, prompt: str) -> list[dict[str, str]]:
        """The turns of a chat about one prompt."""
        return [{"role": "system", "content": self.system}, {"role": "user", "content": self.fill(prompt)}]


def load_template(name: str) -> Template:
    """A built-in template by its name, or one of your own by the path of its file, such as `rules/short-2.yaml`.

    Raises:
        ConfigError: there is none, or the file is no template.
    """
    file: Any = Path(name).expanduser()
    if name in TEMPLATES:
        file = resources.files(__package__).joinpath(f"{name}.yaml")
    elif file.suffix != ".yaml":
        raise ConfigError(f"there is no template {name!r}; built in: {', '.join(TEMPLATES)}; or give a .yaml file")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the template cannot be read: {error}", file=name) from error
    marked = parse_yaml(text, file=name)
    if not isinstance(marked.data, dict):
        raise ConfigError("a template is a mapping with 'summary', 'system' and 'user'", file=name, line=1)
    try:
        return Template.model_validate({**marked.data, "name": Path(name).stem})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = str(first["msg"]).removeprefix("Value error, ")
        key = str(first["loc"][0])
        raise ConfigError(message, file=name, line=marked.line_of((key,)), key=key) from error


def paragraph(answer: str) -> str:
    """What a model answered as one line of text: its thinking, control characters and line breaks taken out."""
    text = answer.rpartition("</think>")[2]
    text = " ".join(_DIRECTIONS.sub("", text).split())
    return "".join(char for char in text if unicodedata.category(char) not in _DROPPED).strip()
