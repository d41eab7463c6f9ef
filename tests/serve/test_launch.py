"""`lens serve` as a process: it says where it is, drains when it is asked to stop, and tells mistakes in one line."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import yaml

from lens_serve.admission.keys import add
from serve.live import ENDLESS, WAIT_S, wait_until

LENS = Path(sys.executable).with_name("lens")
SLOW = {"prompt": "a", "size": "64x64", "lens": {"steps": 1000, "guidance": 3.0}}
QUICK = {"prompt": "a", "lens": {"steps": 1}}


class Process:
    """A `lens` command that serves; its lines are read as they come."""

    def __init__(self, *arguments, cwd):
        self.process = subprocess.Popen([LENS, *arguments], cwd=cwd, stderr=subprocess.PIPE, text=True)
        self.lines = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def said(self, words):
        """The line with these words, waited for."""

        def look():
            assert self.process.poll() is None or self._reader.is_alive() or self._find(words), self.lines
            return self._find(words)

        return wait_until(look, words)

    @property
    def url(self):
        line = self.said("http://")
        return next(word for word in line.split() if word.startswith("http://"))

    def end(self):
        """Its exit code."""
        code = self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        self.process.stderr.close()
        return code

    def _find(self, words):
        return next((line for line in self.lines if words in line), None)

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip())


@pytest.fixture
def start(tmp_path):
    """Starts `lens`; what a test leaves running is killed."""
    with contextlib.ExitStack() as stack:

        def run(*arguments):
            made = Process(*map(str, arguments), cwd=tmp_path)
            stack.callback(made.end)
            stack.callback(made.process.kill)
            return made

        yield run


@pytest.fixture
def server(start, tiny_folder):
    """A server of the tiny model, in which requests may take long."""
    options = ["--set", "listen.metrics_port=null", "--set", "engine.threads=1", "--set", "bounds.max_steps=1000"]
    options += ["--set", "bounds.max_images=10"]
    options += ["--set", "admission.max_backlog_s=1e6", "--set", "admission.max_wait_factor=1e6"]
    options += ["--set", "listen.drain_s=600", "--set", "engine.watchdog_s=60"]  # whatever else this machine does
    made = start("serve", "--model", f"tiny={tiny_folder}", "--port", "0", *options)
    made.said("ready")
    return made


def post(url, body, headers=None):
    return httpx2.post(f"{url}/v1/images/generations", json=body, headers=headers, timeout=WAIT_S)


def test_a_server_drains(server):
    """What runs is finished, what comes is told to come back, and then the process ends with 0."""
    with ThreadPoolExecutor(1) as threads, httpx2.Client(base_url=server.url, timeout=WAIT_S) as client:
        running = threads.submit(post, server.url, SLOW)
        # Connected before the end begins, as a client with a pool of connections is.
        wait_until(lambda: client.get("/health/ready").json()["engines"][0]["jobs"], "the first step")
        server.process.send_signal(signal.SIGTERM)
        server.said("requests may finish")
        refused = client.post("/v1/images/generations", json=QUICK)
        assert refused.status_code == 503
        assert float(refused.headers["retry-after"]) > 0
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200
        assert running.result().status_code == 200
    assert server.end() == 0
    assert server.lines[-1] == "lens: stopped; 1 images were served"


def test_what_was_drawn_is_delivered(server):
    """Though its reader takes his time, and more of it than fits between him and the server."""
    body = json.dumps({"prompt": "a", "n": 10, "size": "320x320", "lens": {"steps": 1, "guidance": 1}})
    host = server.url.removeprefix("http://")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(WAIT_S)
        client.connect(("127.0.0.1", int(host.rpartition(":")[2])))
        lines = f"Host: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        client.sendall(f"POST /v1/images/generations HTTP/1.1\r\n{lines}\r\n\r\n{body}".encode())
        answer = client.recv(12)  # it has begun: all is drawn
        server.process.send_signal(signal.SIGTERM)
        time.sleep(7)  # nothing is cut off sooner than `listen.drain_s` says
        while piece := client.recv(1 << 20):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(answer) > 3_500_000
    assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["data"]) == 10
    assert server.end() == 0


def test_a_second_signal_does_not_wait(server):
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(post, server.url, {"prompt": "a", **ENDLESS})
        wait_until(lambda: httpx2.get(f"{server.url}/health/ready").json()["engines"][0]["jobs"], "the first step")
        server.process.send_signal(signal.SIGINT)
        server.said("requests may finish")
        server.process.send_signal(signal.SIGINT)
        with contextlib.suppress(httpx2.HTTPError):
            assert running.result().status_code >= 500
    assert server.end() == 0


def test_the_command_draws_what_lens_generate_draws(server, lens, tmp_path, tiny_folder):
    import base64
    import io

    from PIL import Image, ImageChops

    answer = post(server.url, {"prompt": "a cat", "lens": {"seed": 7, "tier": "exact"}}).json()
    served = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
    done = lens("generate", "a cat", "--model", str(tiny_folder), "--seed", "7", "-o", "drawn.png", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert ImageChops.difference(served, Image.open(tmp_path / "drawn.png")).getbbox() is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nowhere", "--port", "0"], "nowhere is no model folder"),
        (["--demo"], "run `make demo` first"),
        ([], "there is no model to serve"),
        (["--model", "x", "--host", "0.0.0.0", "--port", "0"], "--insecure"),
        (["--model", "x", "--keys", "nowhere.json", "--port", "0"], "nowhere.json: there is no such file of API keys"),
        (["--model", "x", "--port", "TAKEN"], "choose another with --port"),
        (["--model", "x", "--host", "foo..bar", "--insecure", "--port", "0"], "'foo..bar' is no name of a host"),
        (["--model", "x", "--port", "0", "--set", "listen.metrics_port=TAKEN"], "choose another, or null"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value) or "nothing",
)
def test_mistakes_are_one_line(start, arguments, words):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        made = start("serve", *(word.replace("TAKEN", port) for word in arguments))
        assert made.end() == 2
    mine = [line for line in made.lines if line.startswith("lens: ") and "loading" not in line]
    assert len(mine) == 1
    assert words in mine[0]
    assert "Traceback" not in "\n".join(made.lines)


def test_a_pipeline_may_end_in_a_server(start, tmp_path):
    """It serves what was trained, until the run is stopped; run again, it serves again without training again.

    The pipeline lies elsewhere: the model's folder starts here, and the file of keys there.
    """
    stages = [
        {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 12}},
        {"name": "dense", "type": "caption", "source": "images", "captioner": {"type": "scene-graph"}},
        {
            "name": "toy",
            "type": "train",
            "source": "dense",
            "model": {"type": "lens", "preset": "nano"},
            "budget": {"steps": 2},
            "batch": {"samples": 4},
        },
        {
            "name": "server",
            "type": "serve",
            "source": "toy",
            "listen": {"port": 0, "metrics_port": None, "keys": "keys.json"},
            "engine": {"device": "cpu", "threads": 1},
        },
    ]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "pipeline.yaml").write_text(yaml.safe_dump({"run": "run", "stages": stages}))
    headers = {"authorization": f"Bearer {add(tmp_path / 'sub' / 'keys.json', 'Ada')[0]}"}
    for number in range(2):
        made = start("run", "sub/pipeline.yaml")
        url = made.url
        wait_until(lambda url=url: httpx2.get(f"{url}/health/ready").status_code == 200, "the engine")
        answer = post(url, QUICK, headers)
        assert answer.status_code == 200
        assert httpx2.get(f"{url}/v1/models", headers=headers).json()["data"][0]["id"] == "toy"
        made.process.send_signal(signal.SIGTERM)
        assert made.end() == 3
        assert made.lines[-1] == "lens: served 1 images; the same command serves again"
        assert sum("done already" in line for line in made.lines) == (3 if number else 0)
