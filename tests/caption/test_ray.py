"""The caption stage on a Ray cluster: two real nodes on this machine, one of which is killed."""

from __future__ import annotations

import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from caption.runs import settle, wait_for
from caption.test_leases import Fleet
from lens_caption.testing.openai_server import FakeServer
from lens_core.storage import urls

PART = 10


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A cluster whose head gives no CPU to workers; `cluster.add(name)` starts a node with a disk of its own."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    made = Cluster(tmp_path)
    try:
        made.begin()
        yield made
    finally:
        made.end()


class Cluster:
    """Nodes started by `ray start`, each in a session of processes that can be killed as a whole."""

    def __init__(self, folder):
        self._folder = folder
        self._nodes = {}
        self.address = ""

    def begin(self):
        self._start("head", "--head", "--port=0", "--num-cpus=0", "--include-dashboard=false")
        self.address = self._said("head", "--address='").split("--address='")[1].split("'")[0]

    def add(self, *names):
        for name in names:  # one after the other: nodes on one machine must not look for free ports at the same time
            self._start(name, f"--address={self.address}", "--num-cpus=1")
            self._said(name, "Ray runtime started")

    def _said(self, name, awaited):
        """What a node has said once it says what is awaited."""
        file, deadline = self._folder / f"{name}.txt", time.monotonic() + 120
        while awaited not in file.read_text():
            assert time.monotonic() < deadline, file.read_text()
            time.sleep(0.1)
        return file.read_text()

    def _start(self, name, *arguments):
        with (self._folder / f"{name}.txt").open("w") as said:
            self._nodes[name] = subprocess.Popen(
                [
                    Path(sys.executable).with_name("ray"),
                    "start",
                    "--block",
                    "--object-store-memory=80000000",
                    "--disable-usage-stats",
                    f"--dashboard-agent-listen-port={free_port()}",
                    f"--runtime-env-agent-port={free_port()}",
                    *arguments,
                ],
                env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(self._folder / f"cache-{name}")},
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def kill(self, name):
        """As when its power fails: every process of the node at once."""
        node = self._nodes.pop(name)
        for process in reversed([node.pid, *descendants(node.pid)]):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        node.wait()

    def end(self):
        for name in list(self._nodes):
            self.kill(name)


def free_port():
    """None of those that the system gives out: Ray asks it for many between now and when it takes this one."""
    for port in random.sample(range(20_000, 30_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


def descendants(pid):
    """All processes below one."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [found for child in map(int, children) for found in (child, *descendants(child))]


class RayFleet(Fleet):
    """The pipeline of a fleet, whose work a cluster does."""

    def __init__(self, folder, count, cluster):
        super().__init__(folder, str(folder / "shared"), count)
        self._cluster = cluster

    def go(self, server, **engine):
        executor = {"type": "ray", "address": self._cluster.address, "part": PART, "lease_s": 2}
        return self.start("driver", server, executor=executor, **engine)


@pytest.mark.timeout(600)
def test_one_of_two_nodes_is_killed_in_the_middle(cluster, tmp_path):
    cluster.add("one", "two")
    fleet = RayFleet(tmp_path, 150, cluster)
    with FakeServer(delay_s=0.4) as server:
        process = fleet.go(server, budget={"usd": "0.5"})
        # Both nodes work: each has journals on its own disk.
        assert wait_for(lambda: journals(tmp_path, "one") and journals(tmp_path, "two"), process, 240), fleet.said(
            "driver"
        )
        assert wait_for(lambda: len(server.ledger) >= 40, process)
        cluster.kill("two")
        settle(server)
        fleet.finish("driver", process)
        assert server.ledger.billed_again() <= PART
        assert server.ledger.total_cost() <= Decimal("0.5")
    fleet.assert_captions_are_right()
    assert fleet.stats()["captions"] == 150
    assert ".work-words" not in urls.ls(fleet.run_url)


@pytest.mark.timeout(600)
def test_it_stops_when_it_is_asked_to_or_the_budget_is_used_up(cluster, tmp_path):
    cluster.add("one", "two")
    fleet = RayFleet(tmp_path, 80, cluster)
    bound = Decimal("0.06")  # for about 40 images
    with FakeServer(delay_s=0.2) as server:
        process = fleet.go(server, budget={"usd": str(bound)})
        assert wait_for(lambda: len(server.ledger) >= 10, process, 240), fleet.said("driver")
        process.send_signal(signal.SIGTERM)
        fleet.finish("driver", process, code=3)
        assert fleet.said("driver")[-1].startswith("lens: stopped after ")
        fleet.finish("driver", fleet.go(server, budget={"usd": str(bound)}), code=3)
        assert "the budget is used up after" in fleet.said("driver")[-1]
        assert Decimal("0.6") * bound <= server.ledger.total_cost() <= bound
        fleet.finish("driver", fleet.go(server, budget={"usd": "1"}))
        assert server.ledger.billed_again() == 0
        assert len(server.ledger) == 80
    fleet.assert_captions_are_right()


@pytest.mark.timeout(600)
def test_what_one_process_bought_is_left_to_the_cluster(cluster, tmp_path):
    cluster.add("one")
    fleet = RayFleet(tmp_path, 30, cluster)
    with FakeServer() as server:
        fleet.finish("driver", fleet.start("driver", server, executor="process", budget={"images": 12}), code=3)
        fleet.finish("driver", fleet.go(server, budget={"images": 30}))
        assert len(server.ledger) == 30
        assert server.ledger.billed_again() == 0
    fleet.assert_captions_are_right()


def test_a_cluster_without_room_is_one_line(cluster, tmp_path):
    fleet = RayFleet(tmp_path, 3, cluster)
    with FakeServer() as server:
        fleet.finish("driver", fleet.go(server), code=2)
    assert "no node of the Ray cluster has what a worker wants: 1 CPUs and 0 GPUs" in fleet.said("driver")[-1]


WITHOUT_RAY = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
sys.meta_path.insert(0, Absent())
from lens_core.cli.main import main
main()
"""


@pytest.mark.parametrize(("command", "code"), [("check", 0), ("run", 2)])
def test_without_ray_a_check_passes_and_a_run_says_what_to_install(tmp_path, command, code):
    photos = tmp_path / "photos"
    photos.mkdir()
    stages = [
        {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 2}},
        {"name": "words", "type": "caption", "source": "images", "captioner": "scene-graph", "executor": "ray"},
    ]
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"run": "run", "stages": stages}))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, command, str(file)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    if command == "run":
        assert "needs the library 'ray', which is not installed; install it with: pip install" in done.stderr
        assert "lens-caption[ray]" in done.stderr.splitlines()[-1]


def journals(folder, node):
    """The parts that a node has had in hand."""
    return list(folder.glob(f"cache-{node}/lens/*/ray/words/*/worker-*/parts/*.sqlite"))
