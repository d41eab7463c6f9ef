"""What `lens evaluate` does: set up an evaluator from options, measure one model, print the table."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_core.config.checked import checked, checked_component
from lens_core.config.overrides import apply_override
from lens_core.config.yaml import MarkedYaml
from lens_core.diffusion.device import pick_device, pick_dtype
from lens_core.diffusion.model_folder import load_model_folder
from lens_core.errors import ArtifactError, ConfigError
from lens_core.pipeline.progress import Progress
from lens_core.registry import load_registry
from lens_core.storage.artifacts import OutputFolder, load_artifact
from lens_train.evaluation.measure import Examinee, measure, num_pictures
from lens_train.evaluation.rewriting import rewrite, texts_of
from lens_train.evaluation.table import print_scores
from lens_train.stages.evaluate.stage import own_style

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lens_core.config.base import ComponentConfig
    from lens_core.registry import Registry

__all__ = ["evaluate_model", "suite_config"]

_SUITES = {"dpg-style": "dpg"}
"""Other spellings."""

_SETTINGS = {"--base-url": "base_url", "--judge": "model", "--per-skill": "prompts_per_skill"}
"""Settings of evaluators that the option calls otherwise."""


def evaluate_model(
    model: str,
    *,
    suite: str,
    options: Mapping[str, Any],
    settings: Sequence[str],
    rewriter: str | None,
    output: str,
    seed: int,
    steps: int | None,
    guidance: float | None,
    dtype: str | None,
    device: Any,
) -> None:
    """Draw, judge, write, print.

    Raises:
        LensError: a model, suite, option, rewriter, file or device that cannot be used.
    """
    registry = load_registry()
    where, number_format = pick_device(device), pick_dtype(dtype)
    config = suite_config(suite, options, settings, registry, device=device)
    evaluator = registry.build("evaluators", config)
    by = checked_component("rewriters", rewriter, registry) if rewriter else None
    name, style = _who(model)
    examinee = Examinee(
        name=name,
        load=lambda: load_model_folder(model, registry=registry, dtype=number_format).to(where),
        own_style=style,
    )
    tasks, rewriting = evaluator.tasks(), None
    progress = Progress()
    progress.open("evaluate")
    try:
        if by:
            texts = texts_of(tasks)
            progress.start(len(texts), "prompts rewritten")
            rewriting = rewrite(texts, by, registry, seed=seed, on_text=progress.update)
        progress.start(num_pictures(tasks), "pictures judged")
        with tempfile.TemporaryDirectory() as scratch:
            scores = measure(
                [examinee],
                evaluator,
                OutputFolder(output, Path(scratch)),
                seed=seed,
                steps=steps,
                guidance=guidance,
                rewriting=rewriting,
                on_picture=progress.update,
            )
    finally:
        progress.close("stage-end")
    print_scores(scores, suite=config.type, output=output)


def suite_config(
    suite: str, options: Mapping[str, Any], settings: Sequence[str], registry: Registry, *, device: str
) -> ComponentConfig:
    """The evaluator's settings.

    Args:
        suite: an evaluator's name, or another spelling of it.
        options: of the command line, such as `--clip`, where they were given.
        settings: "key=value" for whatever else the evaluator can be told.
        registry: where it comes from.
        device: for the models of those evaluators that have some.

    Raises:
        LensError: there is no such suite, it does not take an option, lacks one, or a value is wrong.
    """
    name = _SUITES.get(suite, suite)
    model = registry.spec("evaluators", name).load_config()
    fields = model.model_fields
    data: dict[str, Any] = {"type": name}
    for option, value in options.items():
        key = _SETTINGS.get(option, option.removeprefix("--"))
        if key not in fields:
            raise ConfigError(f"the suite {name} takes no {option}")
        data[key] = value
    if "device" in fields:
        data["device"] = device
    for setting in settings:
        apply_override(data, setting)
    known = {key: option for option, key in _SETTINGS.items()}
    lacking = [key for key, field in fields.items() if field.is_required() and key not in data]
    if lacking:
        raise ConfigError(f"the suite {name} needs {' and '.join(known.get(key, f'--{key}') for key in lacking)}")
    return checked(model, MarkedYaml(data, file=f"--suite {name}"), registry)  # type: ignore[type-var, return-value]


def _who(model: str) -> tuple[str, str | None]:
    """A model's name, and the style of the captions it was trained on if its lineage says so."""
    name = Path(model).name or "model"
    try:
        return name, own_style(load_artifact(model))
    except ArtifactError:
        return name, None  # a model folder from elsewhere
