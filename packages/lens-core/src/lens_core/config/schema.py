"""The JSON schema of pipeline files, for completion and checking in editors.

Where a field holds a component, the schema offers every installed one; all of it comes from the config models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

from lens_core.config.components import KIND_MARK
from lens_core.config.pipeline import PipelineConfig
from lens_core.errors import LensError
from lens_core.specs import ComponentSpec

if TYPE_CHECKING:
    from lens_core.config.base import Config
    from lens_core.registry import Registry

__all__ = ["pipeline_schema"]


def pipeline_schema(registry: Registry) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a pipeline file with the components of `registry`."""
    models: dict[tuple[str, str], type[Config]] = {}
    for kind, catalog in registry.catalogs.items():
        for name in catalog:
            try:
                spec = catalog[name].spec
                if isinstance(spec, ComponentSpec):
                    models[kind, name] = spec.load_config()
            except LensError:
                continue  # a contested name, or a broken plugin: `lens plugins list` and `lens plugins show` tell
    wanted: list[type[Config]] = [PipelineConfig, *models.values()]
    references, shared = models_json_schema([(model, "validation") for model in dict.fromkeys(wanted)])
    definitions: dict[str, Any] = shared.get("$defs", {})
    kinds: dict[str, list[dict[str, Any]]] = {}
    for (kind, name), model in models.items():
        definition = definitions[references[model, "validation"]["$ref"].rsplit("/", 1)[-1]]
        definition["properties"]["type"] = {"const": name, "description": registry.spec(kind, name).summary}
        definition["required"] = sorted({*definition.get("required", ()), "type"})
        kinds.setdefault(kind, []).append(references[model, "validation"])
    for kind, options in kinds.items():
        # Stages must say more than their name, and every stage has options, so no bare names there.
        names = [] if kind == "stages" else [{"enum": [name for of, name in models if of == kind]}]
        definitions[f"kind_{kind}"] = {"anyOf": [*options, *names]}
    schema = references[PipelineConfig, "validation"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Lens pipeline",
        **_fill_kinds({**schema, "$defs": definitions}),
    }


def _fill_kinds(node: Any) -> Any:
    if isinstance(node, list):
        return [_fill_kinds(item) for item in node]
    if not isinstance(node, dict):
        return node
    if KIND_MARK in node:
        rest = {key: value for key, value in node.items() if key not in {KIND_MARK, "default"}}
        return {**rest, "$ref": f"#/$defs/kind_{node[KIND_MARK]}"}
    return {key: _fill_kinds(value) for key, value in node.items()}
