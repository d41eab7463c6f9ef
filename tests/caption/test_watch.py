"""A watched run: a server that answers about other images is found out while it does, and what it said is not kept."""

from __future__ import annotations

import json
from decimal import Decimal

import numpy as np
import pytest

from caption.runs import Run
from lens_caption.quality.binding import CanaryWatch
from lens_caption.quality.repeat_watch import RepeatWatch, SentenceWatch
from lens_caption.testing.openai_server import FakeServer, Faults, number_in_text
from lens_core.config.pipeline import load_pipeline
from lens_core.contracts import CaptionOutcome
from lens_core.errors import ConfigError
from lens_core.images import decode, to_jpeg

ALONE = 8
ONLY_CANARIES = {"canaries": 4, "repeats": None, "sentences": None}


def watch(**settings):
    return {"stage": {"watch": settings}, "captioner": {"concurrency": 1}}


def canaries_in(server):
    return sum(number_in_ledger(entry) for entry in server.ledger)


def number_in_ledger(entry):
    return (entry.custom_id or "").startswith("canary-")


def test_an_honest_server_is_left_alone_and_canaries_are_in_the_bill(tmp_path):
    run = Run(tmp_path, 40)
    with FakeServer() as server:
        code, said = run.run(server, **watch(canaries=4), budget={"usd": 5})
        assert code == 0, said
        canaries = canaries_in(server)
        assert ALONE + 3 < canaries < ALONE + 20
        assert len(server.ledger) == 40 + canaries
        assert Decimal(run.stats()["usd"]) == server.ledger.total_cost()
    run.assert_captions_are_right()
    assert not any("flags" in json.loads(row["provenance"]) for row in run.rows())


def test_canaries_count_for_the_budget(tmp_path):
    run = Run(tmp_path, 40)
    with FakeServer() as server:
        code, said = run.run(server, **watch(canaries=4), budget={"images": 20})
        assert (code, len(server.ledger)) == (3, 20)
        assert "the budget is used up" in said[-1]
        assert canaries_in(server) > ALONE
        assert run.run(server, **watch(canaries=4), budget={"images": 100})[0] == 0
        assert max(server.ledger.custom_ids().values()) == 1
    run.assert_captions_are_right()


@pytest.mark.parametrize("settings", [ONLY_CANARIES, {"canaries": None, "sentences": None}])
def test_swapped_answers_stop_the_run_and_are_asked_for_again(tmp_path, settings):
    run = Run(tmp_path, 60)
    with FakeServer(faults=["ok"] * 30 + ["swapped"] * 200) as server:
        code, said = run.run(server, **watch(**settings))
        assert code == 3
        assert said[-1].startswith("lens: the captions may not belong to their images: "), said
        assert "Traceback" not in "\n".join(said)
        asked = len(server.ledger)
        assert 30 < asked < 60
        statuses = run.journalled()
        doubted = [key for key, status in statuses.items() if status == "transport"]
        assert doubted
    with FakeServer() as server:
        code, said = run.run(server, **watch(**settings))
        assert code == 0, said
    run.assert_captions_are_right()


def test_a_server_that_swaps_from_the_start_gets_no_images(tmp_path):
    run = Run(tmp_path, 20)
    with FakeServer(faults=["ok"] + ["swapped"] * 99) as server:
        code, said = run.run(server, **watch(**ONLY_CANARIES))
        assert (code, len(server.ledger)) == (3, ALONE)
    assert "got one answer" in said[-1]


def test_marked_rows_say_why_they_are_in_doubt(tmp_path):
    run = Run(tmp_path, 80)
    with FakeServer(faults=Faults(rate=0.15, kinds=["swapped"], seed=1)) as server:
        code, said = run.run(server, stage={"watch": {"action": "mark", "canaries": None, "sentences": None}})
        assert code == 0, said
        assert server.faults.met["swapped"] > 5
    rows = run.rows()
    flagged = {number for number, row in enumerate(rows) if "flags" in json.loads(row["provenance"])}
    wrong = {number for number, row in enumerate(rows) if number_in_text(row["text"]) != number}
    assert wrong
    assert wrong < flagged  # and those whose captions they got
    assert flagged == wrong | {number_in_text(rows[number]["text"]) for number in wrong}
    assert {json.loads(rows[number]["provenance"])["flags"] for number in flagged} == {"repeated_caption"}
    assert sum("may not belong to their images" in line for line in said) <= 5


def test_all_captions_since_the_last_good_canary_are_marked(tmp_path):
    run = Run(tmp_path, 60)
    with FakeServer(faults=["ok"] * 30 + ["swapped"] * 200) as server:
        code, said = run.run(server, **watch(action="mark", **ONLY_CANARIES))
        assert code == 0, said
    rows = run.rows()
    flagged = {number for number, row in enumerate(rows) if "flags" in json.loads(row["provenance"])}
    wrong = {number for number, row in enumerate(rows) if number_in_text(row["text"]) != number}
    assert len(wrong) > 20
    assert wrong <= flagged
    assert len(flagged - wrong) < 10  # since the last good canary, which may have been the caption before


def test_alarms_of_a_run_that_was_killed_are_not_forgotten(tmp_path):
    run = Run(tmp_path, 30)
    with FakeServer() as server:
        assert run.run(server, **watch(canaries=None), budget={"images": 10})[0] == 3
        doubted = sorted(run.journalled())[:3]
        file = run.journal_file.with_name("alarms.jsonl")
        file.write_text(json.dumps({"kind": "canary", "keys": doubted}) + '\n{"kind": "can')
        assert run.run(server, **watch(canaries=None), budget={"images": 99})[0] == 0
        again = [name.rpartition("-")[0] for name in server.ledger.custom_ids()]
        assert {key for key in again if again.count(key) == 2} == set(doubted)
    run.assert_captions_are_right()


def test_watches_in_the_batch_lane(tmp_path):
    run = Run(tmp_path, 30)
    with FakeServer(faults=["ok"] * (ALONE + 10) + ["swapped"] * 99, clock=5000.0) as server:
        options = {"lane": "batch", "batch": {"max_requests": 10, "poll_s": 0.1}}
        code, said = run.run(server, stage={"watch": {"canaries": 6}}, **options)
        assert (code, "may not belong" in said[-1]) == (3, True), said


def test_a_sentence_in_many_captions():
    sentence = "The wall behind it all is plain and evenly lit from the left."
    seen = SentenceWatch(share=0.05, window=100)
    for number in range(300):
        assert seen.add(f"k{number}", f"Picture {number} hangs in a room of its own somewhere.") is None
    for number in range(4):
        assert seen.add(f"s{number}", f"Number {number}. {sentence}") is None
        for other in range(9):
            assert seen.add(f"o{number}{other}", f"Another picture {number} {other}.") is None
    assert seen.add("s4", f"It is the last. {sentence}") == (sentence, ["s0", "s1", "s2", "s3", "s4"])
    assert seen.add("s5", sentence.upper()) == (sentence.upper(), ["s5"])
    slow = SentenceWatch(share=0.05, window=100)
    for number in range(300):  # one in thirty stays below the limit, however long it goes on
        text = sentence if number % 30 == 0 else f"Picture {number} hangs in a room of its own somewhere."
        assert slow.add(f"k{number}", text) is None


def test_a_sentence_that_a_server_adds_to_all_stops_the_run(tmp_path):
    run = Run(tmp_path, 60)
    for number, data in enumerate(photos(60, 96)):  # of images without a number, what it says in French is one sentence
        (tmp_path / "photos" / f"{number:06d}.jpg").write_bytes(data)
    with FakeServer(faults=["wrong-language"] * 99) as server:
        code, said = run.run(server, **watch(canaries=None, repeats=None, sentences=0.02))
        assert (code, "20 of the last 1,000 captions say" in said[-1]) == (3, True), said
        assert 20 <= len(server.ledger) < 30


def photos(count, side=32):
    """Images of noise."""
    rng = np.random.default_rng(1)
    return [to_jpeg(rng.integers(0, 255, (side, side, 3), np.uint8), max_side=side, quality=90) for _ in range(count)]


def test_repeats_over_images_that_look_different():
    data = {str(number): data for number, data in enumerate(photos(4))}
    data["smaller"] = to_jpeg(decode(data["0"]), max_side=30, quality=95)
    opened = []

    def image_of(key):
        opened.append(key)
        return data[key]

    text = "Two dogs run along a beach at dusk, a red ball before them and a ship behind, under low clouds."
    watch = RepeatWatch(image_of, min_words=15, min_bits=11, window=3)
    assert watch.add("0", text) is None
    assert watch.add("0", text) is None
    assert not opened
    assert watch.add("smaller", text) is None
    assert watch.add("1", text.upper()) == "smaller"
    assert watch.add("2", text + " More.") is None
    assert watch.add("3", "two dogs") is None
    for number in range(3):
        assert watch.add(f"other {number}", f"{text} {number}") is None
    assert watch.add("3", text) is None  # forgotten by now


def test_what_canaries_tell():
    canaries = CanaryWatch(seed=3, pairs=2)

    def says(texts):
        return [CaptionOutcome(key=str(number), status="ok", text=text) for number, text in enumerate(texts)]

    honest = [f"A {canary.says} on a field that is grey above." for canary in canaries.canaries]
    assert canaries.learn(says(honest)) is None
    assert all(canaries.complaint(number, outcome) is None for number, outcome in enumerate(says(honest)))
    assert "the server said" in canaries.complaint(0, says([honest[1]])[0])
    assert "the server said" in canaries.complaint(0, says(["Two dogs run along a beach at dusk."])[0])
    # A failure of transport says nothing about whose caption it would have been.
    assert canaries.complaint(0, CaptionOutcome(key="0", status="transport")) is None
    assert "got one answer" in canaries.learn(says(["A scenic view of mountains."] * 4))
    assert "alone, the server said" in canaries.learn(says([honest[1], honest[0], *honest[2:]]))


def test_one_process_must_see_all(tmp_path, lens_registry):
    file = tmp_path / "pipeline.yaml"
    file.write_text(
        "run: run\nstages:\n  - {name: images, type: ingest, source: {type: scenes, count: 2}}\n"
        "  - {name: words, type: caption, source: images, captioner: {type: openai, model: m}, "
        "watch: {}, executor: leases}\n"
    )
    with pytest.raises(ConfigError, match="'watch' needs the executor process"):
        load_pipeline(str(file), lens_registry)
