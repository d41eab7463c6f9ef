"""SIGKILL at random moments: every image ends with one caption of its own, and next to nothing is bought twice."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from caption.runs import Run, settle, wait_for
from lens_caption.testing.openai_server import BatchSettings, FakeServer, Faults

IN_FLIGHT = 8


def kill_often(folder, *, images, kills, seed, **engine):
    """Kill a run again and again; returns run, server's ledger, and how many requests may have been lost."""
    rng = random.Random(seed)
    run = Run(folder, images)
    faults = Faults(rate=0.02, seed=seed, kinds=["passing", "content"])
    with FakeServer(faults=faults, delay_s=0.03, jitter=0.5, slow_s=0.3, drip_s=0.3) as server:
        moments = sorted(rng.sample(range(images // 20, images - images // 20), kills))
        for moment in moments:
            process = run.start(server, {"concurrency": IN_FLIGHT, "timeout_s": 10}, **engine)
            assert wait_for(lambda moment=moment: len(server.ledger) >= moment, process), "it ended before its kill"
            process.kill()
            process.wait()
            settle(server)
        code, said = run.run(server, {"concurrency": IN_FLIGHT, "timeout_s": 10}, **engine)
        assert code == 0, said
        return run, server


def check(run, server, *, kills):
    rows = run.rows()
    assert len(rows) == run.count
    by_status = Counter(row["status"] for row in rows)
    met = server.faults.met
    content = sum(met[name] for name in ("refusal", "refusal-prose", "content-filter", "length", "empty"))
    assert run.count - by_status["ok"] <= content + met["schema-invalid"]
    assert by_status["transport"] == 0
    run.assert_captions_are_right(failed=run.count - by_status["ok"])
    # What is billed again was lost on the way by the server's own doing, or in flight at a kill.
    lost = sum(met[name] for name in ("drop-after-billing", "truncated-json-after-billing", "empty-choices"))
    assert server.ledger.billed_again() <= kills * IN_FLIGHT + lost


def test_killed_four_times_among_a_thousand_images(tmp_path):
    run, server = kill_often(tmp_path, images=1000, kills=4, seed=1)
    check(run, server, kills=4)


@pytest.mark.soak
def test_killed_twenty_times_among_ten_thousand_images(tmp_path):
    run, server = kill_often(tmp_path, images=10_000, kills=20, seed=2)
    check(run, server, kills=20)


def test_the_budget_holds_across_kills(tmp_path):
    run = Run(tmp_path, 150)
    bound = Decimal("0.03")
    rng = random.Random(5)
    faults = Faults(rate=0.1, seed=3)
    with FakeServer(faults=faults, delay_s=0.02, slow_s=0.2, drip_s=0.2) as server:
        for _ in range(3):
            start, more = len(server.ledger), rng.randrange(5, 20)
            process = run.start(server, budget={"usd": str(bound)})
            wait_for(lambda start=start, more=more: len(server.ledger) >= start + more, process)
            process.kill()
            process.wait()
            settle(server)
            assert server.ledger.total_cost() <= bound
        code, said = run.run(server, budget={"usd": str(bound)})
        assert code == 3, said
        assert "the budget is used up after" in said[-1]
        assert Decimal("0.2") * bound <= server.ledger.total_cost() <= bound
        kept, billed = run.journalled(), len(server.ledger)
        # The same again buys nothing more; a larger budget goes on where it stopped.
        code, said = run.run(server, budget={"usd": str(bound)})
        assert code == 3
        assert len(server.ledger) - billed <= 1
        code, said = run.run(server, budget={"usd": "5"})
        assert code == 0, said
        assert f"  {sum(status != 'transport' for status in kept.values())} captions are there already" in said
        run.assert_captions_are_right(failed=run.stats()["failed"])


def test_batches_are_never_sent_twice(tmp_path):
    run = Run(tmp_path, 200)
    rng = random.Random(7)
    engine = {"lane": "batch", "batch": {"max_requests": 60, "poll_s": 0.05}}
    with FakeServer(batches=BatchSettings(validate_s=0.1, process_s=0.6, finalize_s=0.1)) as server:
        killed = 0
        for _ in range(6):
            process = run.start(server, **engine)
            began = len(server.batches.all())
            # Around the making of a batch, the most dangerous moment, or while results come in.
            wait_for(lambda began=began: len(server.batches.all()) > began or run.count == len(server.ledger), process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=rng.random() * 0.3)
            killed += process.poll() is None
            process.kill()
            process.wait()
        assert killed >= 3
        code, said = run.run(server, **engine)
        assert code == 0, said
        assert Counter(server.ledger.custom_ids().values()) == {1: 200}
        assert server.ledger.billed_again() == 0
    run.assert_captions_are_right()


def test_processes_of_the_pool_end_with_a_killed_parent(tmp_path):
    run = Run(tmp_path, 60)
    with FakeServer(delay_s=0.2) as server:
        process = run.start(server, {"concurrency": 1}, workers=2)
        assert wait_for(lambda: len(server.ledger) >= 2, process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) >= 2
        process.kill()
        process.wait()
        deadline = time.monotonic() + 20
        while any(Path("/proc", child, "fd").exists() and _alive(child) for child in children):
            assert time.monotonic() < deadline, "a process waits for work for ever"
            time.sleep(0.1)


def _alive(pid):
    try:
        return Path("/proc", pid, "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
