"""A disk that gets full while a run writes curves and its model: one line, and the run goes on once there is room."""

from __future__ import annotations

import pytest

from train.watch import full_disk


@pytest.fixture(scope="module")
def found(on_a_small_disk, tmp_path_factory):
    return on_a_small_disk(full_disk.__file__, tmp_path_factory.mktemp("disk"), megabytes=8)


@pytest.mark.parametrize(
    ("case", "what"),
    [
        ("curves", "/metrics.jsonl cannot be written: "),
        ("tensorboard", "/tb/events.out.tfevents."),
        ("model", "cannot write diffusion_pytorch_model.safetensors in "),
    ],
)
def test_a_full_disk_is_told_in_one_line_and_costs_nothing_but_time(found, case, what):
    one = found[case]
    assert one["kind"] == "StorageError"
    before, after = one["latest"]
    assert before == after == "step-00000005"
    assert what in one["told"]
    assert "No space left on device" in one["told"]
    assert one["told"].endswith(f"; once it can, the same command goes on from {before}")
    assert "\n" not in one["told"]
    assert one["end"] is None
    assert one["same"]
