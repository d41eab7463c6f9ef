"""From answers to shares with 95 % intervals: of each skill, of the mean over skills, of the mean over prompts.

Pictures of one prompt, and questions about one picture, are right and wrong together. They count as one cluster, and
the interval grows by as much as clusters differ more than single answers would; where every prompt is answered once, it
is Wilson's.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, variance
from typing import TYPE_CHECKING, Any

from lens_core.intervals import clustered_interval, stratified_interval, wilson_interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Answer", "mean_interval", "scores_of"]

_MANY = 10**9
"""Prompts that a skill has beyond those asked: what was asked is a sample, and never all there is."""

Cluster = tuple[int, int]
"""How many answers of a cluster are right, and how many there are."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A verdict on a picture of a prompt; `given` is what the model was told, which a rewriter may have written."""

    model: str
    style: str
    skill: str
    task: str
    prompt: str
    given: str
    correct: bool


def scores_of(answers: Iterable[Answer]) -> dict[str, Any]:
    """`cells`, one for each model, style and skill, and `means`, two for each model and style."""
    counted: dict[tuple[str, str], dict[str, dict[str, Cluster]]] = {}
    for answer in answers:
        clusters = counted.setdefault((answer.model, answer.style), {}).setdefault(answer.skill, {})
        right, asked = clusters.get(answer.prompt, (0, 0))
        clusters[answer.prompt] = (right + answer.correct, asked + 1)
    cells, means = [], []
    for (model, style), by_skill in counted.items():
        for skill, own in by_skill.items():
            cells.append({"model": model, "style": style, "skill": skill, **_cell(list(own.values()))})
        means += [{"model": model, "style": style, **mean} for mean in _means(by_skill)]
    return {"cells": cells, "means": means}


def _cell(clusters: Sequence[Cluster]) -> dict[str, Any]:
    correct, n = sum(right for right, _ in clusters), sum(asked for _, asked in clusters)
    low, high = wilson_interval(correct, n) if n == len(clusters) else clustered_interval(clusters)
    return {"correct": correct, "n": n, "accuracy": correct / n, "low": low, "high": high}


def _means(by_skill: dict[str, dict[str, Cluster]]) -> Iterable[dict[str, Any]]:
    """The two headline numbers in use: every skill counts alike (GenEval), or every prompt does (DPG-Bench)."""
    share, low, high = stratified_interval([(_MANY, list(clusters.values())) for clusters in by_skill.values()])
    yield {"over": "skills", "n": len(by_skill), "accuracy": share, "low": low, "high": high}
    whole: dict[str, Cluster] = {}
    for clusters in by_skill.values():
        for name, (right, asked) in clusters.items():
            before = whole.get(name, (0, 0))
            whole[name] = (before[0] + right, before[1] + asked)
    shares = [right / asked for right, asked in whole.values()]
    low, high = mean_interval(shares)
    yield {"over": "prompts", "n": len(shares), "accuracy": fmean(shares), "low": low, "high": high}


def mean_interval(shares: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of independent shares: Wilson's, for as many trials as give the mean's variance.

    For shares of 0 and 1 these are the shares themselves, less one. Shares that do not differ are taken for trials:
    they prove no certainty.
    """
    mean, number = fmean(shares), len(shares)
    spread = variance(shares) / number if number > 1 else 0.0
    trials = mean * (1 - mean) / spread if spread else number
    return wilson_interval(mean * trials, trials)
