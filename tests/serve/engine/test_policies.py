"""`benchmarks/serve_policies.py`: the ranking that it reports is there on an eighth of the requests too."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[3] / "benchmarks" / "serve_policies.py"
REPORT = Path(__file__).parents[3] / "docs" / "reports" / "serve-policies.json"
REQUESTS = 1500


def load(file):
    spec = importlib.util.spec_from_file_location("benchmark_serve_policies", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench = load(FILE)


def shares(load, seed, policies, model=bench.MODEL):
    """What each policy does within four times the solo time."""
    arrivals = bench.poisson(load, REQUESTS, seed, rate=bench.capacity(model))
    return [bench.figures(bench.simulate(policy, arrivals, model=model))["within 4x %"] for policy in policies]


def test_the_jobs_are_those_of_the_study():
    solo_s = [bench.solo_s(kind, bench.MODEL) for kind in bench.KINDS]
    assert solo_s == pytest.approx([0.16, 1.21, 0.05, 2.90], rel=0.06)
    assert pytest.approx(1.84, rel=0.01) == bench.CAPACITY


@pytest.mark.parametrize("seed", [1, 2])
def test_order_matters_more_than_packing(seed):
    serial, same, pack, ours = shares(0.8, seed, [bench.SERIAL, bench.SAME_SHAPE, bench.PACK, bench.OURS])
    assert ours > 85
    assert ours > pack + 20
    assert pack > serial + 2
    assert abs(same - serial) < 10


def test_ageing_must_be_weak():
    strong = bench.Policy(bench.UP_TO_9000.settings | {"ageing": 0.15})
    weak, strong = shares(0.95, 1, [bench.UP_TO_9000, strong])
    assert weak > strong + 10


def test_a_bound_keeps_what_is_accepted_prompt_at_five_times_the_load():
    done = bench.simulate(bench.OURS, bench.poisson(5, REQUESTS, 1), bound_s=5)
    row = bench.figures(done)
    assert 70 < row["refused %"] < 85
    assert row["Turbo p99"] < 3
    assert len(done) == REQUESTS


def test_the_ranking_does_not_hang_on_the_costs():
    launch_bound = bench.CostModel(bench.msgspec.structs.replace(bench.COSTS, tick_s=0.02))
    pack, ours = shares(0.8, 1, [bench.PACK, bench.OURS], launch_bound)
    assert ours > pack + 15


def test_keys_of_their_own_shield_from_a_flood():
    rows = bench.flood(REQUESTS, 1)
    assert rows["with keys of their own"]["within 4x %"] > rows["with the same key"]["within 4x %"] + 20


def test_it_says_the_same_each_time():
    assert shares(0.8, 3, [bench.OURS]) == shares(0.8, 3, [bench.OURS])


@pytest.mark.soak
def test_all_of_it(tmp_path):
    """The whole command, and that the report in the documentation is what it prints today."""
    out = tmp_path / "new" / "report.json"
    subprocess.run([sys.executable, FILE, "--out", out], check=True, capture_output=True, text=True, timeout=600)
    report, written = json.loads(out.read_text()), json.loads(REPORT.read_text())
    for today, then in zip(report["policies"], written["policies"], strict=True):
        assert (today["load"], today["policy"]) == (then["load"], then["policy"])
        assert today["within 4x %"] == pytest.approx(then["within 4x %"], abs=1)
        assert today["mean s"] == pytest.approx(then["mean s"], rel=0.02)
