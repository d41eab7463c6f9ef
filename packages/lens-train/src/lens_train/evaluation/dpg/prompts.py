"""DPG-Bench's file of prompts: a row a question, with the questions that it depends on.

    item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language
    12,"A red bus beside …",,1,0,entity,whole,entity - whole (bus),Is there a bus?
    12,"A red bus beside …",,2,1,attribute,color,"attribute - color (bus, red)",Is the bus red?

The rows of an item stand together; `text` may be empty after its first row. `dependency` names questions of the same
item, 0 meaning none. Other columns are not read. As JSON Lines, each row is an object with these names.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lens_core.config.base import first_mistake
from lens_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Item", "Question", "read_items"]


def _numbers(value: Any) -> Any:
    """ "0" and "1, 2" as the lists that they mean."""
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    elif isinstance(value, int):
        value = [value]
    return [number for number in value if str(number).strip() != "0"] if isinstance(value, list) else value


class _Row(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True)

    item_id: str = Field(min_length=1)
    text: str = ""
    proposition_id: int = Field(ge=1)
    dependency: Annotated[list[int], BeforeValidator(_numbers)] = []
    category_broad: str = Field(min_length=1, max_length=64)
    question_natural_language: str = Field(min_length=1)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A yes-or-no question; it makes sense only if those in `parents` are answered yes."""

    id: int
    parents: tuple[int, ...]
    category: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Item:
    """A prompt and its questions, in the order of the file; parents need not come first."""

    id: str
    prompt: str
    questions: tuple[Question, ...]


def read_items(file: Path) -> list[Item]:
    """The prompts in the order of the file.

    Raises:
        ConfigError: the file cannot be read, is empty, or a row is wrong; it says which line.
    """
    rows: dict[str, dict[int, tuple[int, _Row]]] = {}
    try:
        for line, fields in _lines(file):
            row = _checked(fields, file, line)
            own = rows.setdefault(row.item_id, {})
            if row.proposition_id in own:
                message = f"item {row.item_id} has a question {row.proposition_id} already"
                raise ConfigError(message, file=str(file), line=line)
            own[row.proposition_id] = (line, row)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(file)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8: {error.reason}", file=str(file)) from error
    if not rows:
        raise ConfigError("there is no question in it", file=str(file))
    return [_item(name, own, file) for name, own in rows.items()]


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and fields."""
    text = file.read_bytes().decode("utf-8-sig")
    if file.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for fields in reader:
                yield reader.line_num, {name: value for name, value in fields.items() if name and value}
        except csv.Error as error:
            raise ConfigError(str(error), file=str(file), line=reader.line_num) from error
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"is not valid JSON: {error}", file=str(file), line=number) from error
            if not isinstance(fields, dict):
                raise ConfigError("is no JSON object", file=str(file), line=number)
            yield number, fields


def _checked(fields: dict[str, Any], file: Path, line: int) -> _Row:
    try:
        return _Row.model_validate(fields)
    except ValidationError as error:
        key, message = first_mistake(error)
        raise ConfigError(message, file=str(file), line=line, key=key) from error


def _item(name: str, rows: dict[int, tuple[int, _Row]], file: Path) -> Item:
    texts = list(dict.fromkeys(row.text.strip() for _, row in rows.values() if row.text.strip()))
    first_line = next(iter(rows.values()))[0]
    if len(texts) != 1:
        raise ConfigError(f"item {name} has {len(texts) or 'no'} texts", file=str(file), line=first_line)
    for number, (line, row) in rows.items():
        unknown = [parent for parent in row.dependency if parent not in rows]
        if unknown:
            message = f"question {number} depends on {unknown[0]}, which item {name} does not have"
            raise ConfigError(message, file=str(file), line=line)
    questions = [
        Question(
            id=number, parents=tuple(row.dependency), category=row.category_broad, text=row.question_natural_language
        )
        for number, (_, row) in rows.items()
    ]
    return Item(id=name, prompt=texts[0], questions=tuple(questions))
