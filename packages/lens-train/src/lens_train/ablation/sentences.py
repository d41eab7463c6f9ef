"""The report's sentences, written by rule from the numbers, in words that do not depend on who is ahead.

A claim needs three seeds on either side and p < 0.05 after Holm; a factor needs three seeds at every place, an interval
without 1 in it, and levels of accuracy in common that are worth the name; a share of mistakes that cancels a gain needs
the gain. All else is "not shown", which is not the same as "shown to be nothing".
"""

from __future__ import annotations

import math
import re
from statistics import fmean
from typing import TYPE_CHECKING

from lens_train.ablation.measurements import OWN
from lens_train.ablation.statistics import SEEDS_TO_CLAIM
from lens_train.report.summary import HEADLINE_SKILLS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_train.ablation.findings import Axis, Comparison, Findings, Noise, Result
    from lens_train.ablation.scaling import BreakEven, Factor, Point
    from lens_train.ablation.statistics import Difference

__all__ = [
    "equalised",
    "in_short",
    "percent",
    "points",
    "probability",
    "skill_words",
    "times",
    "told_break_even",
    "told_factor",
    "told_noise",
    "verdicts",
]

_SURE = 0.05
_FEW = "; fewer than three seeds somewhere, exploratory"
_COMMON = 0.05
"""Curves that share less than this range of accuracy hardly meet: where they do may be luck."""


def verdicts(findings: Findings, skills: Sequence[str]) -> tuple[list[str], list[str]]:
    """What was shown, and what was not: a sentence for each arm and headline skill, factor and kind of noise.

    Arms of further ablations that serve an axis are told of there, unless they have baselines of their own.
    """
    shown: list[str] = []
    rest: list[str] = []
    serving = {reference for axis in findings.axes for reference in (*axis.config.long.arms, *axis.config.short.arms)}
    for made in findings.comparisons:
        further = made.ablation is not findings.comparisons[0].ablation
        exploratory = []
        for arm in made.ablation.arms:
            if further and made.baseline and f"{made.ablation.name}/{arm}" in serving:
                continue
            results = [r for skill in skills if (r := made.results.get((arm, OWN, skill))) and r.difference]
            if any(not result.claimable for result in results):
                exploratory.append(arm)
                continue
            for result in results:
                (shown if result.p is not None and result.p < _SURE else rest).append(_comparison(made, result))
        if exploratory:
            names = ", ".join(exploratory)
            rest.append(f"{made.ablation.name}: {names}: fewer than three seeds, exploratory; nothing is claimed.")
    for axis in findings.axes:
        apart = (axis.factor.low > 1 or axis.factor.high < 1) and not _hardly_meet(axis.factor)
        (shown if apart and _claimable([*axis.long, *axis.short]) else rest).append(_axis(axis))
    for noise in findings.noise:
        outlasts = _is_gain(noise) and noise.cancelled.low > 0
        (shown if outlasts and _claimable(noise.points, noise.rival_values) else rest).append(_noise(noise))
    return shown, rest


def equalised(made: Comparison) -> str:
    """What the cells of an ablation were given, and how far their training FLOPs lie apart where that was the same."""
    words = {"flops": "training FLOPs", "samples": "images"}
    budgets = [(name, value) for arm in made.ablation.equal.values() for name, value in arm.items()]
    if budgets and not made.ablation.budget:
        given = {name: [value for other, value in budgets if other == name] for name, _ in budgets}
        ranges = [f"{min(v):.3g} to {max(v):.3g} {words.get(name, name)}" for name, v in given.items()]
        return f"Arms were given more and less: {', '.join(ranges)}."
    what = ", ".join(f"{value:.3g} {words.get(name, name)}" for name, value in made.ablation.budget.items())
    told = f"Each run was given {what}." if what else "No budget was set for all runs together."
    apart = made.flops_apart()
    if apart is not None:
        told += f" The arms' mean training FLOPs lie {100 * apart:.2f} % apart at most."
    return told


def told_factor(factor: Factor) -> str:
    """A factor with its interval; a bound where the curves do not meet."""
    if math.isnan(factor.value):
        return "no factor: one of the two is not sure to grow along the axis"
    if math.isinf(factor.value):
        told = f"more than {times(factor.largest)}"
    elif factor.value == 0:
        told = f"less than {times(factor.smallest)}"
    else:
        told = times(factor.value)
    if math.isnan(factor.low):
        return f"{told} (no interval: one seed a place)"
    low = f"less than {times(factor.smallest)}" if factor.low == 0 else times(factor.low)
    high = f"more than {times(factor.largest)}" if math.isinf(factor.high) else times(factor.high)
    if math.isinf(factor.low) or factor.high == 0:  # nearly all draws lie beyond the range
        return f"{told} (95 % interval beyond that)"
    return f"{told} (95 % interval {low} to {high})"


def told_break_even(cancelled: BreakEven) -> str:
    """The share of mistakes that cancels a gain, with its interval; what is not in the range is said to be outside."""
    if cancelled.value == 0:
        told = "no gain to cancel"
        if cancelled.high == 0:
            return told
    elif math.isinf(cancelled.value):
        told = f"not cancelled by {percent(cancelled.largest)} %, the most measured"
    else:
        told = f"cancelled at {_share(cancelled.value)} %"
    if math.isnan(cancelled.low):
        return f"{told} (no interval: one seed a place)"
    if math.isinf(cancelled.low):
        return f"{told} (95 % interval beyond that)"
    high = f"more than {percent(cancelled.largest)} %" if math.isinf(cancelled.high) else f"{_share(cancelled.high)} %"
    return f"{told} (95 % interval {_share(cancelled.low)} % to {high})"


def told_noise(noise: Noise) -> str:
    """What mistakes do to a gain, and whether there is one."""
    unsure = noise.cancelled.value > 0 and not _is_gain(noise)
    return told_break_even(noise.cancelled) + ("; the gain itself is not shown" if unsure else "")


def in_short(told: str) -> str:
    """A factor or share as a figure has room for it."""
    told = re.sub(r"(, the most measured)? \(95 % interval (.*)\)", r", 95 %: \2", told)
    for long, short in (("the gain itself is", "gain"), ("more than", ">"), ("less than", "<")):
        told = told.replace(long, short)
    return told


def percent(share: float) -> str:
    """A share in per cent, without its sign."""
    return f"{100 * share:.0f}"


def points(difference: Difference, *, unit: str = "") -> str:
    """A difference in points with its interval."""
    value, low, high = (_signed(100 * number) for number in (difference.value, difference.low, difference.high))
    return f"{value}{unit} ({low} to {high})"


def probability(p: float) -> str:
    """A p value, to the digits that mean something."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def times(factor: float) -> str:
    """A factor, to the digits that mean something: 1.04 must not read as 1.0."""
    digits = 2 if factor < 2 else 1 if factor < 10 else 0
    return f"{factor:.{digits}f}×"


def skill_words(skill: str) -> str:
    """A skill in words, where we have some."""
    return HEADLINE_SKILLS.get(skill, skill)


def _claimable(places: Sequence[Point], *more: Sequence[float]) -> bool:
    return min(map(len, [*(point.values for point in places), *more])) >= SEEDS_TO_CLAIM


def _comparison(made: Comparison, result: Result) -> str:
    apart = result.difference
    assert apart is not None
    base = made.baselines[result.arm]
    about = f"{made.ablation.name}: {result.arm} against {base} on {skill_words(result.skill)}"
    numbers = points(apart, unit=" points")
    if result.p is None or apart.p is None:
        return f"{about}: {numbers} over prompts; the seeds show no spread to test against, so nothing is claimed."
    numbers += f", p = {probability(result.p)}".replace("= <", "<")
    if result.p < _SURE:
        return f"{about}: {'better' if apart.value > 0 else 'worse'}, {numbers}."
    if apart.p < _SURE:
        return f"{about}: no difference shown, {numbers}; alone it would be, among all skills it is not."
    return f"{about}: no difference shown, {numbers}."


def _axis(axis: Axis) -> str:
    long, short, factor = axis.config.long.name, axis.config.short.name, axis.factor
    about = f"{axis.config.label}, {skill_words(axis.skill)}"
    told = f"{about}: {long} is worth {told_factor(factor)} in {axis.config.label} of {short}"
    if math.isnan(factor.value):
        return f"{about}: {told_factor(factor)}."
    if axis.flops_grow:
        told += ", and of the training FLOPs that grow with them"
    if factor.levels:
        told += f", read between {percent(factor.levels[0])} and {percent(factor.levels[1])} % accuracy"
        tops = {name: fmean(side[-1].values) for name, side in ((long, axis.long), (short, axis.short))}
        further = max(tops, key=tops.__getitem__)
        if tops[further] > factor.levels[1] + _COMMON:
            told += f"; {further} goes on to {percent(tops[further])} %"
    if _hardly_meet(factor):
        told += "; they share too little to claim anything"
    elif factor.low <= 1 <= factor.high:
        told += "; the interval has 1 in it, so no worth is shown"
    if not _claimable([*axis.long, *axis.short]):
        told += _FEW
    return told + "."


def _noise(noise: Noise) -> str:
    about = f"{noise.config.label}, {skill_words(noise.skill)}"
    told = f"{about}, the gain of {noise.clean} over {noise.rival}: {told_noise(noise)}"
    return told + ("" if _claimable(noise.points, noise.rival_values) else _FEW) + "."


def _is_gain(noise: Noise) -> bool:
    return noise.gain.value > 0 and noise.gain_p is not None and noise.gain_p < _SURE


def _hardly_meet(factor: Factor) -> bool:
    return factor.levels is not None and factor.levels[1] - factor.levels[0] < _COMMON


def _share(share: float) -> str:
    """A share of mistakes in per cent: those that matter are small."""
    return f"{100 * share:.1f}" if 0 < share < 0.1 else percent(share)


def _signed(number: float) -> str:
    digits = 1 if 0.05 <= abs(number) < 0.5 else 0  # an end just above zero must not read as zero
    told = f"{abs(number):.{digits}f}"
    return told if float(told) == 0 else f"{'+' if number > 0 else '−'}{told}"
