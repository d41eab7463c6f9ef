"""The summary: what each arm cost and what it scored, and the headline in one line.

The headline is written by rule from the counts, in words that do not depend on who won: single-object and two-object
accuracy, each arm prompted in its own style, with intervals, and the number of training seeds.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import torch

from lens_core import __version__
from lens_train.stages.evaluate.stage import SCORES, own_style

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lens_core.storage.artifacts import Artifact

__all__ = ["HEADLINE_SKILLS", "ancestors", "summarise"]

HEADLINE_SKILLS = {"single": "single object", "two": "two objects"}


def summarise(inputs: Iterable[Artifact]) -> dict[str, Any]:
    """The summary of a run from the artefacts that the report was given."""
    inputs = list(inputs)
    models = [artifact for artifact in inputs if artifact.type == "model"]
    scores = [artifact.read_json(SCORES) for artifact in inputs if artifact.type == "scores"]
    arms = {model.name: _arm(model, scores) for model in models}
    return {
        "format_version": 1,
        "headline": _headline(arms),
        "training_seeds": 1,
        "arms": arms,
        "stages": [
            {"name": made.name, "type": made.config["type"], "seconds": made.manifest["seconds"], "hash": made.hash}
            for made in ancestors(inputs)
        ],
        "versions": {"lens": __version__, "python": platform.python_version(), "torch": torch.__version__},
        "machine": {"cpu_threads": torch.get_num_threads(), "system": platform.platform(terse=True)},
    }


def ancestors(inputs: Iterable[Artifact]) -> list[Artifact]:
    """The artefacts and all they were made from, the oldest first."""
    found: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        for parent in artifact.parents:
            visit(parent)
        found.setdefault(artifact.hash, artifact)

    for artifact in inputs:
        visit(artifact)
    return list(found.values())


def _arm(model: Artifact, scores: list[dict[str, Any]]) -> dict[str, Any]:
    stats = model.stats
    accuracy: dict[str, dict[str, Any]] = {}
    for table in scores:
        for cell in table["cells"]:
            if cell["model"] == model.name:
                kept = {name: cell[name] for name in ("correct", "n", "accuracy", "low", "high")}
                changed = table.get("rewritten", {}).get(cell["style"])
                style = f"{cell['style']}, by {table['rewriter']['type']}" if changed else cell["style"]
                accuracy.setdefault(style, {})[cell["skill"]] = kept
    return {
        "own_style": own_style(model),
        "steps": stats["steps"],
        "training_flops": stats["training_flops"],
        "images": stats["images"],
        "image_tokens": stats["image_tokens"],
        "text_tokens": stats["text_tokens"],
        "seconds": round(stats["seconds"], 1),
        "parameters": stats["parameters"],
        "accuracy": accuracy,
    }


def _headline(arms: dict[str, dict[str, Any]]) -> str:
    measured = {name: arm for name, arm in arms.items() if arm["accuracy"].get(arm["own_style"])}
    if not measured:
        steps = ", ".join(f"{name} after {arm['steps']:,} steps" for name, arm in arms.items())
        scored = any(arm["accuracy"] for arm in arms.values())
        how = "measured, but not in the style of the captions" if scored else "not measured"
        return f"Trained {steps or 'nothing'}; {how}."
    skills = []
    for skill, words in HEADLINE_SKILLS.items():
        parts = []
        for arm in measured.values():
            cell = arm["accuracy"][arm["own_style"]].get(skill)
            if cell:
                span = f"{100 * cell['low']:.0f}–{100 * cell['high']:.0f}"
                parts.append(f"{arm['own_style']} {100 * cell['accuracy']:.0f} % [{span}]")
        if parts:
            skills.append(f"{words}: {', '.join(parts)}")
    flops = [arm["training_flops"] for arm in measured.values()]
    equal = "equal training FLOPs" if max(flops) <= 1.01 * min(flops) else "UNEQUAL training FLOPs"
    what = f"unseen compositions, own prompt style, {equal}, Wilson 95 % over prompts, one training seed"
    told = "; ".join(skills) or f"neither {' nor '.join(HEADLINE_SKILLS.values())} measured"
    return f"{told} ({what})"
