"""The lane `files`: requests on disk, answered by another program in the way of `vllm run-batch`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from caption.runs import Run, wait_for
from lens_caption.engine.journal import Journal
from lens_caption.testing.openai_server import FakeServer
from lens_caption.testing.openai_server.ledger import Ledger
from lens_core.cli import main

NOBODY = "http://127.0.0.1:9/v1"
MODEL = "a-lab/a model"  # a blank, so that quoting is tried


class Offline(Run):
    """Runs in the lane `files`, and the program that answers between them."""

    def lens(self, captioner=None, *, budget=None, ingest=None, **batch):
        captioner = {"model": MODEL, **(captioner or {})}
        return self.run(NOBODY, captioner, ingest=ingest, lane="files", budget=budget, batch=batch)

    def run(self, server, captioner=None, **options):
        """`lens run` in this process, which need not load everything each time; exit code and what it said."""
        self.write(server, captioner, **options)
        said = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stderr(said):
            sys.argv, before = ["lens", "run", "pipeline.yaml"], sys.argv
            try:
                main()
            except SystemExit as leave:
                code = leave.code or 0
            finally:
                sys.argv = before
        return code, said.getvalue().splitlines()

    def answer(self, said, fault=""):
        """Give the command that was quoted to a shell, with a `vllm` of our own."""
        command = re.search(r"`(.+)`", said[-1])[1]
        programs = self.folder / "bin"
        programs.mkdir(exist_ok=True)
        stand_in = Path(__file__).with_name("vllm_stand_in.py")
        (programs / "vllm").write_text(f'#!/bin/sh\nexec {sys.executable} {stand_in} "$@"\n')
        (programs / "vllm").chmod(0o755)
        path = f"{programs}:{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "VLLM_FAULT": fault, "VLLM_LEDGER": str(self.folder / "ledger")}
        done = subprocess.run(["sh", "-c", command], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def later(self):
        """The result files were written a while ago."""
        for file in (self.state / "results").iterdir():
            os.utime(file, (time.time() - 600, time.time() - 600))

    @property
    def state(self):
        return self.journal_file.parent

    def waiting(self):
        """How many lines each image has in the request files."""
        lines = [line for file in self.state.glob("requests/*.jsonl") for line in file.read_text().splitlines()]
        return Counter(json.loads(line)["custom_id"] for line in lines)

    def billed(self):
        ledger = Ledger(self.folder / "ledger")
        try:
            return ledger.images()
        finally:
            ledger.close()


@pytest.fixture
def run(tmp_path):
    return Offline(tmp_path, 20)


def test_write_answer_read(run):
    code, said = run.lens()
    assert code == 3, said
    assert said[-1].endswith("and the same command goes on from there")
    assert (
        "0 of 20 images are captioned; 20 images wait in 1 request file; answer them with `vllm run-batch -i"
        in said[-1]
    )
    assert sorted(run.waiting().values()) == [1] * 20
    before = run.waiting()
    code, again = run.lens()
    assert code == 3, "nobody has answered yet"
    assert again[-1] == said[-1]
    assert run.waiting() == before
    run.answer(said)
    code, said = run.lens()
    assert code == 0, said
    assert not run.state.exists()
    run.assert_captions_are_right()
    assert set(run.billed().values()) == {1}
    facts = json.loads(run.rows()[0]["provenance"])
    assert (facts["lane"], facts["attempts"], facts["asked_model"]) == ("files", 1, MODEL)
    assert facts["batch"].endswith(".jsonl")
    assert facts["request_id"].startswith("vllm-batch-")
    assert facts["input_tokens"] > 0
    assert "usd" not in run.stats()


def test_files_are_split_by_count_and_one_command_answers_them_all(run):
    code, said = run.lens(max_requests=8)
    assert code == 3, said
    assert "20 images wait in 3 request files" in said[-1]
    assert sorted(len(file.read_text().splitlines()) for file in run.state.glob("requests/*")) == [4, 8, 8]
    run.answer(said)
    code, said = run.lens()
    assert code == 0, said
    run.assert_captions_are_right()


def test_files_are_split_by_bytes(run):
    code, said = run.lens(max_bytes=30_000)
    assert code == 3, said
    sizes = [file.stat().st_size for file in run.state.glob("requests/*.jsonl")]
    assert len(sizes) > 1
    assert max(sizes) <= 30_000
    assert sorted(run.waiting().values()) == [1] * 20


def test_so_many_tokens_at_once(run):
    """About 610 tokens an image: a third of them, and the rest when those are answered."""
    answered = 0
    for _ in range(10):
        code, said = run.lens(enqueued_tokens=5000)
        if code == 0:
            break
        assert code == 3, said
        assert 0 < run.waiting().total() < 20
        answered += run.waiting().total()
        run.answer(said)
    assert code == 0, said
    assert answered == 20
    run.assert_captions_are_right()


def test_a_result_file_that_is_cut_off(run):
    _, said = run.lens()
    run.answer(said, "half")
    code, said = run.lens()
    assert code == 3, said
    assert any("of 20 answers, and is still being written" in line for line in said)
    assert "are still being written: once they are whole" in said[-1]
    assert run.waiting().total() == 20
    run.later()
    code, said = run.lens()
    assert code == 3, said
    assert any("1 lines that are no results" in line for line in said)
    left = run.waiting().total()
    assert any(f"{left} requests without an answer, which are written anew" in line for line in said)
    assert 0 < left < 20
    assert f"{20 - left} of 20 images are captioned" in said[-1]
    run.answer(said)
    code, said = run.lens()
    assert code == 0, said
    run.assert_captions_are_right()


def test_what_had_failed_before_and_is_not_answered_is_written_anew(run):
    code, said = run.run(NOBODY, {"model": MODEL, "max_attempts": 1}, lane="sync")
    assert code == 2, said
    assert set(run.journalled().values()) == {"transport"}
    _, said = run.lens()
    run.answer(said, "half")
    run.later()
    code, said = run.lens()
    assert code == 3, said
    left = run.waiting().total()
    assert 0 < left < 20
    assert any(f"{left} requests without an answer, which are written anew" in line for line in said)
    run.answer(said)
    code, said = run.lens()
    assert code == 0, said
    run.assert_captions_are_right()


def test_errors_per_line_are_asked_again_and_not_for_ever(run):
    for round_ in (1, 2):
        code, said = run.lens(rounds=2)
        assert code == 3, said
        assert run.waiting().total() == (20 if round_ == 1 else 7)
        run.answer(said, "errors")
    code, said = run.lens(rounds=2)
    assert code == 0, said
    failed = [row for row in run.rows() if row["status"] != "ok"]
    assert {row["status"] for row in failed} == {"transport"}
    assert {row["detail"] for row in failed} == {
        "HTTP 500: the engine died",
        "HTTP 500: stream mode is not for batches",
    }
    assert {json.loads(row["provenance"])["attempts"] for row in failed} == {2}
    run.assert_captions_are_right(failed=3)


def test_what_is_refused_is_final(run):
    _, said = run.lens()
    run.answer(said, "refuse")
    code, said = run.lens()
    assert code == 0, said
    (refused,) = [row for row in run.rows() if row["status"] != "ok"]
    assert (refused["status"], refused["detail"]) == ("bad-image", "HTTP 400: image token count exceeds the context")
    run.assert_captions_are_right(failed=1)


def test_a_file_of_which_no_image_is_answered_brands_none(run):
    _, said = run.lens()
    run.answer(said, "refuse-all")
    code, said = run.lens()
    assert code == 2, said
    assert "answered none of the last 20 images: HTTP 400: image token count exceeds the context" in said[-1]
    code, said = run.lens()
    assert code == 3, said
    assert sorted(run.waiting().values()) == [1] * 20
    run.answer(said)
    code, said = run.lens()
    assert code == 0, said
    run.assert_captions_are_right()


def test_a_file_of_leftovers_is_judged_beside_those_before_it(run):
    _, said = run.lens()
    run.answer(said, "errors")
    _, said = run.lens()
    assert run.waiting().total() == 7
    run.answer(said, "refuse-all")
    code, said = run.lens()
    assert code == 0, said
    assert Counter(row["status"] for row in run.rows()) == {"ok": 13, "bad-image": 7}


def test_another_model_than_was_asked_for_stops_with_the_reason(run):
    _, said = run.lens()
    run.answer([said[-1].replace("a model", "other")])
    code, said = run.lens()
    assert code == 2, said
    assert "HTTP 404: The model `a-lab/a model` does not exist" in said[-1]
    code, said = run.lens()
    assert code == 3, said
    assert sorted(run.waiting().values()) == [1] * 20


@pytest.mark.parametrize("fault", ["foreign", "log"])
def test_lines_that_do_not_belong_there(run, fault):
    _, said = run.lens()
    run.answer(said, fault)
    run.later()
    code, said = run.lens()
    if fault == "log":
        assert any("1 lines that are no results" in line for line in said)
    else:
        assert code == 3, said
        assert any("answers none of the requests in" in line for line in said)
        assert run.waiting().total() == 20
        run.answer(said)
        code, said = run.lens()
    assert code == 0, said
    run.assert_captions_are_right()


def test_a_poison_image_is_told_and_is_in_no_file(run):
    """Half a JPEG: its header is sound, so that it is stored, and nobody can decode it."""
    poison = run.folder / "photos" / "000003.jpg"
    poison.write_bytes(poison.read_bytes()[: poison.stat().st_size // 2])
    code, said = run.lens(ingest={"filters": []})
    assert code == 3, said
    assert run.waiting().total() == 19
    run.answer(said)
    code, said = run.lens(ingest={"filters": []})
    assert code == 0, said
    (bad,) = [row for row in run.rows() if row["status"] != "ok"]
    assert (bad["status"], bad["detail"]) == ("bad-image", "it is truncated")
    assert "no caption for 000003.jpg: bad-image: it is truncated" in " ".join(said)


def test_a_budget_in_tokens_is_kept(run):
    """At about 330 tokens an answer and 730 set aside for it, 4000 do for some of them only."""
    spent = 0
    for _ in range(20):
        code, said = run.lens(budget={"tokens": 4000})
        assert code == 3, said
        if not run.waiting():
            break
        run.answer(said)
        ledger = Ledger(run.folder / "ledger")
        spent = ledger.totals()["input_tokens"] + ledger.totals()["output_tokens"]
        ledger.close()
        assert spent <= 4000
    assert "the budget is used up" in said[-1]
    assert spent > 2000
    code, said = run.lens(budget={"tokens": 400_000})
    run.answer(said)
    code, said = run.lens(budget={"tokens": 400_000})
    assert code == 0, said
    run.assert_captions_are_right()


def test_leftovers_go_on_in_another_lane(run):
    with FakeServer() as server:
        _, said = run.run(server, lane="files", batch={"max_requests": 8})
        first = min(run.state.glob("requests/*.jsonl")).name
        run.answer([f"`vllm run-batch -i {run.state}/requests/{first} -o {run.state}/results/{first} --model gpt-4.1`"])
        done = run.billed().total()
        code, said = run.run(server, lane="sync")
        assert code == 0, said
        assert any("2 request files were not answered; they are withdrawn" in line for line in said)
        assert server.requests == 20 - done
    run.assert_captions_are_right()


def test_what_waits_in_a_batch_is_awaited_first(run):
    from lens_caption.testing.openai_server import BatchSettings

    with FakeServer(batches=BatchSettings(), clock="manual") as server:
        process = run.start(server, {"model": MODEL}, lane="batch", batch={"poll_s": 0.05})
        assert wait_for(lambda: len(server.batches.all()) == 1, process)
        process.kill()
        process.wait()
        server.clock.advance(24 * 3600)
        code, said = run.run(server, {"model": MODEL}, lane="files", batch={"poll_s": 0.05})
        assert code == 0, said
    run.assert_captions_are_right()


def test_the_responses_api_is_no_api_of_files(run):
    code, said = run.lens({"api": "responses"})
    assert code == 2, said
    assert "captioner.api: programs such as `vllm run-batch` answer chat completions only" in said[-1]
    assert not run.waiting()


def test_a_request_file_that_is_gone_is_written_anew(run):
    run.lens(max_requests=8)
    sorted(run.state.glob("requests/*.jsonl"))[0].unlink()
    code, said = run.lens(max_requests=8)
    assert code == 3, said
    assert any("is gone; its images are written anew" in line for line in said)
    assert sorted(run.waiting().values()) == [1] * 20


def test_killed_while_writing(tmp_path):
    """At any moment: afterwards every image is in one request file, and each of them is journalled."""
    run = Offline(tmp_path, 60)
    said = []
    for number in range(8):
        process = run.start(NOBODY, {"model": MODEL}, lane="files", batch={"max_requests": 7})
        # The moment comes between the beginning and the end of writing, wherever in it.
        wait_for(lambda: any(run.state.glob("requests/*")), process)
        time.sleep(0.03 * number)
        process.send_signal(signal.SIGKILL)
        process.wait()
    code, said = run.run(NOBODY, {"model": MODEL}, lane="files", batch={"max_requests": 7})
    assert code == 3, said
    assert sorted(run.waiting().values()) == [1] * 60
    assert not list(run.state.glob("requests/*.part"))
    journal = Journal(run.journal_file)
    assert {row.file for row in journal.request_files()} == {file.name for file in run.state.glob("requests/*")}
    journal.close()
    run.answer(said)
    code, said = run.run(NOBODY, {"model": MODEL}, lane="files")
    assert code == 0, said
    assert set(run.billed().values()) == {1}
    run.assert_captions_are_right()


@pytest.mark.parametrize("left", ["before its name", "before the journal"])
def test_cut_off_between_file_and_journal(run, left):
    """The two moments between which a kill would show."""
    run.lens()
    (file,) = run.state.glob("requests/*.jsonl")
    part = file.with_name(f"{file.name}.part")
    file.rename(part)
    if left == "before the journal":
        journal = Journal(run.journal_file)
        (row,) = journal.request_files()
        journal.abandon(row.intent)
        journal.close()
    code, said = run.lens()
    assert code == 3, said
    assert sorted(run.waiting().values()) == [1] * 20
    assert not part.exists()
    assert file.exists() == (left == "before its name")
