"""The tables of the report: the one that a manager can read, every skill, every style of prompts, and what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_train.ablation.figures.look import compact
from lens_train.ablation.measurements import ALL, OWN
from lens_train.ablation.page import Table
from lens_train.ablation.sentences import percent, points, probability, skill_words
from lens_train.ablation.statistics import mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_train.ablation.findings import Axis, Comparison, Noise, Result
    from lens_train.ablation.scaling import Point

__all__ = ["arms_table", "axis_table", "cost_table", "distance_table", "noise_table", "skills_table", "styles_table"]

_NONE = "–"
_READ = (
    "Accuracy in %, differences in points: means over seeds with 95 % t intervals. † fewer than three seeds: "
    "exploratory; intervals of a single one are over prompts, without the luck of seeds. ‡ no spread between seeds: "
    "Wilson's interval over prompts. p: Welch's test over seeds, two-sided, by Holm over an arm's skills."
)


def arms_table(made: Comparison, skills: Sequence[str]) -> Table:
    """Every arm on a line: what it was told, what it cost, how it fared, and the difference that made."""
    head = ["arm", "seeds", "words", "attributes", "bits", "TFLOP"]
    for skill in skills:
        head += [skill_words(skill), _against(made), "p"]
    rows = []
    for arm in made.ablation.arms:
        found = [made.results.get((arm, OWN, skill)) for skill in skills]
        said = [made.ablation.known(arm, f"caption_{what}") for what in ("words", "attributes", "bits")]
        flops = made.ablation.known(arm, "training_flops")
        row = [
            _name(made, arm),
            str(made.ablation.runs(arm)),
            *(_NONE if number is None else f"{number:.1f}" for number in said),
            _NONE if flops is None else f"{flops / 1e12:.4g}",
        ]
        for result in found:
            row += [_accuracy(result), *_difference(result)]
        rows.append(row)
    caption = "Words, attributes and bits of a caption (bits of those that describe a possible scene)" + (
        f"; each arm asked in its own style. {_READ}" if skills else "."
    )
    return Table(caption=caption, head=head, rows=rows)


def skills_table(made: Comparison) -> Table:
    """Every arm at every skill, asked in its own style and in all styles."""
    against = [_against(made), "p"]
    head = ["arm, skill", "own style", *against, "all styles", *against]
    rows = []
    for arm in made.ablation.arms:
        for skill in made.ablation.skills:
            own, everywhere = (made.results.get((arm, prompts, skill)) for prompts in (OWN, ALL))
            row = [_accuracy(own), *_difference(own), _accuracy(everywhere), *_difference(everywhere)]
            rows.append([f"{_name(made, arm)}, {skill}", *row])
    caption = f"Own style against the baseline in its own; all styles against all. {_READ}"
    return Table(caption=caption, head=head, rows=rows)


def styles_table(made: Comparison) -> Table:
    """Every arm in every style of prompts at every skill."""
    rows = []
    for arm, own in made.ablation.arms.items():
        for asked in [*made.ablation.styles, ALL]:
            found = [made.results.get((arm, asked, skill)) for skill in made.ablation.skills]
            label = "all styles" if asked == ALL else f"{asked} (own)" if asked == own else asked
            rows.append([f"{_name(made, arm)}, {label}", *map(_accuracy, found)])
    return Table(caption="Accuracy in %, with 95 % intervals.", head=["arm, prompts", *made.ablation.skills], rows=rows)


def cost_table(made: Comparison) -> Table:
    """What training took, and what captions would have cost."""
    columns = {
        "parameters": "parameters",
        "training_images": "images",
        "steps": "steps",
        "samples": "images seen",
        "tokens": "tokens seen",
        "training_flops": "FLOPs",
        "seconds": "seconds",
    }
    rows = []
    for arm in made.ablation.arms:
        known = [made.ablation.known(arm, metric) for metric in columns]
        told = [_NONE if value is None else f"{value:.4g}" if value >= 1e9 else f"{value:,.0f}" for value in known]
        rows.append([_name(made, arm), *told, f"{made.dollars[arm]:.2f}" if arm in made.dollars else _NONE])
    return Table(
        caption="Means over seeds.", head=["arm", *columns.values(), "caption dollars (hypothetical)"], rows=rows
    )


def distance_table(made: Comparison) -> Table:
    """How far the pictures of every arm are from real ones."""
    names = made.ablation.distances
    rows = []
    for arm in made.ablation.arms:
        row = [_name(made, arm)]
        for name in names:
            found = made.ablation.final(arm, "distance", name)
            if len(found) > 1:
                centre, low, high = mean(found.values())
                row.append(f"{centre:.4g} ({low:.4g} to {high:.4g})")
            else:
                row.append(f"{next(iter(found.values())):.4g}" if found else _NONE)
        rows.append(row)
    caption = "Distance from held-out images; less is closer. Mean over seeds with its 95 % t interval."
    return Table(caption=caption, head=["arm", *names], rows=rows)


def axis_table(found: Sequence[Axis]) -> Table:
    """Accuracy at every place of an axis, by seed."""
    rows = [
        [skill_words(axis.skill), kind.name, compact(point.x), *_seeds(point)]
        for axis in found
        for kind, measured in ((axis.config.long, axis.long), (axis.config.short, axis.short))
        for point in measured
    ]
    head = ["skill", "captions", found[0].config.label, "mean", "seeds"]
    return Table(caption="Accuracy in the arm's own style, %.", head=head, rows=rows)


def noise_table(found: Sequence[Noise]) -> Table:
    """Accuracy at every share of mistakes, by seed."""
    rows = [
        [skill_words(noise.skill), f"{100 * point.x:g} %", *_seeds(point)] for noise in found for point in noise.points
    ]
    head = ["skill", found[0].config.label, "mean", "seeds"]
    return Table(caption="Accuracy in the arm's own style, %.", head=head, rows=rows)


def _against(made: Comparison) -> str:
    return f"against {made.baseline or 'its own'}"


def _name(made: Comparison, arm: str) -> str:
    exploratory = any(result.accuracy.exploratory for (whose, *_), result in made.results.items() if whose == arm)
    name = f"{arm} †" if exploratory else arm
    return name if made.baseline or arm not in made.baselines else f"{name} (against {made.baselines[arm]})"


def _accuracy(result: Result | None) -> str:
    if result is None:
        return _NONE
    own = result.accuracy
    mark = "‡" if own.basis == "prompts" and own.seeds > 1 else ""
    return f"{percent(own.value)} ({percent(own.low)}–{percent(own.high)}){mark}"


def _difference(result: Result | None) -> list[str]:
    if result is None or result.difference is None:
        return [_NONE, _NONE]
    return [points(result.difference), _NONE if result.p is None else probability(result.p)]


def _seeds(point: Point) -> list[str]:
    return [percent(sum(point.values) / len(point.values)), ", ".join(map(percent, point.values))]
