"""`--set a.b=c`: change a value of the pipeline file from the command line.

A path walks mappings by key and lists by index or by the `name` of an item; the word `stages` may be left out:
`--set model-dense.budget.flops=1e12` is `--set stages.model-dense.budget.flops=1e12`. The value is YAML.
"""

from __future__ import annotations

from typing import Any

from lens_core.config.yaml import parse_scalar
from lens_core.errors import ConfigError

__all__ = ["apply_override", "set_value"]


def apply_override(data: dict[str, Any], text: str) -> None:
    """Change `data` in place.

    Args:
        data: the parsed pipeline file.
        text: "path=value".

    Raises:
        ConfigError: no '=', or the path leads nowhere.
    """
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not all(path.split(".")):
        raise ConfigError(f"{text!r} is not of the form path=value", file="--set")
    set_value(data, path, parse_scalar(value))


def set_value(data: dict[str, Any], path: str, value: Any) -> None:
    """Change one value of `data` in place.

    Args:
        data: the parsed pipeline file.
        path: such as "model.budget.steps".
        value: as YAML would have it.

    Raises:
        ConfigError: the path leads nowhere.
    """
    keys = path.split(".")
    stages = data.get("stages")
    if isinstance(stages, list) and keys[0] in [stage.get("name") for stage in stages if isinstance(stage, dict)]:
        keys = ["stages", *keys]
    holder: Any = data
    for position, key in enumerate(keys[:-1]):
        holder = _step(holder, key, ".".join(keys[: position + 1]))
    if isinstance(holder, list):
        holder[_index(holder, keys[-1], path)] = value
    elif isinstance(holder, dict):
        holder[keys[-1]] = value
    else:
        raise ConfigError(f"there is nothing to set below {'.'.join(keys[:-1])!r}", file="--set", key=path)


def _step(holder: Any, key: str, path: str) -> Any:
    if isinstance(holder, list):
        return holder[_index(holder, key, path)]
    if isinstance(holder, dict):
        value = holder.setdefault(key, {})
        if isinstance(value, str):  # a component written as a bare name gains options
            value = holder[key] = {"type": value}
        return value
    raise ConfigError("there is nothing below it", file="--set", key=path)


def _index(items: list[Any], key: str, path: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(items):
        return int(key)
    known = ", ".join(str(name) for name in names if name) or f"0 to {len(items) - 1}"
    raise ConfigError(f"there is no item {key!r} (there is: {known})", file="--set", key=path)
