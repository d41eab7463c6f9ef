"""The report: hostile words stay words, the page is whole under its own policy, and the headline follows its rule."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import io
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from lens_core.intervals import wilson_interval
from lens_core.storage.captions import CaptionRow, write_captions
from lens_core.storage.shards import ImageRow, ShardWriter, image_key
from lens_train.report.charts import ARM_COLOURS
from lens_train.report.summary import summarise

HOSTILE = [
    "<script>document.title='pwned'</script>",
    "</title></style></textarea><script>document.title='pwned'</script>",
    '"><img src=x onerror="document.title=\'pwned\'">',
    "' onmouseover='document.title=1' x='",
    "javascript:document.title='pwned'",
    "<a href=\"javascript:document.title='pwned'\">here</a>",
    "<meta http-equiv=refresh content='0;url=http://example.invalid/'>",
    "<svg onload=document.title='pwned'><style>*{display:none}</style>",
    "<!-- <base href=//example.invalid> -->",
    "&lt;script&gt;document.title='pwned'&lt;/script&gt;",
    "{{7*7}}{% for x in y %}{# gone #}",
    "\u202egnp.exe\u202c \u2066\u202e",
    "a plain caption, with ümlauts and 漢字",
]
# fmt: off
TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "div", "section", "svg", "circle", "dl",
    "dt", "dd", "article", "figure", "img", "figcaption", "strong", "table", "caption", "thead", "tbody", "tr", "th",
    "td", "small", "br", "span", "code", "footer",
}
# fmt: on
URLS = {"src", "href", "xlink:href", "action", "formaction", "srcset", "poster", "data", "background", "ping", "cite"}
VIVID = [(255, 0, 255), (0, 255, 128), (255, 128, 0)]


def png(colour, size=(40, 40)):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def colour_of(number):
    """The colour of training image number so-and-so: the first ones vivid, as the page does not use them itself."""
    return VIVID[number] if number < 2 else (number, 90, 7)


class Page(html.parser.HTMLParser):
    """What a browser would make of a page: its elements, attributes and text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text, self.headings = [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        if self.tags[-1:] == ["h2"] and data.strip():
            self.headings.append(data)
        if self.tags[-1:] != ["style"]:
            self.text += data

    def values(self, name):
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.fixture
def world(publish):
    """Builders of the artefacts that a report may be given."""

    class World:
        def images(self, names, undecodable=()):
            def fill(output):
                writer = ShardWriter(output)
                for number, name in enumerate(names):
                    data = b"not an image" if number in undecodable else png(colour_of(number))
                    writer.add(ImageRow(key=image_key(data), name=name, data=data, width=40, height=40, format="png"))
                    self.keys.append(image_key(data))
                writer.close()

            self.keys = []
            self.stored = publish("images", "images", fill)
            return self.stored

        def captions(self, name, texts, style=None):
            def fill(output):
                rows = [CaptionRow(key=key, layer=name, text=text) for key, text in zip(self.keys, texts, strict=False)]
                write_captions(output, rows)

            captioner = {"type": "scene-graph", "style": style} if style else {"type": "openai", "model": "m"}
            return publish("captions", name, fill, parents=[self.stored], config={"captioner": captioner})

        def model(self, name, captions, *, flops=1e12, losses=(4.0, 3.0, 2.0, 1.0)):
            def fill(output):
                lines = [
                    json.dumps({"step": step, "loss": loss, "flops": step * flops / len(losses), "images": 64 * step})
                    for step, loss in enumerate(losses, start=1)
                ]
                output.write_text("metrics.jsonl", "".join(line + "\n" for line in lines))

            stats = {
                "steps": 1234,
                "training_flops": flops,
                "images": 5000,
                "image_tokens": 80_000,
                "text_tokens": 60_000,
                "seconds": 12.345,
                "parameters": 2_400_000,
            }
            return publish("model", name, fill, parents=[captions], stats=stats)

        def samples(self, name, entries, *, seed=0, expand=True):
            """Entries: (model, prompt, colour)."""

            def fill(output):
                rows = []
                for number, (model, prompt, colour) in enumerate(entries):
                    output.write_bytes(f"{number:04d}.png", png(colour))
                    index = [asked for _, asked, _ in entries].index(prompt)
                    rows.append(
                        {
                            "model": model,
                            "path": f"{number:04d}.png",
                            "prompt": prompt,
                            "rewritten_prompt": f"{prompt} (expanded)" if expand else prompt,
                            "seed": seed,
                            "index": index,
                        }
                    )
                output.write_json("samples.json", {"format_version": 1, "samples": rows})

            return publish("samples", name, fill)

        def scores(self, name, cells, **more):
            """Cells: (model, style, skill, correct, n)."""

            def fill(output):
                rows = []
                for model, style, skill, correct, n in cells:
                    low, high = wilson_interval(correct, n)
                    rows.append(
                        {"model": model, "style": style, "skill": skill, "correct": correct, "n": n}
                        | {"accuracy": correct / n, "low": low, "high": high}
                    )
                output.write_json("scores.json", {"format_version": 1, "cells": rows, **more})

            return publish("scores", name, fill)

    return World()


@pytest.fixture
def report(run_stage, lens_registry):
    """Run the report stage: `report([artefacts], title=…)` gives the page."""

    def run(inputs, **options):
        sources = [made.name for made in inputs]
        config = lens_registry.parse("stages", {"name": "report", "type": "report", "source": sources, **options})
        folder, stats = run_stage(lens_registry, config, inputs)
        page = (folder / "report.html").read_text()
        assert (folder.parent / "report.html").read_text() == page
        summary = json.loads((folder / "summary.json").read_text())
        assert json.loads((folder.parent / "summary.json").read_text()) == summary
        assert stats == {"headline": summary["headline"]}
        return page

    return run


@pytest.fixture
def hostile(world, report):
    """A page made of hostile names, captions, prompts and title."""
    world.images(HOSTILE)
    first = world.captions("brief", HOSTILE, "brief")
    second = world.captions("dense", HOSTILE[::-1], "dense")
    inputs = [
        world.model("one", first),
        world.model("other", second),
        world.samples("gallery", [("one", prompt, VIVID[2]) for prompt in HOSTILE]),
        world.scores(
            "scores",
            [
                *(("one", "brief", skill, 3, 10) for skill in ("single", "two")),
                *(("other", "dense", skill, 9, 10) for skill in ("single", "two")),
                *(("other", text, text, 1, 10) for text in HOSTILE),
            ],
        ),
    ]
    return report(inputs, title=HOSTILE[0], captions_shown=len(HOSTILE))


def assert_inert(text):
    page = Page(text)
    assert set(page.tags) <= TAGS
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "style"]
    for _, name, value in page.attributes:
        if name in URLS:
            assert re.match(r"data:image/(png|svg\+xml);base64,[A-Za-z0-9+/=]+$", value), value[:80]
    assert page.values("http-equiv") == ["Content-Security-Policy"]
    assert page.tags.count("meta") == 4
    return page


def pictures(page):
    """The pixels, or the XML, of every inlined image."""
    for url in page.values("src"):
        kind, _, payload = url.partition(";base64,")
        data = base64.b64decode(payload, validate=True)
        yield ET.fromstring(data) if kind.endswith("svg+xml") else np.asarray(Image.open(io.BytesIO(data)))


def test_hostile_words_stay_words(hostile):
    page = assert_inert(hostile)
    for text in HOSTILE:
        assert page.text.count(text) >= 4  # two layers of captions, a prompt, a style and a skill
        assert f"training image {text}" in page.values("alt")
    for picture in pictures(page):
        if isinstance(picture, ET.Element):
            names = {element.tag.rpartition("}")[2] for element in picture.iter()}
            assert not names & {"script", "foreignObject", "image", "a"}


def test_policy_allows_the_style_sheet_by_its_hash_and_data_images_only(hostile):
    (policy,) = [value for value in Page(hostile).values("content") if "default-src" in value]
    (style,) = re.findall(r"<style>(.*?)</style>", hostile, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert hostile.index("Content-Security-Policy") < hostile.index("<title>") < hostile.index("<style>")


@pytest.fixture
def browse(tmp_path):
    """Open a page in a headless Chromium: `browse(text)` gives the DOM it ends up with, and a picture of it."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        # A visitor's checkout may lack a browser; our own CI may not.
        lacking = pytest.fail if os.environ.get("CI") else pytest.skip
        lacking("this test opens the report in a browser, and there is none: apt-get install -y chromium")
    file, shot = tmp_path / "page.html", tmp_path / "shot.png"

    def open_page(text, *, picture=False):
        file.write_text(text)
        done = subprocess.run(
            [
                chromium,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--hide-scrollbars",
                "--force-device-scale-factor=1",
                "--window-size=1200,4000",
                f"--user-data-dir={tmp_path / 'profile'}",
                *([f"--screenshot={shot}"] if picture else ["--dump-dom"]),
                file.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return np.asarray(Image.open(shot).convert("RGB")) if picture else done.stdout

    return open_page


def title_of(dom):
    return html.unescape(re.search(r"<title>(.*?)</title>", dom, re.DOTALL)[1])


def test_a_browser_runs_nothing_of_it(hostile, browse):
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', hostile)[0]
    assert title_of(browse(hostile)) == HOSTILE[0]
    # Escaping alone is enough…
    assert title_of(browse(hostile.replace(policy, ""))) == HOSTILE[0]
    # …and so is the policy alone, were the escaping ever forgotten; without either the script would run.
    careless = hostile.replace("</main>", "<script>document.title='pwned'</script></main>")
    assert title_of(browse(careless)) == HOSTILE[0]
    assert title_of(browse(careless.replace(policy, ""))) == "pwned"


def near(picture, colour, tolerance=6):
    """How many pixels have about that colour."""
    return int((np.abs(picture.astype(int) - colour).max(-1) <= tolerance).sum())


def rgb(text):
    return tuple(int(text[i : i + 2], 16) for i in (1, 3, 5))


def test_a_browser_shows_style_pictures_and_charts_under_the_policy(world, report, browse):
    world.images(["a.png", "b.png"])
    models = [
        world.model(name, world.captions(f"c-{name}", ["said", "told"], style), losses=losses)
        for name, style, losses in (("one", "brief", [9.0, 8.0, 7.0, 6.0]), ("other", "dense", [3.0, 2.0, 1.5, 1.0]))
    ]
    samples = world.samples("gallery", [("one", "a prompt", VIVID[2]), ("other", "a prompt", VIVID[2])])
    cells = [
        (model, style, skill, 80, 100)
        for model, style in (("one", "brief"), ("other", "dense"))
        for skill in ("single", "two")
    ]
    without = browse(report([*models, samples]), picture=True)
    with_bars = browse(report([*models, samples, world.scores("scores", cells)]), picture=True)
    for picture in (without, with_bars):
        # The sheet's own paper colour, and not a browser's white.
        assert tuple(picture[2, 2]) == rgb("#fbfaf8")
        for colour in VIVID[:2]:
            assert near(picture, colour, 0) > 0.8 * 90 * 90
        assert near(picture, VIVID[2], 0) > 0.8 * 2 * 100 * 100
    # The dot beside a name is some hundred pixels, a curve some hundreds more, bars are thousands.
    for colour in map(rgb, ARM_COLOURS[:2]):
        assert near(without, colour) > 400
        assert near(with_bars, colour) > near(without, colour) + 5000


def test_a_model_alone(world, report):
    world.images(["a.png"])
    page = assert_inert(report([world.model("only", world.captions("dense", ["a red circle"], "dense"))]))
    assert "Trained only after 1,234 steps; not measured." in page.text
    assert page.headings == ["Training", "What the models were told", "Stages"]
    for present in ("1 TFLOP", "2,400,000", "60,000", "12 s", "a red circle"):
        assert present in page.text
    assert "Accuracy" not in page.text
    assert len(page.values("src")) == 2  # the losses and the training image


def test_captions_without_a_style_and_no_scores(world, report):
    world.images(["a.png"])
    page = assert_inert(report([world.model("own", world.captions("photos", ["a cat"]))]))
    assert "Trained own after 1,234 steps; not measured." in page.text


def test_what_a_rewriter_said_is_no_style_of_the_model(world, report):
    world.images(["a.png"])
    model = world.model("own", world.captions("dense", ["a red circle"], "dense"))
    plain = world.scores("plain", [("own", "dense", "single", 3, 10)], rewriter=None, rewritten={"dense": 0})
    rewritten = world.scores(
        "rewritten", [("own", "dense", "single", 9, 10)], rewriter={"type": "llm"}, rewritten={"dense": 1}
    )
    for tables in ([plain, rewritten], [rewritten, plain]):
        page = assert_inert(report([model, *tables]))
        assert "single object: dense 30 % [" in summarise([model, *tables])["headline"]
        assert "dense, by llm" in page.text


def test_captions_without_a_style_but_with_scores(world, report):
    world.images(["a.png"])
    model = world.model("own", world.captions("photos", ["a cat"]))
    scores = world.scores("scores", [("own", "dense", "single", 7, 10), ("own", "dense", "two", 2, 10)])
    page = assert_inert(report([model, scores]))
    headline = summarise([model, scores])["headline"]
    assert headline in page.text
    # The table below shows what was measured; the headline may not deny it.
    assert headline == "Trained own after 1,234 steps; measured, but not in the style of the captions."
    assert "70" in page.text


def test_galleries_of_one_prompt_and_noise_stand_side_by_side(world, report):
    world.images(["a.png"])
    model = world.model("m", world.captions("dense", ["x"], "dense"))
    galleries = [
        world.samples("plain", [("m", "a cat", VIVID[0]), ("m", "a dog", VIVID[1])], expand=False),
        world.samples("expanded", [("n", "a cat", VIVID[2]), ("n", "a cow", VIVID[0])]),
        world.samples("other-seed", [("m", "a cat", VIVID[1])], seed=5, expand=False),
    ]
    page = assert_inert(report([model, *galleries], captions_shown=0))
    shown = [picture[0, 0].tolist() for picture in pictures(page) if not isinstance(picture, ET.Element)]
    assert shown == [list(VIVID[number]) for number in (0, 2, 1, 0, 1)]
    assert page.values("alt")[:5] == ["m: a cat", "n: a cat", "m: a dog", "n: a cow", "m: a cat"]
    # The page says that a row has one noise for all models: another seed is another row.
    assert page.tags.count("article") == 4
    assert re.findall(r"(\w) was told: (.*)", page.text) == [("n", "a cat (expanded)"), ("n", "a cow (expanded)")]


def test_captions_stand_beside_their_image_for_every_arm(world, report):
    world.images(["a.png", "b.png", "c.png"])
    brief = world.captions("brief", ["b0", "b1", "b2"], "brief")
    dense = world.captions("dense", ["d0", "d1"], "dense")
    page = Page(report([world.model("one", brief), world.model("two", dense)], captions_shown=3))
    told = page.text.split("What the models were told")[1].split("Stages")[0]
    assert re.findall(r"[bd]\d|\(no caption\)", told) == ["b0", "d0", "b1", "d1", "b2", "(no caption)"]
    shown = [picture[0, 0].tolist() for picture in pictures(page) if not isinstance(picture, ET.Element)]
    assert shown == [list(colour_of(number)) for number in range(3)]


def test_an_image_that_cannot_be_decoded_is_not_shown(world, report):
    """Training leaves such images out; the report must not fail over them hours later."""
    world.images(["a.png", "broken.png", "c.png"], undecodable=[1])
    page = Page(report([world.model("m", world.captions("dense", ["cap one", "cap two", "cap three"], "dense"))]))
    assert [alt for alt in page.values("alt") if "training" in alt] == ["training image a.png", "training image c.png"]
    assert re.findall(r"cap \w+", page.text) == ["cap one", "cap three"]


def test_large_training_images_are_scaled_down_and_keep_their_shape(world, publish, report):
    world.images(["a.png"])
    data = png((9, 9, 9), (600, 300))

    def fill(output):
        writer = ShardWriter(output)
        writer.add(ImageRow(key=image_key(data), name="wide", data=data, width=600, height=300, format="png"))
        writer.close()

    world.stored, world.keys = publish("images", "wide", fill), [image_key(data)]
    page = Page(report([world.model("m", world.captions("dense", ["x"], "dense"))]))
    (shown,) = [picture for picture in pictures(page) if not isinstance(picture, ET.Element)]
    assert shown.shape == (64, 128, 3)


def strokes(chart, colour):
    """How many points the lines of a colour have in a chart."""
    return sum(
        len(re.findall(r"[ML]", element.get("d", "")))
        for element in chart.iter()
        if element.tag.endswith("path") and f"stroke: {colour}" in (element.get("style") or "")
    )


def charts(page):
    return [picture for picture in pictures(page) if isinstance(picture, ET.Element)]


def test_charts_are_grey_where_they_are_not_coloured(world, report):
    """The page may be shown on white and on black: black labels would be lost."""
    world.images(["a.png"])
    model = world.model("m", world.captions("dense", ["x"], "dense"))
    page = Page(report([model, world.scores("scores", [("m", "dense", "single", 7, 10)])]))
    assert len(charts(page)) == 2
    for chart in charts(page):
        labels = [element for element in chart.iter() if (element.get("id") or "").startswith("text_")]
        assert len(labels) > 3
        for label in labels:
            assert [child.get("style") for child in label if child.tag.endswith("}g")] == ["fill: #7a8088"]


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, 2.0]])
def test_too_few_losses_make_no_curve(world, report, losses):
    world.images(["a.png"])
    page = Page(report([world.model("m", world.captions("dense", ["x"], "dense"), losses=losses)]))
    assert charts(page) == []


def test_a_loss_that_was_not_finite_leaves_a_gap_not_an_empty_chart(world, report):
    world.images(["a.png"])
    captions = world.captions("dense", ["x"], "dense")
    losses = [4.0 - 0.1 * step for step in range(30)]
    losses[5] = losses[6] = None
    (chart,) = charts(Page(report([world.model("m", captions, losses=losses)])))
    assert strokes(chart, ARM_COLOURS[0]) >= 2 * 20


def test_an_arm_has_one_colour_throughout(world, report):
    """Arms without a curve or without scores must not shift the colours of the others."""
    world.images(["a.png"])
    without = world.model("first", world.captions("photos", ["x"]), losses=[1.0])
    measured = world.model("second", world.captions("dense", ["x"], "dense"))
    scores = world.scores("scores", [("second", "dense", "single", 7, 10)])
    page = Page(report([without, measured, scores]))
    assert page.values("fill") == list(ARM_COLOURS[:2])
    accuracy, losses = charts(page)
    text = ET.tostring(accuracy).decode()
    assert f"fill: {ARM_COLOURS[1]}" in text
    assert f"fill: {ARM_COLOURS[0]}" not in text
    assert strokes(losses, ARM_COLOURS[1]) > 4
    assert strokes(losses, ARM_COLOURS[0]) == 0


def test_skills_that_look_like_formulas(world, report):
    world.images(["a.png"])
    model = world.model("m", world.captions("dense", ["x"], "dense"))
    cells = [("m", "dense", skill, 1, 2) for skill in ("$x^{$", "_hidden", "50 % off & <b>")]
    page = assert_inert(report([model, world.scores("scores", cells)]))
    assert "$x^{$" in page.text
    assert len(charts(page)) == 2


def test_the_table_shades_a_models_own_style_and_leaves_no_cell_out(world, report):
    world.images(["a.png"])
    model = world.model("m", world.captions("dense", ["x"], "dense"))
    cells = [("m", "brief", "single", 1, 10), ("m", "dense", "single", 5, 10), ("m", "dense", "two", 3, 10)]
    text = report([model, world.scores("scores", cells)])
    (table,) = re.findall(r"aria-label=\"Accuracy table\">(.*?)</table>", text, re.DOTALL)
    rows = re.findall(r"<tr( class=\"own\")?><th scope=\"row\">m</th>(.*?)</tr>", table, re.DOTALL)
    assert [bool(own) for own, _ in rows] == [False, True]
    told = [re.findall(r"<td[^>]*>(.*?)(?:<small>(.*?)</small>)?</td>", row) for _, row in rows]
    assert told[0] == [("brief", ""), ("10", "2–40"), ("–", "")]
    assert told[1] == [("dense", ""), ("50", "24–76"), ("30", "11–60")]


def test_lineage_lists_every_ancestor_once_the_oldest_first(world, report):
    world.images(["a.png"])
    first, second = world.captions("brief", ["x"], "brief"), world.captions("dense", ["y"], "dense")
    inputs = [world.model("one", first), world.model("two", second)]
    stages = Page(report(inputs)).text.split("Every artefact")[1]
    names = ["images", "brief", "one", "dense", "two"]
    assert [
        name for name, _ in re.findall(r"^\s*(images|brief|one|dense|two)(images|captions|model)", stages, re.M)
    ] == names
    assert [made["name"] for made in summarise(inputs)["stages"]] == names


ARMS = [("one", "brief", 0.5), ("other", "dense", 0.8)]


@pytest.fixture
def headline(world):
    """The headline of two arms: `headline(cells, flops=(…, …))`."""

    def make(cells, flops=(1e12, 1e12)):
        world.images(["a.png"])
        inputs = [
            world.model(name, world.captions(style, ["x"], style), flops=spent)
            for (name, style, _), spent in zip(ARMS, flops, strict=True)
        ]
        (line,) = summarise([*inputs, world.scores("scores", cells)])["headline"].splitlines()
        return line

    return make


def own_cells(skills=("single", "two")):
    return [(name, style, skill, int(100 * share), 100) for name, style, share in ARMS for skill in skills]


def test_headline_in_full(headline):
    assert headline(own_cells()) == (
        "single object: brief 50 % [40–60], dense 80 % [71–87]; two objects: brief 50 % [40–60], dense 80 % [71–87] "
        "(unseen compositions, own prompt style, equal training FLOPs, Wilson 95 % over prompts, one training seed)"
    )


def test_headline_counts_only_a_models_own_style(headline):
    others = [("one", "dense", "single", 99, 100), ("other", "brief", "two", 1, 100)]
    assert headline([*others, *own_cells()]) == headline(own_cells())


@pytest.mark.parametrize(
    ("flops", "words"),
    [
        ((1e12, 1e12), " equal training FLOPs"),
        ((1e12, 1.009e12), " equal training FLOPs"),
        ((1.02e12, 1e12), " UNEQUAL training FLOPs"),
        ((1e12, 2e12), " UNEQUAL training FLOPs"),
    ],
)
def test_headline_says_when_arms_cost_unequally(headline, flops, words):
    assert words in headline(own_cells(), flops)


def test_headline_leaves_out_a_skill_that_was_not_asked(headline):
    line = headline(own_cells(("two", "count")))
    assert line.startswith("two objects: brief 50 % [40–60], dense 80 % [71–87] (")
    assert "single" not in line


def test_headline_without_the_skills_it_is_about_says_so(headline):
    line = headline(own_cells(("count", "whole")))
    assert line.startswith("neither single object nor two objects measured (")


def test_headline_with_one_arm_measured(headline):
    line = headline([cell for cell in own_cells() if cell[0] == "other"], flops=(5e12, 1e12))
    assert line.startswith("single object: dense 80 % [71–87]; two objects: dense 80 % [71–87] (")


def test_summary_is_for_machines(world):
    world.images(["a.png"])
    model = world.model("m", world.captions("dense", ["x"], "dense"))
    cells = [("m", "dense", "single", 5, 10), ("m", "brief", "single", 1, 10), ("stranger", "dense", "single", 9, 10)]
    summary = summarise([model, world.scores("scores", cells)])
    assert summary["training_seeds"] == 1
    (arm,) = summary["arms"].values()
    assert arm["own_style"] == "dense"
    assert {style: cells["single"]["correct"] for style, cells in arm["accuracy"].items()} == {"dense": 5, "brief": 1}
    assert arm["accuracy"]["dense"]["single"].keys() == {"correct", "n", "accuracy", "low", "high"}
    assert (arm["steps"], arm["training_flops"], arm["seconds"]) == (1234, 1e12, 12.3)
    assert json.loads(json.dumps(summary)) == summary
