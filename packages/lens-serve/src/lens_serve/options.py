"""From a file, options and `--set` to the settings of a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_core.config.checked import checked, require_libraries
from lens_core.config.overrides import apply_override
from lens_core.config.yaml import MarkedYaml, parse_yaml
from lens_core.errors import ConfigError
from lens_core.registry import load_registry
from lens_core.storage import urls
from lens_serve.config import NAME, ServeSettings

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
    if file:
        _start_paths_at(Path(file).resolve().parent, data)
    if demo:
        models = [_demo(), *models]
        rewriter = rewriter or "scene-expander"
    if models:
        data["models"] = [_model(text) for text in models]
    if not data.get("models"):
        raise ConfigError(
            "there is no model to serve: give --model FOLDER, or --config FILE, or --demo for what `make demo` trains"
        )
    if loras:
        data["models"][0]["loras"] = dict(_pair(text, "--lora") for text in loras)
    if rewriter:
        data["rewrite"] = {**(data.get("rewrite") or {}), "rewriter": rewriter}
    if listen:
        data["listen"] = {**(data.get("listen") or {}), **listen}
    for override in overrides:
        apply_override(data, override)
    registry = load_registry()
    settings = checked(ServeSettings, marked, registry)
    names = [model.name for model in settings.models]
    if len(set(names)) < len(names):
        raise ConfigError(f"two models have one name; say NAME=FOLDER (now: {', '.join(names)})")
    require_libraries(settings, marked, registry)
    return settings


def _demo() -> str:
    if not Path(DEMO_MODEL, "lens.json").is_file():
        raise ConfigError(
            f"{DEMO_MODEL} does not exist yet: run `make demo` first, which trains it in about 15 minutes"
        )
    return f"demo={DEMO_MODEL}"


def _model(text: str) -> dict[str, str]:
    name, equals, folder = text.partition("=")
    if equals and re.fullmatch(NAME, name):
        return {"name": name, "folder": folder}
    return {"folder": text}


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name and value):
        raise ConfigError(f"{text!r} is not of the form NAME=FILE", file=option)
    return name, value


def _start_paths_at(folder: Path, data: dict[str, Any]) -> None:
    """Make the file's relative paths start at its folder, as in pipelines."""

    def moved(value: Any) -> Any:
        return str(folder / value) if isinstance(value, str) and urls.is_local(value) else value

    for model in data.get("models") or []:
        if isinstance(model, dict):
            model["folder"] = moved(model.get("folder"))
            if isinstance(model.get("loras"), dict):
                model["loras"] = {name: moved(path) for name, path in model["loras"].items()}
    for section, names in (("listen", ["keys"]), ("output", ["store", "c2pa_certificate", "c2pa_key"])):
        block = data.get(section)
        if isinstance(block, dict):
            block |= {name: moved(block[name]) for name in names if name in block}
