"""The strict dialect of JSON schema that structured output takes, checked on both sides.

OpenAI takes only schemas whose objects forbid additional properties and require all of their own; other servers differ
in what they enforce. Recipes therefore keep to a few keywords, and every answer is checked against them here again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["AnswerError", "check_answer", "refuse_loose"]

_KEYWORDS = {"type", "description", "properties", "required", "additionalProperties", "items", "enum"}
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


class AnswerError(ValueError):
    """An answer that is not what the recipe asks for; the outcome is "schema-invalid"."""


def refuse_loose(schema: Mapping[str, Any], where: str = "") -> None:
    """Check that a schema is one that every server understands and a strict one accepts.

    Raises:
        ValueError: what is wrong, and where.
    """
    at = where or "the schema"
    unknown = set(schema) - _KEYWORDS
    if unknown:
        raise ValueError(f"{at}: the keyword {sorted(unknown)[0]!r} is not one that every server enforces")
    types = _types(schema)
    if not types or set(types) - _TYPES.keys():
        raise ValueError(f"{at}: 'type' must be one of {', '.join(_TYPES)}, or a list of them")
    if not where and types != ["object"]:
        raise ValueError("the schema: the answer must be an object")
    if "object" in types:
        properties = schema.get("properties")
        if not properties or schema.get("additionalProperties") is not False:
            raise ValueError(f"{at}: an object needs 'properties', and 'additionalProperties: false'")
        if list(schema.get("required", ())) != list(properties):
            raise ValueError(f"{at}: 'required' must list every property, in their order; let one be null instead")
        for name, inner in properties.items():
            refuse_loose(inner, f"{where}.{name}".lstrip("."))
    if "array" in types:
        if "items" not in schema:
            raise ValueError(f"{at}: an array needs 'items'")
        refuse_loose(schema["items"], f"{where}[]")


def check_answer(schema: Mapping[str, Any], value: Any, where: str = "") -> None:
    """Check an answer against a schema that `refuse_loose` passes.

    Raises:
        AnswerError: what is wrong, and where.
    """
    at = where or "the answer"
    types = _types(schema)
    # In Python a bool is an int; in JSON it is not.
    fits = [
        name for name in types if isinstance(value, _TYPES[name]) and (name == "boolean") == isinstance(value, bool)
    ]
    if not fits:
        raise AnswerError(f"{at} is not of type {' or '.join(types)}")
    if "enum" in schema and value not in schema["enum"]:
        raise AnswerError(f"{at} is none of {', '.join(map(str, schema['enum']))}")
    if isinstance(value, dict):
        strange = value.keys() ^ schema["properties"].keys()
        if strange:
            name = sorted(strange)[0]
            raise AnswerError(f"{at} {'has an unknown field' if name in value else 'lacks the field'} {name!r}")
        for name, inner in schema["properties"].items():
            check_answer(inner, value[name], f"{where}.{name}".lstrip("."))
    if isinstance(value, list):
        for number, item in enumerate(value):
            check_answer(schema["items"], item, f"{where}[{number}]")


def _types(schema: Mapping[str, Any]) -> list[str]:
    types = schema.get("type", [])
    return [types] if isinstance(types, str) else list(types)
