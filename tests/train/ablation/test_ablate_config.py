"""What is wrong with an arm is told before anything runs: one line, with file, line, key and a hint."""

from __future__ import annotations

import re

import pytest
import yaml

from lens_core.config.pipeline import load_pipeline
from lens_core.errors import ConfigError, MissingExtraError
from lens_train.stages.ablate.config import AblateStageConfig
from train.ablation.tiny import ABLATE, ablation

PIPELINE = """\
run: run
stages:
  - {name: images, type: ingest, source: {type: scenes, count: 24}}
  - {name: brief, type: caption, source: images, captioner: {type: scene-graph, style: brief}}
  - {name: dense, type: caption, source: images, captioner: {type: scene-graph, style: dense}}
  - name: captions
    type: ablate
    source: [brief, dense]
    cell:
      - {name: model, type: train, source: dense}
      - name: scores
        type: evaluate
        source: model
        evaluator: scenes
    arms:
      brief:
        set:
          model.source: brief
      dense: {style: dense}
    equal:
      flops: 1e12
"""
STAGE = "stages[3]."
MISTAKES = [
    # changed text, its replacement, line, key, words
    ("model.source: brief", "modle.source: brief", 18, "arms.brief.set.modle.source", "did you mean 'model'?"),
    ("model.source: brief", "x.y: 1", 18, "arms.brief.set.x.y", "no stage 'x' (there is: model, scores)"),
    ("model.source: brief", "model: 1", 18, "arms.brief.set.model", "say what of the stage changes"),
    ("model.source: brief", "scores.seed.x.y: 1", 18, "arms.brief.set.scores.seed.x.y", "a valid integer"),
    ("model.source: brief", "model.optimiser: 1", 18, "arms.brief.set.model.optimiser", "did you mean 'optimizer'?"),
    (
        "model.source: brief",
        "model.batch.samples: 0",
        18,
        "arms.brief.set.model.batch.samples",
        "greater than 0, not 0",
    ),
    (
        "model.source: brief",
        "model.optimizer: {lrr: 1}",
        18,
        "arms.brief.set.model.optimizer.lrr",
        "did you mean 'lr'?",
    ),
    ("model.source: brief", "model.model: {type: lense}", 18, "arms.brief.set.model.model", "did you mean 'lens'?"),
    ("model.source: brief", "model.source: breif", 18, "arms.brief.set.model.source", "did you mean 'brief'?"),
    ("model.source: brief", "model.source: images", 18, "arms.brief.set.model.source", "'images' is no earlier stage"),
    (
        "model.source: brief",
        "scores.source: brief",
        18,
        "arms.brief.set.scores.source",
        "makes captions, but a evaluate",
    ),
    ("model.source: brief", "model.budget.steps: 3", 18, "arms.brief.set.model.budget.steps", "what 'equal' says"),
    ("model.source: brief", "equal.steps: 3", 18, "arms.brief.set.equal.steps", "not flops and steps"),
    ("model.source: brief", "equal.flops: 0", 18, "arms.brief.set.equal.flops", "greater than 0, not 0"),
    ("type: train, source: dense", "type: train, source: dence", 10, "cell[0].source", "did you mean 'dense'?"),
    ("type: train, source: dense", "type: trian, source: dense", 10, "cell[0].type", "did you mean 'train'?"),
    ("evaluator: scenes", "evaluator: scnes", 14, "cell[1].evaluator", "did you mean 'scenes'?"),
    ("        evaluator: scenes\n", "", 11, "cell[1].evaluator", "required"),
    ("name: scores", "name: dense", 11, "cell[1].name", "two stages are called 'dense'"),
    ("source: dense}\n", "source: dense, budget: {steps: 1}}\n", 10, "cell[0].budget", "what 'equal' says"),
    ("      dense: {style", "      Dense Arm: {style", 19, "arms.Dense Arm", "lower-case letters"),
    ("      dense: {style", "      ../out: {style", 19, "arms.../out", "lower-case letters"),
    ("dense: {style: dense}", "dense: {sytle: dense}", 19, "arms.dense.sytle", "did you mean 'style'?"),
    ("      flops: 1e12\n", "      flops: 1e12\n      steps: 3\n", 20, "equal", "not flops and steps"),
    ("      flops: 1e12\n", "      minutes: 3\n", 20, "equal", "minutes make no two arms equal"),
    ("    equal:\n", "    seeds: [0, 1, 0]\n    equal:\n", 20, "seeds", "the seed 0 stands there twice"),
    ("    equal:\n", "    seeds: []\n    equal:\n", 20, "seeds", "at least 1 item"),
    ("    equal:\n", "    devices: [gpu]\n    equal:\n", 20, "devices[0]", "cuda"),
    ("    equal:\n", "    workers: 2\n    devices: [cpu]\n    equal:\n", 6, "", "not both"),
    ("    equal:\n", "    results: s3://a:b@c/d\n    equal:\n", 20, "results", "credentials"),
]


@pytest.fixture
def check(lens_registry, tmp_path):
    def load(text, registry=lens_registry):
        file = tmp_path / "p.yaml"
        file.write_text(text)
        return load_pipeline(str(file), registry)

    return load


def test_a_good_one(check):
    stage = check(PIPELINE).stages[-1]
    assert isinstance(stage, AblateStageConfig)
    assert stage.seeds == [0, 1, 2]
    assert stage.sources == ("brief", "dense")


@pytest.mark.parametrize(("old", "new", "line", "key", "words"), MISTAKES)
def test_a_mistake_is_one_line(check, old, new, line, key, words):
    assert PIPELINE.count(old) >= 1
    with pytest.raises(ConfigError) as caught:
        check(PIPELINE.replace(old, new))
    (told,) = str(caught.value).splitlines()
    where = f"p.yaml:{line}: {STAGE}{key}".rstrip(".")
    assert f"{where}: " in told
    assert words in told


def test_every_mistake_has_its_line(check):
    text = PIPELINE.replace("model.source: brief", "model.ema: 2").replace("evaluator: scenes", "evaluator: scnes")
    with pytest.raises(ConfigError) as caught:
        check(text)
    told = str(caught.value).splitlines()
    # What is wrong in the cell is wrong in every arm, and told once.
    assert sorted(re.search(r":(\d+): ", line)[1] for line in told) == ["14", "18"]


def test_no_arms(check):
    text = PIPELINE[: PIPELINE.index("      brief:\n")].replace("arms:", "arms: {}") + "    equal: {flops: 1e12}\n"
    with pytest.raises(ConfigError, match=r"p.yaml:15: stages\[3\].arms: .* at least 1 item"):
        check(text)


def test_equal_without_training(check):
    text = PIPELINE.replace("      - {name: model, type: train, source: dense}\n", "").replace(
        "model.source", "scores.seed"
    )
    with pytest.raises(ConfigError, match=r"stages\[3\].equal: there is no train stage in the cell"):
        check(text.replace("scores.seed: brief", "scores.seed: 1"))


def test_a_cell_that_measures_nothing(lens_registry):
    cell = [{"name": "more", "type": "encode", "source": "images"}]
    with pytest.raises(ValueError, match="nothing in it measures anything"):
        lens_registry.parse("stages", {**ABLATE, "source": "images", "cell": cell, "arms": {"a": {}}, "equal": None})


def test_equal_of_one_arm(lens_registry):
    arms = {"small": {"set": {"equal.steps": 3}}, "large": {}}
    config = lens_registry.parse("stages", {**ABLATE, "arms": arms})
    assert [overlay.budget() for overlay in config.overlays()] == [{"steps": 3}, {"steps": 6}]
    assert [overlay.stages(lens_registry)[0].budget.steps for overlay in config.overlays()] == [3, 6]
    with pytest.raises(ValueError, match="there is no 'equal' to change"):
        lens_registry.parse("stages", {**ABLATE, "arms": arms, "equal": None})


def test_changes_reach_what_the_cell_leaves_out(lens_registry):
    arms = {"a": {"set": {"model.optimizer.lr": 1e-4, "model.ema": 0.5, "scores.evaluator.skills": ["two"]}}, "b": {}}
    config = lens_registry.parse("stages", {**ABLATE, "arms": arms})
    (a, b) = [overlay.stages(lens_registry) for overlay in config.overlays()]
    assert (a[0].optimizer.lr, a[0].ema, a[1].evaluator.skills) == (1e-4, 0.5, ["two"])
    assert (b[0].optimizer.lr, b[0].ema, b[1].evaluator.skills) == (1.5e-3, 0.99, ["single", "two"])


def test_libraries_of_the_cell_are_asked_for(check, with_fakes):
    more = "      - {name: more, type: ingest, source: {type: scenes, count: 4}, filters: [needs-extra]}\n    arms:\n"
    with pytest.raises(MissingExtraError, match=r"p.yaml:15: .*pip install 'lens_fake_good\[extra\]'"):
        check(PIPELINE.replace("    arms:\n", more), registry=with_fakes("good"))


def test_a_resolved_pipeline_is_the_same_again(check):
    pipeline = check(yaml.safe_dump({"run": "run", "stages": ablation()}))
    assert check(yaml.safe_dump(pipeline.config.model_dump(mode="json"))).config == pipeline.config
