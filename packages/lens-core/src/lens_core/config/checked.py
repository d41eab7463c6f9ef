"""From YAML to a config model, with mistakes told one line each: file, line, key, and what to write instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from lens_core.config.base import ComponentConfig, Config, first_mistake
from lens_core.config.components import ComponentOf
from lens_core.config.stage import StageConfig
from lens_core.errors import ConfigError, MissingExtraError
from lens_core.registry import singular

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lens_core.config.yaml import MarkedYaml
    from lens_core.registry import Registry

__all__ = ["checked", "checked_component", "existing", "require_libraries", "spelt"]

_SAY_ALL = {"missing", "unknown_option", "component", "credentials"}
"""Mistakes whose message needs no value behind it, or must not have it."""

Checked = TypeVar("Checked", bound=Config)


def checked(model: type[Checked], marked: MarkedYaml, registry: Registry) -> Checked:
    """The config that a YAML file holds.

    Raises:
        ConfigError: anything wrong in it; one line per mistake, with file, line, key and a suggestion.
    """
    try:
        return model.model_validate(marked.data, context={"registry": registry})
    except ValidationError as error:
        raise _one_line_each(error, marked) from error


def checked_component(kind: str, value: str | Mapping[str, Any], registry: Registry) -> ComponentConfig:
    """The config of a component that no file names, such as a command's option.

    Raises:
        ConfigError: its first mistake, in one line.
    """
    try:
        return registry.parse(kind, value)
    except ValidationError as error:
        key, message = first_mistake(error)
        raise ConfigError(f"the {singular(kind)}'s {key}: {message}") from error


def require_libraries(config: Config, marked: MarkedYaml, registry: Registry) -> None:
    """Check that the libraries of all components that a config names are installed, without importing any.

    Raises:
        MissingExtraError: one is not; with file, line, and the pip line that brings it.
    """
    for kind, name, path in _components(config, (), registry):
        try:
            registry.require_libraries(kind, name)
        except MissingExtraError as error:
            raise MissingExtraError(f"{marked.file}:{marked.line_of(path)}: {error}") from error


def _components(
    config: Config, path: tuple[str | int, ...], registry: Registry
) -> Iterator[tuple[str, str, tuple[str | int, ...]]]:
    """Every component that a config names, nested stages and theirs included: its kind, its name, and where."""
    for name, field in type(config).model_fields.items():
        kinds = [mark.kind for mark in _marks(field.annotation, field.metadata)]
        value = getattr(config, name)
        for index, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
            where = (*path, name) if index is None else (*path, name, index)
            if kinds and isinstance(item, ComponentConfig):
                yield kinds[0], item.type, where
            if isinstance(item, Config):
                yield from _components(item, where, registry)
    for nested in config.nested(registry) if isinstance(config, StageConfig) else ():
        for number, stage in enumerate(nested.stages):
            where = (*path, *nested.place(number))
            yield "stages", stage.type, where
            yield from _components(stage, where, registry)


def _marks(annotation: Any, metadata: Sequence[Any] = ()) -> Iterator[ComponentOf]:
    yield from (mark for mark in metadata if isinstance(mark, ComponentOf))
    yield from (mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, ComponentOf))
    for inner in getattr(annotation, "__args__", ()):
        yield from _marks(inner)


def _one_line_each(error: ValidationError, marked: MarkedYaml) -> ConfigError:
    mistakes = []
    for item in error.errors(include_url=False, include_context=False):
        path = existing(item["loc"], marked.data, item["type"] in {"missing", "unknown_option"})
        message = str(item["msg"]).removeprefix("Value error, ")
        value = item["input"]
        if item["type"] not in _SAY_ALL and isinstance(value, str | int | float):
            message = f"{message[0].lower()}{message[1:]}, not {value!r}"
        mistake = ConfigError(message, file=marked.file, line=marked.line_of(path), key=spelt(path))
        if str(mistake) not in mistakes:
            mistakes.append(str(mistake))
    return ConfigError("\n".join(mistakes))


def existing(loc: Sequence[Any], data: Any, last_is_missing: bool) -> tuple[str | int, ...]:
    """The part of an error's path that stands in the data: unions put the name of the branch into it, too."""
    path: list[str | int] = []
    for position, key in enumerate(loc):
        if (isinstance(data, dict) and key in data) or (isinstance(data, list) and key in range(len(data))):
            data = data[key]
        elif not (last_is_missing and position == len(loc) - 1):
            continue
        path.append(key)
    return tuple(path)


def spelt(path: tuple[str | int, ...]) -> str:
    """A path as people write it: `stages[2].batch.samples`."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text
