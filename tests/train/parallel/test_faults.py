"""A rank that hangs or dies: the others end within the time-out, and say which one it was."""

from __future__ import annotations

import multiprocessing
import time

import pytest
import torch

from lens_core.errors import ConfigError, LensError
from lens_train.parallel.config import ParallelConfig
from lens_train.parallel.world import World
from train.parallel import faults, ranks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def processes():
    """Forks of one process that has imported torch, so that a rank starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.parallel.faults"])
    return context


@pytest.fixture
def lose(processes, tmp_path):
    """`lose(scenario, lost=1)`: what the ranks said that were not lost."""

    def run(scenario, *, lost, size=2):
        port = ranks.free_port()
        started = [
            processes.Process(target=faults.take_part, args=(scenario, rank, size, lost, port, str(tmp_path)))
            for rank in range(size)
        ]
        try:
            for process in started:
                process.start()
            until = time.monotonic() + 120
            for rank, process in enumerate(started):
                if rank != lost:
                    process.join(max(0, until - time.monotonic()))
                    assert process.exitcode == 0, f"rank {rank} did not end"
        finally:
            for process in started:
                process.kill()
                process.join()
        return [(tmp_path / f"rank-{rank}.txt").read_text() for rank in range(size) if rank != lost]

    return run


@pytest.mark.parametrize("scenario", ["sleeps", "dies"])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_does_not_come_is_named(lose, scenario, lost):
    other = 1 - lost
    assert lose(scenario, lost=lost) == [
        f"the manifest: rank {lost} of 2 did not come within 3 s, and rank {other} gave up; "
        "the log of the missing says why"
    ]


def test_all_who_wait_name_the_same_rank(lose):
    for said in lose("sleeps", lost=2, size=3):
        assert said.startswith("the manifest: rank 2 of 3 did not come within 3 s")


@pytest.mark.parametrize("scenario", ["step", "copies"])
def test_a_rank_that_hangs_in_a_step_is_named(lose, scenario):
    (said,) = lose(scenario, lost=1)
    assert said.startswith("step 2: rank 1 of 2 did not come within ")
    assert "\n" not in said


def test_a_rank_that_hangs_in_a_save_is_named_and_the_save_before_is_intact(lose):
    (said,) = lose("save", lost=1)
    assert said.startswith("the checkpoint of step 2 is not saved: writing it: rank 1 of 2 did not come within 3 s")
    assert said.endswith("; step-00000001 is intact")
    assert "\n" not in said


def test_a_rank_that_hangs_in_a_load_is_named(lose):
    (said,) = lose("load", lost=1)
    assert "step-00000001: rank 1 of 2 did not come within 3 s" in said
    assert "\n" not in said


def test_ranks_that_never_start(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", str(ranks.free_port()))
    with pytest.raises(LensError, match=r"^rank 0 of 2 cannot meet the others within 1 s: [^\n]+$"):
        World.join(CPU, timeout_s=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are devices")
def test_more_ranks_than_devices(monkeypatch):
    for name, value in {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"has 0 CUDA devices, and rank 3 needs number 3.*--nproc-per-node"):
        World.join(torch.device("cuda"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replicate": 3}, "replicate 3 times shard 2 is 6, and there are 8 ranks"),
        ({"shard": 3}, "replicate 2 times shard 3 is 6, and there are 8 ranks"),
        ({"replicate": 4, "shard": 4}, "replicate 4 times shard 4 is 16, and there are 8 ranks"),
        ({"shard": 16}, "replicate 0 times shard 16 is 0, and there are 8 ranks"),
    ],
)
def test_a_mesh_that_does_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        World(device=CPU, size=8, local_size=4).mesh(ParallelConfig(**settings))
