"""A real server under load: `benchmarks/serve.py` for seconds; with `make soak`, for as long as the reports say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lens_serve.config import OutputSettings
from lens_serve.server import DECODERS

FILE = Path(__file__).parents[2] / "benchmarks" / "serve.py"

CLOSING = 2
"""Connections that may not be closed yet, when files are counted; one for each request would be hundreds."""

POOLS = OutputSettings().threads + DECODERS
"""Threads that the API process starts when it needs them first, and then keeps; one for each request, likewise."""


@pytest.fixture
def load(tmp_path):
    """Put a load on a server: `load("soak", seconds=30)`; returns what was found."""

    def run(command: str, **options: float):
        told = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        out = tmp_path / "found" / "load.json"
        done = subprocess.run(
            [sys.executable, FILE, command, *told, "--out", out],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(out.read_text())[command]

    return run


def check_policies(found):
    rows = {(row["load"], row["policy"]): row for row in found["runs"]}
    for (share, policy), row in rows.items():
        assert row["failed"] == 0
        serial = rows[share, "first-come"]
        assert 1 <= serial["sequences per tick"] <= 2
        # Whoever shares ticks needs fewer of them.
        assert row["sequences per tick"] >= serial["sequences per tick"] - 1e-6, policy
    return rows


def test_policies(load):
    rows = check_policies(load("policies", minutes=0.3, loads=0.8))
    assert {policy for _, policy in rows} == {"first-come", "same-shape", "remaining-time"}


@pytest.mark.soak
def test_policies_at_full_size(load):
    rows = check_policies(load("policies"))
    for share in (0.5, 0.8, 0.95):
        ours, serial = rows[share, "remaining-time"], rows[share, "first-come"]
        assert ours["within 4x %"] > serial["within 4x %"] + 10
    assert rows[0.8, "remaining-time"]["within 4x %"] >= 90


def check_overload(found):
    assert set(found["statuses"]) == {"200", "429"}
    assert found["answered without a picture"] == 0
    assert found["refusals"]["without the headers"] == 0
    assert found["idle afterwards"]
    return [(probes["told to come again"], probes["let in then"]) for probes in found["probes"].values()]


def test_overload(load):
    probes = check_overload(load("overload", seconds=10, load=10, probes=0.1, patience=10))
    for told, let_in in probes:
        assert told
        assert let_in >= 0.5 * told  # promises are for two seconds: this machine may be late


@pytest.mark.soak
def test_overload_at_full_size(load):
    found = load("overload")
    told, let_in = map(sum, zip(*check_overload(found), strict=True))
    assert let_in >= 0.9 * told
    assert found["goodput, of serial"] >= 0.95
    assert found["refusals"]["took s, p99"] <= 0.05
    # That of the engine grows as it remembers prompts, all of which are new here, up to 256 MB.
    assert found["usage"]["api"]["rss MB, a minute more"] < 1


def check_soak(found):
    assert set(found["statuses"]) <= {"200", "429"}
    assert found["without a picture"] == 0
    assert found["bad"]
    assert found["bad, answered otherwise than expected"] == []
    assert found["engine restarts"] == 0
    before, after = found["at rest"]["before"], found["at rest"]["after"]
    assert before["idle"]
    assert after["idle"]
    for process in ("api", "engine"):
        assert after[process]["fds"] <= before[process]["fds"] + CLOSING
    assert after["api"]["threads"] <= before["api"]["threads"] + POOLS
    assert after["engine"]["threads"] <= before["engine"]["threads"]


def test_soak(load):
    check_soak(load("soak", seconds=30))


@pytest.mark.soak
def test_soak_at_full_size(load):
    found = load("soak")
    check_soak(found)
    assert found["went"]  # in a short one there are two or three who would, and may have their pictures before
    assert all(process["rss MB, a minute more"] < 1 for process in found["usage"].values())
    first, _, last = found["thirds"]
    assert last["p99 s"] <= 1.25 * first["p99 s"]


def check_cancels(found):
    assert found["went"] + found["had their answer"] == found["clients"]
    assert found["went"]
    assert found["idle afterwards"]
    assert found["engine restarts"] == 0
    for process in ("api", "engine"):
        assert found["after"][process]["fds"] <= found["before"][process]["fds"] + CLOSING


def test_cancels(load):
    check_cancels(load("cancels", count=40))


@pytest.mark.soak
def test_a_thousand_cancels(load):
    check_cancels(load("cancels"))


def check_readers(found, count):
    assert found["streams answered 200"] == count
    assert found["pictures the engine has"] >= 0.9 * count  # the first may be done by then
    beside = found["with all"]
    assert beside["pictures had"] == beside["pictures asked for"] > 0
    assert beside["ticks"] > 0
    assert found["idle afterwards"]
    assert found["usage afterwards"]["api"]["fds"] < count


def test_readers(load):
    check_readers(load("readers", count=50, seconds=3), 50)


@pytest.mark.soak
def test_five_hundred_readers(load):
    check_readers(load("readers"), 500)
