"""The ablate stage in this process: its artefact, and results that are kept."""

from __future__ import annotations

import itertools
import json
import shutil

import pyarrow.compute as pc
import pytest

from lens_core.errors import LensError
from lens_train.ablation.rows import read_rows
from train.ablation.tiny import GALLERY, SCORES, TRAIN, ablation, timeless

CELLS = ["brief-0", "dense-0", "brief-1", "dense-1"]


@pytest.fixture(scope="module")
def whole(ablate, tmp_path_factory):
    """A finished ablation of four cells, whose results are kept: its folder, its artefact, what was said."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *ablate(folder, ablation(results="results"))


def of(table, **wanted):
    rows = table.to_pylist()
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_the_artefact_says_what_was_compared(whole):
    _, artifact, _ = whole
    told = artifact.read_json("ablation.json")
    assert artifact.type == "ablation"
    assert told["arms"] == [
        {"name": "brief", "style": "brief", "set": {"model.source": "brief"}, "equal": {"steps": 6}},
        {"name": "dense", "style": "dense", "set": {}, "equal": {"steps": 6}},
    ]
    assert (told["format_version"], told["name"], told["seeds"], told["equal"]) == (1, "captions", [0, 1], {"steps": 6})
    assert [(made["name"], made["type"]) for made in told["sources"]] == [("brief", "captions"), ("dense", "captions")]
    assert told["sources"][1]["stats"]["words_mean"] > told["sources"][0]["stats"]["words_mean"]
    assert [f"{cell['arm']}-{cell['seed']}" for cell in told["cells"]] == CELLS
    assert len({cell["key"] for cell in told["cells"]}) == 4
    assert told["cells"][3]["pictures"] == [
        "cells/dense-1/gallery/model/0000.png",
    ]
    for cell in told["cells"]:
        for path in cell["pictures"]:
            assert artifact.read_bytes(path).startswith(b"\x89PNG")


def test_every_cell_has_its_rows(whole):
    folder, artifact, _ = whole
    table = read_rows(artifact)
    assert set(table["ablation"].to_pylist()) == {"captions"}
    for number, name in enumerate(CELLS):
        arm, seed = name.rsplit("-", 1)
        key = artifact.read_json("ablation.json")["cells"][number]["key"]
        (steps,) = of(table, arm=arm, seed=int(seed), metric="steps")
        assert (steps["value"], steps["key"]) == (6, key)
        assert len(of(table, arm=arm, seed=int(seed), metric="loss")) == 6
        accuracies = of(table, arm=arm, seed=int(seed), metric="accuracy")
        assert {(row["skill"], row["style"]) for row in accuracies} == {
            (skill, style) for skill in ("single", "two") for style in ("brief", "dense")
        }
        assert all(row["value"] == row["correct"] / row["n"] for row in accuracies)
        assert read_rows(str(folder / "results" / f"{name}.parquet")).equals(
            table.filter((pc.field("arm") == arm) & (pc.field("seed") == int(seed)))
        )
    words = {row["arm"]: row["value"] for row in of(table, metric="caption_words", seed=0)}
    assert words["dense"] > words["brief"]


def test_seeds_differ_and_nothing_else(whole):
    """Another seed is another run; the same seed in another arm sees the same images in the same order."""
    _, artifact, _ = whole
    table = read_rows(artifact)
    losses = {
        name: [row["value"] for row in of(table, metric="loss", arm=name.split("-")[0], seed=int(name[-1]))]
        for name in CELLS
    }
    assert len({tuple(curve) for curve in losses.values()}) == 4
    assert {row["value"] for row in of(table, metric="samples")} == {24}


def test_progress_says_where_it_is(whole):
    _, _, said = whole
    assert "captions: 0/4 cells" in said
    assert "captions: dense, seed 0 (2 of 4) > [1/3] model: Train a text-to-image model" in said
    assert "captions: dense, seed 0 (2 of 4) > model: 0/6 steps" in said
    assert "dense, seed 0 (2 of 4): done; 2 left, about 0 min" in said


def test_finished_cells_leave_no_state(whole):
    folder, _, _ = whole
    state = folder / "run" / ".state"
    assert sorted(path.name for path in state.iterdir()) == ["captions.cells", "images.measures"]
    assert list((state / "captions.cells").iterdir()) == []


def test_a_fresh_run_folder_takes_what_is_there(whole, ablate, tmp_path):
    """As in a fresh checkout: images and captions are made again, cells are not."""
    folder, artifact, _ = whole
    shutil.copytree(folder / "results", tmp_path / "results")
    again, said = ablate(tmp_path, ablation(results="results"))
    assert "4 of 4 cells are finished" in said
    assert "Train a text-to-image model" not in said
    assert read_rows(again).equals(read_rows(artifact))
    assert again.read_json("ablation.json") == artifact.read_json("ablation.json")
    assert [entry.path for entry in again.files] == [entry.path for entry in artifact.files]
    # An arm and a seed more cost their own cells alone; pictures may have been left out of the repository.
    shutil.rmtree(tmp_path / "results" / "dense-0")
    arms = {"brief": {"set": {"model.source": "brief"}}, "dense": {}, "slow": {"set": {"model.optimizer.lr": 1e-9}}}
    more, said = ablate(tmp_path, ablation(results="results", arms=arms, seeds=[0]))
    assert "2 of 3 cells are finished" in said
    assert said.count("Train a text-to-image model") == 1
    assert "slow, seed 0 (3 of 3) > [1/3] model" in said
    assert more.read_json("ablation.json")["cells"][1]["pictures"] == []
    assert (tmp_path / "results" / "slow-0.parquet").exists()


def test_results_of_other_settings_and_damaged_ones(ablate, tmp_path):
    one = {"arms": {"brief": {"set": {"model.source": "brief"}}, "dense": {}}, "seeds": [0], "results": "results"}
    ablate(tmp_path, ablation(cell=[TRAIN], **one))
    brief, dense = (tmp_path / "results" / f"{arm}-0.parquet" for arm in ("brief", "dense"))
    old = {file: file.read_bytes() for file in (brief, dense)}
    # The first cell fails, so the second is never run: what stands there is of other settings, and stays.
    arms = {"dense": {"set": {"equal.flops": 1}}, "brief": {"set": {"model.source": "brief"}}}
    with pytest.raises(LensError, match=r"dense, seed 0 \(1 of 2\): budget\.flops: one step costs"):
        ablate(tmp_path, ablation(cell=[TRAIN], **{**one, "arms": arms}, equal={"flops": 1e9}))
    assert {file: file.read_bytes() for file in (brief, dense)} == old
    dense.write_bytes(old[dense][:100])
    second, said = ablate(tmp_path, ablation(cell=[TRAIN], **one, equal={"steps": 7}))
    assert said.count("brief-0.parquet is of other settings or data; it stays until") == 1
    assert said.count("dense-0.parquet is no Parquet file, or a damaged one") == 1
    assert said.count("the cell is run again") == 1
    assert {row["value"] for row in of(read_rows(second), metric="steps")} == {7}
    assert all(file.read_bytes() != data for file, data in old.items())
    assert not [path for path in (tmp_path / "results").rglob("*") if path.suffix == ".tmp"]


def test_without_a_folder_for_them_results_stay_with_the_run(ablate, tmp_path):
    one = {"seeds": [0], "cell": [TRAIN]}
    first, _ = ablate(tmp_path, ablation(**one))
    second, said = ablate(tmp_path, ablation(**{**one, "seeds": [0, 1]}))
    assert "2 of 4 cells are finished" in said
    assert timeless(read_rows(second))[: len(timeless(read_rows(first)))] == timeless(read_rows(first))
    _, said = ablate(tmp_path, ablation(**{**one, "seeds": [0, 1]}))
    assert said.count("done already") == 4


def test_flops_are_equal_to_half_a_step(ablate, tmp_path):
    budget = 4e9
    artifact, _ = ablate(tmp_path, ablation(seeds=[0], equal={"flops": budget}, cell=[TRAIN]))
    table = read_rows(artifact)
    for arm in ("brief", "dense"):
        (spent,) = of(table, arm=arm, metric="training_flops")
        curve = [0.0, *(row["flops"] for row in of(table, arm=arm, metric="loss"))]
        largest = max(after - before for before, after in itertools.pairwise(curve))
        assert abs(spent["value"] - budget) <= largest / 2
        assert spent["flops"] == spent["value"] == curve[-1]
    assert len({row["value"] for row in of(table, metric="steps")}) == 2  # more words, fewer steps


@pytest.mark.parametrize(("kind", "amount", "steps"), [("samples", 10, 3), ("tokens", 150, 2)])
def test_equal_samples_and_tokens(ablate, tmp_path, kind, amount, steps):
    artifact, _ = ablate(tmp_path, ablation(seeds=[0], equal={kind: amount}, cell=[TRAIN]))
    spent = of(read_rows(artifact), metric=kind)
    assert all(row["value"] >= amount for row in spent)
    assert [row["step"] for row in spent if row["arm"] == "brief"] == [steps]


def test_what_differs_between_arms_need_not_be_captions(ablate, tmp_path):
    """A learning rate."""
    arms = {"usual": {}, "slow": {"set": {"model.optimizer.lr": 1e-5, "model.optimizer.muon_lr": 1e-5}}}
    artifact, _ = ablate(tmp_path, ablation(arms=arms, seeds=[0], cell=[TRAIN, SCORES, {**GALLERY, "per_prompt": 2}]))
    told = artifact.read_json("ablation.json")
    assert [arm["style"] for arm in told["arms"]] == [None, None]
    assert [path.split("/")[-1] for path in told["cells"][0]["pictures"][:2]] == ["0000.png", "0001.png"]
    losses = [[row["value"] for row in of(read_rows(artifact), arm=arm, metric="loss")] for arm in arms]
    assert losses[0][0] == losses[1][0]  # the same start, the same batch
    assert losses[0][-1] != losses[1][-1]


def test_events_tell_parts_apart(whole):
    folder, _, _ = whole
    events = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]
    done = [(event["stage"], event.get("within")) for event in events if event["event"] == "stage-done"]
    assert done[-4:] == [
        ("model", "captions: dense, seed 1 (4 of 4)"),
        ("scores", "captions: dense, seed 1 (4 of 4)"),
        ("gallery", "captions: dense, seed 1 (4 of 4)"),
        ("captions", None),
    ]


def test_processes_that_train_together_are_refused(ablate, tmp_path, monkeypatch):
    import torch

    from lens_train import launch
    from lens_train.parallel.world import World

    monkeypatch.setattr(launch, "_world", World(size=2, device=torch.device("cpu")))
    with pytest.raises(LensError, match="an ablation trains each cell in one process: run it by `lens run`"):
        ablate(tmp_path, ablation())
