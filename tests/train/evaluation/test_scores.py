"""Shares and their intervals: Wilson's for single answers, wider for answers that come in clusters."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from lens_core.intervals import wilson_interval
from lens_train.evaluation.scores import Answer, mean_interval, scores_of


def answers(skill, verdicts, *, pictures=1, first=0, model="m", style="s"):
    return [
        Answer(
            model=model,
            style=style,
            skill=skill,
            task=f"{skill}-{number}",
            prompt=f"prompt {first + number // pictures}",
            given="",
            correct=bool(verdict),
        )
        for number, verdict in enumerate(verdicts)
    ]


def only(entries, **wanted):
    (found,) = [entry for entry in entries if all(entry[key] == value for key, value in wanted.items())]
    return found


def test_one_answer_a_prompt_gives_wilsons_interval():
    (cell,) = scores_of(answers("x", [1] * 13 + [0] * 27))["cells"]
    low, high = scipy.stats.binomtest(13, 40).proportion_ci(method="wilson")
    assert (cell["correct"], cell["n"], cell["accuracy"]) == (13, 40, 13 / 40)
    assert (cell["low"], cell["high"]) == pytest.approx((low, high), abs=1e-9)


def test_pictures_of_one_prompt_that_agree_count_as_one():
    """Four pictures each, all right or all wrong: the interval is that of the prompts, less one."""
    per_prompt = [1] * 9 + [0] * 16
    (cell,) = scores_of(answers("x", np.repeat(per_prompt, 4), pictures=4))["cells"]
    assert (cell["correct"], cell["n"]) == (36, 100)
    assert (cell["low"], cell["high"]) == pytest.approx(wilson_interval(0.36 * 24, 24), abs=1e-9)
    alone = wilson_interval(36, 100)
    assert cell["high"] - cell["low"] > 1.8 * (alone[1] - alone[0])


def test_cells_and_means_of_every_model_and_style():
    given = [
        *answers("a", [1, 1, 0, 1], model="one"),
        *answers("b", [0, 0], first=10, model="one"),
        *answers("a", [0, 0, 0, 0], model="one", style="t"),
        *answers("a", [1, 1, 1, 1], model="two"),
    ]
    scores = scores_of(given)
    assert [(c["model"], c["style"], c["skill"], c["correct"], c["n"]) for c in scores["cells"]] == [
        ("one", "s", "a", 3, 4),
        ("one", "s", "b", 0, 2),
        ("one", "t", "a", 0, 4),
        ("two", "s", "a", 4, 4),
    ]
    assert [(m["model"], m["style"], m["over"], m["n"], m["accuracy"]) for m in scores["means"]] == [
        ("one", "s", "skills", 2, pytest.approx(0.375)),
        ("one", "s", "prompts", 6, 0.5),
        ("one", "t", "skills", 1, 0.0),
        ("one", "t", "prompts", 4, 0.0),
        ("two", "s", "skills", 1, 1.0),
        ("two", "s", "prompts", 4, 1.0),
    ]
    for entry in itertools.chain(scores["cells"], scores["means"]):
        assert 0 <= entry["low"] <= entry["accuracy"] <= entry["high"] <= 1
        assert entry["low"] < entry["high"], "nothing is certain"


def test_the_mean_over_skills_against_the_bootstrap():
    rng = np.random.default_rng(0)
    skills = {
        name: rng.random(number) < share for name, number, share in (("a", 80, 0.9), ("b", 200, 0.4), ("c", 60, 0.6))
    }
    given = [one for i, (name, own) in enumerate(skills.items()) for one in answers(name, own, first=1000 * i)]
    mean = only(scores_of(given)["means"], over="skills")
    assert mean["accuracy"] == pytest.approx(np.mean([own.mean() for own in skills.values()]))
    again = [np.mean([rng.choice(own, len(own)).mean() for own in skills.values()]) for _ in range(4000)]
    assert (mean["low"], mean["high"]) == pytest.approx(np.quantile(again, [0.025, 0.975]), abs=0.01)


def test_the_mean_over_prompts_counts_a_prompt_once_however_many_questions():
    """One with four questions all right, one with a single one wrong: one half, and not four fifths."""
    given = [*answers("a", [1, 1], pictures=4), *answers("b", [1, 1], pictures=4), *answers("b", [0], first=7)]
    scores = scores_of(given)
    assert only(scores["means"], over="prompts")["accuracy"] == 0.5
    assert only(scores["means"], over="prompts")["n"] == 2


def test_the_interval_of_a_mean():
    rng = np.random.default_rng(1)
    shares = rng.beta(3, 2, 300)
    t = scipy.stats.t.interval(0.95, 299, shares.mean(), scipy.stats.sem(shares))
    assert mean_interval(list(shares)) == pytest.approx(t, abs=0.003)
    ones = [1.0] * 30 + [0.0] * 10
    assert mean_interval(ones) == pytest.approx(wilson_interval(0.75 * 39, 39))
    assert mean_interval([0.5] * 20) == wilson_interval(10, 20)
    assert mean_interval([1.0] * 20) == wilson_interval(20, 20)
    assert mean_interval([1.0]) == wilson_interval(1, 1)


def test_the_interval_of_a_mean_covers_it():
    """Shares out of four questions, with a truth of their own for each prompt."""
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        truths = rng.beta(4, 1, 40)
        low, high = mean_interval(list(rng.binomial(4, truths) / 4))
        covered += low <= 0.8 <= high
    assert 0.92 <= covered / 400 <= 0.985
