"""The batch lane against the fake server's batches: splitting, the ways in which they fail, and restarts."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import sys
from collections import Counter
from decimal import Decimal

import pytest

from caption.runs import Run, wait_for
from lens_caption.engine.lanes.batch_files import read_results
from lens_caption.testing.openai_server import BatchSettings, FakeServer, Faults

QUICK = BatchSettings(validate_s=0.05, process_s=0.1, finalize_s=0.05)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path, 24)


def go(run, server, captioner=None, *, engine=None, **batch):
    return run.run(server, captioner, lane="batch", batch={"poll_s": 0.05, **batch}, **(engine or {}))


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_batches_are_split_by_count_and_collected_by_id(run, api):
    with FakeServer(batches=QUICK) as server:
        code, said = go(run, server, {"api": api}, max_requests=10)
        assert code == 0, said
        assert sorted(batch["request_counts"]["total"] for batch in server.batches.all()) == [4, 10, 10]
        assert server.ledger.billed_again() == 0
        assert server.files.all("batch") == []  # what was sent is cleaned up
        rows = run.rows()
        cost = sum(cost_of(row) for row in rows)
        assert cost == server.ledger.total_cost()
    run.assert_captions_are_right()


def cost_of(row):
    facts = json.loads(row["provenance"])
    assert facts["lane"] == "batch"
    assert facts["batch"]
    return Decimal(facts["cost_usd"])


def test_batches_are_split_by_bytes(run):
    with FakeServer(batches=QUICK) as server:
        code, said = go(run, server, max_bytes=30_000)
        assert code == 0, said
        sizes = [batch["request_counts"]["total"] for batch in server.batches.all()]
    assert len(sizes) > 1
    assert sum(sizes) == 24
    run.assert_captions_are_right()


def test_no_more_tokens_wait_than_allowed(run):
    # About 610 tokens an image: a third of them at once.
    with FakeServer(batches=BatchSettings(validate_s=0.05, process_s=0.2, enqueued_tokens=6000)) as server:
        code, said = go(run, server, enqueued_tokens=5900)
        assert code == 0, said
        assert Counter(batch["status"] for batch in server.batches.all()).keys() == {"completed"}
        assert server.ledger.billed_again() == 0
    run.assert_captions_are_right()


def test_an_unknown_queue_limit_is_found_out(run):
    with FakeServer(batches=BatchSettings(validate_s=0.05, process_s=0.1, enqueued_tokens=6000)) as server:
        code, said = go(run, server)
        assert code == 0, said
        assert any("too many tokens wait in batches" in line for line in said)
        assert server.ledger.billed_again() == 0
    run.assert_captions_are_right()


@pytest.mark.parametrize("fault", ["expired", "partly-failed", "all-failed", "empty-file-ids", "output-late"])
def test_what_a_batch_left_over_goes_into_the_next(run, fault):
    # A batch expires after a day of the server's clock.
    with FakeServer(batches=QUICK, faults=Faults(batch_script=[fault]), clock=100_000.0) as server:
        code, said = go(run, server)
        assert code == 0, said
        assert len(server.batches.all()) == (1 if fault in {"empty-file-ids", "output-late"} else 2)
        assert server.ledger.billed_again() == 0
    run.assert_captions_are_right()


@pytest.mark.parametrize("fault", ["output-expired", "output-missing"])
def test_results_that_are_gone_count_as_spent_and_are_not_bought_again_unasked(run, fault):
    with FakeServer(batches=QUICK, faults=Faults(batch_script=[fault])) as server:
        code, said = go(run, server, engine={"budget": {"images": 24}})
        assert code == 2, said
        assert "the results of batch" in said[-1]
        assert len(server.batches.all()) == 1
        code, said = go(run, server, engine={"budget": {"images": 24}})
        assert code == 3, said  # they count as spent
        assert len(server.batches.all()) == 1
        code, said = go(run, server, engine={"budget": {"images": 48}})
        assert code == 0, said
    run.assert_captions_are_right()


def test_an_invalid_batch_stops_with_the_reason(run):
    with FakeServer(batches=QUICK, faults=Faults(batch_script=["invalid"])) as server:
        code, said = go(run, server)
        assert code == 2, said
        assert "failed:" in said[-1]
        assert len(server.batches.all()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
def test_a_disk_that_is_full_while_a_batch_is_filled(tmp_path):
    run = Run(tmp_path, 24, size=(1024, 1024))
    with FakeServer(batches=QUICK, faults=Faults(batch_script=["invalid"])) as server:
        assert go(run, server, {"max_side": 1024})[0] == 2  # after the images were taken in
        code, said = go(run, server, {"max_side": 1024}, engine={"file_bytes": 400_000})
        assert code == 2
        assert re.fullmatch(r"lens: run/\.state/words\S+\.jsonl cannot be written: File too large", said[-1]), said
        assert go(run, server, {"max_side": 1024})[0] == 0
        assert server.ledger.billed_again() == 0
    run.assert_captions_are_right()


@pytest.mark.parametrize(
    "script", [["drop-after"] * 2, ["ok", "drop-after"], ["500", "html", "429", "drop"], ["ok", "503"]]
)
def test_lost_answers_about_batches_make_no_second_batch(run, script):
    with FakeServer(batches=QUICK, faults=Faults(control_script=script)) as server:
        code, said = go(run, server)
        assert code == 0, said
        assert len(server.batches.all()) == 1
        assert server.ledger.billed_again() == 0
    run.assert_captions_are_right()


def test_a_batch_that_is_made_after_its_gateway_timed_out_is_waited_for(run):
    slow = BatchSettings(process_s=2)  # so that a second one would be at work when the first is made at last
    with FakeServer(batches=slow, faults=Faults(control_script=["ok", "504-late"])) as server:
        code, said = go(run, server, {"max_wait_s": 1})
        assert code == 0, said
        assert len(server.batches.all()) == 1
        assert server.ledger.billed_again() == 0
    run.assert_captions_are_right()


@pytest.mark.parametrize("seed", [4, 5])
def test_a_bad_control_plane(run, seed):
    with FakeServer(batches=QUICK, faults=Faults(control_rate=0.25, seed=seed)) as server:
        code, said = go(run, server, {"max_attempts": 15}, max_requests=8)
        assert code == 0, said[-1]
        assert len(server.batches.all()) == 3
        assert server.ledger.billed_again() == 0
    run.assert_captions_are_right()


def test_a_batch_whose_making_was_not_heard_of_is_found_again(run):
    """The process dies after the server made the batch and before it could write down its id."""
    with FakeServer(batches=QUICK, clock="manual") as server:
        process = run.start(server, lane="batch", batch={"poll_s": 0.05})
        assert wait_for(lambda: len(server.batches.all()) == 1, process)
        process.kill()
        process.wait()
        server.clock.advance(3600)
        with sqlite3.connect(run.journal_file) as database:
            database.execute("UPDATE batches SET state = 'intended', id = '', file = ''")
        code, said = go(run, server)
        assert code == 0, said
        assert any("was made before the run was cut off; it goes on" in line for line in said)
        assert len(server.batches.all()) == 1
    run.assert_captions_are_right()


def test_an_intent_that_the_server_never_heard_of_costs_nothing(run):
    with FakeServer(batches=BatchSettings(process_s=30)) as server:
        process = run.start(server, lane="batch", batch={"poll_s": 0.05})
        assert wait_for(lambda: len(server.batches.all()) == 1, process)
        process.kill()
        process.wait()
    with sqlite3.connect(run.journal_file) as database:
        database.execute("UPDATE batches SET state = 'intended', id = '', file = ''")
    with FakeServer(port=int(server.url.split(":")[2].split("/")[0]), batches=QUICK) as fresh:
        code, said = go(run, fresh, engine={"budget": {"images": 24}})
        assert code == 0, said
        assert len(fresh.batches.all()) == 1
    run.assert_captions_are_right()


def test_a_stop_leaves_batches_at_work_and_the_next_run_takes_them_up(run):
    with FakeServer(batches=QUICK, clock="manual") as server:
        process = run.start(server, lane="batch", batch={"poll_s": 0.05})
        assert wait_for(lambda: len(server.batches.all()) == 1, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 3
        assert "24 more are waiting in batches" in (run.folder / "said.txt").read_text()
        server.clock.advance(3600)
        # Whatever the lane is now, what waits in a batch is not bought again.
        code, said = run.run(server, lane="sync", batch={"poll_s": 0.05})
        assert code == 0, said
        assert server.requests == 0
        assert Decimal(run.stats()["usd"]) == server.ledger.total_cost()  # at the price of batches
    run.assert_captions_are_right()


def test_leftovers_go_on_in_another_lane(run):
    slow = BatchSettings(validate_s=20_000, process_s=20_000)
    with FakeServer(batches=slow, faults=Faults(batch_script=["expired"]), clock=50_000.0) as server:
        process = run.start(server, lane="batch", batch={"poll_s": 0.05})
        assert wait_for(lambda: len(server.batches.all()) == 1, process)
        process.kill()
        process.wait()
        code, said = run.run(server, lane="sync", batch={"poll_s": 0.05})
        assert code == 0, said
        assert len(server.batches.all()) == 1
        assert 0 < server.requests < 24
        assert server.ledger.billed_again() == 0
    run.assert_captions_are_right()


def test_another_lane_waits_for_what_a_batch_leaves_of_the_budget(run):
    options = {"budget": {"images": 6}, "batch": {"poll_s": 0.05, "max_requests": 6}}
    said = run.folder / "said.txt"
    with FakeServer(batches=QUICK, faults=Faults(batch_script=["expired"]), clock="manual") as server:
        process = run.start(server, lane="batch", **options)
        assert wait_for(lambda: len(server.batches.all()) == 1, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 3
        for end in ("a stop", "the batch"):
            process, looks = run.start(server, lane="sync", **options), server.faults.met["control:ok"]
            assert wait_for(lambda looks=looks: server.faults.met["control:ok"] > looks + 5, process)
            assert server.requests == 0
            if end == "a stop":
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 3
                assert "stopped after 0 captions, 6 more are waiting in batches" in said.read_text()
            else:
                server.clock.advance(100_000)
                assert process.wait(60) == 3
                assert "the budget is used up after 6 of 24 images" in said.read_text()
        assert 0 < server.requests < len(server.ledger) == 6  # the others had been answered by the batch
        code, lines = run.run(server, lane="sync", budget={"images": 24})
        assert code == 0, lines
        assert server.ledger.billed_again() == 0
    run.assert_captions_are_right()


def test_a_batch_of_which_no_image_is_answered_brands_none(run):
    with FakeServer(batches=QUICK, faults=Faults(rate=1, kinds=["400"])) as server:
        code, said = go(run, server)
        assert code == 2, said
        assert "answered none of the last 24 images: HTTP 400: The image is not allowed.; 0 outcomes are" in said[-1]
        assert set(run.journalled().values()) <= {"transport"}
        server.faults.set_rate(0)
        code, said = go(run, server)
        assert code == 0, said
    run.assert_captions_are_right()


def test_a_time_out_within_a_batch_costs_nothing(run):
    with FakeServer(batches=QUICK, faults=["408"] * 3) as server:
        code, said = go(run, server)
        assert code == 0, said
        assert server.ledger.billed_again() == 0
        assert Decimal(run.stats()["usd"]) == server.ledger.total_cost()
    run.assert_captions_are_right()


def test_a_batch_is_reserved_whole(run):
    with FakeServer(batches=QUICK) as server:
        code, said = go(run, server, engine={"budget": {"usd": "0.01"}})
        assert code == 3, said
        assert "the budget is used up after" in said[-1]
        assert 0 < server.ledger.total_cost() <= Decimal("0.01")
        first = server.batches.all()[-1]["request_counts"]["total"]
        assert 0 < first < 24
        code, said = go(run, server, engine={"budget": {"usd": "1"}})
        assert code == 0, said
        assert server.ledger.billed_again() == 0
    run.assert_captions_are_right()


def line(key, status=200, **more):
    return {"custom_id": key, "response": {"status_code": status, "body": {}}, **more}


@pytest.mark.parametrize(
    ("text", "keys", "damaged"),
    [
        (b"<html>a proxy\nwas here</html>\n", set(), 2),
        (b"", set(), 0),
        (b'{"custom_id": "a", "response": null}\n{"custom_id": "b"', {"a"}, 1),
        (b'{"custom_id": "a"}\n\n{"custom_id": "b"}\n', {"a", "b"}, 0),
        (b'{"custom_id": "a"}\n{"custom_id": "b"}', {"a", "b"}, 0),
        (b'[1]\n"a"\nnull\n3\n{"id": 1}\n\xff\xfe\n' + b"[" * 100_000 + b"\n", set(), 7),
    ],
)
def test_reading_results(tmp_path, text, keys, damaged):
    (tmp_path / "results").write_bytes(text)
    results = read_results(tmp_path / "results")
    assert results.answers.keys() == keys
    assert results.damaged == damaged


@pytest.mark.parametrize("order", [1, -1])
def test_an_answer_counts_for_more_than_an_error(tmp_path, order):
    answer, error = line("a"), line("a", 500, error={"code": "x"})
    lines = [json.dumps(value) + "\n" for value in (answer, error, {"custom_id": "a", "response": "odd"})][::order]
    (tmp_path / "results").write_text("".join(lines))
    assert read_results(tmp_path / "results").answers == {"a": answer}


@pytest.mark.parametrize("fault", ["html", "404"])
def test_a_page_in_place_of_results_buys_nothing_again(run, fault):
    """A proxy's page instead of the batch or its result file: it is asked for again."""
    with FakeServer(batches=QUICK, clock="manual") as server:
        process = run.start(server, lane="batch", batch={"poll_s": 0.05})
        assert wait_for(lambda: len(server.batches.all()) == 1, process)
        server.faults._scripts["control"].extend([fault, *["ok", fault] * 3])
        server.clock.advance(3600)
        assert process.wait(60) == 0, (run.folder / "said.txt").read_text()
        assert server.faults.met[f"control:{fault}"] == 4
        assert len(server.batches.all()) == 1
        assert server.ledger.billed_again() == 0
    run.assert_captions_are_right()
