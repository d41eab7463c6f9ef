"""Read YAML and remember the line of every key, so that an error can say where to look."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from lens_core.errors import ConfigError

__all__ = ["MarkedYaml", "parse_scalar", "parse_yaml"]

Path = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.1's safe loader, with `1e12` read as the number that everybody means."""


_Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@dataclass
class MarkedYaml:
    """Plain data, and the line (from 1) at which each path begins."""

    data: Any
    file: str
    lines: dict[Path, int] = field(default_factory=dict)

    def line_of(self, path: Path) -> int | None:
        """The line of `path`, or of the nearest part above it that the file spells out."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return None


def parse_yaml(text: str, *, file: str) -> MarkedYaml:
    """Parse one YAML document.

    Raises:
        ConfigError: it is not YAML, or a mapping has a key twice; with file and line.
    """
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        what = f"not valid YAML: {error.reason} (#x{error.character:04x})"
        raise ConfigError(what, file=file, line=text.count("\n", 0, error.position) + 1) from error
    try:
        node = loader.get_single_node()
        marked = MarkedYaml(data=None, file=file)
        if node is not None:
            marked.data = _construct(loader, node, (), marked)
        return marked
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise ConfigError(f"not valid YAML: {error.problem or error.context}", file=file, line=line) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}", file=file) from error
    finally:
        loader.dispose()


def parse_scalar(text: str) -> Any:
    """The value of a bit of YAML, such as the right-hand side of `--set a.b=[1, 2]`.

    Raises:
        ConfigError: it is not YAML.
    """
    return parse_yaml(text, file="--set").data


def _construct(loader: _Loader, node: yaml.Node, path: Path, marked: MarkedYaml) -> Any:
    marked.lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        mapping = {}
        for key_node, value_node in node.value:
            key = _object(loader, key_node, marked)
            if type(key) is int:
                key = str(key)  # {512: 1}: people leave out the quotes
            if not isinstance(key, str):
                raise ConfigError(f"the key {key!r} is not a text", file=marked.file, line=key_node.start_mark.line + 1)
            if key in mapping:
                raise ConfigError("stands twice here", file=marked.file, line=key_node.start_mark.line + 1, key=key)
            marked.lines[(*path, key)] = key_node.start_mark.line + 1
            mapping[key] = _construct(loader, value_node, (*path, key), marked)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, (*path, index), marked) for index, item in enumerate(node.value)]
    return _object(loader, node, marked)


def _object(loader: _Loader, node: yaml.Node, marked: MarkedYaml) -> Any:
    try:
        return loader.construct_object(node, deep=True)
    except (AttributeError, LookupError, ValueError) as error:
        # Of what looks like a date or number, or says it is one, and is none: PyYAML lets through what Python raises.
        value = node.value if isinstance(node, yaml.ScalarNode) else ""
        what = f"{value!r} is no {node.tag.rpartition(':')[2]}; if it is text, put it in quotes"
        raise ConfigError(what, file=marked.file, line=node.start_mark.line + 1) from error
