"""Checkpoints that `keep_every` keeps outlive the state of the stage that made them."""

from __future__ import annotations

import errno
import io
import os

import pytest
import torch

from lens_core.pipeline.progress import Progress
from lens_core.pipeline.runner import run_stages
from lens_train.checkpoint.store import CheckpointStore
from lens_train.parallel.world import World


def contents(folder):
    """The bytes of every file below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def train(scenes, lens_registry, tmp_path):
    """Run the stage `model` over 24 scenes, as a pipeline would."""

    def run(**options):
        config = {
            "name": "model",
            "type": "train",
            "source": "dense",
            "model": {"type": "lens", "preset": "nano", "num_layers": 1},
            "budget": {"steps": 5},
            "batch": {"samples": 2},
            "threads": 1,
            **options,
        }
        return run_stages(
            [lens_registry.parse("stages", config)],
            run_url=str(tmp_path / "run"),
            state_root=tmp_path / "run" / ".state",
            base=str(tmp_path),
            seed=3,
            registry=lens_registry,
            progress=Progress(stream=io.StringIO(), live=False),
            given={"dense": scenes["dense"]},
        )["model"]

    return run


def test_they_lie_beside_the_state_when_the_stage_is_done(train, tmp_path):
    train(checkpoints={"keep_every": 2})
    state = tmp_path / "run" / ".state"
    assert sorted(path.name for path in state.iterdir() if path.is_dir()) == ["model.checkpoints", "model.plan"]
    kept = contents(state / "model.checkpoints")
    assert sorted(kept) == [
        f"step-{step:08d}/{name}" for step in (2, 4) for name in ("rank-00000.safetensors", "state.json")
    ]
    train(checkpoints={"keep_every": 3})  # it is done already
    assert contents(state / "model.checkpoints") == kept
    train(checkpoints={"keep_every": 3}, budget={"steps": 3})
    assert [path.name for path in (state / "model.checkpoints").iterdir()] == ["step-00000003"]
    train(budget={"steps": 2})
    assert not (state / "model.checkpoints").exists()


def test_a_run_killed_before_its_manifest_hands_them_over_again(train, tmp_path, monkeypatch):
    """The last of them is the one that the run goes on from."""
    state, settings = tmp_path / "run" / ".state", {"checkpoints": {"keep_every": 2}, "budget": {"steps": 4}}

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lens_core.pipeline.runner._finish", killed)
        with pytest.raises(KeyboardInterrupt):
            train(**settings)
    handed_over = contents(state / "model.checkpoints")
    assert {name.partition("/")[0] for name in handed_over} == {"step-00000002", "step-00000004"}
    (begun,) = state.glob("model." + "[0-9a-f]" * 16)
    assert CheckpointStore(begun / "checkpoints", World(device=torch.device("cpu"))).latest().name == "step-00000004"
    left = contents(begun / "checkpoints")
    del left["latest"]
    assert left == handed_over
    assert train(**settings).stats["steps"] == 4
    assert not begun.exists()
    assert contents(state / "model.checkpoints") == handed_over


def test_where_there_are_no_links_they_are_copied(train, tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    train(checkpoints={"keep_every": 2}, budget={"steps": 2})
    kept = contents(tmp_path / "run" / ".state" / "model.checkpoints")
    assert sorted(kept) == ["step-00000002/rank-00000.safetensors", "step-00000002/state.json"]
    assert all(kept.values())
