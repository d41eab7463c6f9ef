"""The pipeline file: what it may say, and every check that needs no heavy import.

run: runs/quickstart
seed: 0
stages:
  - {name: images, type: ingest,  source: {type: scenes, count: 20000}}
  - {name: dense,  type: caption, source: images, captioner: {type: scene-graph, style: dense}}
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from lens_core.config.base import ComponentConfig, Config
from lens_core.config.components import ComponentOf, StageField
from lens_core.config.overrides import apply_override
from lens_core.config.stage import StageConfig
from lens_core.config.yaml import MarkedYaml, parse_yaml
from lens_core.errors import ConfigError, MissingExtraError
from lens_core.registry import Registry
from lens_core.specs import StageSpec
from lens_core.storage import urls

__all__ = ["Pipeline", "PipelineConfig", "load_pipeline"]


def _no_credentials(url: str) -> str:
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise ValueError("a URL must not carry credentials; set them in the environment")
    return url


class PipelineConfig(Config):
    """The whole file."""

    run: Annotated[str, AfterValidator(_no_credentials)] = Field(
        min_length=1, description="Run folder: a path relative to the working directory, or any fsspec URL."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of everything random.")
    stages: list[StageField] = Field(min_length=1, description="The steps, in order.")


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A checked pipeline: its config, the file it came from, and the folder that its relative paths start at."""

    config: PipelineConfig
    file: str
    base: str

    @property
    def stages(self) -> list[StageConfig]:
        """The stages' configs, in order."""
        return list(self.config.stages)  # type: ignore[arg-type]


def load_pipeline(file: str, registry: Registry, overrides: Sequence[str] = ()) -> Pipeline:
    """Read and check a pipeline file.

    Args:
        file: path or URL of the YAML file.
        registry: the installed components.
        overrides: texts like "stages.images.source.count=100", applied in order.

    Raises:
        ConfigError: anything wrong in it; one line per mistake, with file, line, key and a suggestion.
        StorageError: the file cannot be read.
        MissingExtraError: a library that a component needs is not installed.
    """
    marked = parse_yaml(urls.read_text(file), file=file)
    if not isinstance(marked.data, dict):
        raise ConfigError("a pipeline is a mapping with 'run' and 'stages'", file=file, line=1)
    for override in overrides:
        apply_override(marked.data, override)
    try:
        config = PipelineConfig.model_validate(marked.data, context={"registry": registry})
    except ValidationError as error:
        raise _one_line_each(error, marked) from error
    _check_graph(config, registry, marked)
    for kind, name, path in _components(config, ()):
        try:
            registry.require_libraries(kind, name)
        except MissingExtraError as error:
            raise MissingExtraError(f"{file}:{marked.line_of(path)}: {error}") from error
    base = str(Path(file).resolve().parent) if urls.is_local(file) else file.rsplit("/", 1)[0]
    return Pipeline(config=config, file=file, base=base)


def _check_graph(config: PipelineConfig, registry: Registry, marked: MarkedYaml) -> None:
    """Names are unique, sources name earlier stages, and their artefact types fit."""
    made: dict[str, str] = {}
    for index, stage in enumerate(config.stages):
        assert isinstance(stage, StageConfig)
        spec = registry.spec("stages", stage.type)
        assert isinstance(spec, StageSpec)

        def wrong(key: str, message: str, index: int = index) -> ConfigError:
            path = ("stages", index, key)
            return ConfigError(message, file=marked.file, line=marked.line_of(path), key=f"stages[{index}].{key}")

        if stage.name in made:
            raise wrong("name", f"two stages are called {stage.name!r}")
        for source in stage.sources:
            if source not in made:
                close = difflib.get_close_matches(source, made, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"earlier stages: {', '.join(made) or 'none'}"
                raise wrong("source", f"{source!r} is no earlier stage ({hint})")
            if made[source] not in spec.takes:
                raise wrong(
                    "source",
                    f"the stage {source!r} makes {made[source]}, but a {stage.type} stage takes "
                    f"{' or '.join(spec.takes) or 'no artefact'}",
                )
        if spec.takes and not stage.sources:
            raise wrong(
                "source", f"a {stage.type} stage takes {' or '.join(spec.takes)}: name at least one earlier stage"
            )
        made[stage.name] = spec.makes


def _components(config: Config, path: tuple[str | int, ...]) -> Iterator[tuple[str, str, tuple[str | int, ...]]]:
    """Every component that a config names: its kind, its name, and where."""
    for name, field in type(config).model_fields.items():
        kinds = [mark.kind for mark in _marks(field.annotation, field.metadata)]
        value = getattr(config, name)
        for index, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
            where = (*path, name) if index is None else (*path, name, index)
            if kinds and isinstance(item, ComponentConfig):
                yield kinds[0], item.type, where
            if isinstance(item, Config):
                yield from _components(item, where)


def _marks(annotation: Any, metadata: Sequence[Any] = ()) -> Iterator[ComponentOf]:
    yield from (mark for mark in metadata if isinstance(mark, ComponentOf))
    yield from (mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, ComponentOf))
    for inner in getattr(annotation, "__args__", ()):
        yield from _marks(inner)


def _one_line_each(error: ValidationError, marked: MarkedYaml) -> ConfigError:
    mistakes = []
    for item in error.errors(include_url=False, include_context=False):
        # Unions put the name of the branch into the path; only what stands in the file counts.
        path = _existing(item["loc"], marked.data, item["type"] in {"missing", "unknown_option"})
        message = str(item["msg"]).removeprefix("Value error, ")
        value = item["input"]
        if item["type"] not in {"missing", "unknown_option", "component"} and isinstance(value, str | int | float):
            message = f"{message[0].lower()}{message[1:]}, not {value!r}"
        mistake = ConfigError(message, file=marked.file, line=marked.line_of(path), key=_spelt(path))
        if str(mistake) not in mistakes:
            mistakes.append(str(mistake))
    return ConfigError("\n".join(mistakes))


def _existing(loc: Sequence[Any], data: Any, last_is_missing: bool) -> tuple[str | int, ...]:
    path: list[str | int] = []
    for position, key in enumerate(loc):
        if (isinstance(data, dict) and key in data) or (isinstance(data, list) and key in range(len(data))):
            data = data[key]
        elif not (last_is_missing and position == len(loc) - 1):
            continue
        path.append(key)
    return tuple(path)


def _spelt(path: tuple[str | int, ...]) -> str:
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text
