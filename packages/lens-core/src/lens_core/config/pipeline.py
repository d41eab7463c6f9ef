"""The pipeline file: what it may say, and every check that needs no heavy import.

run: runs/quickstart
seed: 0
stages:
  - {name: images, type: ingest,  source: {type: scenes, count: 20000}}
  - {name: dense,  type: caption, source: images, captioner: {type: scene-graph, style: dense}}
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pydantic import Field

from lens_core.config.base import ComponentConfig, Config, Url
from lens_core.config.checked import checked, require_libraries, spelt
from lens_core.config.components import StageField
from lens_core.config.overrides import apply_override
from lens_core.config.stage import StageConfig
from lens_core.config.yaml import MarkedYaml, parse_yaml
from lens_core.errors import ConfigError
from lens_core.registry import Registry
from lens_core.specs import StageSpec
from lens_core.storage import urls

__all__ = ["Pipeline", "PipelineConfig", "load_pipeline"]


class PipelineConfig(Config):
    """The whole file."""

    run: Url = Field(
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
    config = checked(PipelineConfig, marked, registry)
    _check_graph(config.stages, {}, registry, marked, lambda index, *keys: ("stages", index, *keys))
    require_libraries(config, marked, registry)
    base = str(urls.local_path(file).resolve().parent) if urls.is_local(file) else file.rsplit("/", 1)[0]
    return Pipeline(config=config, file=file, base=base)


def _check_graph(
    stages: Sequence[ComponentConfig],
    given: Mapping[str, str],
    registry: Registry,
    marked: MarkedYaml,
    place: Callable[..., tuple[str | int, ...]],
) -> None:
    """Names are unique, sources name earlier stages, and their artefact types fit; of nested stages, too.

    Args:
        stages: in order.
        given: artefact types of what comes from outside, by name.
        registry: the installed components.
        marked: the file.
        place: where it spells out a stage, by number, and the keys below it.
    """
    made = dict(given)
    for index, stage in enumerate(stages):
        assert isinstance(stage, StageConfig)
        spec = registry.spec("stages", stage.type)
        assert isinstance(spec, StageSpec)

        def wrong(key: str, message: str, index: int = index) -> ConfigError:
            path = place(index, key)
            return ConfigError(message, file=marked.file, line=marked.line_of(path), key=spelt(path))

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
        for nested in stage.nested(registry):
            sources = {source: made[source] for source in stage.sources}
            _check_graph(nested.stages, sources, registry, marked, partial(_below, place, index, nested.place))
        made[stage.name] = spec.makes


def _below(
    place: Callable[..., tuple[str | int, ...]],
    outer: int,
    nested: Callable[..., tuple[str | int, ...]],
    index: int,
    *keys: str | int,
) -> tuple[str | int, ...]:
    return place(outer, *nested(index, *keys))
