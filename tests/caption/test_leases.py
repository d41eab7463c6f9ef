"""Several machines run one pipeline: they share the images, and nothing is bought or accepted twice.

A machine is a process of `lens run` with a cache folder of its own; they meet in a bucket, or in a folder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from caption.runs import settle, wait_for
from lens_caption.engine.budget import NOTHING, Amount
from lens_caption.engine.limiter import Limiter
from lens_caption.engine.settings import BudgetSettings
from lens_caption.scale.allowance import Allowance, Draws
from lens_caption.scale.plan import parts_of
from lens_caption.testing.openai_server import FakeServer, Faults, number_in_text, numbered_jpeg
from lens_core.errors import StorageError
from lens_core.storage import urls
from s3 import Between

IN_FLIGHT = 4
LEASE_S = 2.0


STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def _nothing_runs_on():
    """A test that fails leaves no machine behind to disturb the next one."""
    yield
    for process in STARTED:
        process.kill()
        process.wait()
    STARTED.clear()


class Fleet:
    """Machines that run one pipeline over numbered photos.

    Args:
        folder: for pipeline and caches.
        place: where photos and run folder lie; a URL.
        count: of the photos.
    """

    def __init__(self, folder, place, count):
        self.folder, self.count = folder, count
        self.run_url = urls.join(place, "run")
        self._photos = urls.join(place, "photos")
        for number in range(count):
            urls.write_bytes(urls.join(self._photos, f"{number:06d}.jpg"), numbered_jpeg(number, 96, 96))

    def start(self, machine, server, *, executor="leases", part=20, lease_s=LEASE_S, captioner=None, **engine):
        """`lens run` on a machine; it says what it has to say into a file of its name."""
        if executor == "leases":
            executor = {"type": "leases", "part": part, "lease_s": lease_s}
        stages = [
            {"name": "images", "type": "ingest", "source": {"type": "image-folder", "url": self._photos}},
            {
                "name": "words",
                "type": "caption",
                "source": "images",
                "captioner": {
                    "type": "openai",
                    "model": "gpt-4.1",
                    "base_url": server.url,
                    "max_side": 96,
                    "max_output_tokens": 120,
                    "concurrency": IN_FLIGHT,
                    "timeout_s": 10,
                    "max_wait_s": 0.05,
                    **(captioner or {}),
                },
                "engine": {"workers": 0, **engine},
                "executor": executor,
            },
        ]
        file = self.folder / f"{machine}.yaml"
        file.write_text(yaml.safe_dump({"run": self.run_url, "stages": stages}))
        with (self.folder / f"{machine}.txt").open("w") as said:
            process = subprocess.Popen(
                [Path(sys.executable).with_name("lens"), "run", file],
                cwd=self.folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(self.folder / f"cache-{machine}")},
                stderr=said,
            )
        STARTED.append(process)
        return process

    def meet(self, server, machines, *, delay_s):
        """Wait until each of two machines has its share, whatever else keeps this computer busy."""
        assert wait_for(lambda: len(self.holders()) == 2, machines["a"]), self.said("a")
        server.delay_s = delay_s

    def said(self, machine):
        return (self.folder / f"{machine}.txt").read_text().splitlines()

    def finish(self, machine, process, code=0):
        """Wait for a machine to end in the expected way."""
        assert process.wait(timeout=120) == code, self.said(machine)

    def published(self):
        """Parts that are published, while the stage is under way."""
        return [name for name in urls.walk(urls.join(self.run_url, ".work-words")) if "segments/" in name]

    def holders(self):
        """The workers that hold or held parts of the captions."""
        work = urls.join(self.run_url, ".work-words")
        try:
            names = [name for name in urls.walk(work) if "/claims/" in name and ".tmp" not in name]
            return Counter(urls.read_text(urls.join(work, name)) for name in names)
        except StorageError:  # not begun, done, or a claim given up between the two lines
            return Counter()

    def assert_captions_are_right(self):
        """Every image has one caption, its own."""
        with urls.open_read(urls.join(self.run_url, "words", "captions.parquet")) as stream:
            rows = pq.read_table(stream).to_pylist()
        assert [number_in_text(row["text"]) for row in rows] == list(range(self.count))

    def stats(self):
        return json.loads(urls.read_text(urls.join(self.run_url, "words", "manifest.json")))["stats"]

    def private(self):
        """What machines still keep of the stage."""
        return [path for path in self.folder.glob("cache-*/lens/*/worker-*/words*")]


def kill(process, server):
    """Kill a machine, and let the server finish what it had begun for it."""
    process.kill()
    process.wait()
    settle(server)


def test_a_whole_run_from_bucket_to_bucket(bucket, tmp_path):
    fleet = Fleet(tmp_path, bucket, 30)
    with FakeServer() as server:
        fleet.finish("a", fleet.start("a", server, executor="process"))
        fleet.finish("a", fleet.start("a", server, executor="process"))
        assert len(server.ledger) == 30
    assert sum("done already" in line for line in fleet.said("a")) == 2
    fleet.assert_captions_are_right()
    assert sorted(urls.ls(fleet.run_url)) == ["events.jsonl", "images", "resolved.yaml", "run.json", "words"]


def test_two_machines_share_the_images_and_buy_nothing_twice(root, tmp_path):
    fleet = Fleet(tmp_path, root, 200)
    with FakeServer(delay_s=4) as server:
        # Longer than a busy computer ever holds up a machine, which would then lose what it is at work on.
        machines = {name: fleet.start(name, server, lease_s=60) for name in "ab"}
        fleet.meet(server, machines, delay_s=0.15)
        assert wait_for(lambda: len(server.ledger) >= 120, machines["a"])
        assert max(fleet.holders().values()) <= 8
        for name, process in machines.items():
            fleet.finish(name, process)
        assert len(server.ledger) == 200
        assert server.ledger.billed_again() == 0
        fleet.finish("a", fleet.start("a", server))
        assert len(server.ledger) == 200
    fleet.assert_captions_are_right()
    assert fleet.stats()["captions"] == 200
    assert Decimal(fleet.stats()["usd"]) == server.ledger.total_cost()
    assert fleet.private() == []
    assert sum("done already" in line for line in fleet.said("a")) == 2


def test_what_a_dead_machine_had_another_takes_over(bucket, tmp_path):
    fleet = Fleet(tmp_path, bucket, 160)
    with FakeServer(delay_s=4, faults=Faults(rate=0.02, seed=4, kinds=["passing"])) as server:
        machines = {name: fleet.start(name, server) for name in "ab"}
        fleet.meet(server, machines, delay_s=0.15)
        assert wait_for(lambda: len(server.ledger) >= 60, machines["a"])
        kill(machines["b"], server)
        fleet.finish("a", machines["a"])
        met = server.faults.met
        lost = sum(met[name] for name in ("drop-after-billing", "truncated-json-after-billing", "empty-choices"))
        assert server.ledger.billed_again() <= 20 + lost  # the part that was not published
    fleet.assert_captions_are_right()


def test_a_machine_that_is_killed_and_started_again_buys_what_was_in_flight_at_most(bucket, tmp_path):
    fleet = Fleet(tmp_path, bucket, 100)
    with FakeServer(delay_s=0.1) as server:
        for bought in (15, 50):
            process = fleet.start("a", server)
            assert wait_for(lambda bought=bought: len(server.ledger) >= bought, process)
            kill(process, server)
        fleet.finish("a", fleet.start("a", server))
        assert server.ledger.billed_again() <= 2 * IN_FLIGHT
    fleet.assert_captions_are_right()


def test_one_that_slept_too_long_does_no_harm(bucket, tmp_path):
    fleet = Fleet(tmp_path, bucket, 400)
    with FakeServer(delay_s=4) as server:
        machines = {name: fleet.start(name, server, budget={"usd": "5"}) for name in "ab"}
        fleet.meet(server, machines, delay_s=0.15)
        assert wait_for(lambda: len(server.ledger) >= 40, machines["a"])
        machines["b"].send_signal(signal.SIGSTOP)
        time.sleep(2 * LEASE_S)
        assert wait_for(lambda: len(fleet.published()) >= 5, machines["a"])
        machines["b"].send_signal(signal.SIGCONT)
        for name, process in machines.items():
            fleet.finish(name, process)
        assert server.ledger.billed_again() <= 20 + IN_FLIGHT
    fleet.assert_captions_are_right()


def test_the_budget_is_one_for_all_machines_and_kills(bucket, tmp_path):
    fleet = Fleet(tmp_path, bucket, 160)
    bound = Decimal("0.15")  # for about 100 images
    with FakeServer(delay_s=0.05, faults=Faults(rate=0.05, seed=2, kinds=["passing"]), slow_s=0.2) as server:
        machines = {name: fleet.start(name, server, budget={"usd": str(bound)}) for name in "ab"}
        assert wait_for(lambda: len(server.ledger) >= 40, machines["a"])
        for process in machines.values():
            process.kill()
        for process in machines.values():
            kill(process, server)
        assert server.ledger.total_cost() <= bound
        machines = {name: fleet.start(name, server, budget={"usd": str(bound)}) for name in "ab"}
        for name, process in machines.items():
            fleet.finish(name, process, code=3)
            assert "the budget is used up after" in fleet.said(name)[-1]
        assert Decimal("0.7") * bound <= server.ledger.total_cost() <= bound
        bought = len(server.ledger)
        fleet.finish("b", fleet.start("b", server, budget={"usd": str(bound)}), code=3)
        assert len(server.ledger) <= bought + 2  # what little was left over
        machines = {name: fleet.start(name, server, budget={"usd": "5"}) for name in "ab"}
        for name, process in machines.items():
            fleet.finish(name, process)
    rows = fleet.stats()
    assert rows["captions"] + rows["failed"] == 160


def test_who_stops_leaves_what_it_has_to_the_others(bucket, tmp_path):
    fleet = Fleet(tmp_path, bucket, 60)
    with FakeServer(delay_s=0.1) as server:
        process = fleet.start("a", server, part=60, lease_s=60)
        assert wait_for(lambda: len(server.ledger) >= 20, process)
        process.send_signal(signal.SIGTERM)
        fleet.finish("a", process, code=3)
        assert fleet.said("a")[-1].startswith("lens: stopped after ")
        fleet.finish("b", fleet.start("b", server, part=7, lease_s=60))  # the parts stay as they were begun
        assert server.ledger.billed_again() == 0
        assert len(server.ledger) == 60
        assert Decimal(fleet.stats()["usd"]) == server.ledger.total_cost()
    fleet.assert_captions_are_right()


def test_what_one_process_bought_is_left_to_machines_and_counts(root, tmp_path):
    fleet = Fleet(tmp_path, root, 40)
    with FakeServer() as server:
        fleet.finish("a", fleet.start("a", server, executor="process", budget={"images": 15}), code=3)
        assert len(server.ledger) == 15
        for _ in range(2):  # to leave it twice changes nothing
            fleet.finish("a", fleet.start("a", server, part=5, budget={"images": 15}), code=3)
            assert "the budget is used up after" in fleet.said("a")[-1]
        assert len(server.ledger) == 15
        fleet.finish("b", fleet.start("b", server, part=5, budget={"images": 20}), code=3)
        assert len(server.ledger) == 20
        fleet.finish("a", fleet.start("a", server, part=5, budget={"images": 40}))
        assert len(server.ledger) == 40
        assert server.ledger.billed_again() == 0
        assert Decimal(fleet.stats()["usd"]) == server.ledger.total_cost()
    fleet.assert_captions_are_right()
    assert [path for path in tmp_path.rglob("words.*") if path.is_dir()] == fleet.private()


def test_a_part_of_refused_images_stops_nobody(tmp_path):
    """What is left of both parts is never answered: only what was bought before tells that the endpoint is sound."""
    fleet = Fleet(tmp_path, str(tmp_path), 21)
    with FakeServer(faults=Faults(always={19: "400", 20: "400"})) as server:
        one_by_one = {"concurrency": 1}  # a refused image leaves its share of the budget to another
        begun = fleet.start("a", server, executor="process", captioner=one_by_one, budget={"images": 19})
        fleet.finish("a", begun, code=3)
        fleet.finish("a", fleet.start("a", server))
    assert fleet.stats()["by_status"] == {"ok": 19, "bad-image": 2}


def test_batches_of_one_process_are_fetched_before_machines_share(bucket, tmp_path):
    fleet = Fleet(tmp_path, bucket, 10)
    batches = {"lane": "batch", "batch": {"poll_s": 0.05}}
    with FakeServer(clock="manual") as server:
        process = fleet.start("a", server, executor="process", **batches)
        assert wait_for(lambda: len(server.batches.all()) == 1, process)
        process.send_signal(signal.SIGTERM)
        fleet.finish("a", process, code=3)
        fleet.finish("a", fleet.start("a", server), code=2)
        assert fleet.said("a")[-1] == (
            "lens: 10 images of words wait in batches or request files of one process: "
            "go on with the executor 'process' until they are answered"
        )
        server.clock.advance(3600)
        fleet.finish("a", fleet.start("a", server, executor="process", **batches))
        assert server.ledger.billed_again() == 0
    fleet.assert_captions_are_right()


def test_one_process_does_not_begin_anew_what_machines_have_begun(root, tmp_path):
    fleet = Fleet(tmp_path, root, 40)
    with FakeServer() as server:
        fleet.finish("a", fleet.start("a", server, budget={"images": 15}), code=3)
        fleet.finish("a", fleet.start("a", server, executor="process"), code=2)
        (line,) = [line for line in fleet.said("a") if line.startswith("lens: ")]
        assert line.startswith(f"lens: words was begun by machines that share it, and what they bought lies in {root}")
        assert len(server.ledger) == 15
        fleet.finish("a", fleet.start("a", server))
        assert len(server.ledger) == 40
    fleet.assert_captions_are_right()


def test_machines_that_want_different_things_are_kept_apart(bucket, tmp_path):
    fleet = Fleet(tmp_path, bucket, 60)
    with FakeServer(delay_s=5) as server:
        one = fleet.start("a", server)
        assert wait_for(lambda: len(server.ledger) >= 4, one)
        fleet.finish("b", fleet.start("b", server, captioner={"max_side": 64}), code=2)
        assert "another machine runs this pipeline" in fleet.said("b")[-1]
        fleet.finish("c", fleet.start("c", server, executor="process"), code=2)
        assert "is in use by process" in fleet.said("c")[-1]
        kill(one, server)
        # Nobody is alive there any more: a pipeline that was changed goes its way.
        server.delay_s = 0
        fleet.finish("b", fleet.start("b", server, captioner={"max_side": 64}))
    fleet.assert_captions_are_right()


def test_a_store_without_exclusive_creation_refuses_the_second(bucket, tmp_path, s3_server, monkeypatch):
    fleet = Fleet(tmp_path, bucket, 40)
    with Between(s3_server["AWS_ENDPOINT_URL"], without="if-none-match") as between, FakeServer(delay_s=5) as server:
        for name, value in between.environment.items():
            monkeypatch.setenv(name, value)
        fleet.finish("b", fleet.start("b", server), code=2)
        assert fleet.said("b")[-1].startswith("lens: s3://")
        assert (
            "this store cannot create a file exclusively, so it cannot keep two machines apart" in fleet.said("b")[-1]
        )
        one = fleet.start("a", server, executor="process")
        assert wait_for(lambda: len(server.ledger) >= 4, one)
        fleet.finish("b", fleet.start("b", server, executor="process"), code=2)
        (line,) = fleet.said("b")
        assert f"is in use by process {one.pid} on" in line
        server.delay_s = 0
        fleet.finish("a", one)
    fleet.assert_captions_are_right()


def test_batches_and_an_executor_are_one_too_many(lens, tmp_path):
    (tmp_path / "photos").mkdir()
    file = tmp_path / "pipeline.yaml"
    stages = [
        {"name": "images", "type": "ingest", "source": {"type": "image-folder", "url": "photos"}},
        {
            "name": "words",
            "type": "caption",
            "source": "images",
            "captioner": {"type": "openai", "model": "gpt-4.1"},
            "engine": {"lane": "batch"},
            "executor": "leases",
        },
    ]
    file.write_text(yaml.safe_dump({"run": "run", "stages": stages}))
    done = lens("check", str(file))
    assert done.returncode == 2
    assert "the lane batch needs no executor: one process keeps the service busy" in done.stderr
    assert "done" not in lens("check", str(file), "--set", "stages.words.executor.type=machines").stdout


@pytest.mark.parametrize(
    ("shards", "most", "parts"),
    [
        ([], 3, []),
        (["a"] * 5, 2, [(0, 2), (2, 4), (4, 5)]),
        (["a", "a", "b", "b", "b", "c"], 10, [(0, 2), (2, 5), (5, 6)]),
        (["a", "a", "b"], 2, [(0, 2), (2, 3)]),
    ],
)
def test_parts_lie_within_a_shard(shards, most, parts):
    assert [(part.start, part.stop) for part in parts_of(shards, most)] == parts


class Worker:
    """A name among several."""

    def __init__(self, worker):
        self.worker = worker

    def workers(self):
        return 1


def test_many_draw_from_one_budget_and_never_more_than_it_holds(root):
    budget = BudgetSettings(usd=Decimal("1"), tokens=5000)
    need = Amount(Decimal("0.007"), 41, 1)
    drawn = {}
    start = threading.Barrier(4)

    def draw(worker):
        allowance = Allowance(root, Worker(worker), budget)
        start.wait()
        while allowance.draw(need):
            pass
        drawn[worker] = allowance.granted

    threads = [threading.Thread(target=draw, args=(f"w{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = sum(drawn.values(), NOTHING)
    assert Decimal("0.9") <= whole.usd <= 1
    assert whole.tokens <= 5000
    # It is remembered in the store; a larger budget has more to give.
    assert Allowance(root, Worker("w0"), budget).granted == drawn["w0"]
    larger = Allowance(root, Worker("w0"), BudgetSettings(usd=Decimal("2"), tokens=10000))
    assert larger.draw(need)


def test_beside_an_unknown_cost_nothing_is_left_in_dollars(tmp_path):
    assert Draws(str(tmp_path)).add("somebody", Amount(None, 10, 1))
    need = Amount(Decimal("0.01"), 10, 1)
    assert not Allowance(str(tmp_path), Worker("w"), BudgetSettings(usd=Decimal("1"))).draw(need)
    assert Allowance(str(tmp_path), Worker("w"), BudgetSettings(images=2)).draw(need)
    assert not Allowance(str(tmp_path), Worker("v"), BudgetSettings(images=2)).draw(need)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 400)), max_size=60), st.integers(1, 3000))
def test_draws_cover_the_need_and_stay_within_the_bound(tmp_path_factory, asks, bound):
    folder = str(tmp_path_factory.mktemp("grants"))
    budget = BudgetSettings(images=bound)
    workers = {name: Allowance(folder, Worker(name), budget) for name in "ab"}
    for name, need in asks:
        before = workers[name].granted.images
        if workers[name].draw(Amount(images=need)):
            assert workers[name].granted.images >= before + need
        else:
            assert workers[name].granted.images == before
        assert sum(worker.granted.images for worker in workers.values()) <= bound


def test_a_rate_is_divided_among_those_at_work():
    now, sharers = [0.0], [1]
    limiter = Limiter(rpm=600, now=lambda: now[0], sharers=lambda: sharers[0])

    def sent_in(seconds):
        count, until = 0, now[0] + seconds
        while now[0] < until:
            if limiter.wait() == 0:
                limiter.take(1)
                count += 1
            now[0] += 0.01
        return count

    alone = sent_in(30)
    sharers[0] = 3
    sent_in(5)
    assert 280 <= alone <= 300
    assert 90 <= sent_in(30) <= 100
