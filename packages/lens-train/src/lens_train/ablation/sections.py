"""What the report says, in which order: the one table first, then what was shown and what was not, then the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_train.ablation.figures.accuracy import overview_figure, skills_figure, styles_figure
from lens_train.ablation.figures.look import colours_of
from lens_train.ablation.figures.pictures import pictures_figure
from lens_train.ablation.figures.scale import axis_figure, noise_figure
from lens_train.ablation.figures.training import learning_figure
from lens_train.ablation.page import Figure, Section
from lens_train.ablation.sentences import equalised, skill_words, told_factor, told_noise, verdicts
from lens_train.ablation.tables import (
    arms_table,
    axis_table,
    cost_table,
    distance_table,
    noise_table,
    skills_table,
    styles_table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lens_train.ablation.findings import Comparison, Findings
    from lens_train.stages.ablation_report.config import AblationReportStageConfig

__all__ = ["sections_of"]


def sections_of(findings: Findings, config: AblationReportStageConfig) -> list[Section]:
    """The sections of the report.

    Args:
        findings: all numbers.
        config: of the report.
    """
    main, *others = findings.comparisons
    arms = [arm for made in findings.comparisons for arm in made.ablation.arms]
    kinds = [kind.name for axis in config.axes for kind in (axis.long, axis.short)]
    colours = colours_of([*arms, *kinds])
    return [
        Section(
            title="In one table",
            text=equalised(main),
            tables=[arms_table(main, config.headline)],
            figures=[_overview(findings, config, colours)] if config.headline else [],
        ),
        *_of_verdicts(findings, config),
        *_of_axes(findings, config, colours),
        *_of_noise(findings, config, colours),
        *_of_ablation(main, config, colours, is_main=True),
        *_of_others(main, others, config, colours),
    ]


def _of_others(
    main: Comparison, others: Sequence[Comparison], config: AblationReportStageConfig, colours: Mapping[str, str]
) -> Iterator[Section]:
    """All of each further ablation; of one that was told of already, what it is against another baseline."""
    told = [main.ablation]
    for made in others:
        # Eight colours are soon gone: each further ablation begins with the first again, in figures of its own.
        own = colours if made.ablation is main.ablation else colours_of(made.ablation.arms)
        if made.ablation in told:
            yield _of_skills(made, own, f"every skill, against {made.baseline}", f"against-{made.baseline}")
        else:
            yield from _of_ablation(made, config, own, is_main=False)
        told.append(made.ablation)


def _of_verdicts(findings: Findings, config: AblationReportStageConfig) -> Iterator[Section]:
    if config.headline:
        shown, rest = verdicts(findings, config.headline)
        yield Section(
            title="What was shown",
            text="Each difference is tested among all skills of its arm (Holm); intervals stand for themselves.",
            points=shown or ["Nothing that was tested."],
        )
        yield Section(title="What was not shown", points=rest or ["Nothing that was tested."])


def _overview(findings: Findings, config: AblationReportStageConfig, colours: Mapping[str, str]) -> Figure:
    main = findings.comparisons[0]
    axis = next((axis for axis in findings.axes if axis.skill == config.headline[-1]), None)
    return Figure(
        file="overview.png",
        png=overview_figure(config.title, main, colours, config.headline, axis),
        alt=f"Accuracy of {', '.join(main.ablation.arms)} with intervals; the numbers stand in the table.",
    )


def _of_axes(findings: Findings, config: AblationReportStageConfig, colours: Mapping[str, str]) -> Iterator[Section]:
    for number, axis in enumerate(config.axes):
        found = [entry for entry in findings.axes if entry.config is axis]
        long, short = axis.long.name, axis.short.name
        caption = (
            "Curves: isotonic fits of the means, with 95 % intervals from the seeds of every place; dots: "
            f"seeds. The arrow leads from {long} to {short} of the same accuracy; its number is the mean of all levels."
        )
        text = (
            f"How many times the {axis.label} must grow for {short} to be as accurate as {long}, read only at "
            "accuracies that both reach in the range measured."
        )
        if found and found[0].flops and found[0].flops_grow:
            fewest, most = found[0].flops
            text += f" Training FLOPs differ along this axis, too: from {fewest:.3g} to {most:.3g}."
        yield Section(
            title=f"What {long} is worth in {axis.label}",
            text=text,
            points=[f"{skill_words(entry.skill)}: {told_factor(entry.factor)}" for entry in found],
            tables=[axis_table(found)],
            figures=[
                Figure(
                    file=f"scale-{number + 1}.png",
                    png=axis_figure(found, colours),
                    alt=f"Accuracy against {axis.label} for {long} and {short}.",
                    caption=caption,
                )
            ],
        )


def _of_noise(findings: Findings, config: AblationReportStageConfig, colours: Mapping[str, str]) -> Iterator[Section]:
    for number, noise in enumerate(config.noise):
        found = [entry for entry in findings.noise if entry.config is noise]
        yield Section(
            title=f"What mistakes cost: {noise.label}",
            text=f"Where accuracy falls to that of {noise.rival}, the gain over it is cancelled. The fit is straight "
            "between the shares that were measured, it never rises, and nothing is extrapolated.",
            points=[f"{skill_words(entry.skill)}: {told_noise(entry)}" for entry in found],
            tables=[noise_table(found)],
            figures=[
                Figure(
                    file=f"noise-{number + 1}.png",
                    png=noise_figure(found, colours),
                    alt=f"Accuracy against the {noise.label}, and the accuracy of {noise.rival}.",
                    caption="Solid: the fit with its 95 % interval, from the seeds of every share; dots: seeds; "
                    "dashed: the rival; thin: its seeds.",
                )
            ],
        )


def _of_ablation(
    made: Comparison, config: AblationReportStageConfig, colours: Mapping[str, str], *, is_main: bool
) -> Iterator[Section]:
    name = made.ablation.name
    if not is_main:
        yield Section(title=f"{name}: the arms", text=equalised(made), tables=[arms_table(made, config.headline)])
    if made.results:
        yield from _of_accuracies(made, colours, is_main=is_main)
    if made.ablation.distances:
        yield Section(title=f"{name}: distance from real images", tables=[distance_table(made)])
    yield Section(
        title=f"{name}: training and what it cost",
        text="Losses of arms with different captions do not compare: a caption that says more leaves less to guess. "
        f"Caption dollars are hypothetical: what the captions of the distinct images seen so far would have cost by "
        f"{config.prices.name} ({config.prices.input_per_million:g} and {config.prices.output_per_million:g} USD per "
        f"million tokens of input and output, {config.prices.image_tokens:g} tokens an image, "
        f"{config.prices.tokens_per_word:g} a word).",
        tables=[cost_table(made)],
        figures=list(_training_figures(made, config, colours)) if is_main else [],
    )
    shown = pictures_figure(made.ablation.pictures, config.pictures)
    if shown:
        yield Section(
            title=f"{name}: the same requests and noise",
            figures=[
                Figure(
                    file=f"{name}-pictures.png",
                    png=shown,
                    alt=f"Pictures of the same prompts, a column each for {', '.join(made.ablation.pictures)}.",
                    caption=" ".join([f"Seed {made.ablation.seeds[0]} of each arm; not chosen.", *_rewritten(made)]),
                )
            ],
        )


def _rewritten(made: Comparison) -> Iterator[str]:
    arms = [arm for arm, drawn in made.ablation.pictures.items() if any(picture.rewritten for picture in drawn)]
    if arms:
        yield f"For {', '.join(arms)}, a rewriter put the request into the words of the captions first."


def _of_skills(made: Comparison, colours: Mapping[str, str], title: str, file: str) -> Section:
    return Section(
        title=f"{made.ablation.name}: {title}",
        tables=[skills_table(made)],
        figures=[
            Figure(
                file=f"{made.ablation.name}-{file}.png",
                png=skills_figure(made, colours),
                alt="Accuracy by skill and arm, and its difference to the baseline; the numbers stand in the table.",
                caption="Left, hollow: exploratory. Right, filled: p < 0.05 after Holm over the skills.",
            )
        ],
    )


def _of_accuracies(made: Comparison, colours: Mapping[str, str], *, is_main: bool) -> Iterator[Section]:
    name = made.ablation.name
    yield _of_skills(made, colours, "every skill", "skills")
    yield Section(
        title=f"{name}: asked in every style",
        text="A model may win because its prompts look like its captions. Here all arms answer prompts of all styles.",
        tables=[styles_table(made)],
        figures=[_styles_of(made)] if is_main else [],
    )


def _styles_of(made: Comparison) -> Figure:
    return Figure(
        file=f"{made.ablation.name}-styles.png",
        png=styles_figure(made),
        alt="Accuracy by arm and prompt style, a panel a skill; the numbers stand in the table.",
        caption="Per cent; rows: arms, columns: styles of prompts. Framed: the style that is the arm's own.",
    )


def _training_figures(
    made: Comparison, config: AblationReportStageConfig, colours: Mapping[str, str]
) -> Iterator[Figure]:
    wanted: list[tuple[str, str | None, str]] = [("loss", None, "loss"), ("validation_loss", None, "validation")]
    wanted += [("score", skill, f"score-{number + 1}") for number, skill in enumerate(config.headline)]
    for metric, skill, file in wanted:
        drawn = learning_figure(made.ablation, metric, skill, colours, config.prices)
        if drawn:
            what = f"Share of {skill_words(skill)} drawn right" if skill else metric.replace("_", " ").capitalize()
            smooth = ", smoothed" if metric == "loss" else ""
            asked = ", on the prompts that it was watched with, which are not those of the tables" if skill else ""
            yield Figure(
                file=f"{made.ablation.name}-{file}.png",
                png=drawn,
                alt=f"{what} during training, against what it cost.",
                caption=f"{what} during training{smooth}{asked}. Thin: seeds; thick: their mean.",
            )
