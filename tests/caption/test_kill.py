"""SIGKILL at random moments: every image ends with one caption of its own, and nothing is bought twice but what was
under way.

What was under way at a kill is counted on the server's side: requests in its ledger whose answers the dead client's
journal does not hold. Only those may be billed again, and what the server billed and lost by its own doing.
"""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import subprocess
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from caption.runs import Run, settle, wait_for
from lens_caption.engine.lanes.batch import INTENT
from lens_caption.testing.openai_server import BatchSettings, FakeServer, Faults
from lens_caption.testing.openai_server.faults import BILLED_AND_LOST

IN_FLIGHT = 8
STATUS = {
    "refusal": "refusal",
    "refusal-prose": "refusal",
    "content-filter": "content-filter",
    "length": "truncated",
    "empty": "empty",
}
"""What an answer is taken for; every other one that arrives whole is a caption."""


def journalled_requests(run):
    """What became of requests, under the names that the server's ledger has for them."""
    with contextlib.closing(sqlite3.connect(run.journal_file)) as database:
        rows = database.execute("SELECT key, id, state FROM attempts WHERE batch IS NULL")
        return {f"{key}-{number}": state for key, number, state in rows}


def kill_often(run, server, *, kills, seed):
    """Run and kill again and again, then run to the end; returns what each kill found under way.

    That is the names of the requests that were billed and whose answers the journal does not hold.
    """
    rng = random.Random(seed)
    captioner = {"concurrency": IN_FLIGHT, "timeout_s": 10}
    found = []
    for moment in sorted(rng.sample(range(run.count // 20, run.count - run.count // 20), kills)):
        process = run.start(server, captioner)
        assert wait_for(lambda moment=moment: len(server.ledger) >= moment, process), "it ended before its kill"
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.wait()
        settle(server)
        states = journalled_requests(run)
        billed = {entry.custom_id for entry in server.ledger}
        assert billed <= states.keys(), "a request left before it was written down"
        found.append({name for name in billed if states[name] == "sent"})
    code, said = run.run(server, captioner)
    assert code == 0, said
    return found


def check(run, server, found):
    """Each image was billed once, but for what kills and faults took; and that one answer became its outcome."""
    under_way = set().union(*found)
    assert all(len(names) <= IN_FLIGHT for names in found)
    lost = [entry for entry in server.ledger if entry.outcome in BILLED_AND_LOST]
    kept = [entry for entry in server.ledger if entry.custom_id not in under_way and entry not in lost]
    assert Counter(entry.number for entry in kept) == Counter(range(run.count))
    assert server.ledger.billed_again() <= len(under_way) + len(lost)
    answers = {entry.response_id: entry for entry in kept}
    rows = run.rows()
    for number, row in enumerate(rows):
        entry = answers[json.loads(row["provenance"])["response_id"]]
        assert (entry.number, STATUS.get(entry.outcome, "ok")) == (number, row["status"])
    run.assert_captions_are_right(failed=sum(row["status"] != "ok" for row in rows))
    print(
        f"{run.count} images, {len(found)} kills; under way at them {[len(names) for names in found]}, in all "
        f"{len(under_way)}; billed and lost by faults {len(lost)}; billed again {server.ledger.billed_again()}; "
        f"captions {sum(row['status'] == 'ok' for row in rows)}"
    )


@pytest.mark.parametrize(
    ("images", "kills"),
    [(1000, 2), pytest.param(10_000, 20, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])],
)
def test_killed_again_and_again(tmp_path, images, kills):
    run = Run(tmp_path, images)
    faults = Faults(rate=0.02, seed=kills, kinds=["passing", "content"])
    with FakeServer(faults=faults, delay_s=0.03, jitter=0.5, slow_s=0.3, drip_s=0.3) as server:
        found = kill_often(run, server, kills=kills, seed=kills)
        check(run, server, found)


@pytest.mark.parametrize(
    ("images", "kills"),
    [(1000, 2), pytest.param(10_000, 20, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])],
)
def test_batches_are_never_sent_twice(tmp_path, images, kills):
    """However often it is killed while it fills, makes, watches and collects batches."""
    run, rng = Run(tmp_path, images), random.Random(kills)
    engine = {"lane": "batch", "batch": {"max_requests": images // 3 // kills, "poll_s": 0.05, "rounds": 10}}
    faults = Faults(
        rate=0.02,
        seed=kills,
        kinds=["passing", "content"],
        batch_rate=0.05,
        batch_kinds=["partly-failed", "empty-file-ids"],
        control_rate=0.02,
    )
    settings = BatchSettings(validate_s=0.1, process_s=0.6, finalize_s=0.1)
    with FakeServer(faults=faults, batches=settings, slow_s=0.1, drip_s=0.1) as server:
        for kill in range(kills):
            process = run.start(server, **engine)
            made, asked = len(server.batches.all()), controls(server)
            if kill % 2:  # around the making of a batch, the most dangerous moment
                assert wait_for(lambda made=made: len(server.batches.all()) > made, process), "it ended before its kill"
            else:
                assert wait_for(lambda asked=asked: controls(server) > asked, process), "it ended before its kill"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=rng.random() * (0.3 if kill % 2 else 1.5))
            assert process.poll() is None, "it ended before its kill"
            process.kill()
            process.wait()
        before = len(server.batches.all())
        code, said = run.run(server, {"max_attempts": 15}, **engine)
        assert code == 0, said
        batches = server.batches.all()
        assert set(Counter(batch["metadata"][INTENT] for batch in batches).values()) == {1}
        # Every line beyond the first about an image stands for a line that the server failed, or left without words.
        wordless = [entry for entry in server.ledger if entry.outcome == "empty-choices"]
        counts = [batch["request_counts"] for batch in batches]
        assert sum(count["total"] for count in counts) == images + sum(c["failed"] for c in counts) + len(wordless)
        answered = Counter(entry.custom_id for entry in server.ledger if entry.outcome != "empty-choices")
        assert set(answered.values()) == {1}
        assert len(answered) == images
        print(
            f"{images} images, {kills} kills, {before} batches made by then and {len(batches)} in all; lines sent "
            f"{sum(count['total'] for count in counts)}, failed by the server {sum(c['failed'] for c in counts)}, "
            f"answered without words {len(wordless)}; billed again {server.ledger.billed_again()}"
        )
    run.assert_captions_are_right(failed=run.stats()["failed"])


def controls(server):
    """How many requests to files and batches the server has had."""
    return sum(count for name, count in server.faults.met.items() if name.startswith("control:"))


@pytest.mark.parametrize(
    ("lane", "model", "bound"),
    [("sync", "gpt-4.1", "0.03"), ("flex", "gpt-6-luna", "0.002"), ("batch", "gpt-4.1", "0.03")],
)
@pytest.mark.parametrize("images", [150, pytest.param(1500, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_the_budget_holds_across_kills(tmp_path, lane, model, bound, images):
    run, rng = Run(tmp_path, images), random.Random(5)
    bound = Decimal(bound) * images / 150
    kinds = ["passing", "downgraded"] if lane == "flex" else ["passing"]
    with FakeServer(
        faults=Faults(rate=0.1, seed=3, kinds=kinds, flex_rate=0.05),
        delay_s=0.02,
        slow_s=0.2,
        drip_s=0.2,
        batches=BatchSettings(validate_s=0.1, process_s=0.2, finalize_s=0.1),
    ) as server:

        def settings(usd):
            batch = {"max_requests": images // 10, "poll_s": 0.05, "rounds": 10}
            return {"lane": lane, "budget": {"usd": str(usd)}, "batch": batch}

        for _ in range(3):
            start, more = len(server.ledger), rng.randrange(5, 20) * images // 150
            process = run.start(server, {"model": model}, **settings(bound))
            wait_for(lambda start=start, more=more: len(server.ledger) >= start + more, process)
            process.kill()
            process.wait()
            settle(server)
            assert server.ledger.total_cost() <= bound
        code, said = run.run(server, {"model": model}, **settings(bound))
        assert code == 3, said
        assert "the budget is used up after" in said[-1]
        spent = server.ledger.total_cost()
        assert Decimal("0.2") * bound <= spent <= bound
        billed = len(server.ledger)
        # The same again buys nothing more, but for what may have been set aside too much; a larger one goes on.
        code, said = run.run(server, {"model": model}, **settings(bound))
        assert code == 3
        assert server.ledger.total_cost() <= bound
        print(f"{lane}: {images} images, bound {bound}, ledger {spent}, then {server.ledger.total_cost()}; {billed}")
        code, said = run.run(server, {"model": model}, **settings(50))
        assert code == 0, said
        assert any("captions are there already" in line for line in said)
        run.assert_captions_are_right(failed=run.stats()["failed"])


def test_processes_of_the_pool_end_with_a_killed_parent(tmp_path):
    run = Run(tmp_path, 60)
    with FakeServer(delay_s=0.2) as server:
        process = run.start(server, {"concurrency": 1}, workers=2)
        assert wait_for(lambda: len(server.ledger) >= 2, process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) >= 2
        process.kill()
        process.wait()
        deadline = time.monotonic() + 60
        while any(Path("/proc", child, "fd").exists() and _alive(child) for child in children):
            assert time.monotonic() < deadline, "a process waits for work for ever"
            time.sleep(0.1)


def _alive(pid):
    try:
        return Path("/proc", pid, "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
