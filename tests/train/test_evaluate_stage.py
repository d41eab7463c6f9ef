"""The evaluate stage, with a model whose every answer is known: it draws exactly what it is told."""

from __future__ import annotations

import io
import itertools
import json
from collections import Counter
from functools import partial
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats
from PIL import Image

from lens_core.config.base import ComponentConfig
from lens_core.diffusion.model_folder import load_model_folder
from lens_core.diffusion.text_to_image import Request, generate
from lens_core.errors import LensError
from lens_core.specs import RewriterSpec
from lens_core.storage.artifacts import load_artifact
from lens_train.evaluation import rewriting
from lens_train.evaluation.scenes.config import SKILLS
from lens_train.stages.evaluate.stage import ANSWERS, SCORES, own_style
from train.oracle import drawn, oracle_folder, registry_with, registry_with_oracle

STYLES = ["alt-text", "brief", "dense"]
PER_SKILL = 5


@pytest.fixture(scope="module")
def registry():
    return registry_with_oracle()


@pytest.fixture(scope="module")
def oracle(registry, publish_for_all):
    """Publish a model that draws what it is told, or nothing: `oracle(name, captions, mute=True)`."""

    def make(name, captions, *, mute=False):
        fill = partial(oracle_folder, registry, mute=mute)
        return publish_for_all("model", name, fill, parents=[captions])

    return make


@pytest.fixture(scope="module")
def models(oracle, scenes):
    return [oracle("hears-brief", scenes["brief"]), oracle("deaf", scenes["dense"], mute=True)]


@pytest.fixture(scope="module")
def evaluated(registry, models, run_stage):
    """The stage's folder; two models, three styles, all skills."""
    config = registry.parse(
        "stages",
        {
            "name": "scores",
            "type": "evaluate",
            "source": ["hears-brief", "deaf"],
            "evaluator": {"type": "scenes", "prompts_per_skill": PER_SKILL},
        },
    )
    folder, stats = run_stage(registry, config, models)
    assert stats == {"pictures": 2 * 3 * 7 * PER_SKILL, "models": 2}
    return folder


@pytest.fixture(scope="module")
def scores(evaluated):
    return json.loads((evaluated / SCORES).read_text())


@pytest.fixture(scope="module")
def answers(evaluated):
    return pq.read_table(evaluated / ANSWERS).to_pylist()


@pytest.fixture(scope="module")
def evaluator(registry):
    config = registry.parse("evaluators", {"type": "scenes", "prompts_per_skill": PER_SKILL})
    return registry.build("evaluators", config)


def test_every_cell_is_there_once(scores):
    cells = [(cell["model"], cell["style"], cell["skill"]) for cell in scores["cells"]]
    assert sorted(cells) == sorted(itertools.product(["hears-brief", "deaf"], STYLES, SKILLS))
    assert scores["skills"] == list(SKILLS)
    assert scores["styles"] == STYLES


def test_cells_count_the_answers(scores, answers):
    asked = Counter((row["model"], row["style"], row["skill"]) for row in answers)
    right = Counter((row["model"], row["style"], row["skill"]) for row in answers if row["correct"])
    for cell in scores["cells"]:
        key = (cell["model"], cell["style"], cell["skill"])
        assert (cell["correct"], cell["n"]) == (right[key], asked[key])
        assert cell["n"] == PER_SKILL
        assert cell["accuracy"] == pytest.approx(right[key] / asked[key])
        wilson = scipy.stats.binomtest(right[key], asked[key]).proportion_ci(method="wilson")
        assert (cell["low"], cell["high"]) == pytest.approx((wilson.low, wilson.high), abs=1e-9)


def test_every_question_is_answered_as_the_picture_deserves(answers, evaluator):
    tasks = {task.id: task for task in evaluator.tasks()}
    for row in answers:
        task = tasks[row["task"]]
        assert row["prompt"] == task.prompts[row["style"]]
        assert row["skill"] == task.skill
        picture = drawn(row["prompt"], 32) if row["model"] == "hears-brief" else np.full((32, 32, 3), 246, np.uint8)
        assert row["correct"] == evaluator.score(task, picture), row
    keys = [(row["model"], row["style"], row["task"]) for row in answers]
    assert len(set(keys)) == len(keys)
    # Answers of both kinds, or the above would prove little.
    assert len({row["correct"] for row in answers if row["model"] == "hears-brief"}) == 2


def test_who_draws_what_dense_prompts_say_is_right_in_everything(scores):
    table = {(cell["model"], cell["style"], cell["skill"]): cell["accuracy"] for cell in scores["cells"]}
    for skill in SKILLS:
        assert table["hears-brief", "dense", skill] == 1
        assert table["deaf", "dense", skill] == 0
    # Brief prompts name every object, and neither size nor place.
    assert [table["hears-brief", "brief", skill] for skill in ("single", "two", "count", "colour")] == [1, 1, 1, 1]
    assert table["hears-brief", "brief", "whole"] < 1


def test_a_rewriter_says_more_and_judged_is_what_was_asked(registry, models, evaluator, run_stage, answers):
    evaluate = {
        "name": "scores",
        "type": "evaluate",
        "source": ["hears-brief"],
        "evaluator": {"type": "scenes", "prompts_per_skill": PER_SKILL},
        "rewriter": "scene-expander",
    }
    folder, _ = run_stage(registry, registry.parse("stages", evaluate), models[:1])
    rewriter = registry.build("rewriters", registry.parse("rewriters", "scene-expander"))
    tasks = {task.id: task for task in evaluator.tasks()}
    rows = pq.read_table(folder / ANSWERS).to_pylist()
    scores = json.loads((folder / SCORES).read_text())
    assert scores["rewriter"] == {"type": "scene-expander"}
    briefly = {row["prompt"] for row in rows if row["style"] == "brief"}
    assert (scores["rewritten"]["brief"], scores["rewritten"]["dense"]) == (len(briefly), 0)
    for row in rows:
        assert [row["given"]] == rewriter.rewrite([row["prompt"]], seed=0)
        assert row["correct"] == evaluator.score(tasks[row["task"]], drawn(row["given"], 32))
    assert {row["prompt"] for row in rows} == {row["prompt"] for row in answers}
    assert all(row["given"] != row["prompt"] for row in rows if row["style"] == "brief")
    assert all(row["given"] == row["prompt"] for row in rows if row["style"] == "dense")
    assert all(row["given"] == row["prompt"] for row in answers)


class Flaky:
    """Fails at every text, as often as it is told."""

    times = 2

    def __init__(self, config):
        self.left = {}

    def rewrite(self, prompts, *, seed=0):
        (prompt,) = prompts
        self.left.setdefault(prompt, self.times)
        if self.left[prompt]:
            self.left[prompt] -= 1
            raise LensError("the endpoint is busy")
        return [f"{prompt}, please"]


class FlakyConfig(ComponentConfig):
    type: Literal["flaky"] = "flaky"


@pytest.mark.parametrize("times", [0, 2, 3])
def test_a_rewriter_that_fails_is_asked_again(monkeypatch, times):
    monkeypatch.setattr(rewriting, "PAUSES_S", (0, 0))
    monkeypatch.setattr(Flaky, "times", times)
    spec = RewriterSpec(name="flaky", summary="Fails.", config=f"{__name__}:FlakyConfig", target=f"{__name__}:Flaky")
    registry, seen = registry_with({"rewriters": spec}), []
    ask = partial(rewriting.rewrite, ["a", "b"], FlakyConfig(), registry, seed=0, on_text=seen.append)
    if times == 3:
        with pytest.raises(LensError, match="the endpoint is busy"):
            ask()
    else:
        assert ask().texts == {"a": "a, please", "b": "b, please"}
        assert seen == [1, 2]


def test_a_models_own_style_is_that_of_its_captions(scores, models, scenes, publish_for_all):
    assert scores["models"] == [
        {"name": "hears-brief", "own_style": "brief"},
        {"name": "deaf", "own_style": "dense"},
    ]
    assert [own_style(model) for model in models] == ["brief", "dense"]

    def nothing(output):
        output.write_json("x.json", {})

    for number, captioner in enumerate(({"type": "openai", "model": "m"}, {"type": "x", "style": 3}, {})):
        config = {"captioner": captioner} if captioner else {}
        captions = publish_for_all("captions", f"c{number}", nothing, parents=[scenes["images"]], config=config)
        assert own_style(publish_for_all("model", f"m{number}", nothing, parents=[captions])) is None


def test_sheets_show_the_pictures_framed_by_the_verdict(evaluated, answers):
    assert {file.name for file in (evaluated / "sheets").iterdir()} == {
        f"{model}-{style}.png" for model in ("hears-brief", "deaf") for style in STYLES
    }
    for style in STYLES:
        sheet = np.asarray(Image.open(evaluated / "sheets" / f"hears-brief-{style}.png"))
        side = 2 * 32 + 6
        assert sheet.shape == (7 * side, 8 * side, 3)
        for row, skill in enumerate(SKILLS):
            asked = [a for a in answers if (a["model"], a["style"], a["skill"]) == ("hears-brief", style, skill)]
            for column in range(8):
                cell = sheet[row * side : (row + 1) * side, column * side : (column + 1) * side]
                if column >= PER_SKILL:
                    assert (cell == 255).all()
                    continue
                red, green, _ = cell[0, 0].astype(int)
                assert (green > red) == asked[column]["correct"]
                assert np.array_equal(cell[3:-3:2, 3:-3:2], drawn(asked[column]["prompt"], 32))


def test_all_models_draw_a_task_from_the_same_noise(run_stages, run_stage, lens_registry, scenes, tmp_path):
    """Two trainings that differ in name only make one model; both must answer with the same pictures."""
    train = {
        "type": "train",
        "source": "dense",
        "model": {"type": "lens", "preset": "nano", "num_layers": 1},
        "optimizer": {"warmup_steps": 0},
        "budget": {"steps": 15},
        "batch": {"samples": 4},
    }
    stages = [
        {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 12}},
        {
            "name": "dense",
            "type": "caption",
            "source": "images",
            "captioner": {"type": "scene-graph", "style": "dense"},
        },
        {"name": "one", **train},
        {"name": "other", **train},
        {
            "name": "scores",
            "type": "evaluate",
            "source": ["one", "other"],
            "evaluator": {"type": "scenes", "prompts_per_skill": 2, "skills": ["two", "whole"], "styles": ["dense"]},
            "steps": 2,
            "seed": 5,
        },
    ]
    artifacts = run_stages(tmp_path, stages)
    scores = load_artifact(artifacts["scores"].url)
    sheets = [scores.read_bytes(f"sheets/{name}-dense.png") for name in ("one", "other")]
    assert sheets[0] == sheets[1]
    # And the noise of the task of that number, with the sampler as overridden.
    model = load_model_folder(artifacts["one"].url, registry=lens_registry)
    rows = pq.read_table(io.BytesIO(scores.read_bytes(ANSWERS))).to_pylist()
    prompts = [row["prompt"] for row in rows if row["model"] == "one"]
    requests = [
        Request(prompt=prompt, height=32, width=32, seed=5, index=number) for number, prompt in enumerate(prompts)
    ]
    sheet = np.asarray(Image.open(io.BytesIO(sheets[0])))
    cells = [
        sheet[70 * row + 3 : 70 * row + 67 : 2, 70 * column + 3 : 70 * column + 67 : 2].astype(int)
        for row, column in itertools.product(range(2), range(2))
    ]

    def distance(steps):
        sampler = lens_registry.parse("samplers", {**model.sampler.model_dump(), "steps": steps})
        drawn_again = generate(model, requests, sampler=sampler)
        return max(np.abs(cell - picture).max() for cell, picture in zip(cells, drawn_again, strict=True))

    assert distance(2) <= 1
    assert distance(model.sampler.steps) > 10
