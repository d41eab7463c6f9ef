"""The caption engine: what was paid for is kept, whatever happens; what failed on the way is tried again."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from lens_caption.captioners.openai.captioner import OpenAICaptioner
from lens_caption.captioners.openai.config import OpenAIConfig
from lens_caption.engine.journal import Journal
from lens_caption.engine.run import caption_all
from lens_caption.testing.openai_server import OpenAIServer, caption_of
from lens_core.contracts import CaptionOutcome, ImageItem
from lens_core.errors import Stopped
from lens_core.images import decode, to_jpeg
from lens_core.pipeline.context import StageContext
from lens_core.pipeline.progress import Progress
from lens_core.storage.artifacts import OutputFolder

BATCH = 4
PIPELINE = """\
run: run
stages:
  - {{name: images, type: ingest, source: {{type: image-folder, url: photos}}}}
  - name: words
    type: caption
    source: images
    batch_size: {batch}
    captioner:
      {{type: openai, model: test-model, base_url: "{url}", concurrency: 2, max_attempts: 1, max_wait_s: 0}}
"""


def png(number):
    stream = io.BytesIO()
    Image.new("RGB", (48, 32), (number * 9 % 256, number * 31 % 256, 77)).save(stream, "PNG")
    return stream.getvalue()


def key_of(data):
    return hashlib.sha256(data).hexdigest()


def sent(data):
    """What the server's ledger calls an image: the hash of the JPEG it receives."""
    return hashlib.sha256(to_jpeg(decode(data), max_side=768, quality=85)).hexdigest()


def expected_text(data):
    return caption_of(decode(to_jpeg(decode(data), max_side=768, quality=85)))


@pytest.fixture
def photos(tmp_path):
    """24 photos in a folder; their bytes in the order of their names."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pictures = [png(number) for number in range(24)]
    for number, data in enumerate(pictures):
        (folder / f"{number:02d}.png").write_bytes(data)
    return pictures


@pytest.fixture
def command(tmp_path):
    """`lens run` on the photos in a process of its own."""

    def start(server, batch=BATCH):
        (tmp_path / "pipeline.yaml").write_text(PIPELINE.format(url=server.url, batch=batch))
        return subprocess.Popen(
            [Path(sys.executable).with_name("lens"), "run", "pipeline.yaml"],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finish(process):
    """Its exit code and what it said."""
    _, said = process.communicate(timeout=120)
    return process.returncode, said.splitlines()


def wait_for(condition, process):
    deadline = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, "it ended before it could be stopped"


def journalled(tmp_path):
    """The outcomes in the journal of a stage that is under way, by image key."""
    journal = Journal(tmp_path / "run" / ".state" / "words" / "journal.sqlite")
    outcomes = journal.read()
    journal.close()
    return outcomes


def settle(server):
    """Wait until requests of a process that is gone have been billed or forgotten."""
    before = None
    while before != (before := len(server.ledger)):
        time.sleep(0.3)


def captions(tmp_path):
    return pq.read_table(tmp_path / "run" / "words" / "captions.parquet").to_pylist()


def failures(tmp_path):
    text = (tmp_path / "run" / "words" / "failures.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def manifest(tmp_path):
    return json.loads((tmp_path / "run" / "words" / "manifest.json").read_text())


def outcome(key, status="ok", text="a cat", **fields):
    return CaptionOutcome(key=key, status=status, text=text if status == "ok" else "", **fields)


def test_journal_round_trip(tmp_path):
    written = [
        outcome("a", text="ein Kätzchen 猫 \U0001f408\nand a 'quote'", provenance={"tokens": 7, "cost": 0.5, "m": "ü"}),
        outcome("b", "refusal", detail='it said "no"'),
        outcome("c", "transport", detail="HTTP 500"),
    ]
    journal = Journal(tmp_path / "journal.sqlite")
    assert journal.read() == {}
    journal.write(written[:1])
    journal.write(written[1:])
    journal.write([])
    assert journal.read() == {item.key: item for item in written}
    journal.close()
    again = Journal(tmp_path / "journal.sqlite")
    assert again.read() == {item.key: item for item in written}
    again.write([outcome("c", text="at last")])
    assert again.read()["c"] == outcome("c", text="at last")
    assert len(again.read()) == 3
    again.close()


def test_what_the_journal_was_given_survives_sigkill(tmp_path):
    code = """if True:
        import sys, time, pathlib
        from lens_caption.engine.journal import Journal
        from lens_core.contracts import CaptionOutcome
        journal = Journal(pathlib.Path("journal.sqlite"))
        for number in range(100000):
            journal.write([CaptionOutcome(key=f"{number}-{part}", status="ok", text="x" * 500) for part in "ab"])
            print(number, flush=True)
    """
    rng = random.Random(3)
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        process = subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, text=True)
        for _ in range(rng.randrange(20, 200)):
            confirmed = int(process.stdout.readline())
        process.kill()
        rest = process.communicate()[0].split("\n")[:-1]
        confirmed = int(rest[-1]) if rest else confirmed
        journal = Journal(folder / "journal.sqlite")
        kept = set(journal.read())
        journal.close()
        assert {f"{number}-{part}" for number in range(confirmed + 1) for part in "ab"} <= kept
        assert all(f"{key[:-1]}{'b' if key.endswith('a') else 'a'}" in kept for key in kept)  # whole batches only


def test_killed_in_its_midst_it_buys_no_caption_twice(photos, command, tmp_path):
    hashes = {key_of(data): sent(data) for data in photos}
    paid_for = []  # after each kill: what is journalled, and how often each image had been bought by then
    with OpenAIServer(delay_s=0.05) as server:
        for wanted in (6, 15):
            process = command(server)
            wait_for(lambda wanted=wanted: len(server.ledger) >= wanted, process)
            process.kill()
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            settle(server)
            kept = journalled(tmp_path)
            assert 0 < len(kept) < 24
            assert len(kept) % BATCH == 0
            paid_for.append((kept, Counter(entry.image for entry in server.ledger)))
        code, said = finish(command(server))
        assert code == 0, said
        bought = Counter(entry.image for entry in server.ledger)
    assert f"  {len(kept)} captions are there already" in said
    for kept, before in paid_for:
        assert all(bought[hashes[key]] == before[hashes[key]] for key in kept)
    assert set(bought) == set(hashes.values())
    assert sum(bought.values()) <= 24 + 2 * BATCH  # what was on its way at a kill is asked for again
    assert [row["text"] for row in captions(tmp_path)] == [expected_text(data) for data in photos]


def test_a_signal_stops_between_batches_and_nothing_is_bought_again(photos, command, tmp_path):
    with OpenAIServer(delay_s=0.05) as server:
        process = command(server)
        wait_for(lambda: len(server.ledger) >= 6, process)
        process.send_signal(signal.SIGTERM)
        code, said = finish(process)
        assert code == 3
        done = len(journalled(tmp_path))
        assert 0 < done < 24
        assert said[-1] == f"lens: stopped after {done} captions; the same command goes on from here"
        assert len(server.ledger) == done
        assert not (tmp_path / "run" / "words" / "manifest.json").exists()
        code, said = finish(command(server))
        assert code == 0, said
        assert any(f"{done} captions are there already" in line for line in said)
        assert Counter(Counter(entry.image for entry in server.ledger).values()) == {1: 24}
    assert [row["text"] for row in captions(tmp_path)] == [expected_text(data) for data in photos]


def test_captions_stand_in_the_order_of_the_images(photos, command, tmp_path):
    with OpenAIServer() as server:
        code, said = finish(command(server, batch=5))
        assert code == 0, said
        assert len(server.ledger) == 24
    rows = captions(tmp_path)
    assert [row["key"] for row in rows] == [key_of(data) for data in photos]
    assert [row["text"] for row in rows] == [expected_text(data) for data in photos]
    assert {row["layer"] for row in rows} == {"words"}
    assert all(row["words"] == len(row["text"].split()) for row in rows)
    stats = manifest(tmp_path)["stats"]
    assert (stats["captions"], stats["failed"], stats["by_status"]) == (24, 0, {"ok": 24})
    assert stats["output_tokens"] == sum(entry.output_tokens for entry in server.ledger)
    assert stats["input_tokens"] == sum(entry.input_tokens for entry in server.ledger)
    assert failures(tmp_path) == []


def test_every_failure_is_named_and_counted(photos, command, tmp_path):
    faults = ["ok", "refusal", "content-filter", "length", "empty", "400", "500"]
    with OpenAIServer(faults=faults) as server:
        code, said = finish(command(server))
        assert code == 0, said
    statuses = Counter(row["status"] for row in captions(tmp_path))
    expected = {"ok": 18, "refusal": 1, "content-filter": 1, "truncated": 1, "empty": 1, "bad-image": 1, "transport": 1}
    assert statuses == expected
    stats = manifest(tmp_path)["stats"]
    assert stats["by_status"] == expected
    assert (stats["captions"], stats["failed"]) == (18, 6)
    listed = failures(tmp_path)
    assert Counter(line["status"] for line in listed) == {name: 1 for name in expected if name != "ok"}
    by_key = {key_of(data): f"{number:02d}.png" for number, data in enumerate(photos)}
    rows = {row["key"]: row for row in captions(tmp_path)}
    for line in listed:
        assert line.keys() == {"name", "key", "status", "detail"}
        assert line["name"] == by_key[line["key"]]
        assert line["detail"]
        assert (line["status"], line["detail"]) == (rows[line["key"]]["status"], rows[line["key"]]["detail"])
        assert rows[line["key"]]["text"] == ""
        assert f"  no caption for {line['name']}: {line['status']}: {line['detail']}" in said
    # In the order of the images, like the table.
    assert [line["name"] for line in listed] == sorted(line["name"] for line in listed)


def test_many_failures_are_summed_up(photos, command, tmp_path):
    with OpenAIServer(faults=["refusal"] * 23) as server:
        code, said = finish(command(server))
    assert code == 0, said
    assert len([line for line in said if line.startswith("  no caption for ")]) == 20
    assert "  3 more without a caption; all are in failures.jsonl" in said
    assert len(failures(tmp_path)) == 23


def test_no_caption_at_all_is_one_clear_line(photos, command, tmp_path):
    with OpenAIServer(faults=["refusal"] * 17 + ["content-filter"] * 100) as server:
        code, said = finish(command(server))
        assert code == 2
        assert said[-1] == (
            "lens: words: not one of 24 images got a caption (17 times refusal: I can't describe this.)"
        )
        assert not any("Traceback" in line for line in said)
        assert not (tmp_path / "run" / "words" / "manifest.json").exists()
        assert server.requests == 24
        # Refusals are final: asking again would only cost again.
        code, said = finish(command(server))
        assert code == 2
        assert server.requests == 24


def test_a_server_that_was_down_is_asked_again_by_the_next_run(photos, command, tmp_path):
    with OpenAIServer(faults=["500"] * 24) as server:
        code, said = finish(command(server))
        assert code == 2
        assert "not one of 24 images got a caption (24 times transport: HTTP 500" in said[-1]
        code, said = finish(command(server))
        assert code == 0, said
        assert not any("there already" in line for line in said)
        assert len(server.ledger) == 24
    assert [row["text"] for row in captions(tmp_path)] == [expected_text(data) for data in photos]


def test_an_account_that_runs_dry_keeps_what_was_bought_with_it(photos, command, tmp_path):
    with OpenAIServer(faults=["ok"] * 2 * BATCH + ["quota"]) as server:
        code, said = finish(command(server))
        assert code == 2
        assert "exceeded your current quota" in said[-1]
        kept = journalled(tmp_path)
        assert len(kept) == 2 * BATCH
        code, said = finish(command(server))
        assert code == 0, said
        bought = Counter(entry.image for entry in server.ledger)
    assert all(bought[sent(data)] == 1 for data in photos if key_of(data) in kept)
    assert len(bought) == 24


@pytest.fixture
def engine(tmp_path, lens_registry):
    """Call the engine in this process: `engine(server, items)`; the journal stays between calls."""
    (tmp_path / "state").mkdir()
    said = io.StringIO()
    progress = Progress(stream=said, live=False)
    context = StageContext(
        name="words",
        inputs=(),
        output=OutputFolder(str(tmp_path / "words"), tmp_path / "scratch"),
        state_dir=tmp_path / "state",
        run_url=str(tmp_path),
        base=str(tmp_path),
        seed=0,
        registry=lens_registry,
        progress=progress,
    )

    def run(server, items, *, batch_size=2, max_attempts=1):
        captioner = OpenAICaptioner(
            OpenAIConfig(model="m", base_url=server.url, concurrency=1, max_attempts=max_attempts, max_wait_s=0)
        )
        journal = Journal(context.state_dir / "journal.sqlite")
        try:
            return caption_all(items, captioner, journal, context, batch_size=batch_size)
        finally:
            captioner.close()
            journal.close()

    run.progress, run.said = progress, said
    return run


def items(count):
    return [ImageItem(key=key_of(png(number)), data=png(number)) for number in range(count)]


def test_only_failures_of_transport_are_tried_again(engine):
    images = items(7)
    faults = ["ok", "500", "refusal", "empty", "drop", "400", "html"]
    with OpenAIServer(faults=faults) as server:
        first = engine(server, images)
        assert [first[item.key].status for item in images] == [
            "ok", "transport", "refusal", "empty", "transport", "bad-image", "transport"
        ]  # fmt: skip
        assert server.requests == 7
        second = engine(server, images)
        assert server.requests == 10
        assert [second[item.key].status for item in images] == [
            "ok", "ok", "refusal", "empty", "ok", "bad-image", "ok"
        ]  # fmt: skip
        assert second[images[4].key].text == expected_text(images[4].data)
        third = engine(server, images)
        assert server.requests == 10
        assert third == second
    assert "4 captions are there already" in engine.said.getvalue()


def test_images_that_are_known_are_not_even_read(engine):
    images = items(5)
    with OpenAIServer() as server:
        engine(server, images[:3])
        outcomes = engine(server, images)
        assert server.requests == 5
        assert set(outcomes) == {item.key for item in images}


def test_a_stop_between_batches_leaves_whole_batches(engine, tmp_path):
    images = items(7)
    with OpenAIServer() as server:

        def until_the_third():
            for number, item in enumerate(images):
                if number == 3:  # while the second batch is gathered
                    engine.progress.stop_asked = True
                yield item

        with pytest.raises(Stopped, match="stopped after 2 captions; the same command goes on from here"):
            engine(server, until_the_third())
        assert len(server.ledger) == 2
        engine.progress.stop_asked = False
        assert len(engine(server, images)) == 7
        assert len(server.ledger) == 7


def test_nothing_to_do(engine):
    with OpenAIServer() as server:
        assert engine(server, []) == {}
        assert server.requests == 0
