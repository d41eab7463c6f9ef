"""`lens serve --ray` on a cluster of this machine, from start to end; one of two replicas is killed under load."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import openai
import psutil
import pytest
import yaml

pytest.importorskip("grpc_reflection", reason="needs lens-serve[ray]")

WAIT_S = 240.0


@contextmanager
def cluster(folder, **settings):
    """The server in a process of its own; whatever that has started is gone in the end."""
    port = free_port()
    plain = {
        "models": [{"name": "tiny", "folder": str(folder)}],
        "listen": {"port": port, "drain_s": 5},
        "bounds": {"max_side": 64, "max_pixels": 4096, "max_steps": 8},
        "engine": {"device": "cpu", "threads": 1, "replicas": 2, "warm_up": False},
        "admission": {"max_backlog_s": 600, "max_wait_factor": 1e6},
    }
    file = Path(folder).parent / "ray.yaml"
    file.write_text(yaml.safe_dump({**plain, **settings}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    command = [Path(sys.executable).with_name("lens"), "serve", "--ray", "--config", file]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as driver:
        started = Started(driver, f"http://127.0.0.1:{port}")
        try:
            yield started
        finally:
            if driver.poll() is None:
                for process in [*started.processes(), driver]:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()


def free_port():
    """None of those that the system gives out: Ray asks it for many between now and when it takes this one."""
    for port in random.sample(range(20_000, 30_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


class Started:
    def __init__(self, driver, url):
        self.driver, self.url = driver, url

    def until_said(self, words):
        said = []
        for line in self.driver.stderr:
            said.append(line)
            if words in line:
                return
        raise AssertionError("".join(said))

    def processes(self):
        return psutil.Process(self.driver.pid).children(recursive=True)

    def replicas(self):
        return [process for process in self.processes() if "ServeReplica" in " ".join(process.cmdline())]


def until(condition):
    end = time.monotonic() + WAIT_S
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


async def draw_many(url, count, meanwhile):
    """The answers to some requests, of a client that tries again; `meanwhile` is called when a few have come."""
    done = []
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=20, timeout=WAIT_S) as client:

        async def one(number):
            answer = await client.images.generate(
                model="tiny",
                prompt=f"circle {number}",
                size="16x16",
                extra_body={"lens": {"seed": number, "tier": "exact"}},
            )
            done.append(number)
            return answer.data[0].b64_json

        tasks = [asyncio.create_task(one(number)) for number in range(count)]
        while len(done) < count // 8:
            await asyncio.sleep(0.01)
        meanwhile()
        return await asyncio.gather(*tasks)


JOIN = """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False)
"""


def assert_nobody_else_gets_in(started):
    """Requests come from this machine only; Ray's own ports ask for a token."""
    processes = [psutil.Process(started.driver.pid), *started.processes()]
    listening = {c.laddr for p in processes for c in p.net_connections("tcp") if c.status == "LISTEN"}
    port = int(started.url.rsplit(":", 1)[1])
    assert [address.ip for address in listening if address.port == port] == ["127.0.0.1"]
    (gcs,) = [process for process in processes if "gcs_server" in process.name()]
    (known,) = {c.laddr.port for c in gcs.net_connections("tcp") if c.status == "LISTEN"}
    command = [sys.executable, "-c", JOIN, f"127.0.0.1:{known}"]
    joined = subprocess.run(command, env={**os.environ, "RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True)
    assert joined.returncode
    assert "Authentication token is missing or incorrect" in joined.stderr


@pytest.mark.timeout(600)
def test_one_of_two_replicas_is_killed_under_load(tiny_folder):
    with cluster(tiny_folder) as started:
        started.until_said("lens: ready")
        first = started.replicas()
        assert len(first) == 2
        assert_nobody_else_gets_in(started)
        answers = asyncio.run(draw_many(started.url, 40, first[0].kill))
        assert len(answers) == 40
        assert all(answers)
        until(lambda: len(started.replicas()) == 2)
        again = asyncio.run(draw_many(started.url, 10, lambda: None))
        assert again == answers[:10]  # the same seeds, whichever replica
        assert httpx2.get(f"{started.url}/health/ready").status_code == 200
        assert_it_stops(started)


def assert_it_stops(started):
    everybody = [psutil.Process(started.driver.pid), *started.processes()]
    started.driver.send_signal(signal.SIGTERM)
    assert started.driver.wait(WAIT_S) == 0
    _, alive = psutil.wait_procs(everybody, timeout=WAIT_S)
    assert not alive


@pytest.mark.timeout(600)
def test_a_model_that_cannot_be_loaded(tiny_folder, tmp_path):
    broken = shutil.copytree(tiny_folder, tmp_path / "broken")
    next(broken.rglob("*.safetensors")).write_bytes(b"no weights")
    with cluster(broken) as started:
        assert started.driver.wait(WAIT_S) == 2
        assert "lens: no replica can run: " in started.driver.stderr.read()


@pytest.mark.timeout(600)
def test_it_can_be_stopped_while_it_loads(tiny_folder):
    with cluster(tiny_folder) as started:
        started.until_said("2 replicas on Ray are loading")
        assert_it_stops(started)


def test_it_listens_to_this_machine_only(tiny_folder):
    with cluster(tiny_folder, listen={"host": "0.0.0.0", "insecure": True}) as started:
        assert started.driver.wait(WAIT_S) == 2
        assert "with --ray the server listens on this machine only" in started.driver.stderr.read()
