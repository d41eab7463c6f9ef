"""From a file, options and `--set` to the settings of a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_core.config.checked import checked, require_libraries
from lens_core.config.overrides import apply_override
from lens_core.config.yaml import MarkedYaml, parse_yaml
from lens_core.errors import ConfigError
from lens_core.registry import load_registry
from lens_core.storage import urls
from lens_serve.config import ServeSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["DEMO_MODEL", "settings_from"]

DEMO_MODEL = "runs/quickstart/model-dense"


def settings_from(
    *,
    models: Sequence[str] = (),
    demo: bool = False,
    file: str | None = None,
    loras: Sequence[str] = (),
    rewriter: str | None = None,
    listen: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> ServeSettings:
    """Settings of a server; options come before the file's, and `overrides` before both.

    Args:
        models: "FOLDER" or "NAME=FOLDER"; they take the place of the file's.
        demo: serve what `make demo` trained.
        file: a YAML file of `ServeSettings`; its relative paths start at its folder.
        loras: "NAME=FILE", of the first model.
        rewriter: its name.
        listen: fields of `ListenSettings`.
        overrides: texts like "bounds.max_steps=30".

    Raises:
        ConfigError: anything wrong; one line per mistake.
    """
    marked = parse_yaml(urls.read_text(file), file=file) if file else MarkedYaml(data={}, file="lens serve")
    data = marked.data
    if not isinstance(data, dict):
        raise ConfigError("the settings of a server are a mapping with 'models'", file=file, line=1)
    if demo:
        models = [_demo(), *models]
        rewriter = rewriter or "scene-expander"
    # Paths that are typed start here; those of the file, where the file is.
    here = str(Path.cwd()) if file else ""
    if models:
        data["models"] = [_model(text, here) for text in models]
    if not data.get("models"):
        raise ConfigError(
            "there is no model to serve: give --model FOLDER, or --config FILE, or --demo for what `make demo` trains"
        )
    changes: dict[str, Any] = {f"listen.{name}": value for name, value in (listen or {}).items()}
    if keys := changes.get("listen.keys"):
        changes["listen.keys"] = _typed(keys, here)
    if loras:
        changes["models.0.loras"] = {name: _typed(path, here) for name, path in (_pair(text) for text in loras)}
    if rewriter:
        changes["rewrite.rewriter"] = rewriter
    for change in (*(f"{path}={json.dumps(value, ensure_ascii=False)}" for path, value in changes.items()), *overrides):
        apply_override(data, change)
    registry = load_registry()
    settings = checked(ServeSettings, marked, registry)
    names = [model.name for model in settings.models]
    if len(set(names)) < len(names):
        raise ConfigError(f"two models have one name; say NAME=FOLDER (now: {', '.join(names)})")
    require_libraries(settings, marked, registry)
    return settings.at(str(Path(file).resolve().parent)) if file else settings


def _typed(path: str, here: str) -> str:
    return urls.resolve(path, here) if here else path


def _demo() -> str:
    if not Path(DEMO_MODEL, "lens.json").is_file():
        raise ConfigError(
            f"{DEMO_MODEL} does not exist yet: run `make demo` first, which trains it in about 15 minutes"
        )
    return f"demo={DEMO_MODEL}"


def _model(text: str, here: str) -> dict[str, str]:
    name, equals, folder = text.partition("=")
    if equals and "/" not in name:
        return {"name": name, "folder": _typed(folder, here)}
    return {"folder": _typed(text, here)}


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name and value):
        raise ConfigError(f"{text!r} is not of the form NAME=FILE", file="--lora")
    return name, value
