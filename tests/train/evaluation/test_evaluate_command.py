"""`lens evaluate`: the stage's verdicts without a pipeline, and one line about what is missing."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from core.diffusion.packs import random_model
from lens_core.contracts import verdicts
from lens_core.diffusion.model_folder import load_model_folder
from lens_core.diffusion.text_to_image import Request, generate
from lens_core.errors import ConfigError, LensError
from lens_core.registry import load_registry
from lens_train.evaluation.command import evaluate_model, suite_config
from lens_train.evaluation.measure import ANSWERS, SCORES
from train.evaluation.models import clip, detr
from train.evaluation.test_dpg import Eyes
from train.evaluation.test_dpg_prompts import ROWS, write


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    random_model(folder, load_registry())
    return folder


@pytest.fixture
def measured(model, tmp_path, capsys):
    """Run it in this process: what it printed, its scores, its answers."""

    def run(suite, *settings, seed=0, steps=None, rewriter=None, **options):
        out = tmp_path / "out"
        evaluate_model(
            str(model),
            suite=suite,
            options={f"--{name.replace('_', '-')}": value for name, value in options.items()},
            settings=settings,
            rewriter=rewriter,
            output=str(out),
            seed=seed,
            steps=steps,
            guidance=None,
            dtype=None,
            device="cpu",
        )
        scores = json.loads((out / SCORES).read_text())
        return capsys.readouterr().out, scores, pq.read_table(out / ANSWERS).to_pylist()

    return run


def lines_of(*prompts):
    return "\n".join(map(json.dumps, prompts))


def test_a_rewriter_is_told_in_the_first_line(measured):
    printed, scores, answers = measured(
        "scenes", "skills=[single]", "styles=[brief]", per_skill=2, rewriter="scene-expander"
    )
    assert printed.splitlines()[0] == "tiny: scenes, of which scene-expander rewrote 2 texts"
    assert scores["rewritten"] == {"brief": 2}
    assert all(len(row["given"]) > len(row["prompt"]) for row in answers)


def test_scenes_from_the_command_line(lens, model, tmp_path):
    done = lens(
        "evaluate", str(model), "--suite", "scenes", "--per-skill", "2", "--set", "styles=[brief, dense]",
        "--set", "skills=[single, two]", "--steps", "2", "--output", "here", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0] == ["tiny:", "scenes"]
    assert rows[1] == ["skill", "brief", "n", "dense", "n"]
    assert [row[0] for row in rows[2:4]] == ["single", "two"]
    assert [row[:3] for row in rows[4:6]] == [["mean", "over", "skills"], ["mean", "over", "prompts"]]
    assert rows[2][4] == "2"
    scores = json.loads((tmp_path / "here" / SCORES).read_text())
    assert scores["styles"] == ["brief", "dense"]
    assert sum(cell["n"] for cell in scores["cells"]) == 8
    assert {file.name for file in (tmp_path / "here" / "sheets").iterdir()} == {"tiny-brief.png", "tiny-dense.png"}


def test_geneval_with_tiny_models(measured, model, tmp_path):
    """Twelve dogs, wherever one looks: what is asked decides, and the overall score is the mean of the skills."""
    file = tmp_path / "evaluation_metadata.jsonl"
    dog, cat = {"class": "dog", "count": 1}, {"class": "cat", "count": 1}
    file.write_text(
        lines_of(
            {"tag": "single_object", "include": [dog], "prompt": "a photo of a dog"},
            {"tag": "single_object", "include": [cat], "prompt": "a photo of a cat"},
            {"tag": "two_object", "include": [dog, cat], "prompt": "a photo of a dog and a cat"},
            {"tag": "colors", "include": [{**dog, "color": "red"}], "prompt": "a photo of a red dog"},
            {"tag": "any", "include": [dog], "prompt": "a photo"},
        )
    )
    said, scores, answers = measured(
        "geneval",
        prompts=str(file),
        detector=str(detr(tmp_path / "detr", sees=("dog", 3.0))),
        clip=str(clip(tmp_path / "clip")),
        samples=2,
    )
    cells = {cell["skill"]: (cell["correct"], cell["n"]) for cell in scores["cells"]}
    assert list(cells) == ["single_object", "two_object", "colors", "any"]
    assert [cells[skill] for skill in ("single_object", "two_object", "any")] == [(2, 4), (0, 2), (2, 2)]
    over = {mean["over"]: mean for mean in scores["means"]}
    assert over["skills"]["accuracy"] == pytest.approx((0.5 + 0 + cells["colors"][0] / 2 + 1) / 4)
    assert over["prompts"]["n"] == 5
    assert len(answers) == 10
    assert re.search(r"^mean over skills +\d+\.\d % \[\d+\.\d-\d+\.\d\] +4$", said, re.MULTILINE)
    # Pictures are of the model's own size, framed on the sheet.
    sheet = np.asarray(Image.open(tmp_path / "out" / "sheets" / "tiny-geneval.png"))
    assert sheet.shape == (4 * (2 * 16 + 6), 8 * (2 * 16 + 6), 3)


def test_dpg_style_with_a_vision_endpoint(measured, model, tmp_path, monkeypatch):
    """Every question is answered about the picture that the model draws for its prompt, from the seed's noise."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    red = [*ROWS[:3], ("b", "A blue thing.", "", "1", "0", "attribute", "", "", "Is it blue?")]
    file = write(tmp_path / "dpg.csv", red)
    yes = {"red": {"Is there a bus?"}, "blue": {"Is there a bus?", "Is it blue?"}}
    with Eyes(yes).running() as server:
        said, scores, answers = measured(
            "dpg-style", "concurrency=2", prompts=str(file), base_url=server.url, judge="m", samples=1, seed=3, steps=2
        )
    loaded = load_model_folder(str(model), registry=load_registry())
    sampler = loaded.registry.parse("samplers", {**loaded.sampler.model_dump(), "steps": 2})
    requests = [
        Request(prompt=prompt, height=16, width=16, seed=3, index=index)
        for index, prompt in enumerate((ROWS[0][1], "A blue thing."))
    ]
    colours = ["red" if p[0, 0, 0] > p[0, 0, 2] else "blue" for p in generate(loaded, requests, sampler=sampler)]
    assert [(row["task"], row["skill"], row["correct"]) for row in answers] == [
        ("12-0", "entity", True),
        ("12-0", "relation", False),
        ("12-0", "entity", False),
        ("b-0", "attribute", colours[1] == "blue"),
    ]
    assert {cell["skill"]: (cell["correct"], cell["n"]) for cell in scores["cells"]} == {
        "entity": (1, 2),
        "relation": (0, 1),
        "attribute": (int(colours[1] == "blue"), 1),
    }
    (prompts,) = [mean for mean in scores["means"] if mean["over"] == "prompts"]
    assert prompts["accuracy"] == pytest.approx((1 / 3 + (colours[1] == "blue")) / 2)
    assert "tiny: dpg\n" in said


def test_the_same_scores_as_the_stage(measured, model):
    """What the evaluator says of the model's pictures, drawn here."""
    _, scores, answers = measured("scenes", "skills=[count]", "styles=[dense]", per_skill=3, seed=1)
    registry = load_registry()
    config = {"type": "scenes", "prompts_per_skill": 3, "skills": ["count"], "styles": ["dense"]}
    evaluator = registry.build("evaluators", registry.parse("evaluators", config))
    tasks = evaluator.tasks()
    requests = [
        Request(prompt=task.prompts["dense"], height=32, width=32, seed=1, index=number)
        for number, task in enumerate(tasks)
    ]
    images = generate(load_model_folder(str(model), registry=registry), requests)
    expected = [verdicts(task, evaluator.score(task, image)) for task, image in zip(tasks, images, strict=True)]
    assert [[(row["skill"], row["correct"])] for row in answers] == expected
    assert scores["models"] == [{"name": "tiny", "own_style": None}]


@pytest.mark.parametrize(
    ("suite", "options", "settings", "said"),
    [
        ("genevall", {}, [], "there is no evaluator 'genevall' (did you mean 'geneval'?)"),
        ("geneval", {"--prompts": "p"}, [], "the suite geneval needs --detector"),
        ("dpg-style", {}, [], "the suite dpg needs --prompts and --base-url and --judge"),
        ("scenes", {"--clip": "c"}, [], "the suite scenes takes no --clip"),
        ("dpg", {"--per-skill": 3}, [], "the suite dpg takes no --per-skill"),
        ("scenes", {}, ["sizze=64"], "--suite scenes: sizze: unknown option (did you mean 'size'?)"),
        ("scenes", {"--size": 33}, [], "--suite scenes: size: input should be a multiple of 16, not 33"),
        ("scenes", {}, ["size"], "--set: 'size' is not of the form path=value"),
    ],
)
def test_options_that_do_not_fit(suite, options, settings, said):
    with pytest.raises(LensError) as caught:
        suite_config(suite, options, settings, load_registry(), device="cpu")
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_settings_reach_the_evaluator():
    config = suite_config(
        "geneval",
        {"--prompts": "p", "--detector": "d", "--per-skill": 5},
        ["threshold=0.5"],
        load_registry(),
        device="cpu",
    )
    assert (config.prompts_per_skill, config.threshold, config.device, config.clip) == (5, 0.5, "cpu", None)


def test_what_is_missing_is_one_line(lens, measured, model, tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.jsonl: cannot be read"):
        measured("geneval", prompts=str(tmp_path / "absent.jsonl"), detector="d")
    done = lens("evaluate", str(tmp_path / "none"), "--suite", "scenes")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
    assert "Traceback" not in done.stderr
