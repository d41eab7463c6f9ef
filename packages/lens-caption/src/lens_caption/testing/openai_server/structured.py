"""Answers in JSON: a schema is filled in, its texts with captions of the image."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["fill"]

_MAX_DEPTH = 12
_BRIEF_WORDS = 10


def fill(schema: dict[str, Any], caption: str) -> str:
    """A JSON text that fits a schema; texts on its first level are captions, and all say which image they are about."""
    if not schema:
        return json.dumps({"caption": caption}, ensure_ascii=False)
    return json.dumps(_value(schema, schema, "", caption, 0), ensure_ascii=False)


def _value(part: dict[str, Any], root: dict[str, Any], name: str, caption: str, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        return None  # a schema that contains itself ends somewhere
    if "$ref" in part:
        target: Any = root
        for step in part["$ref"].removeprefix("#").strip("/").split("/"):
            target = target[step] if step else target
        return _value(target, root, name, caption, depth + 1)
    if "const" in part:
        return part["const"]
    if "enum" in part:
        return part["enum"][len(caption) % len(part["enum"])]
    if "anyOf" in part:
        return _value(part["anyOf"][0], root, name, caption, depth + 1)
    kind = part.get("type", "object" if "properties" in part else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        properties = part.get("properties", {})
        return {key: _value(inner, root, key, caption, depth + 1) for key, inner in properties.items()}
    if kind == "array":
        count = max(1, part.get("minItems", 1))
        return [_value(part.get("items", {}), root, name, caption, depth + 2) for _ in range(count)]
    if kind in {"integer", "number"}:
        low = part.get("minimum", part.get("exclusiveMinimum", 0) + ("exclusiveMinimum" in part))
        return min(max(low, 1), part.get("maximum", max(low, 1)))
    if kind == "boolean":
        return True
    return None if kind == "null" else _text(part, name, caption, depth)


def _text(part: dict[str, Any], name: str, caption: str, depth: int) -> str:
    if name in {"language", "lang"}:
        return "en"
    words = caption.split()
    if depth > 1 or "brief" in name or "tag" in name:
        text = " ".join(words[:_BRIEF_WORDS]).rstrip(".,:;")
    elif "short" in name:
        text = caption.partition(". ")[0].rstrip(".") + "."
    else:
        text = caption
    return text[: part.get("maxLength", len(text))]
