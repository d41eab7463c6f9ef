"""The judge: what it is shown, what it costs, what its interval is worth, and when it looks at more."""

from __future__ import annotations

import io
import json
import random
import tempfile
from decimal import Decimal
from pathlib import Path

import pytest
from PIL import Image

from caption.vision_server import VisionServer
from lens_caption.prompts import load_recipe
from lens_caption.quality.binding import canary_pairs
from lens_caption.quality.config import JudgeConfig
from lens_caption.quality.judge import decide
from lens_caption.quality.judging import run_judge
from lens_caption.quality.pool import CaptionPool
from lens_caption.quality.text import sentences
from lens_caption.testing.openai_server import FakeServer
from lens_core.config.pipeline import load_pipeline
from lens_core.errors import LensError, Stopped
from lens_core.pipeline.progress import Progress
from lens_core.pipeline.runner import run_pipeline
from lens_core.storage.captions import read_captions

RECIPE = load_recipe("check-1")
PAIRS = [canary for pair in canary_pairs(6, seed=0, side=256) for canary in pair]


def config(server=None, **options):
    url = server.url if server else "http://127.0.0.1:9/v1"
    return JudgeConfig(**{"model": "seer", "base_url": url, "max_wait_s": 0, "max_attempts": 3, **options})


def layer(count, wrong, shards=1, seed=0):
    """Captions of three sentences about `count` images; those in `wrong` name another colour in one of them."""
    rng = random.Random(seed)
    captions, images = {}, {}
    for number in range(count):
        canary = PAIRS[number % len(PAIRS)]
        colour, shape = canary.says.split()
        told = "blue" if colour != "blue" else "red"
        lines = [
            f"A {told if number in wrong else colour} {shape} lies below the middle of picture {number}.",
            "The ground is plain grey.",
            f"It has the mood of day {number}.",
        ]
        rng.shuffle(lines)
        key = f"{number:05d}"
        captions[key] = (" ".join(lines), f"shard-{number % shards}")
        images[key] = canary.item.data
    return captions, images.__getitem__


class Desk:
    """A stage's surroundings, as far as a judge needs them: state on disk, progress, and a wish to stop."""

    def __init__(self, folder):
        self.state_dir = Path(folder)
        self.progress = Progress(stream=io.StringIO(), live=False)

    def should_stop(self):
        return self.progress.stop_asked

    def judge(self, server, captions, image_of, **options):
        settings = config(server, **options)
        with tempfile.TemporaryDirectory() as folder:
            pool = CaptionPool(Path(folder) / "pool.sqlite", settings.seed)
            for key, (text, shard) in captions.items():
                pool.add(key, text, shard)
            try:
                report, self.cost = run_judge(pool, image_of, settings, self)
            finally:
                pool.close()
        return report


def judge(server, captions, image_of, **options):
    with tempfile.TemporaryDirectory() as folder:
        return Desk(folder).judge(server, captions, image_of, **options)


def test_decisions():
    assert decide([], 5, 0.1) == (0.0, 1.0, "unjudged")
    assert decide([(0, 4)] * 50, 99, 0.1)[2] == "good"
    assert decide([(2, 4)] * 50, 99, 0.1)[2] == "bad"
    assert decide([(1, 4)] + [(0, 4)] * 4, 99, 0.1)[2] == "undecided"


def test_once_all_are_judged_the_share_decides():
    for wrong, decision in ((14, "bad"), (10, "good"), (6, "good")):
        clusters = [(1, 5)] * wrong + [(0, 5)] * (20 - wrong)
        assert decide(clusters, 20, 0.1) == (wrong / 100, wrong / 100, decision)
        assert decide(clusters, 21, 0.1)[2] == "undecided"


def test_what_the_judge_is_shown():
    captions, image_of = layer(12, wrong=())
    with VisionServer() as server:
        report = judge(server, captions, image_of, sample=12, concurrency=1)
        bodies = server.bodies
    assert len(bodies) == report.calls == 12
    orders, firsts = set(), []
    for body in bodies:
        assert body["messages"][0] == {"role": "system", "content": RECIPE.system}
        assert body["response_format"]["json_schema"] == {"name": "check_1", "strict": True, "schema": RECIPE.schema}
        text = body["messages"][1]["content"][0]["text"]
        shown = [item["statement"] for item in json.loads(text[text.index("[\n") :])]
        (caption,) = [
            value for value, _ in captions.values() if sum(sentence in shown for sentence in sentences(value)) == 3
        ]
        own = sentences(caption)
        assert len(shown) == 4
        (foreign,) = [sentence for sentence in shown if sentence not in own]
        assert any(foreign in sentences(value) for value, _ in captions.values())
        orders.add(tuple(own.index(sentence) if sentence in own else -1 for sentence in shown))
        firsts.append(shown[0])
    assert len(orders) > 6
    assert report.models == {"seer-1": 12}
    assert (report.input_tokens, report.output_tokens) == (1200, 120)


def test_verdicts_come_back_to_their_sentences():
    captions, image_of = layer(30, wrong=range(0, 30, 3))
    with VisionServer() as server:
        report = judge(server, captions, image_of, sample=30)
    assert len(report.judgements) == 30
    for item in report.judgements:
        assert item.sentences == tuple(sentences(captions[item.key][0]))
        for sentence, verdict, reason in zip(item.sentences, item.verdicts, item.reasons, strict=True):
            if "mood" in sentence:
                assert verdict == "undecidable"
            else:
                wrong = "lies" in sentence and int(item.key) % 3 == 0
                assert verdict == ("contradicted" if wrong else "supported")
                assert bool(reason) == wrong
        assert sorted(item.places) == sorted(set(item.places))
    (shard,) = report.shards
    assert (shard.judged, shard.sentences, shard.wrong, shard.wrong_captions) == (30, 90, 10, 10)
    assert report.share == pytest.approx(10 / 90)
    assert report.undecidable == 30
    assert report.controls["shown"] == 30
    assert 0 < report.controls["caught"] < 30  # moods and grey grounds of other captions hold here too
    json.dumps(report.to_json())


def test_bad_shards_are_judged_whole_and_good_ones_are_not():
    captions, image_of = layer(200, wrong=range(0, 200, 2), shards=2)
    with VisionServer() as server:
        report = judge(server, captions, image_of, sample=20, max_wrong=0.15)
    bad, good = (next(item for item in report.shards if item.shard == f"shard-{number}") for number in (0, 1))
    assert (bad.decision, bad.judged, bad.wrong_captions) == ("bad", 100, 100)
    assert (good.decision, good.judged) == ("good", 20)
    assert report.share == pytest.approx(0.5 * 1 / 3)
    with VisionServer() as server:
        report = judge(server, captions, image_of, sample=20, max_wrong=0.15, escalate=False)
    assert sorted(item.judged for item in report.shards) == [20, 20]


def test_undecided_shards_get_more_until_the_limit():
    captions, image_of = layer(400, wrong=range(0, 400, 3))
    with VisionServer() as server:
        report = judge(server, captions, image_of, sample=10, max_sample=80, max_wrong=0.11)
    assert report.shards[0].judged == 80
    assert report.shards[0].decision == "undecided"


def test_never_more_calls_than_allowed():
    captions, image_of = layer(100, wrong=range(100), shards=4)
    with VisionServer() as server:
        report = judge(server, captions, image_of, sample=10, max_calls=25)
        assert len(server.bodies) == report.calls == 25
    assert {item.captions for item in report.shards} == {25}
    assert min(item.judged for item in report.shards) > 0


def test_a_judge_that_trusts_beginnings_shows_by_place_and_by_its_controls():
    captions, image_of = layer(120, wrong=range(120))
    with VisionServer(trusting=True) as server:
        report = judge(server, captions, image_of, sample=120, max_sample=120)
    first, middle, last = (wrong / count for wrong, count in report.by_place)
    assert first == 0
    assert min(middle, last) > 0.2
    with VisionServer() as server:
        honest = judge(server, captions, image_of, sample=120, max_sample=120)
    assert min(wrong / count for wrong, count in honest.by_place) > 0.2
    assert honest.controls["caught"] > report.controls["caught"]


def test_the_sample_follows_the_seed():
    captions, image_of = layer(100, wrong=())
    with VisionServer() as server:
        picked = [
            {item.key for item in judge(server, captions, image_of, sample=10, seed=seed).judgements}
            for seed in (1, 1, 2)
        ]
    assert picked[0] == picked[1] != picked[2]


def test_answers_are_not_bought_twice(tmp_path):
    captions, image_of = layer(20, wrong=())
    desk = Desk(tmp_path)
    with VisionServer() as server:
        first = desk.judge(server, captions, image_of, sample=20)
        again = desk.judge(server, captions, image_of, sample=20)
        assert len(server.bodies) == first.calls == again.calls == 20
        assert again == first
        changed = {**captions, "00003": ("A red circle lies there. It is something else now.", "shard-0")}
        desk.judge(server, changed, image_of, sample=20, controls=False)
        desk.judge(server, captions, image_of, sample=20, controls=False)
        assert len(server.bodies) == 20 + 20 + 1  # other questions than before, and one that differs among them


def test_a_stop_leaves_what_is_judged(tmp_path):
    captions, image_of = layer(100, wrong=())
    desk = Desk(tmp_path)

    class Stopping(VisionServer):
        def answer(self, body):
            desk.progress.stop_asked = len(self.bodies) >= 16
            return super().answer(body)

    with Stopping() as server:
        with pytest.raises(Stopped, match=r"stopped after 1\d captions; the same command goes on from here"):
            desk.judge(server, captions, image_of, sample=100, concurrency=2)
        asked = len(server.bodies)
        assert 16 <= asked <= 18
    desk.progress.stop_asked = False
    with VisionServer() as server:
        assert len(desk.judge(server, captions, image_of, sample=100).judgements) == 100
        assert len(server.bodies) == 100 - asked


def test_the_budget_is_hard_and_the_run_goes_on_from_it(tmp_path):
    captions, image_of = layer(60, wrong=())
    desk = Desk(tmp_path)
    with FakeServer() as server:
        options = {"model": "gpt-4.1", "sample": 60, "concurrency": 4, "controls": False, "max_side": 96}
        with pytest.raises(Stopped, match=r"the budget is used up after \d+ of 60 images: .* of budget.usd 0.05"):
            desk.judge(server, captions, image_of, budget={"usd": "0.05"}, **options)
        spent, asked = server.ledger.total_cost(), len(server.ledger)
        assert 0 < spent <= Decimal("0.05")
        assert 0 < asked < 60
        desk.judge(server, captions, image_of, budget={"usd": "5"}, **options)
        assert len(server.ledger) == 60  # nothing is bought twice
        assert Decimal(desk.cost["usd"]) == server.ledger.total_cost()


@pytest.mark.parametrize("fault", ["429", "500", "html"])
def test_passing_faults_are_tried_again(fault):
    captions, image_of = layer(1, wrong=())
    with VisionServer(script=[fault, fault]) as server:
        report = judge(server, captions, image_of, sample=2)
        assert len(server.bodies) == 3
    assert len(report.judgements) == report.calls == 1
    assert (report.models, report.input_tokens, report.output_tokens) == ({"seer-1": 1}, 100, 10)


@pytest.mark.parametrize(
    ("fault", "requests"), [("429", 3), ("400", 1), ("refusal", 1), ("length", 1), ("verdict-missing", 1)]
)
def test_lasting_faults_leave_a_caption_unjudged(fault, requests):
    captions, image_of = layer(2, wrong=())
    once_more = [fault] * requests if fault == "429" else []
    with VisionServer(script=[fault] * requests + ["ok"] + once_more) as server:
        report = judge(server, captions, image_of, sample=2, concurrency=1)
        assert len(server.bodies) == requests + 1 + len(once_more)
    assert sum(report.unjudged.values()) == 1
    assert len(report.judgements) == 1


@pytest.mark.parametrize("fault", ["401", "quota", "redirect"])
def test_what_refuses_everything_ends_it(fault, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret")
    captions, image_of = layer(2, wrong=())
    with VisionServer(script=[fault] * 9) as server:
        with pytest.raises(LensError, match="refuses the model 'seer'") as caught:
            judge(server, captions, image_of, sample=2, concurrency=1)
        assert set(server.keys) == {"Bearer a-secret"}
    assert "a-secret" not in str(caught.value)


def test_answers_for_other_sentences_are_not_used():
    captions, image_of = layer(3, wrong=())
    with VisionServer(script=["verdict-missing"]) as server:
        report = judge(server, captions, image_of, sample=3, concurrency=1)
    assert report.unjudged == {"the judge did not answer for every sentence exactly once": 1}
    assert len(report.judgements) == 2


def test_nobody_listening_and_bad_images():
    captions, image_of = layer(3, wrong=())
    with pytest.raises(LensError, match=r"answered none of the last 3 images: .*; 0 outcomes are kept"):
        judge(None, captions, image_of, sample=3, max_attempts=1)
    with VisionServer() as server:
        report = judge(server, captions, lambda key: b"no image", sample=3)
    assert report.unjudged == {"it is not an image": 3}
    assert (report.share, report.low, report.high) == (0.0, 0.0, 1.0)
    assert report.shards[0].decision == "unjudged"


def test_openai_itself_needs_a_key_and_addresses_carry_none(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    captions, image_of = layer(2, wrong=())
    with pytest.raises(LensError, match="export OPENAI_API_KEY="):
        judge(None, captions, image_of, base_url="https://api.openai.com/v1")
    with pytest.raises(ValueError, match="must not carry credentials"):
        JudgeConfig(model="m", base_url="http://me:secret@host/v1")


def test_no_price_no_bound_in_dollars(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    captions, image_of = layer(2, wrong=())
    with pytest.raises(LensError, match="no profile"):
        judge(None, captions, image_of, model="m", base_url="https://api.openai.com/v1", budget={"usd": "1"})


PIPELINE = """\
run: run
stages:
  - {{name: images, type: ingest, source: {{type: image-folder, url: photos}}}}
  - name: dense
    type: caption
    source: images
    captioner: {{type: openai, model: m, base_url: "{captions}", max_wait_s: 0}}
  - name: checked
    type: check-captions
    source: dense
    gates: {{repeated_caption: {{action: skip}}, loops: {{action: skip}}}}
    max_rejected: 1
    judge: {{model: judge, base_url: "{judge}", sample: 4, max_wrong: 0.2, max_wait_s: 0, max_attempts: 1{more}}}
"""


@pytest.fixture
def stage(tmp_path, lens_registry, monkeypatch):
    """Caption eight shapes by one server, and have another judge them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number, canary in enumerate(PAIRS[:8]):
        Image.open(io.BytesIO(canary.item.data)).save(tmp_path / "photos" / f"{number}.png")

    def run(captioner, judge, progress=None, more=""):
        text = PIPELINE.format(captions=captioner.url, judge=judge.url, more=more)
        (tmp_path / "pipeline.yaml").write_text(text)
        pipeline = load_pipeline("pipeline.yaml", lens_registry)
        progress = progress or Progress(stream=io.StringIO(), live=False)
        return run_pipeline(pipeline, lens_registry, progress=progress)["checked"]

    return run


def test_stage_lets_good_captions_pass(stage):
    with VisionServer() as captioner, VisionServer() as judge:
        artifact = stage(captioner, judge)
        assert len(judge.bodies) == artifact.stats["judge"]["calls"] == 8
    assert artifact.stats["captions"] == 8
    assert artifact.stats["judge"]["wrong_share"] == 0
    report = artifact.read_json("judge.json")
    assert report["recipe"] == f"check-1 {RECIPE.hash}"
    assert len(artifact.read_bytes("judgements.jsonl").decode().splitlines()) == 8


def test_stage_rejects_wrong_captions_of_bad_shards(stage):
    with VisionServer(crossing=1.0) as captioner, VisionServer() as judge:
        artifact = stage(captioner, judge)
    rows = read_captions(artifact)
    # The very first answer has no image before it.
    assert [row.status for row in rows].count("rejected") == 7
    assert all(row.detail.startswith("judge: ") for row in rows if row.status == "rejected")
    findings = [json.loads(line) for line in artifact.read_bytes("checks.jsonl").decode().splitlines()]
    assert {item["gate"] for item in findings} == {"judge"}
    assert all(item["reason"].startswith("it is a ") for item in findings)


def test_stage_flags_wrong_captions_where_the_shard_is_not_bad(stage):
    with VisionServer(crossing=1.0) as captioner, VisionServer() as judge:
        artifact = stage(captioner, judge, more=", escalate: false")
    rows = read_captions(artifact)
    found = {json.loads(line)["key"] for line in artifact.read_bytes("checks.jsonl").decode().splitlines()}
    assert {row.key for row in rows if row.provenance.get("flags") == "judge"} == found
    assert len(found) == artifact.stats["flagged_by"]["judge"] > 0
    assert all(row.status == "ok" and row.text for row in rows)


def test_a_judges_words_cannot_steer_the_terminal(stage):
    class Painting(VisionServer):
        def verdicts(self, instruction, look):
            found = super().verdicts(instruction, look)
            return [{**item, "reason": item["reason"] and "\x1b[2Jgone"} for item in found]

    said = io.StringIO()
    with VisionServer(crossing=1.0) as captioner, Painting() as judge:
        stage(captioner, judge, Progress(stream=said, live=False))
    assert "such as: \ufffd[2Jgone" in said.getvalue()
    assert "\x1b[2J" not in said.getvalue()


def test_stage_goes_on_without_paying_twice(stage):
    with VisionServer() as captioner, VisionServer(script=["ok"] * 5 + ["401"] * 9) as judge:
        with pytest.raises(LensError, match="refuses the model 'judge'"):
            stage(captioner, judge)
        asked = len(judge.bodies)
        judge.script.clear()
        stage(captioner, judge)
        assert len(judge.bodies) == asked + 8 - 5


def test_stage_stops_when_asked(stage):
    with VisionServer() as captioner, VisionServer() as judge:
        progress = Progress(stream=io.StringIO(), live=False)

        class Stopping(VisionServer):
            def answer(self, body):
                progress.stop_asked = True
                return super().answer(body)

        with Stopping() as stopping, pytest.raises(Stopped, match=r"stopped after \d captions"):
            stage(captioner, stopping, progress)
        assert not judge.bodies
