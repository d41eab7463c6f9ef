"""The comparison page: whole under its own policy, true to the runs, and unimpressed by what they are called."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lens_core.errors import ArtifactError
from lens_train.report.compare import compare_page, differences

HOSTILE = "</style><script>alert(1)</script>\" onload='x' {{7*7}} $x$"


class Reader(html.parser.HTMLParser):
    """Collects tags with attributes, and the texts of table rows."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.rows = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


@pytest.fixture
def model(publish):
    """Publish what a train stage makes: `model(name, lr=…, scale=…)`."""

    def make(name, *, lr=1e-3, scale=1.0, told=21, **config):
        def fill(output):
            lines = []
            for step in range(1, told + 1):
                line = {"step": step, "loss": scale / step, "flops": 1e12 * step, "images": 8 * step, "mfu": 0.3}
                line |= {"hfu": 0.4, "padding": 0.02 * (step % 2), "data_wait": 0.01, "encoder_share": 0.2}
                line |= {"memory_gb": 1.0 + step, "val_loss": 2 * scale / step} | {"score_single": step / 100}
                lines.append(json.dumps(line | ({"loss": None} if step == 3 else {})))
            output.write_bytes("metrics.jsonl", "\n".join(lines).encode())
            for step, colour in ((10, "red"), (20, "blue")):
                stream = io.BytesIO()
                Image.new("RGB", (8, 8), colour).save(stream, "PNG")
                output.write_bytes(f"samples/{step:07d}.png", stream.getvalue())

        stats = {"steps": told, "images": 8 * told, "training_flops": 1e12 * told, "parameters": 12345}
        config = {"optimizer": {"lr": lr, "type": "adamw"}, **config}
        return publish("model", name, fill, config=config, stats={**stats, "seconds": 4.0, "skipped": 1, "ranks": 2})

    return make


def test_only_the_settings_that_differ_are_told():
    first = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": {}}
    second = {"a": {"b": 2, "c": [1, 2]}, "d": None, "e": {}, "f": "x"}
    assert differences([first, second]) == [("a.b", ["1", "2"]), ("f", ["–", '"x"'])]
    assert differences([first, first]) == []
    assert differences([{"a": {"b": 1}}, {"a": None}]) == [("a", ["–", "null"]), ("a.b", ["1", "–"])]


def test_the_tables_say_what_the_runs_say(model):
    page = Reader(compare_page({"one": model("one"), "two": model("two", lr=1e-2, scale=3.0)}))
    rows = {row[0]: row[1:] for row in page.rows}
    one, two, speed, fast = page.rows[1], page.rows[2], page.rows[4], rows["optimizer.lr"]
    assert one == ["one", "21", "168", "21", "12,345", "0.04881", "0.09524", "single 21.0", "1"]
    assert two[:1] + two[5:7] == ["two", "0.1464", "0.2857"]
    assert speed == ["one", "2", "4", "42", "30.0", "40.0", "1.0", "1.0", "20.0", "22.00"]
    assert fast == ["0.001", "0.01"]
    assert "optimizer.type" not in rows
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    charts = [base64.b64decode(url.split(",")[1]).decode() for url in images if "svg" in url]
    assert len(charts) == 2
    assert all(chart.count("stroke: #b3541e") == chart.count("stroke: #1f6f8b") == 3 for chart in charts)
    grids = [Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) for url in images if "png" in url]
    assert [grid.convert("RGB").getpixel((0, 0)) for grid in grids] == [(0, 0, 255)] * 2  # the last ones


def test_hostile_names_and_settings_stay_words(model):
    page = compare_page({HOSTILE: model("one", licence=HOSTILE), "two": model("two")})
    reader = Reader(page)
    assert not {"script", "iframe", "link", "object", "base"} & {tag for tag, _ in reader.tags}
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert all(attributes["src"].startswith("data:image/") for tag, attributes in reader.tags if tag == "img")
    assert HOSTILE in [row[0] for row in reader.rows]
    assert [json.dumps(HOSTILE), "–"] in [row[1:] for row in reader.rows]
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert f"style-src 'sha256-{digest}'" in policy


def test_a_run_of_a_step_or_two_has_no_curve_but_a_row(model):
    page = Reader(compare_page({"short": model("short", told=1)}))
    assert page.rows[1][:2] == ["short", "1"]
    assert not [attributes for tag, attributes in page.tags if tag == "img" and "svg" in attributes["src"]]


def test_the_command_writes_the_page_and_refuses_what_is_no_training(model, publish, tmp_path):
    lens = str(Path(sys.executable).with_name("lens"))
    urls = [model("one").url, model("two", lr=2.0).url]
    subprocess.run([lens, "train", "compare", *urls, "-o", "page.html"], cwd=tmp_path, check=True, capture_output=True)
    assert [row[0] for row in Reader((tmp_path / "page.html").read_text()).rows[1:3]] == urls
    images = publish("images", "images", lambda output: output.write_json("a.json", {}))
    with pytest.raises(ArtifactError) as caught:
        compare_page({"images": images})
    assert str(caught.value) == f"{images.url} (images) is no model of a train stage: it has no metrics.jsonl"
