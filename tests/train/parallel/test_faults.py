"""A rank that hangs or dies: the others end within the time-out, and say which one it was."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lens_core.errors import ConfigError, LensError
from lens_train.parallel.config import ParallelConfig
from lens_train.parallel.meeting import name_meeting
from lens_train.parallel.world import World
from train.parallel import faults, ranks

CPU = torch.device("cpu")


LOST = {
    "sleeps": 1,
    "sleeps who keeps the store": 0,
    "sleeps before two": 2,
    "dies": 1,
    "dies who keeps the store": 0,
    "fails alone": 0,
    "fails without words": 0,
    "dies alone": 0,
    "dies before they meet": 1,
    "stops in a step": 1,
    "stops in a step of copies": 3,
    "stops in a save": 1,
    "stops in a load": 1,
}
"""Who is lost in each scenario."""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What the others said, by scenario. All are played at once, as most of it is waiting."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lens_train.checkpoint.store", "lens_train.optim.build", "torch._dynamo"])
    started = {}
    for scenario, lost in LOST.items():
        folder, port = tmp_path_factory.mktemp("lost"), ranks.free_port()
        for rank in range(max(2, lost + 1)):
            arguments = (scenario, rank, max(2, lost + 1), lost, port, str(folder))
            started[scenario, rank] = folder, context.Process(target=faults.take_part, args=arguments)
    try:
        for _, process in started.values():
            process.start()
        found = {scenario: [] for scenario in LOST}
        until = time.monotonic() + 120
        for (scenario, rank), (folder, process) in started.items():
            if rank != LOST[scenario]:
                process.join(max(0, until - time.monotonic()))
                assert process.exitcode == 0, f"{scenario}: rank {rank} did not end"
                found[scenario].append((folder / f"rank-{rank}.txt").read_text())
    finally:
        for _, process in started.values():
            process.kill()
            process.join()
    return found


@pytest.mark.parametrize("scenario", ["sleeps", "sleeps who keeps the store", "dies", "dies who keeps the store"])
def test_a_rank_that_does_not_come_is_named(said, scenario):
    (line,) = said[scenario]
    lost, other = LOST[scenario], 1 - LOST[scenario]
    assert line.startswith(f"the manifest: rank {lost} of 2 did not come, and rank {other} gave up after ")
    assert line.endswith(" s; the log of the missing says why; if it was only slow, raise parallel.timeout_s")
    assert "\n" not in line


def test_all_who_wait_name_the_same_rank(said):
    assert len(said["sleeps before two"]) == 2
    for line in said["sleeps before two"]:
        assert line.startswith("the manifest: rank 2 of 3 did not come, and rank ")


def test_others_wait_for_rank_0_as_long_as_it_takes_and_fail_with_it(said):
    assert said["fails alone"] == ["rank 0: nothing to train on"]
    assert said["fails without words"] == ["rank 0: KeyboardInterrupt"]


@pytest.mark.parametrize(
    ("scenario", "what"), [("dies alone", "the manifest"), ("dies before they meet", "the images")]
)
def test_who_waits_for_ever_notices_a_rank_that_dies(said, scenario, what):
    (line,) = said[scenario]
    lost = LOST[scenario]
    assert line.startswith(f"{what}: rank {lost} of 2 did not come, and rank {1 - lost} gave up after ")


def test_a_rank_that_hangs_in_a_step_is_named(said):
    (line,) = said["stops in a step"]
    assert line.startswith("step 2: rank 1 of 2 did not come, and rank 0 gave up after ")
    assert "\n" not in line


def test_a_rank_that_hangs_in_a_step_of_copies_is_named(said):
    """Two copies, each shared by two ranks: these groups wait no longer than the others."""
    assert len(said["stops in a step of copies"]) == 3
    for line in said["stops in a step of copies"]:
        assert line.startswith("step 2: rank 3 of 4 did not come, and rank ")


def test_a_rank_that_hangs_in_a_save_is_named_and_the_save_before_is_intact(said):
    (line,) = said["stops in a save"]
    assert line.startswith("the checkpoint of step 2 is not saved: writing it: rank 1 of 2 did not come, and rank 0 ")
    assert line.endswith("; step-00000001 is intact")
    assert "\n" not in line


def test_a_rank_that_hangs_in_a_load_is_named(said):
    (line,) = said["stops in a load"]
    assert line.startswith("reading ")
    assert "step-00000001: rank 1 of 2 did not come, and rank 0 gave up after " in line
    assert "\n" not in line


def test_a_second_meeting_at_one_store_has_another_name():
    store = torch.distributed.HashStore()
    with ThreadPoolExecutor(3) as pool:
        names = [set(pool.map(lambda rank: name_meeting(store, rank, 3, 30), (2, 0, 1))) for _ in range(2)]
    assert [len(agreed) for agreed in names] == [1, 1]
    assert names[0] != names[1]
    with pytest.raises(RuntimeError, match=r"nothing was heard of rank 1, 2$"):
        name_meeting(store, 0, 3, 0.1)  # what those before it left does not count


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
