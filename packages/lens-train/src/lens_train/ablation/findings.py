"""What follows from the measurements: every number of the report, for its tables and its figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lens_core.errors import ConfigError
from lens_train.ablation.measurements import ALL, OWN, Ablation, find_arm
from lens_train.ablation.scaling import BreakEven, Factor, Point, break_even, equivalent_scale
from lens_train.ablation.statistics import SEEDS_TO_CLAIM, Difference, Estimate, accuracy, difference, holm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lens_train.stages.ablation_report.config import AblationReportStageConfig, AxisConfig, NoiseConfig

__all__ = ["Axis", "Comparison", "Findings", "Noise", "Result", "find"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """An arm's accuracy at a skill, asked in some style.

    Args:
        arm: whose.
        prompts: `OWN`, `ALL` or a style.
        skill: which.
        seeds: accuracy by seed.
        accuracy: over seeds.
        difference: to the baseline (asked in its own style where this arm is in its own); None for an arm without one.
        p: of the difference, by Holm over the skills.
        claimable: whether both have seeds enough to claim anything.
    """

    arm: str
    prompts: str
    skill: str
    seeds: Mapping[int, float]
    accuracy: Estimate
    difference: Difference | None
    p: float | None
    claimable: bool


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An ablation's arms against a baseline, or each against its own.

    Args:
        ablation: whose arms.
        baselines: ARM, or ABLATION/ARM where it is another's, of each arm that is compared.
        results: by arm, prompts and skill.
        dollars: what captions of all training images would have cost, by arm, where words and images are known.
    """

    ablation: Ablation
    baselines: Mapping[str, str]
    results: Mapping[tuple[str, str, str], Result]
    dollars: Mapping[str, float]

    @property
    def baseline(self) -> str | None:
        """The one that all are compared with; None where arms have their own."""
        all_of_them = {*self.baselines.values()}
        return all_of_them.pop() if len(all_of_them) == 1 else None

    def flops_apart(self) -> float | None:
        """How far the arms' mean training FLOPs lie apart, as a share; None if they are not known."""
        flops = [known for arm in self.ablation.arms if (known := self.ablation.known(arm, "training_flops"))]
        return max(flops) / min(flops) - 1 if flops else None


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Two kinds of caption along an axis, at a skill.

    Args:
        config: what it is about.
        skill: which.
        long: the one kind, by place.
        short: the other.
        flops: the fewest and the most training FLOPs of an arm on it; None if they are not known.
        factor: what the one is worth in the other.
    """

    config: AxisConfig
    skill: str
    long: Sequence[Point]
    short: Sequence[Point]
    flops: tuple[float, float] | None
    factor: Factor

    @property
    def flops_grow(self) -> bool:
        """Whether compute differs along an axis that is of something else."""
        given = self.flops
        return given is not None and self.config.metric != "training_flops" and given[1] > 1.05 * given[0]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Accuracy under more and more mistakes, at a skill.

    Args:
        config: what it is about.
        skill: which.
        points: by share of mistakes.
        clean: the arm without any.
        rival: the other one.
        rival_values: its accuracy by seed.
        gain: of clean over rival.
        gain_p: of that, by Holm over all skills of the clean arm; None where nothing can be tested.
        cancelled: the share of mistakes at which it is gone.
    """

    config: NoiseConfig
    skill: str
    points: Sequence[Point]
    clean: str
    rival: str
    rival_values: Sequence[float]
    gain: Difference
    gain_p: float | None
    cancelled: BreakEven


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything."""

    comparisons: Sequence[Comparison]
    axes: Sequence[Axis]
    noise: Sequence[Noise]


def find(ablations: Mapping[str, Ablation], config: AblationReportStageConfig) -> Findings:
    """Compute everything.

    Args:
        ablations: by name, the main one first.
        config: of the report.

    Raises:
        ConfigError: it names an ablation, arm or skill that is not there.
    """
    strange = set(config.baselines) - set(ablations)
    if strange:
        raise ConfigError(f"baselines name {', '.join(sorted(strange))}, but the sources are {', '.join(ablations)}")
    main = next(iter(ablations.values()))
    named = [
        ("headline", config.headline),
        *((axis.label, axis.skills) for axis in config.axes),
        *((noise.label, noise.skills) for noise in config.noise),
    ]
    missing = [(where, skill) for where, skills in named for skill in skills if skill not in main.skills]
    if missing:
        known = ", ".join(main.skills) or "none"
        raise ConfigError(f"{missing[0][0]} names the skill {missing[0][1]!r}, but {main.name} was judged on {known}")
    return Findings(
        comparisons=[made for ablation in ablations.values() for made in _compare(ablations, ablation, config)],
        axes=[_axis(ablations, axis, skill) for axis in config.axes for skill in axis.skills or config.headline],
        noise=[_noise(ablations, noise, skill) for noise in config.noise for skill in noise.skills or config.headline],
    )


def _compare(
    ablations: Mapping[str, Ablation], ablation: Ablation, config: AblationReportStageConfig
) -> Iterator[Comparison]:
    """With every baseline that is given."""
    given = config.baselines.get(ablation.name, next(iter(ablation.arms)))
    for baselines in given if isinstance(given, list) else [given]:
        yield _compare_with(ablations, ablation, config, baselines)


def _compare_with(
    ablations: Mapping[str, Ablation],
    ablation: Ablation,
    config: AblationReportStageConfig,
    given: str | Mapping[str, str],
) -> Comparison:
    named = dict.fromkeys(ablation.arms, given) if isinstance(given, str) else given
    compared = {arm: find_arm(ablations, named[arm], near=ablation.name) for arm in ablation.arms if arm in named}
    if len(compared) < len(named):
        strange = ", ".join(sorted(set(named) - set(compared)))
        raise ConfigError(f"baselines name {strange}, but the arms of {ablation.name} are {', '.join(ablation.arms)}")
    compared = {arm: (base, of) for arm, (base, of) in compared.items() if not (base is ablation and of == arm)}
    found = [r for prompts in (OWN, ALL, *ablation.styles) for r in _results(ablation, prompts, compared)]
    dollars = {}
    for arm in ablation.arms:
        words, images = ablation.known(arm, "caption_words"), ablation.known(arm, "training_images")
        seen = ablation.known(arm, "samples")
        if words is not None and images is not None and seen is not None:
            dollars[arm] = min(images, seen) * config.prices.of_caption(words)
    return Comparison(
        ablation=ablation,
        baselines={arm: named[arm] for arm in compared},
        results={(r.arm, r.prompts, r.skill): r for r in found},
        dollars=dollars,
    )


def _results(ablation: Ablation, prompts: str, compared: Mapping[str, tuple[Ablation, str]]) -> list[Result]:
    """Of every arm and skill, asked in some style; p values by Holm over the skills of an arm.

    Args:
        ablation: whose.
        prompts: `OWN`, `ALL` or a style.
        compared: the baseline of each arm that has one.
    """
    counts = {
        (arm, skill): found
        for arm in ablation.arms
        for skill in ablation.skills
        if (found := ablation.counts(arm, skill, prompts))
    }
    others = {
        (arm, skill): known
        for arm, (base, of) in compared.items()
        for skill in ablation.skills
        if (known := base.counts(of, skill, prompts))
    }
    apart = {key: difference(found, others[key]) for key, found in counts.items() if key in others}
    p: dict[tuple[str, str], float] = {}
    for arm in ablation.arms:
        alone = {key: found.p for key, found in apart.items() if key[0] == arm and found.p is not None}
        p |= holm(alone)
    return [
        Result(
            arm=arm,
            prompts=prompts,
            skill=skill,
            seeds={seed: count.share for seed, count in found.items()},
            accuracy=accuracy(found),
            difference=apart.get((arm, skill)),
            p=p.get((arm, skill)),
            claimable=min(len(found), len(others.get((arm, skill), found))) >= SEEDS_TO_CLAIM,
        )
        for (arm, skill), found in counts.items()
    ]


def _axis(ablations: Mapping[str, Ablation], axis: AxisConfig, skill: str) -> Axis:
    def points(arms: Sequence[str]) -> list[Point]:
        found = []
        for reference in arms:
            ablation, arm = find_arm(ablations, reference)
            x = ablation.known(arm, axis.metric)
            if x is None:
                raise ConfigError(f"the axis {axis.label!r} needs {axis.metric}, which {reference} does not tell")
            found.append(Point(x=x, values=_own(ablation, arm, skill)))
        if len({point.x for point in found}) < len(found):
            raise ConfigError(f"the axis {axis.label!r} has two of {', '.join(arms)} at the same place")
        return sorted(found, key=lambda point: point.x)

    long, short = points(axis.long.arms), points(axis.short.arms)
    placed = [find_arm(ablations, reference) for reference in (*axis.long.arms, *axis.short.arms)]
    flops = [known for ablation, arm in placed if (known := ablation.known(arm, "training_flops"))]
    return Axis(
        config=axis,
        skill=skill,
        long=long,
        short=short,
        flops=(min(flops), max(flops)) if flops else None,
        factor=equivalent_scale(long, short),
    )


def _noise(ablations: Mapping[str, Ablation], noise: NoiseConfig, skill: str) -> Noise:
    arms = {share: find_arm(ablations, reference) for reference, share in noise.shares.items()}
    if len(arms) < len(noise.shares):
        raise ConfigError(f"of the noise {noise.label!r}, two arms have the same share of mistakes")
    if min(arms) > 0:
        raise ConfigError(f"the noise {noise.label!r} needs an arm without mistakes: one with the share 0")
    points = [Point(x=share, values=_own(*arms[share], skill)) for share in sorted(arms)]
    clean, rival = arms[0], find_arm(ablations, noise.rival)
    values = _own(*rival, skill)
    gains = {r.skill: r for r in _results(clean[0], OWN, {clean[1]: rival}) if r.arm == clean[1]}
    gain = gains[skill].difference
    assert gain is not None  # both were judged on it
    return Noise(
        config=noise,
        skill=skill,
        points=points,
        clean=clean[1],
        rival=rival[1],
        rival_values=values,
        gain=gain,
        gain_p=gains[skill].p,
        cancelled=break_even(points, values),
    )


def _own(ablation: Ablation, arm: str, skill: str) -> tuple[float, ...]:
    counts = ablation.counts(arm, skill, OWN)
    if not counts:
        raise ConfigError(f"{ablation.name}/{arm} was not judged on {skill!r} in a style of its own")
    return tuple(count.share for count in counts.values())
