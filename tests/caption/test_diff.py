"""What changed between two layers: numbers that can be checked by hand, and a page that no caption can break out of."""

from __future__ import annotations

import html.parser
import io
import json
import statistics

import pytest
from PIL import Image

from lens_caption.quality.diff import diff_layers, word_changes
from lens_caption.quality.diff_page import diff_page, diff_table
from lens_core.config.pipeline import load_pipeline
from lens_core.errors import ImageError
from lens_core.pipeline.progress import Progress
from lens_core.pipeline.runner import run_pipeline
from lens_core.storage.captions import CaptionRow

NAMES = ("old/dense", "new/dense")
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></p></article><iframe src=//evil.example></iframe>",
    "<!-- --><svg/onload=alert(1)>",
    "&lt;b&gt; \u202eright to left\u202c \x00\x1b[31m",
    "<ins>not ours</ins> javascript:alert(1) <meta http-equiv=refresh content=0>",
]


def row(key, text, status="ok", **provenance):
    return CaptionRow(
        key=key, layer="dense", text=text, status=status, detail="" if status == "ok" else "why", provenance=provenance
    )


OLD = [
    row("a", "A red cat sits. The sky is blue.", served_model="one", input_tokens=10, output_tokens=5),
    row("b", "A dog runs.", served_model="one", input_tokens=10, output_tokens=3),
    row("c", "A bird flies over a lake.", served_model="one", input_tokens=10, output_tokens=6),
    row("d", "", status="refusal", served_model="one"),
    row("e", "Only here."),
]
NEW = [
    row("a", "A red cat sits. The sky is grey. A tree stands left.", served_model="two", input_tokens=20),
    row("b", "a dog  runs", served_model="two"),
    row("c", "", status="refusal"),
    row("d", "A man waves.", served_model="two"),
    row("f", "Only there."),
]


def test_numbers_by_hand():
    diff = diff_layers(OLD, NEW)
    assert (diff.both, diff.pairs, diff.same) == (4, 2, 1)
    assert diff.statuses == {"ok → ok": 2, "ok → refusal": 1, "refusal → ok": 1}
    assert (diff.a.images, diff.a.captions, diff.a.by_status) == (5, 4, {"ok": 4, "refusal": 1})
    assert (diff.a.words_mean, diff.a.words_median) == (19 / 4, 4.5)
    assert (diff.a.input_tokens, diff.a.output_tokens, diff.b.input_tokens) == (30, 14, 20)
    assert diff.a.facts == {"served_model": {"one": 4}}
    assert diff.b.facts == {"served_model": {"two": 3}}
    # Words 8 → 12 and 3 → 3.
    mean, low, high = diff.words_change
    assert mean == 2
    half = 1.959964 * statistics.stdev([4, 0]) / 2**0.5
    assert (low, high) == pytest.approx((2 - half, 2 + half), abs=1e-3)
    assert (diff.sentences_kept, diff.sentences_removed, diff.sentences_added) == (2, 1, 2)
    assert {pair.key for pair in diff.samples} == {"a", "c", "d"}  # b says the same
    json.dumps(diff.to_json())
    assert "samples" not in diff.to_json()


def test_a_layer_and_itself():
    diff = diff_layers(OLD, OLD)
    assert (diff.pairs, diff.same, diff.common, diff.words_change) == (4, 4, 1.0, (0, 0, 0))
    assert (diff.sentences_removed, diff.sentences_added) == (0, 0)


def test_nothing_in_common():
    diff = diff_layers(OLD[:1], NEW[4:])
    assert (diff.both, diff.pairs, diff.samples) == (0, 0, ())
    assert diff_layers([], []).a.words_mean == 0
    assert "words, mean" in [line[0] for line in diff_table(diff, NAMES)]


def test_samples_are_lost_ones_the_most_different_and_some_at_random():
    old = [row(f"{number:03d}", f"a b c d e f g h {number}") for number in range(100)]
    new = [row(f"{number:03d}", f"a b c d e f g h {number}" if number > 9 else "x y z") for number in range(98)]
    new += [row("098", "", status="empty"), row("099", "", status="empty")]
    diff = diff_layers(old, new, samples=12, seed=1)
    keys = [pair.key for pair in diff.samples]
    assert len(keys) == len(set(keys))
    assert set(keys[:2]) == {"098", "099"}
    assert set(keys[2:7]) < {f"{number:03d}" for number in range(10)}  # the only ones that changed
    assert set(keys[7:]) < {f"{number:03d}" for number in range(10)}
    backwards = diff_layers(reversed(old), reversed(new), samples=12, seed=1)
    assert keys == [pair.key for pair in backwards.samples]
    assert keys != [pair.key for pair in diff_layers(old, new, samples=12, seed=2).samples]
    assert keys == [pair.key for pair in diff_layers(old, new, samples=12, seed=1).samples]
    assert diff_layers(old, new, samples=0).samples == ()


def test_words_that_changed():
    changes = word_changes("A red cat sits here.", "A blue cat sits.")
    assert changes == [
        ("same", "A"),
        ("removed", "red"),
        ("added", "blue"),
        ("same", "cat"),
        ("removed", "sits here."),
        ("added", "sits."),
    ]
    long = " ".join(map(str, range(5000)))
    assert word_changes(long, long + " x") == [("removed", long), ("added", long + " x")]
    assert word_changes("", "a") == [("added", "a")]


class Reader(html.parser.HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_captions_stay_text(hostile):
    old = [row(hostile, hostile, served_model=hostile), row("b", "fine"), row("c", hostile)]
    new = [row(hostile, f"{hostile} more"), row("b", "", status=hostile), row("c", hostile)]
    page = diff_page(diff_layers(old, new), (hostile, "new"), lambda key: (_ for _ in ()).throw(ImageError(hostile)))
    read = Reader(page)
    harmless = diff_page(diff_layers(OLD, NEW), NAMES)
    assert set(read.tags) == set(Reader(harmless).tags)
    assert not {"script", "iframe", "svg", "img", "object", "form", "a"} & set(read.tags)
    assert not any(name.startswith("on") or name in {"href", "src", "style"} for name, _ in read.attributes)
    assert hostile in read.text
    assert "default-src 'none'" in page
    assert read.tags.count("meta") == 3


def test_page_shows_pictures_and_marks_changes():
    stream = io.BytesIO()
    Image.new("RGB", (600, 400), (200, 10, 10)).save(stream, "PNG")
    page = diff_page(diff_layers(OLD, NEW), NAMES, lambda key: stream.getvalue())
    assert page.count("data:image/jpeg;base64,") == 3
    assert "<del>blue.</del> <ins>grey. A tree stands left.</ins>" in page
    assert "<del>(refusal: why)</del> <ins>A man waves.</ins>" in page
    read = Reader(page)
    assert all(value.startswith("data:image/jpeg") for name, value in read.attributes if name == "src")


PIPELINE = """\
run: run
stages:
  - {name: images, type: ingest, source: {type: scenes, count: 10}}
  - {name: brief, type: caption, source: images, captioner: {type: scene-graph, style: brief}}
  - {name: dense, type: caption, source: images, captioner: {type: scene-graph, style: dense}}
  - {name: checked, type: check-captions, source: dense, gates: {length: {min_words: 25}}, max_rejected: 1}
  - {name: others, type: ingest, source: {type: scenes, count: 10, split: held-out}}
  - {name: elsewhere, type: caption, source: others, captioner: {type: scene-graph, style: dense}}
"""


def test_command(lens, tmp_path, lens_registry, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    run_pipeline(
        load_pipeline("pipeline.yaml", lens_registry),
        lens_registry,
        progress=Progress(stream=io.StringIO(), live=False),
    )
    done = lens("caption", "diff", "run/brief", "run/dense", "-o", "diff.html", "--samples", "6")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["brief/brief", "dense/dense"]
    assert "captions in both" in done.stdout
    page = (tmp_path / "diff.html").read_text()
    assert page.count("<article>") == page.count("data:image/jpeg") == 6
    told = json.loads(lens("caption", "diff", "run/dense", "run/checked", "--json").stdout)
    assert told["diff"]["pairs"] == told["diff"]["same"] > 0
    assert told["diff"]["statuses"]["ok → rejected"] == 10 - told["diff"]["pairs"]
    apart = lens("caption", "diff", "run/dense", "run/elsewhere")
    assert (apart.returncode, apart.stderr) == (2, "lens: run/dense and run/elsewhere have no image in common\n")
    wrong = lens("caption", "diff", "run/dense", "run/brief", "--layer-b", "x")
    assert (wrong.returncode, "has no caption layer 'x'" in wrong.stderr) == (2, True)
