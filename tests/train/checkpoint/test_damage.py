"""What a checkpoint survives, what is said when it does not, and which ones are kept."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from torch import nn

from lens_core.errors import ArtifactError
from lens_train.checkpoint.state import TrainingState
from lens_train.checkpoint.store import CheckpointStore
from lens_train.optim.build import Optimizers
from lens_train.optim.config import OptimizerConfig
from lens_train.optim.ema import Ema
from lens_train.parallel.world import World
from train.checkpoint import full_disk

ALONE = World(device=torch.device("cpu"))


class Small:
    """A model of one matrix and a buffer, of which something may be frozen."""

    def __init__(self, *, width=4, frozen=False, trainable_only=False):
        self.model = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
        self.model[0].requires_grad_(not frozen)
        modules = {"transformer": self.model}
        self.optimizers = Optimizers(OptimizerConfig(type="adamw"), [self.model])
        ema = Ema(modules, 0.9)
        self.state = TrainingState(modules, self.optimizers.parts, ema, trainable_only=trainable_only)

    def step(self):
        self.model(torch.randn(8, 3)).square().sum().backward()
        self.optimizers.step()
        self.optimizers.zero_grad()


def save(folder, steps=(1,), small=None, **options):
    """Checkpoints of these steps; returns what they are of."""
    store = CheckpointStore(folder, ALONE, **options)
    small = small or Small()
    for step in steps:
        small.step()
        store.save(step, small.state, {"step": step})
    store.wait()
    return small


def load(folder, small=None):
    small = small or Small()
    return CheckpointStore(folder, ALONE).load_latest(small.state)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"keep_last": 1}, [9]),
        ({"keep_last": 2}, [8, 9]),
        ({"keep_last": 1, "keep_every": 4}, [4, 8, 9]),
        ({"keep_last": 99}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_the_last_are_kept_and_every_so_many(tmp_path, options, kept):
    save(tmp_path, range(1, 10), **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", *(f"step-{step:08d}" for step in kept)]
    assert load(tmp_path) == {"step": 9}


def test_a_step_that_is_there_already_is_replaced(tmp_path):
    """Someone wrote an older name into the pointer, or a kill came between the folder's name and the pointer."""
    small = save(tmp_path, range(1, 4), keep_last=3)
    (tmp_path / "latest").write_text("step-00000002\n")
    store = CheckpointStore(tmp_path, ALONE, keep_last=2)
    assert store.load_latest(small.state) == {"step": 2}
    store.save(3, small.state, {"step": "three again"})
    store.wait()
    assert load(tmp_path) == {"step": "three again"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000002", "step-00000003"]


def test_the_step_that_was_loaded_is_not_written_anew(tmp_path):
    """Its folder would be gone for a while, with the pointer still naming it."""
    small = save(tmp_path, range(1, 3))
    store = CheckpointStore(tmp_path, ALONE)
    store.load_latest(small.state)
    before = (tmp_path / "step-00000002" / "state.json").stat()
    store.save(2, small.state, {"step": 2})
    store.wait()
    assert (tmp_path / "step-00000002" / "state.json").stat().st_ino == before.st_ino


@pytest.mark.parametrize("text", ["", "step-", "../../etc", "step-00000001/..", "step-00000001\nstep-00000002", "\x00"])
def test_a_damaged_pointer_is_named(tmp_path, text):
    save(tmp_path)
    (tmp_path / "latest").write_text(text)
    with pytest.raises(ArtifactError, match=r"^\S+/latest names .* which is no checkpoint; [^\n]+$"):
        load(tmp_path)


def test_a_pointer_that_is_no_text_is_named(tmp_path):
    save(tmp_path)
    (tmp_path / "latest").write_bytes(b"\xff\xfe")
    with pytest.raises(ArtifactError, match=r"^\S+/latest names .* which is no checkpoint; [^\n]+$"):
        load(tmp_path)


def change(folder, edit):
    """Edit the newest checkpoint's state.json."""
    file = folder / "step-00000001" / "state.json"
    state = json.loads(file.read_text())
    edit(state)
    file.write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state.clear(), "describes no training state: KeyError"),
        (lambda state: state.update(format_version=2), "has format_version 2; this Lens reads 1"),
        (lambda state: state["tensors"]["transformer/0.bias"].update(dtype="no_such"), "describes no training state"),
        (lambda state: state["tensors"]["transformer/0.bias"].update(dtype="nn"), "describes no training state"),
        (
            lambda state: state["tensors"]["transformer/0.bias"]["chunks"][0].update(file="../other.safetensors"),
            "is no file beside it",
        ),
        (
            lambda state: state["tensors"]["transformer/0.bias"]["chunks"][0].update(file="state.json"),
            "is no file beside it",
        ),
        (lambda state: state.update(tensors=[]), "describes no training state"),
    ],
)
def test_a_damaged_description_is_named(tmp_path, edit, message):
    save(tmp_path)
    change(tmp_path, edit)
    with pytest.raises(ArtifactError, match=rf"^\S+/step-00000001/state.json [^\n]*{message}[^\n]*$"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\x00", b"null"])
def test_a_description_that_is_no_json(tmp_path, content):
    save(tmp_path)
    (tmp_path / "step-00000001" / "state.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"^\S+/state.json describes no training state: [^\n]+$"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["state.json", "rank-00000.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    save(tmp_path)
    (tmp_path / "step-00000001" / name).unlink()
    with pytest.raises(ArtifactError, match=rf"^\S+/step-00000001/{name} cannot be read: [^\n]+$"):
        load(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    save(tmp_path)
    shutil.rmtree(tmp_path / "step-00000001")
    with pytest.raises(ArtifactError, match=r"^\S+/step-00000001/state.json cannot be read: [^\n]+$"):
        load(tmp_path)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_file_cut_short_is_named(tmp_path, length):
    save(tmp_path)
    file = tmp_path / "step-00000001" / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ArtifactError, match=r"^\S+/rank-00000.safetensors cannot be read: [^\n]+$"):
        load(tmp_path)


def test_another_model_is_told_by_the_first_tensor_that_differs(tmp_path):
    save(tmp_path)
    other = Small(width=5)
    before = {name: tensor.clone() for name, tensor in other.model.state_dict().items()}
    with pytest.raises(ArtifactError, match=r"of another model or optimiser: its '\S+' is \(4,\) torch.float32, and"):
        load(tmp_path, other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.model.state_dict().items())


def test_only_what_is_trainable_is_saved(tmp_path):
    small = save(tmp_path, small=Small(frozen=True, trainable_only=True))
    with safe_open(tmp_path / "step-00000001" / "rank-00000.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert {name.partition("/")[0] for name in names} == {"transformer", "ema", "optimizer"}
    assert {name for name in names if name.startswith("transformer/")} == {"transformer/1.weight", "transformer/1.bias"}
    assert not any("0.weight" in name or "running_mean" in name for name in names)
    other = Small(frozen=True, trainable_only=True)
    frozen = other.model[0].weight.clone()
    assert load(tmp_path, other) == {"step": 1}
    assert torch.equal(other.model[0].weight, frozen)
    assert torch.equal(other.model[1].weight, small.model[1].weight)


def test_a_full_disk_leaves_the_checkpoint_before(on_a_small_disk, tmp_path):
    """Without any room, in the midst of the tensors, and with room for all but the description."""
    found = on_a_small_disk(full_disk.__file__, tmp_path)
    for case, file in zip(
        found["full"], ["rank-00000.safetensors", "rank-00000.safetensors", "state.json"], strict=True
    ):
        assert case["told"].startswith("the checkpoint of step 2 is not saved: ")
        assert f"/.step-00000002.tmp/{file} cannot be written: " in case["told"]
        assert "No space left on device" in case["told"]
        assert case["told"].endswith("; step-00000001 is intact")
        assert "\n" not in case["told"]
        assert case["meta"] == {"step": 1}
        assert case["same"]
    assert found["left"] == ["latest", "step-00000002"]
