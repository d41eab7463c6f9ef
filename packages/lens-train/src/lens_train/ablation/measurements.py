"""What ablations measured, ready to be asked: counts, final values and curves by seed, pictures by prompt."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

from PIL import Image

from lens_core.errors import ArtifactError, ConfigError
from lens_core.storage.lineage import RECEIPT_KEYWORD
from lens_train.ablation.rows import read_rows
from lens_train.ablation.statistics import Count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lens_core.storage.artifacts import Artifact

__all__ = ["ALL", "OWN", "Ablation", "Picture", "find_arm", "load_ablation"]

ABLATION = "ablation.json"
OWN, ALL = "own", "all"
"""Prompts in the style that is an arm's own; prompts in every style, each counting the same."""

_SUMMED = {"training_flops", "seconds", "steps", "samples", "tokens"}  # over a cell's trainings; others: of the last
_MEASURED = {"accuracy", "distance"}
_ACROSS = ("step", "samples", "tokens", "flops")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that a cell drew of a prompt; `rewritten` says whether a rewriter put it into other words first."""

    prompt: str
    png: bytes
    rewritten: bool = False


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """An ablation's measurements.

    Args:
        name: of the stage.
        arms: the style that is each arm's own, None where it has none; by name, in order.
        seeds: of the cells.
        equal: what each arm's cells were given, such as {"flops": 2e13}, by arm; empty if nothing was said.
        rows: as `lens_train.ablation.rows` has them.
        pictures: by arm, of its first seed.
    """

    name: str
    arms: Mapping[str, str | None]
    seeds: Sequence[int]
    equal: Mapping[str, Mapping[str, float]]
    rows: Sequence[Mapping[str, Any]]
    pictures: Mapping[str, Sequence[Picture]]

    @cached_property
    def _by_metric_and_arm(self) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
        found: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
        for row in self.rows:
            found[row["metric"], row["arm"]].append(row)
        return found

    @property
    def budget(self) -> Mapping[str, float]:
        """What all cells were given alike; empty if nothing was said, or arms were given more and less."""
        given, *others = self.equal.values()
        return given if all(other == given for other in others) else {}

    @cached_property
    def skills(self) -> list[str]:
        """Skills that were judged, in the evaluator's order."""
        return list(dict.fromkeys(row["skill"] for row in self.rows if row["metric"] == "accuracy"))

    @cached_property
    def styles(self) -> list[str]:
        """Styles that prompts were given in."""
        return list(dict.fromkeys(row["style"] for row in self.rows if row["metric"] == "accuracy"))

    @cached_property
    def distances(self) -> list[str]:
        """Distances to real images that were measured."""
        return list(dict.fromkeys(row["skill"] for row in self.rows if row["metric"] == "distance"))

    def runs(self, arm: str) -> int:
        """How many seeds of an arm there are."""
        return len({row["seed"] for row in self.rows if row["arm"] == arm})

    def counts(self, arm: str, skill: str, prompts: str) -> dict[int, Count]:
        """Right answers by seed; empty if that was not measured.

        Args:
            arm: whose.
            skill: which.
            prompts: a style, or `OWN`, or `ALL`: a prompt in several styles counts as one, with shares of an answer.
        """
        wanted: list[str | None] = [self.arms[arm]] if prompts == OWN else [prompts]
        if prompts == ALL:
            wanted = [*self.styles]
        found: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for row in self._by_metric_and_arm["accuracy", arm]:
            if row["skill"] == skill and row["style"] in wanted:
                found[row["seed"]].append((row["correct"], row["n"]))
        return {
            seed: Count(correct=fmean(right for right, _ in pairs), n=fmean(n for _, n in pairs))
            for seed, pairs in sorted(found.items())
        }

    def final(self, arm: str, metric: str, skill: str | None = None) -> dict[int, float]:
        """A final value by seed, such as "parameters"; empty if it is not known.

        Args:
            arm: whose.
            metric: which.
            skill: which distance, for the metric "distance".
        """
        found: dict[int, list[float]] = defaultdict(list)
        for row in self._by_metric_and_arm[metric, arm]:
            if row["skill"] == skill:
                found[row["seed"]].append(row["value"])
        return {seed: sum(v) if metric in _SUMMED else v[-1] for seed, v in sorted(found.items())}

    def known(self, arm: str, metric: str) -> float | None:
        """Mean over seeds of a final value; None if it is not known."""
        found = self.final(arm, metric)
        return fmean(found.values()) if found else None

    def curves(self, arm: str, metric: str, skill: str | None = None) -> dict[int, list[dict[str, float]]]:
        """A curve by seed: points with "value", and "step", "samples", "tokens", "flops" so far.

        Args:
            arm: whose.
            metric: "loss", "validation_loss" or "score".
            skill: of the score.
        """
        found: dict[int, list[dict[str, float]]] = defaultdict(list)
        for row in self._by_metric_and_arm[metric, arm]:
            if row["skill"] == skill:
                found[row["seed"]].append({name: row[name] for name in (*_ACROSS, "value")})
        return {seed: sorted(points, key=lambda point: point["step"]) for seed, points in sorted(found.items())}


def load_ablation(artifact: Artifact) -> Ablation:
    """Read an artefact of type "ablation".

    Raises:
        ArtifactError: it is damaged.
    """
    told = artifact.read_json(ABLATION)
    try:
        arms = {arm["name"]: arm["style"] for arm in told["arms"]}
        seeds = [int(seed) for seed in told["seeds"]]
        equal = {arm["name"]: dict(arm["equal"] or {}) for arm in told["arms"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{artifact.url_of(ABLATION)} is damaged: {type(error).__name__} {error}") from error
    rows = read_rows(artifact).to_pylist()
    strange = {row["arm"] for row in rows} - arms.keys()
    if strange:
        raise ArtifactError(f"{artifact.url} has rows of {', '.join(sorted(strange))}, which are no arms of it")
    names = _measured_by(rows)
    return Ablation(
        name=artifact.name,
        arms={name: style for arm, style in arms.items() for name in names.get(arm, [arm])},
        seeds=seeds,
        equal={name: equal[arm] for arm in arms for name in names.get(arm, [arm])},
        rows=[row | {"arm": name} for row in rows for name in _arms_of(row, names)],
        pictures={arm: found for arm in arms if (found := _pictures(artifact, f"cells/{arm}-{seeds[0]}/"))},
    )


def find_arm(ablations: Mapping[str, Ablation], reference: str, *, near: str | None = None) -> tuple[Ablation, str]:
    """The arm that a reference means: ABLATION/ARM, or ARM where it is clear whose.

    Args:
        ablations: by name.
        reference: what to find.
        near: the ablation that a bare name belongs to.

    Raises:
        ConfigError: there is no such arm.
    """
    name, _, arm = reference.partition("/")
    for ablation, meant in ((ablations.get(near or ""), reference), (ablations.get(name), arm)):
        if ablation is not None and meant in ablation.arms:
            return ablation, meant
    known = ", ".join(f"{other.name}/{arm}" for other in ablations.values() for arm in other.arms)
    raise ConfigError(f"the report names the arm {reference!r}, and there is none; there are {known}")


def _measured_by(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Arms that several stages measured alike, say with more and less guidance, are as many arms: ARM/STAGE, by arm."""
    stages: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for row in rows:
        if row["metric"] in _MEASURED:
            stages[row["arm"], row["metric"]][row["stage"]] = None
    found: dict[str, list[str]] = {}
    for (arm, _), beside in stages.items():
        if len(beside) > 1:
            found.setdefault(arm, []).extend(f"{arm}/{stage}" for stage in beside)
    return found


def _arms_of(row: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """Whose a row is: what one such stage measured is its own, and the training that they share is everyone's."""
    arms, own = names.get(row["arm"], [row["arm"]]), f"{row['arm']}/{row['stage']}"
    return [own] if own in arms else arms


def _pictures(artifact: Artifact, folder: str) -> list[Picture]:
    """Pictures with a receipt, which says what was asked for; sheets of an evaluation have none."""
    found = []
    for file in artifact.files:
        if file.path.startswith(folder) and file.path.endswith(".png"):
            data = artifact.read_bytes(file.path)
            with Image.open(io.BytesIO(data)) as image:
                receipt = image.info.get(RECEIPT_KEYWORD)
            if receipt:
                told = json.loads(receipt)
                rewritten = told.get("rewritten_prompt", told["prompt"]) != told["prompt"]
                found.append(Picture(prompt=str(told["prompt"]), png=data, rewritten=rewritten))
    return found
