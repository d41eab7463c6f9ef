"""The caption report: right numbers, little memory, and hostile words stay words in a real browser."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import io
import json
import re
import subprocess
import sys
from collections import Counter
from decimal import Decimal

import numpy as np
import pytest
import yaml
from PIL import Image

from caption.browser import Browser
from caption.outputs import HOSTILE, World, picture
from lens_caption.report.config import CaptionReportStageConfig
from lens_caption.report.costs import dollars
from lens_caption.report.page import _chart, _dollars, _share
from lens_caption.report.samples import Best, Sample, draw, repeated_share
from lens_caption.report.stage import report_on
from lens_caption.report.summary import ShardIndex, _lengths
from lens_caption.testing.openai_server import OpenAIServer
from lens_core.config.pipeline import load_pipeline
from lens_core.errors import ArtifactError, ConfigError, LensError
from lens_core.pipeline.progress import Progress
from lens_core.pipeline.runner import run_pipeline

# fmt: off
TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p", "bdi", "div", "section", "svg",
    "rect", "line", "text", "dl", "dt", "dd", "article", "img", "table", "caption", "thead", "tbody", "tr", "th", "td",
    "small", "code", "footer",
}
# fmt: on
URLS = {"src", "href", "xlink:href", "action", "formaction", "srcset", "poster", "data", "background", "ping", "cite"}


class Page(html.parser.HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        if self.tags[-1:] != ["style"]:
            self.text += data


def assert_inert(text):
    page = Page(text)
    assert set(page.tags) <= TAGS
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        assert name != "style"
        if name in URLS:
            assert value.startswith("data:image/jpeg;base64,")
    return page


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def report():
    def make(inputs, seed=0, **options):
        config = CaptionReportStageConfig(name="report", source=[made.name for made in inputs], **options)
        return report_on(config, inputs, seed=seed)

    return make


@pytest.fixture
def hostile(world, report):
    """A page whose every text is hostile: file names, captions, details, models, gates' quotations, title, layer."""
    rows = [{"data": picture(number), "name": HOSTILE[number % len(HOSTILE)]} for number in range(3 * len(HOSTILE) - 1)]
    world.images([*rows, {"data": b"no image", "name": HOSTILE[0]}])
    texts = []
    for number in range(3 * len(HOSTILE)):
        text = HOSTILE[number % len(HOSTILE)]
        if number % 3 == 1:
            texts.append({"text": "", "status": "refusal", "detail": text})
        elif number % 3 == 2:
            texts.append(f"{text} " * 20)
        else:
            texts.append(text)
    dense = world.captions(
        "dense",
        texts,
        layer=HOSTILE[0],
        provenance=lambda n: {"served_model": HOSTILE[n % len(HOSTILE)], "input_tokens": 10, "output_tokens": 1},
    )
    _, page = report([dense], title=HOSTILE[1], samples=100)
    return page


def test_hostile_words_stay_words(hostile):
    page = assert_inert(hostile)
    spaceless = "".join(page.text.split())
    for text in HOSTILE:
        assert spaceless.count("".join(text.split())) >= 3
    names = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert set(HOSTILE) <= set(names)
    assert "no picture: " in page.text


def test_policy_allows_the_style_sheet_by_its_hash_and_data_images_only(hostile):
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', hostile)
    (style,) = re.findall(r"<style>(.*?)</style>", hostile, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert dict(rule.strip().split(" ", 1) for rule in policy.split(";")) == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert hostile.index("Content-Security-Policy") < hostile.index("<title>") < hostile.index("<style>")


def test_a_browser_runs_nothing_of_it_and_asks_for_nothing(hostile, tmp_path):
    careless = hostile.replace("</main>", "<script>document.title='pwned'</script></main>")
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', hostile)[0]
    pages = {"page": hostile, "open": hostile.replace(policy, ""), "careless": careless}
    pages["both"] = careless.replace(policy, "")
    for name, text in pages.items():
        (tmp_path / f"{name}.html").write_text(text)
    browser = Browser(tmp_path / "profile")
    try:
        browser.size(1100, 900)
        for name in ("page", "open"):  # as it is, and with escaping as the only defence
            browser.open((tmp_path / f"{name}.html").as_uri())
            browser.settle()
            assert browser.see("document.title") == HOSTILE[1]
            assert browser.see("document.scripts.length + document.querySelectorAll('iframe,link,a,form').length") == 0
            assert browser.see("getComputedStyle(document.querySelector('main')).display") == "block"
            # No text of whatever length or direction widens the page.
            assert browser.see("document.documentElement.scrollWidth <= innerWidth")
            shown = "[...document.images].every(image => image.naturalWidth > 0)"
            assert browser.see(f"document.images.length > 10 && {shown}")
        assert browser.complaints == []
        assert browser.dialogs == []
        asked = {url.partition(":")[0] for url in browser.asked}
        assert asked == {"file", "data"}
        assert {url for url in browser.asked if url.startswith("file")} == {
            (tmp_path / f"{name}.html").as_uri() for name in ("page", "open")
        }
        # The policy alone holds as well, were the escaping ever forgotten; without either the script would run.
        browser.open((tmp_path / "careless.html").as_uri())
        assert browser.see("document.title") == HOSTILE[1]
        browser.open((tmp_path / "both.html").as_uri())
        assert browser.see("document.title") == "pwned"
    finally:
        browser.close()


def test_numbers_are_those_of_the_rows(world, report):
    rng = np.random.default_rng(0)
    lengths = [int(value) for value in rng.integers(1, 300, 500)]
    world.images([{"data": picture(number), "name": f"{number}.png"} for number in range(500)], shard_bytes=60_000)
    texts = [" ".join(f"w{number}x{place}" for place in range(length)) for number, length in enumerate(lengths)]
    for number in range(0, 500, 10):
        texts[number] = {"text": "", "status": "refusal" if number % 20 else "truncated", "detail": "why"}
    texts[1] = texts[3] = texts[5] = "the same thing said of three images"
    texts[7] = "a cat on a mat " * 30
    dense = world.captions(
        "dense",
        texts,
        order=[*range(250, 500), *range(250)],
        provenance=lambda n: {"served_model": "gpt-6-luna", "input_tokens": 1000 + n, "output_tokens": 100},
    )
    summary, page = report([dense])
    layer = summary["layers"]["dense"]
    assert (summary["images"], layer["images"], layer["ok"]) == (500, 500, 450)
    assert layer["statuses"] == {"ok": 450, "truncated": 25, "refusal": 25}
    assert layer["input_tokens"] == sum(1000 + number for number in range(500))
    kept = [len(text.split()) for text in texts if isinstance(text, str)]
    words = layer["words"]
    assert (words["captions"], words["min"], words["max"]) == (450, min(kept), max(kept))
    assert words["mean"] == round(sum(kept) / 450, 2)
    for percent in (1, 5, 25, 50, 75, 95, 99):
        assert words[f"p{percent}"] == np.percentile(kept, percent, method="inverted_cdf")
    expected, _ = np.histogram(kept, bins=[words["bin_width"] * n for n in range(len(words["bins"]) + 1)])
    assert words["bins"] == expected.tolist()
    assert layer["repeated"] == {"images": 3, "captions": {texts[1]: 3}}
    assert layer["openings"] == {"the same thing": 3}
    assert layer["loops"] == 1
    prices = Decimal("0.10"), Decimal("0.50")
    cost = (layer["input_tokens"] * prices[0] + layer["output_tokens"] * prices[1]) / 10**6
    assert Decimal(layer["cost_usd"]) == cost
    # By shard, whatever the order of the rows: against the index itself.
    index = ShardIndex(world.stored)
    per_shard = Counter(index.of(key) for key in world.keys)
    assert len(per_shard) > 2
    assert {name: numbers["images"] for name, numbers in layer["shards"].items()} == per_shard
    assert sum(Decimal(numbers["cost_usd"]) for numbers in layer["shards"].values()) == cost
    assert_inert(page)
    assert json.loads(json.dumps(summary)) == summary


def test_the_extremes_and_a_fair_sample_are_shown(world, report):
    world.images([{"data": picture(number), "name": f"n{number}.png"} for number in range(300)])
    texts = [" ".join(f"w{number}x{place}" for place in range(20 + number % 50)) for number in range(300)]
    texts[17] = "tiny"
    texts[33] = " ".join(f"long{place}" for place in range(900))
    texts[44] = "round and round it goes " * 12
    texts[55] = {"text": "", "status": "content-filter", "detail": "blocked"}
    dense = world.captions("dense", texts)
    _, page = report([dense], samples=4)
    groups = dict(
        re.findall(
            r"<h3>([^<]*)</h3>\s*(?:<p class=\"soft\">[^<]*</p>\s*)?<div class=\"gallery\">(.*?)\n</div>\s",
            page,
            re.DOTALL,
        )
    )
    assert list(groups) == ["Most repetitive", "Without a caption", "Shortest", "Longest", "At random"]
    first = {title: re.search(r'alt="([^"]*)"', cards)[1] for title, cards in groups.items()}
    assert first["Most repetitive"] == "n44.png"
    assert first["Without a caption"] == "n55.png"
    assert first["Shortest"] == "n17.png"
    assert first["Longest"] == "n33.png"
    drawn = re.findall(r'alt="([^"]*)"', groups["At random"])
    assert len(set(drawn)) == 4
    # The order of the rows does not matter, the seed does.
    again = world.captions("again", texts, layer="dense", order=[*range(150, 300), *range(150)])
    assert re.findall(r'alt="([^"]*)"', report([again], samples=4)[1].split("At random")[1]) == drawn
    assert re.findall(r'alt="([^"]*)"', report([dense], samples=4, seed=1)[1].split("At random")[1]) != drawn
    # Thumbnails are of the right images.
    for name, url in re.findall(r'<img src="data:image/jpeg;base64,([^"]*)" alt="n(\d+)\.png">', page):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(name))).convert("RGB")).astype(int)
        number = int(url)
        colour = (number * 37 % 256, number * 91 % 256, number // 256 % 256)
        assert np.abs(shown[20, 30] - colour).max() <= 12


def test_random_samples_are_fair():
    """Every one of 200 keys is drawn about as often as any other, over 400 seeds."""
    keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(200)]
    hits = Counter()
    for seed in range(400):
        best = Best(10)
        for key in keys:
            lot = draw(key, seed)
            if best.wants(lot, lot):
                row = {"key": key, "layer": "l", "text": "", "status": "ok", "detail": "", "provenance": "{}"}
                best.add(lot, lot, Sample.of(row))
        hits.update(sample.key for sample in best.ranked())
    assert hits.total() == 4000
    assert min(hits[key] for key in keys) >= 5
    assert max(hits.values()) <= 40


def test_no_samples_no_gallery(world, report):
    world.images([{"data": picture(1), "name": "a"}])
    _, page = report([world.captions("dense", ["a cat sits on a mat"])], samples=0)
    assert "<img" not in page
    assert 'gallery"' not in page


def test_two_layers_stand_one_below_the_other(world, report):
    world.images([{"data": picture(number), "name": f"{number}"} for number in range(4)])
    brief = world.captions("brief", ["a cat", "a dog", "a cow", "a hen"])
    dense = world.captions("dense", ["a cat sits", "a dog stands", "a cow eats", "a hen runs"])
    summary, page = report([brief, dense])
    assert list(summary["layers"]) == ["brief", "dense"]
    assert page.index("<h2><bdi>brief") < page.index("<h2><bdi>dense")
    assert page.count("<title>") == 1 + page.count("<rect")


@pytest.mark.parametrize(
    ("provenance", "expected"),
    [
        ({"captioner": "scene-graph"}, Decimal(0)),
        ({"cost_usd": "0.00125", "input_tokens": 9}, Decimal("0.00125")),
        ({"cost_usd": "nonsense", "input_tokens": 9}, None),
        ({"served_model": "gpt-6-luna", "input_tokens": 10**6, "output_tokens": 10**6}, Decimal("0.60")),
        (
            {"served_model": "gpt-6-luna", "service_tier": "flex", "input_tokens": 10**6, "output_tokens": 0},
            Decimal("0.05"),
        ),
        ({"served_model": "gpt-6-luna", "lane": "batch", "input_tokens": 10**6, "output_tokens": 0}, Decimal("0.05")),
        ({"served_model": "nobody-knows", "input_tokens": 5, "output_tokens": 5}, None),
        ({"served_model": "local", "base_url": "http://127.0.0.1:8000/v1", "input_tokens": 5}, Decimal(0)),
        ({"input_tokens": "many"}, Decimal(0)),
    ],
)
def test_an_unknown_price_is_not_zero(provenance, expected):
    assert dollars(provenance) == expected


def test_unknown_prices_are_said(world, report):
    world.images([{"data": picture(number), "name": f"{number}"} for number in range(2)])
    dense = world.captions("dense", ["a cat", "a dog"], provenance=lambda _: {"served_model": "x", "input_tokens": 5})
    summary, page = report([dense])
    assert summary["layers"]["dense"]["without_known_price"] == 2
    assert "unknown" in page
    assert "$0.00" not in page


def test_repeated_share():
    assert repeated_share("a cat on a mat") == 0
    assert repeated_share("") == 0
    assert repeated_share("one two three four five six seven eight nine ten") == 0
    assert repeated_share("la " * 100) > 0.9
    assert 0 < repeated_share("a red cat on a mat and a red cat on a chair by the door") < 0.4


def test_a_huge_caption_squeezes_neither_chart_nor_page(world, report):
    world.images([{"data": picture(number), "name": f"{number}"} for number in range(200)])
    texts = [" ".join(f"w{number}x{place}" for place in range(50 + number % 60)) for number in range(199)]
    texts.append("word " * 200_000)
    summary, page = report([world.captions("dense", texts)])
    words = summary["layers"]["dense"]["words"]
    assert words["max"] == 200_000
    assert words["last_bin_is_open"]
    assert sum(words["bins"]) == 200
    assert 5 < len(words["bins"]) <= 41
    assert len(page) < 1_500_000


@pytest.mark.parametrize("lengths", [{0: 5}, {1: 1}, {100: 10}, {3: 1, 4: 2}, {5: 10**6, 10**6: 1}])
def test_any_lengths_make_a_chart(lengths):
    chart = _chart(_lengths(Counter(lengths)))
    assert 0 < len(chart["bars"]) <= 41
    assert 1 <= len(chart["ticks"]) <= 11
    for bar in chart["bars"]:
        assert 0 <= bar["x"] < bar["x"] + bar["width"] <= chart["width"] + 0.01
        assert 0 <= bar["y"] < bar["y"] + bar["height"] <= chart["height"] + 0.02


def test_numbers_in_words():
    assert [_share(*pair) for pair in ((0, 0), (0, 9), (1, 5000), (1, 200), (1, 3), (9, 9), (999, 1000))] == [
        "–", "0 %", "<0.1 %", "0.5 %", "33 %", "100 %", "99.9 %"
    ]  # fmt: skip
    assert [_dollars(text) for text in ("0", "0.00012", "0.5", "1234.5")] == ["$0.00", "$0.00012", "$0.50", "$1,234.50"]


def test_mistakes_are_named(world, report):
    world.images([{"data": picture(1), "name": "a"}])
    with pytest.raises(ConfigError, match="no captions"):
        report([world.stored])
    with pytest.raises(LensError, match="hold no captions"):
        report([world.captions("none", [None])])
    other = world.captions("other", [{"key": "0" * 64, "text": "of an image that is gone"}])
    _, page = report([other])
    assert "the image is not in the set" in page
    assert "(no image)" in report([other])[0]["layers"]["other"]["shards"]


def test_provenance_that_is_no_object(world, report, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    world.images([{"data": picture(1), "name": "a"}])
    dense = world.captions("dense", ["x"])
    file = tmp_path / "dense" / "captions.parquet"
    table = pq.read_table(file)
    for value in ("[1]", "{", "null"):
        pq.write_table(table.set_column(6, table.schema.field(6), pa.array([value])), file)
        with pytest.raises(ArtifactError, match="is not a JSON object"):
            report([dense])


def test_the_stage_puts_its_page_at_the_top_of_the_run(tmp_path, lens_registry):
    stages = [
        {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 20}},
        {
            "name": "dense",
            "type": "caption",
            "source": "images",
            "captioner": {"type": "scene-graph", "style": "dense"},
        },
        {"name": "look", "type": "caption-report", "source": "dense", "title": "Scenes"},
    ]
    file = tmp_path / "p.yaml"
    file.write_text(yaml.safe_dump({"run": str(tmp_path / "run"), "stages": stages}))
    made = run_pipeline(load_pipeline(str(file), lens_registry), lens_registry, progress=Progress(stream=io.StringIO()))
    for name in ("captions.html", "captions.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "run" / "look" / name).read_bytes()
    assert made["look"].stats["dense"]["ok"] == 20
    assert "<title>Scenes</title>" in (tmp_path / "run" / "captions.html").read_text()


def test_what_a_request_for_several_layers_cost_is_told_once(tmp_path, lens_registry):
    with OpenAIServer() as server:
        asks = {"type": "openai", "model": "gpt-4.1", "base_url": server.url, "prompt": "layered-1"}
        stages = [
            {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 2}},
            {"name": "words", "type": "caption", "source": "images", "captioner": asks},
            {"name": "look", "type": "caption-report", "source": "words"},
        ]
        file = tmp_path / "p.yaml"
        file.write_text(yaml.safe_dump({"run": str(tmp_path / "run"), "stages": stages}))
        pipeline = load_pipeline(str(file), lens_registry)
        made = run_pipeline(pipeline, lens_registry, progress=Progress(stream=io.StringIO()))
        billed = sum(entry.input_tokens for entry in server.ledger)
    layers = made["look"].read_json("captions.json")["layers"]
    assert {name: layer["input_tokens"] for name, layer in layers.items()} == {"brief": billed, "short": 0, "dense": 0}
    page = (tmp_path / "run" / "captions.html").read_text()
    assert "its cost and its tokens stand in the first of them; in the others they are zero" in page


def test_the_command_writes_page_and_numbers(world, lens, tmp_path):
    world.images([{"data": picture(number), "name": f"{number}"} for number in range(3)])
    world.captions("dense", ["a cat", "a dog", {"text": "", "status": "refusal"}])
    done = lens("caption", "report", "dense", "--output", "out/page.html", "--title", "T")
    assert done.returncode == 0, done.stderr
    assert "dense: 2 of 3 images have a caption" in done.stdout
    assert json.loads((tmp_path / "out" / "page.json").read_text())["layers"]["dense"]["ok"] == 2
    assert_inert((tmp_path / "out" / "page.html").read_text())
    gone = lens("caption", "report", "nothing")
    assert gone.returncode == 2
    assert len(gone.stderr.strip().splitlines()) == 1


MEASURE = """
import re, sys
from lens_caption.report.config import CaptionReportStageConfig
from lens_caption.report.stage import report_on
from lens_core.storage.artifacts import load_artifact
config = CaptionReportStageConfig(name="r", source=["c"], samples=12)
summary, page = report_on(config, [load_artifact(sys.argv[1])], seed=0)
# Not getrusage: its peak is inherited from the process that forked this one.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024
print(peak, summary["layers"]["dense"]["images"])
"""


@pytest.mark.parametrize(("large", "megabytes"), [(100_000, 40), pytest.param(10**6, 80, marks=pytest.mark.soak)])
def test_memory_does_not_grow_with_the_rows(tmp_path, large, megabytes):
    """A hundred thousand rows, a tenth of the promise: their texts alone are 70 MB, as Python rows some 300 MB."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lens_core.storage.captions import _SCHEMA as CAPTIONS
    from lens_core.storage.shards import _SCHEMA as INDEX

    data = picture(1)
    peaks = {}
    for count in (2_000, large):
        world = World(tmp_path / str(count))
        world.folder.mkdir()
        keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]

        def index(output, keys=keys, count=count):
            output.write_bytes("shard-00000.tar", data)
            zeros = [0] * count
            sizes = ([len(data)] * count, [64] * count, [48] * count)
            texts = (["png"] * count, [""] * count, [""] * count, ["{}"] * count)
            columns = [keys, [f"{key}.png" for key in keys], ["shard-00000.tar"] * count, zeros, *sizes, *texts]
            sink = io.BytesIO()
            pq.write_table(pa.table(dict(zip(INDEX.names, columns, strict=True)), schema=INDEX), sink)
            output.write_bytes("index.parquet", sink.getvalue())

        def captions(output, keys=keys, count=count):
            pieces = [" ".join(f"w{number:02x}{place:03x}" for place in range(20)) for number in range(256)]
            draws = np.random.default_rng(0).integers(0, 256, (count, 5)).tolist()
            texts = [" ".join([pieces[number] for number in draw]) for draw in draws]
            provenance = json.dumps({"served_model": "gpt-6-luna", "input_tokens": 1000, "output_tokens": 150})
            columns = [
                keys,
                ["dense"] * count,
                texts,
                ["ok"] * count,
                [""] * count,
                [100] * count,
                [provenance] * count,
            ]
            sink = io.BytesIO()
            # One row group: the least help to whoever reads some rows at a time.
            pq.write_table(pa.table(dict(zip(CAPTIONS.names, columns, strict=True)), schema=CAPTIONS), sink)
            output.write_bytes("captions.parquet", sink.getvalue())

        images = world.publish("images", "images", index)
        made = world.publish("captions", "dense", captions, [images])
        done = subprocess.run([sys.executable, "-c", MEASURE, made.url], capture_output=True, text=True, check=True)
        peaks[count], rows = map(int, done.stdout.split())
        assert rows == count
    print(f"peak memory in MB by rows: {peaks}")
    assert peaks[large] - peaks[2_000] < megabytes, peaks
