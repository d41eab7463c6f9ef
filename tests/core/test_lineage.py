"""Receipts in PNGs, and the way from a picture or a file back to all that it was made from."""

from __future__ import annotations

import io
import json
import shutil
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lens_core.diffusion.receipt import png_with_receipt
from lens_core.errors import ArtifactError
from lens_core.storage.lineage import read_receipt, trace

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
RECEIPT = {
    "prompt": 'ein roter Kreis, 你好 🟥\n"quoted"',
    "seed": 3,
    "sampler": {"type": "flow-euler"},
    "model": None,
}
SCENES = """\
run: {run}
stages:
  - {{name: images, type: ingest, source: {{type: scenes, count: 8}}}}
  - {{name: dense, type: caption, source: images, captioner: {{type: scene-graph, style: dense}}}}
"""


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks):
    """A PNG with these chunks before its pixels."""
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "PNG")
    data = stream.getvalue()
    return data[:33] + b"".join(chunks) + data[33:]


def itxt(text, *, keyword=b"lens", compressed=False):
    text = zlib.compress(text, 9) if compressed else text
    return chunk(b"iTXt", keyword + b"\0" + bytes([compressed]) + b"\0\0\0" + text)


@pytest.fixture
def made(tmp_path):
    """Write an artefact by hand; returns its folder."""

    def write(name, parents=(), **fields):
        folder = tmp_path / "run" / name
        folder.mkdir(parents=True)
        known = [json.loads((parent / "manifest.json").read_text()) for parent in parents]
        manifest = {
            "format_version": 1,
            "type": "model",
            "name": name,
            "hash": name * 12,
            "files": [],
            "config": {"type": "train"},
            "stats": {},
            "parents": [
                {"name": old["name"], "type": old["type"], "hash": old["hash"], "url": f"../{old['name']}"}
                for old in known
            ],
        }
        (folder / "manifest.json").write_text(json.dumps(manifest | fields))
        return folder

    return write


@pytest.fixture
def picture(tmp_path):
    """Write a PNG with a receipt; returns its path."""

    def write(folder=None, name="x.png", **fields):
        file = (folder or tmp_path) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png_with_receipt(PIXELS, RECEIPT | fields))
        return file

    return write


def lines(lineage):
    return [(distance, artifact.name) for distance, artifact in lineage.artifacts]


def test_a_receipt_comes_back_and_the_pixels_are_whole():
    data = png_with_receipt(PIXELS, RECEIPT)
    assert read_receipt(data) == RECEIPT
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.asarray(image), PIXELS)
        assert json.loads(image.text["lens"]) == RECEIPT


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab ü", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(["prompt", "seed", "sampler", "model"]), json_values))
def test_any_receipt_comes_back(receipt):
    assert read_receipt(png_with_receipt(PIXELS, receipt)) == receipt


def test_a_receipt_behind_other_chunks_is_found():
    info = PngInfo()
    info.add_text("Software", "another program")
    info.add_itxt("lens-like", '{"not": "ours"}')
    info.add_itxt("lens", '{"seed": 1}', zip=True)
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "PNG", pnginfo=info)
    assert read_receipt(stream.getvalue()) == {"seed": 1}
    assert read_receipt(png(chunk(b"tEXt", b'lens\0{"seed": 2}'))) == {"seed": 2}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"no picture at all, lens\0",
        png(),
        png(itxt(b'{"seed": 1}', keyword=b"lense")),
        png(itxt(b'{"seed": 1')),
        png(itxt(b"[1]")),
        png(itxt(b"\xff\xfe")),
        png(itxt(b"[" * 100_000)),
        png(itxt(b'{"a": ' * 100_000)),
        png(itxt(b'{"prompt": "' + b"x" * (2 << 20) + b'"}')),
        png(chunk(b"iTXt", b"lens\0")),
        png(chunk(b"iTXt", b"lens\0\1\0\0\0" + b"no deflate stream")),
        png(chunk(b"iTXt", b"lens\0\1\0\0\0" + zlib.compress(b'{"seed": 1}')[:-8])),
        png(chunk(b"tEXt", b"lens\0nothing")),
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_damaged_and_foreign_chunks_are_no_receipt(data):
    assert read_receipt(data) is None


def test_a_bomb_is_no_receipt_and_is_not_unpacked():
    packer = zlib.compressobj(9)
    block = b" " * (1 << 20)
    packed = packer.compress(b'{"seed": 1}') + b"".join(packer.compress(block) for _ in range(100)) + packer.flush()
    data = png(chunk(b"iTXt", b"lens\0\1\0\0\0" + packed))
    tracemalloc.start()
    assert read_receipt(data) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_cut_png_has_the_receipt_or_none():
    data = png_with_receipt(PIXELS, RECEIPT)
    found = [read_receipt(data[:length]) for length in range(len(data))]
    assert all(receipt in (None, RECEIPT) for receipt in found)
    assert found[0] is None
    assert found[-1] == RECEIPT


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=6))
def test_a_damaged_png_never_raises(place, patch):
    data = png_with_receipt(PIXELS, RECEIPT)
    receipt = read_receipt(data[:place] + patch + data[place + len(patch) :])
    assert receipt is None or isinstance(receipt, dict)


def test_an_artefact_and_its_ancestors_by_distance(made):
    images = made("images")
    captions = made("captions", [images])
    model = made("model", [captions])
    assert lines(trace(str(model))) == [(0, "model"), (1, "captions"), (2, "images")]
    assert lines(trace(f"{captions}/")) == [(0, "captions"), (1, "images")]
    assert trace(str(model)).note == ""


def test_an_ancestor_by_two_ways_is_listed_once_and_nearest(made):
    images = made("images")
    captions = made("captions", [images])
    model = made("model", [captions, images])
    assert lines(trace(str(model))) == [(0, "model"), (1, "captions"), (1, "images")]


def test_a_file_in_an_artefact_leads_to_it(made, monkeypatch):
    images = made("images")
    captions = made("captions", [images])
    (captions / "deep" / "er").mkdir(parents=True)
    file = captions / "deep" / "er" / "x.txt"
    file.touch()
    assert lines(trace(str(file))) == [(0, "captions"), (1, "images")]
    for folder, path in [(captions.parent, "captions/deep/er/x.txt"), (captions, "manifest.json"), (captions, ".")]:
        monkeypatch.chdir(folder)
        assert lines(trace(path)) == [(0, "captions"), (1, "images")]


def test_a_picture_in_an_artefact_has_both(made, picture):
    model = made("model")
    samples = made("samples", [model], type="samples")
    lineage = trace(str(picture(samples, "model/0000.png", model="another")))
    assert lines(lineage) == [(0, "samples"), (1, "model")]
    assert lineage.receipt == RECEIPT | {"model": "another"}


def test_a_copy_elsewhere_leads_to_its_model(made, picture, tmp_path):
    images = made("images")
    model = made("model", [images])
    file = picture(tmp_path / "desk", model="model" * 12, model_folder=str(model))
    lineage = trace(str(file))
    assert lines(lineage) == [(0, "model"), (1, "images")]
    assert lineage.receipt["prompt"] == RECEIPT["prompt"]
    assert lineage.note == ""


def test_a_strangers_manifest_beside_a_copy_does_not_matter(made, picture, tmp_path):
    # Web pages have a file of that name too.
    model = made("model")
    file = picture(tmp_path / "page", model="model" * 12, model_folder=str(model))
    (tmp_path / "page" / "manifest.json").write_text('{"name": "My page", "icons": []}')
    assert lines(trace(str(file))) == [(0, "model")]
    with pytest.raises(ArtifactError, match="no manifest of Lens"):
        trace(str(tmp_path / "page"))


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"model": "b" * 64, "model_folder": "{run}/model"}, "the model bbbbbbbbbbbb that made it is not where"),
        ({"model": "b" * 64, "model_folder": "{run}/gone"}, "the model bbbbbbbbbbbb that made it is not where"),
        ({"model": "b" * 64}, "the model bbbbbbbbbbbb that made it is not where"),
        ({"model": None, "model_folder": "{run}/model"}, "the model that made it came from elsewhere"),
        ({"model": "b" * 64, "model_folder": 7}, "is not where the receipt says"),
        ({"model": ["b"], "model_folder": "no-such-scheme://x"}, "is not where the receipt says"),
    ],
)
def test_a_model_that_is_not_there_is_a_note(made, picture, tmp_path, fields, note):
    run = made("model").parent
    fields = {key: value.format(run=run) if isinstance(value, str) else value for key, value in fields.items()}
    lineage = trace(str(picture(tmp_path / "desk", **fields)))
    assert lineage.artifacts == ()
    assert note in lineage.note
    assert lineage.receipt == RECEIPT | fields


def test_a_parent_made_anew_ends_the_lineage_with_a_note(made):
    images = made("images")
    captions = made("captions", [images])
    model = made("model", [captions])
    manifest = json.loads((images / "manifest.json").read_text())
    (images / "manifest.json").write_text(json.dumps(manifest | {"hash": "f" * 64}))
    lineage = trace(str(model))
    assert lines(lineage) == [(0, "model"), (1, "captions")]
    assert "the lineage breaks off" in lineage.note
    assert "was made from images imagesimages, but" in lineage.note
    assert "now holds ffffffffffff" in lineage.note


def test_a_parent_that_is_gone_ends_the_lineage_with_a_note(made):
    images = made("images")
    captions = made("captions", [images])
    shutil.rmtree(images)
    lineage = trace(str(captions))
    assert lines(lineage) == [(0, "captions")]
    assert "holds no finished artefact" in lineage.note


def test_a_run_may_be_moved(made, tmp_path):
    images = made("images")
    made("captions", [images])
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert lines(trace(str(moved / "captions"))) == [(0, "captions"), (1, "images")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.png", png(), "is no artefact of Lens, lies in none, and is no PNG with a receipt"),
        ("x.png", b"text", "is no artefact of Lens, lies in none, and is no PNG with a receipt"),
        ("x.jpg", b"text", r"and is no PNG with a receipt \(for JPEG and WebP: lens verify\)"),
        ("~no-such-user.png", None, "does not exist"),
        ("x.png", None, "does not exist"),
        ("folder", None, "does not exist"),
    ],
)
def test_what_has_no_lineage_is_told(tmp_path, name, content, words):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ArtifactError, match=words):
        trace(str(file))


def test_the_command_prints_receipt_tree_and_settings(lens, tmp_path, picture):
    (tmp_path / "p.yaml").write_text(SCENES.format(run="run"))
    assert lens("run", "p.yaml").returncode == 0
    manifest = json.loads((tmp_path / "run" / "dense" / "manifest.json").read_text())
    file = picture(tmp_path / "desk", model=manifest["hash"], model_folder=str(tmp_path / "run" / "dense"))
    told = lens("trace", str(file))
    assert told.returncode == 0, told.stderr
    text = told.stdout.splitlines()
    assert text[0] == "receipt"
    assert "  seed: 3" in text
    assert f"dense  captions by caption  {manifest['hash'][:12]}  {tmp_path / 'run' / 'dense'}" in text
    assert any(line.startswith("  captioner: type scene-graph, style dense") for line in text)
    assert any(line.startswith("  images  images by ingest  ") for line in text)
    assert any(line.startswith("    source: type scenes, count 8") for line in text)

    shown = json.loads(lens("trace", "run/dense/captions.parquet", "--json").stdout)
    assert [(made["distance"], made["name"]) for made in shown["artifacts"]] == [(0, "dense"), (1, "images")]
    assert shown["artifacts"][0]["hash"] == manifest["hash"]
    assert shown["artifacts"][1]["stats"]["images"] == 8
    assert (shown["receipt"], shown["note"]) == (None, "")

    # The images are made anew with another seed, and the captions not yet.
    images = (tmp_path / "p.yaml").read_text().split("  - {name: dense")[0]
    (tmp_path / "p.yaml").write_text(images)
    assert lens("run", "p.yaml", "--set", "seed=1").returncode == 0
    stale = lens("trace", "run/dense")
    assert stale.returncode == 0
    assert stale.stdout.splitlines()[-1].startswith("the lineage breaks off: ")
    assert stale.stdout.splitlines()[-1].endswith("run the pipeline again")


def test_the_command_says_no_in_one_line(lens, tmp_path):
    (tmp_path / "x.png").write_bytes(png())
    for name in ("x.png", "nowhere.png", "~nowhere.png", "~no-such-user/x"):
        done = lens("trace", name)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"lens: {name} ")
        assert len(done.stderr.splitlines()) == 1


def test_the_command_shows_a_picture_whose_model_is_gone_as_json(lens, tmp_path, picture):
    done = lens("trace", str(picture(model="b" * 64, model_folder=str(Path("gone")))), "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["receipt"]["prompt"] == RECEIPT["prompt"]
    assert shown["artifacts"] == []
    assert "is not where the receipt says" in shown["note"]


def test_a_receipt_sends_nobody_to_a_server(picture, tmp_path):
    """Who writes a receipt could otherwise learn who traced the picture, or reach into the reader's network."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, format, *args):
            """Be quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        folder = f"http://127.0.0.1:{server.server_address[1]}/model"
        lineage = trace(str(picture(tmp_path / "desk", model="b" * 64, model_folder=folder)))
        server.shutdown()
    assert asked == []
    assert "is not where the receipt says" in lineage.note
