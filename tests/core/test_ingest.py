"""The ingest stage through the real runner: what is stored, what is dropped, and what is said about it."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import random
import sys
from collections import Counter

import pytest
import yaml
from PIL import Image

from lens_core.config.pipeline import load_pipeline
from lens_core.datasets.scenes.world import Scene, sample_scene
from lens_core.errors import LensError, Stopped
from lens_core.images import decode
from lens_core.pipeline.progress import Progress
from lens_core.pipeline.runner import run_pipeline
from lens_core.registry import load_registry
from lens_core.storage.artifacts import MANIFEST
from lens_core.storage.shards import ShardReader

PLUGIN = '''
"""A source that is told its records in a JSON file."""

import json
from functools import partial
from pathlib import Path
from typing import Literal

from lens_core.config.base import ComponentConfig
from lens_core.contracts import ImageRecord
from lens_core.hookspecs import hookimpl
from lens_core.specs import DatasetSpec


class ListedConfig(ComponentConfig):
    type: Literal["listed"] = "listed"


class Listed:
    def __init__(self, config, *, base, seed):
        self.base = Path(base)

    def __iter__(self):
        for entry in json.loads((self.base / "listed.json").read_text()):
            yield ImageRecord(read=partial(Path.read_bytes, self.base / entry.pop("file")), **entry)

    def fingerprint(self):
        return ""


@hookimpl
def lens_datasets():
    yield DatasetSpec(
        name="listed", summary="Told in a file.", config="fake_listed:ListedConfig", target="fake_listed:Listed"
    )
'''


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def pipeline(tmp_path):
    """Write a pipeline of one ingest stage."""

    def write(source=None, **options):
        stage = {"name": "images", "type": "ingest", "source": source or {"type": "image-folder", "url": "photos"}}
        file = tmp_path / "pipeline.yaml"
        file.write_text(yaml.safe_dump({"run": str(tmp_path / "run"), "stages": [stage | options]}))
        return str(file)

    return write


@pytest.fixture
def ingest(pipeline, lens_registry):
    """Run it; returns the artefact and what was said."""

    def run(source=None, *, registry=lens_registry, **options):
        said = io.StringIO()
        loaded = load_pipeline(pipeline(source, **options), registry)
        artifacts = run_pipeline(loaded, registry, progress=Progress(stream=said))
        return artifacts["images"], said.getvalue()

    return run


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """Install the source `listed` beside the others and list records for it; returns the registry that has it."""

    def install(records):
        (tmp_path / "listed.json").write_text(json.dumps(records))
        (tmp_path / "fake_listed.py").write_text(PLUGIN)
        info = tmp_path / "fake_listed-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-listed\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[lens.plugins]\nfake_listed = fake_listed\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        # A test before this one had a module of that name elsewhere.
        monkeypatch.delitem(sys.modules, "fake_listed", raising=False)
        importlib.invalidate_caches()
        return load_registry()

    return install


def picture(colour=0, size=(50, 40), format_="PNG", **options):
    stream = io.BytesIO()
    Image.new("RGB", size, (colour, 99, 7)).save(stream, format_, **options)
    return stream.getvalue()


def drops(artifact):
    return [json.loads(line) for line in artifact.read_bytes("drops.jsonl").decode().splitlines()]


def names(artifact):
    return [row.name for row in ShardReader(artifact)]


def test_bad_files_are_told_by_name_and_reason_and_the_rest_goes_on(ingest, photos):
    (photos / "a good.png").write_bytes(picture(1))
    (photos / "cut.jpg").write_bytes(picture(2, format_="JPEG")[:-40])
    (photos / "letter.jpg").write_text("dear photographer")
    (photos / "nothing.png").touch()
    (photos / "link.png").symlink_to("gone.png")
    (photos / "z good ü.webp").write_bytes(picture(3, format_="WEBP"))
    artifact, said = ingest()
    assert [(drop["name"], drop["step"]) for drop in drops(artifact)] == [
        ("cut.jpg", "decodable"),
        ("letter.jpg", "header"),
        ("link.png", "read"),
        ("nothing.png", "header"),
    ]
    for drop, words in zip(drops(artifact), ["truncated", "not an image", "does not exist", "empty"], strict=True):
        assert words in drop["reason"]
        assert f"dropped {drop['name']}: {drop['reason']}" in said
    assert names(artifact) == ["a good.png", "z good ü.webp"]
    assert artifact.stats["seen"] == 6
    assert artifact.stats["images"] == 2
    assert artifact.stats["dropped"] == 4
    assert artifact.stats["dropped_by"] == {"header": 2, "decodable": 1, "read": 1}


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable to root")
def test_a_file_without_permission_is_told(ingest, photos):
    (photos / "mine.png").write_bytes(picture(1))
    (photos / "yours.png").write_bytes(picture(2))
    (photos / "yours.png").chmod(0)
    (drop,) = drops(ingest()[0])
    assert (drop["name"], drop["step"]) == ("yours.png", "read")
    assert "permission denied" in drop["reason"]


def test_stored_bytes_are_the_files_bytes(ingest, photos):
    whole = {f"{number}.png": picture(number) for number in range(5)}
    for name, data in whole.items():
        (photos / name).write_bytes(data)
    rows = list(ShardReader(ingest()[0]))
    assert {row.name: row.data for row in rows} == whole
    assert [row.key for row in rows] == [hashlib.sha256(row.data).hexdigest() for row in rows]


def test_equal_bytes_are_stored_once_equal_pixels_twice(ingest, photos):
    (photos / "first.png").write_bytes(picture())
    (photos / "second.png").write_bytes(picture())
    (photos / "other.png").write_bytes(picture(compress_level=0))
    artifact, _ = ingest()
    assert names(artifact) == ["first.png", "other.png"]
    assert drops(artifact) == [
        {"name": "second.png", "step": "duplicate", "reason": "it has the same bytes as first.png"}
    ]
    assert artifact.stats["dropped_by"] == {"duplicate": 1}


def test_a_duplicate_of_a_dropped_file_is_dropped_for_the_same_reason(ingest, photos):
    (photos / "good.png").write_bytes(picture())
    for name in ("a.png", "b.png"):
        (photos / name).write_text("no picture")
    assert [drop["step"] for drop in drops(ingest()[0])] == ["header", "header"]


def test_filters_work_in_order_and_the_first_that_drops_is_named(ingest, photos):
    (photos / "large.png").write_bytes(picture(1))
    (photos / "small.png").write_bytes(picture(2, size=(49, 40)))
    (photos / "small and cut.png").write_bytes(picture(3, size=(49, 40))[:-60])
    (photos / "cut.png").write_bytes(picture(4)[:-60])
    artifact, _ = ingest(filters=[{"type": "min-area", "pixels": 2000}, "decodable"])
    assert names(artifact) == ["large.png"]
    assert {drop["name"]: drop["step"] for drop in drops(artifact)} == {
        "small.png": "min-area",
        "small and cut.png": "min-area",
        "cut.png": "decodable",
    }
    assert artifact.stats["dropped_by"] == {"min-area": 2, "decodable": 1}
    assert "49x40 is less than 2,000 pixels" in {drop["reason"] for drop in drops(artifact)}


def test_without_filters_what_has_a_header_is_stored(ingest, photos):
    (photos / "cut.jpg").write_bytes(picture(format_="JPEG")[:-40])
    (photos / "letter.jpg").write_text("dear photographer")
    artifact, _ = ingest(filters=[])
    assert names(artifact) == ["cut.jpg"]
    assert [drop["name"] for drop in drops(artifact)] == ["letter.jpg"]


def test_sizes_in_the_index_are_as_displayed(ingest, photos):
    exif = Image.Exif()
    exif[0x0112] = 6
    (photos / "turned.jpg").write_bytes(picture(size=(48, 32), format_="JPEG", exif=exif))
    (photos / "turned.tif").write_bytes(picture(size=(48, 32), format_="TIFF", exif=exif))
    for row in ShardReader(ingest()[0]):
        assert (row.width, row.height) == (32, 48)
        assert decode(row.data).shape == (48, 32, 3)


def test_folders_are_searched_deeply_and_hidden_things_left_out(ingest, photos):
    for number, name in enumerate(
        ["b/c/deep.png", "B.PNG", "a.jpeg", ".hidden.png", ".trash/x.png", "notes.txt", "noending", "a.png.part"]
    ):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(picture(number))
    assert names(ingest()[0]) == ["B.PNG", "a.jpeg", "b/c/deep.png"]
    only = {"type": "image-folder", "url": "photos", "endings": [".part"]}
    assert names(ingest(only)[0]) == ["a.png.part"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such name")
def test_a_name_in_another_encoding_is_shown_escaped(ingest, photos):
    for colour, letter in enumerate([b"\xe8", b"\xe9"]):
        (photos / os.fsdecode(b"caf" + letter + b".png")).write_bytes(picture(colour))
    (photos / "bad.png").write_bytes(b"")
    (photos / os.fsdecode(b"gone\xe9.png")).symlink_to("nowhere")
    artifact, _ = ingest()
    assert names(artifact) == ["caf\\xe8.png", "caf\\xe9.png"]
    assert "gone\\xe9.png: it does not exist" in drops(artifact)[-1]["reason"]


def test_licence_source_url_and_metadata_are_kept(ingest, listed, tmp_path):
    (tmp_path / "x.png").write_bytes(picture())
    record = {
        "name": "x",
        "file": "x.png",
        "licence": "CC-BY-4.0",
        "source_url": "https://example.org/x?a=b",
        "metadata": {"title": "Straße", "tags": ["a", "b"], "n": 3},
    }
    artifact, _ = ingest({"type": "listed"}, registry=listed([record]))
    (row,) = ShardReader(artifact)
    for name in ("name", "licence", "source_url", "metadata"):
        assert getattr(row, name) == record[name]


def test_the_folders_licence_and_path_are_kept(ingest, photos):
    (photos / "x.png").write_bytes(picture())
    (row,) = ShardReader(ingest({"type": "image-folder", "url": "photos", "licence": "mine"})[0])
    assert (row.licence, row.source_url) == ("mine", str(photos / "x.png"))


def test_scenes_carry_their_graphs(ingest):
    artifact, _ = ingest({"type": "scenes", "count": 6})
    rows = list(ShardReader(artifact))
    assert [Scene.from_json(row.metadata["scene"]) for row in rows] == [
        sample_scene(0, number, split="train") for number in range(6)
    ]
    assert {row.licence for row in rows} == {"CC0-1.0"}
    assert {(row.width, row.height, row.format) for row in rows} == {(32, 32, "png")}


def test_an_empty_source_is_one_line(lens, listed, pipeline, tmp_path):
    listed([])
    done = lens("run", pipeline({"type": "listed"}), PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "lens: images: the source 'listed' leaves nothing to work with: empty"
    assert "Traceback" not in done.stderr


def test_when_all_is_dropped_the_first_reason_is_one_line(lens, pipeline, photos, tmp_path):
    (photos / "a.png").write_text("no picture")
    (photos / "b.png").touch()
    done = lens("run", pipeline())
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "lens: images: the source 'image-folder' leaves nothing to work with: "
        "all 2 images were dropped; the first: a.png: it is not an image"
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "images" / MANIFEST).exists()


def test_of_many_drops_twenty_are_shown_and_all_are_written(ingest, photos):
    (photos / "good.png").write_bytes(picture())
    for number in range(30):
        (photos / f"bad {number:02d}.png").touch()
    artifact, said = ingest()
    assert len(drops(artifact)) == 30
    assert said.count("it is empty") == 20
    assert "dropped 10 more; all of them are in drops.jsonl" in said


def test_counts_add_up_whatever_the_mixture(ingest, photos):
    rng = random.Random(3)
    kinds = Counter()
    for number in range(80):
        kind = rng.choice(["good", "small", "cut", "text", "again"])
        kinds[kind] += 1
        data = {
            "good": picture(number),
            "small": picture(number, size=(5, 5)),
            "cut": picture(number)[:-60],
            "text": str(number).encode(),
            "again": picture(255),
        }
        (photos / f"{number:02d}.png").write_bytes(data[kind])
    artifact, _ = ingest(filters=[{"type": "min-area", "pixels": 100}, "decodable"])
    assert artifact.stats["seen"] == 80
    assert artifact.stats["images"] == len(names(artifact)) == kinds["good"] + 1
    assert artifact.stats["dropped_by"] == {
        "min-area": kinds["small"],
        "decodable": kinds["cut"],
        "header": kinds["text"],
        "duplicate": kinds["again"] - 1,
    }
    assert artifact.stats["dropped"] == sum(artifact.stats["dropped_by"].values()) == len(drops(artifact))


def test_asked_to_stop_it_leaves_nothing_that_looks_finished(pipeline, lens_registry, tmp_path):
    loaded = load_pipeline(pipeline({"type": "scenes", "count": 100}), lens_registry)
    progress = Progress(stream=io.StringIO())
    progress.stop_asked = True
    with pytest.raises(Stopped, match="in the middle of images; the same command begins that stage again"):
        run_pipeline(loaded, lens_registry, progress=progress)
    assert not (tmp_path / "run" / "images" / MANIFEST).exists()
    artifacts = run_pipeline(loaded, lens_registry, progress=Progress(stream=io.StringIO()))
    assert artifacts["images"].stats["images"] == 100


def test_a_source_that_breaks_off_is_one_error(ingest, photos):
    with pytest.raises(LensError, match="holds no image"):
        ingest()
