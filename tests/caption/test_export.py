"""Exports: every format read back by an independent reader, the bytes unchanged, hostile words kept as they are."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from caption.outputs import HOSTILE, World, picture, rows_of
from lens_caption.export.stage import run
from lens_caption.layers import LayerStore, StoredImages, sources
from lens_core.config.pipeline import load_pipeline
from lens_core.errors import ArtifactError, ConfigError, LensError, MissingExtraError
from lens_core.pipeline.context import StageContext
from lens_core.pipeline.progress import Progress
from lens_core.pipeline.runner import run_pipeline
from lens_core.storage.artifacts import OutputFolder

COUNT = 30


def leaves_files_open(test):
    """A library does, which is no fault of the export."""
    for kind in ("pytest.PytestUnraisableExceptionWarning", "ResourceWarning"):
        test = pytest.mark.filterwarnings(f"ignore::{kind}")(test)
    return test


@pytest.fixture
def world(tmp_path):
    """Images in four formats, under hostile names, in several shards."""
    made = World(tmp_path)
    kinds = ["PNG", "JPEG", "WEBP", "GIF"]
    rows = [
        {
            "data": picture(number, kind=kinds[number % 4]),
            "name": f"{HOSTILE[number % len(HOSTILE)]} {number}.png",
            "format": kinds[number % 4].lower(),
            "licence": "cc0" if number % 2 else "",
            "metadata": {"tag": HOSTILE[number % len(HOSTILE)], "n": number},
        }
        for number in range(COUNT)
    ]
    made.rows = rows
    made.images(rows, shard_bytes=20_000)
    return made


@pytest.fixture
def export(tmp_path, lens_registry):
    """Run the stage on artefacts: `export([dense], format="parquet")` gives its stats and the folder with the data."""
    runs = []

    def run_stage(inputs, **options):
        runs.append(None)
        config = lens_registry.parse(
            "stages", {"name": "out", "type": "export", "source": [made.name for made in inputs], **options}
        )
        folder = tmp_path / f"out{len(runs)}"
        output = OutputFolder(str(folder), tmp_path / f"scratch{len(runs)}")
        context = StageContext(
            name="out",
            inputs=tuple(inputs),
            output=output,
            state_dir=tmp_path,
            run_url=str(tmp_path),
            base=str(tmp_path),
            seed=0,
            registry=lens_registry,
            progress=Progress(stream=io.StringIO(), live=False),
        )
        stats = run(config, context)
        on_disk = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert on_disk == set(output.files)
        return stats, folder / "data"

    return run_stage


def hostile_texts(world):
    """A caption per image, two of them failures."""
    texts = [f"{HOSTILE[number % len(HOSTILE)]} {number}" for number in range(COUNT)]
    texts[3] = {"text": "", "status": "refusal", "detail": "no"}
    texts[7] = None
    return texts


def shuffled(count, seed=5):
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


KEPT = [number for number in range(COUNT) if number not in (3, 7)]


def test_webdataset_groups_the_unchanged_bytes_with_text_and_json(world, export):
    dense = world.captions("dense", hostile_texts(world), order=shuffled(COUNT - 1))
    stats, data = export([dense], format="webdataset")
    assert (stats["images"], stats["without_caption"]) == (COUNT - 2, 2)
    found = {}
    for file in sorted(data.iterdir()):
        with tarfile.open(file) as tar:
            for member in tar:
                # The convention of WebDataset: what stands before the first dot is the sample.
                key, _, ending = member.name.partition(".")
                found.setdefault(key, {})[ending] = tar.extractfile(member).read()
    assert list(found) == [world.keys[number] for number in KEPT]
    for number in KEPT:
        sample, row = found[world.keys[number]], world.rows[number]
        ending = {"jpeg": "jpg"}.get(row["format"], row["format"])
        assert set(sample) == {ending, "txt", "json"}
        assert sample[ending] == row["data"]
        assert sample["txt"].decode() == f"{HOSTILE[number % len(HOSTILE)]} {number}"
        told = json.loads(sample["json"])
        assert (told["name"], told["metadata"], told["licence"]) == (row["name"], row["metadata"], row["licence"])
        assert told["captions"]["dense"]["provenance"] == {"captioner": "scene-graph"}
        assert told["text"] == told["captions"]["dense"]["text"] == sample["txt"].decode()


@leaves_files_open
def test_webdataset_library_reads_it(world, export):
    import webdataset

    texts = hostile_texts(world)
    _, data = export([world.captions("dense", texts)], format="webdataset", without_caption="keep")
    files = [str(file) for file in sorted(data.iterdir())]
    samples = list(webdataset.WebDataset(files, shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in samples] == world.keys
    for number, sample in enumerate(samples):
        (ending,) = sample.keys() & {"png", "jpg", "webp", "gif"}
        assert sample.get("txt") == (texts[number] if isinstance(texts[number], str) else None)
        assert sample["json"]["metadata"] == world.rows[number]["metadata"]
        if ending != "gif":  # which the library leaves as bytes
            assert sample[ending].size == (64, 48)


def test_large_sets_are_cut_into_files_and_the_same_again_is_the_same(tmp_path, export):
    world = World(tmp_path)
    noise = random.Random(0)
    world.images([{"data": noise.randbytes(300_000), "name": str(number)} for number in range(9)])
    dense = world.captions("dense", [f"caption {number}" for number in range(9)])
    for format_, ending in (("webdataset", "tar"), ("parquet", "parquet"), ("datasets", "arrow")):
        (_, first), (_, second) = (export([dense], format=format_, shard_megabytes=1) for _ in range(2))
        files = sorted(first.glob(f"*.{ending}"))
        assert len(files) == (3 if format_ == "webdataset" else 1)  # a batch of a hundred rows is not cut
        for file in first.iterdir():
            assert file.read_bytes() == (second / file.name).read_bytes(), file.name


def test_parquet_holds_large_binary_in_small_row_groups(tmp_path, export):
    world = World(tmp_path)
    rows = [{"data": picture(number), "name": f"{number}.png"} for number in range(230)]
    world.images(rows)
    dense = world.captions("dense", [f"caption {number}" for number in range(230)], order=shuffled(230))
    _, data = export([dense], format="parquet")
    (file,) = data.iterdir()
    table = pq.ParquetFile(file, page_checksum_verification=True)
    assert table.schema_arrow.field("image").type == pa.large_binary()
    assert [table.metadata.row_group(number).num_rows for number in range(3)] == [100, 100, 30]
    read = table.read().to_pylist()
    assert [row["image"] for row in read] == [row["data"] for row in rows]
    assert [row["text"] for row in read] == [f"caption {number}" for number in range(230)]
    assert "text_dense" not in table.schema_arrow.names
    assert json.loads(read[0]["captions"]) == {
        "dense": {"status": "ok", "detail": "", "provenance": {"captioner": "scene-graph"}}
    }


def test_parquet_row_groups_are_bounded_in_bytes_too(tmp_path, export):
    world = World(tmp_path)
    noise = random.Random(0)
    world.images([{"data": noise.randbytes(9 << 20), "name": str(number)} for number in range(5)])
    _, data = export([world.captions("dense", list("abcde"))], format="parquet", shard_megabytes=1)
    assert [pq.ParquetFile(file).metadata.num_rows for file in sorted(data.iterdir())] == [4, 1]


@pytest.mark.parametrize("metadata", ["jsonl", "parquet"])
def test_imagefolder_has_a_file_per_image_and_a_table_that_names_it(world, export, metadata):
    texts = hostile_texts(world)
    _, data = export([world.captions("dense", texts)], format="imagefolder", metadata=metadata)
    file = data / f"metadata.{metadata}"
    rows = rows_of(file) if metadata == "jsonl" else pq.read_table(file).to_pylist()
    assert [row["key"] for row in rows] == [world.keys[number] for number in KEPT]
    for number, row in zip(KEPT, rows, strict=True):
        path = data / row["file_name"]
        assert path.resolve().is_relative_to(data.resolve())
        assert path.read_bytes() == world.rows[number]["data"]
        Image.open(path).verify()
        assert row["text"] == texts[number]
        assert row["name"] == world.rows[number]["name"]
    if metadata == "jsonl":  # what Hugging Face's loader parses it with, one type per column
        import pyarrow.json as paj

        assert paj.read_json(file).column("text").to_pylist() == [texts[number] for number in KEPT]


def test_datasets_folder_is_arrow_with_its_description(world, export):
    texts = hostile_texts(world)
    _, data = export([world.captions("dense", texts)], format="datasets", without_caption="keep")
    state = json.loads((data / "state.json").read_text())
    info = json.loads((data / "dataset_info.json").read_text())
    rows = []
    for entry in state["_data_files"]:
        with pa.OSFile(str(data / entry["filename"])) as source:
            table = pa.ipc.open_stream(source).read_all()
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        assert features == info["features"]
        assert list(features) == table.schema.names
        rows += table.to_pylist()
    assert features["image"] == {"_type": "Image"}
    assert features["width"] == {"dtype": "int32", "_type": "Value"}
    assert [row["image"]["bytes"] for row in rows] == [row["data"] for row in world.rows]
    assert [row["text"] for row in rows] == [text if isinstance(text, str) else None for text in texts]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Hugging Face's library without a network and without the user's cache."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def stored(loaded, datasets):
    """The images of a loaded dataset as they are stored."""
    raw = loaded.cast_column("image", datasets.Image(decode=False))
    return [row["bytes"] or Path(row["path"]).read_bytes() for row in raw["image"]]


def test_datasets_library_opens_its_folder(world, export, offline):
    texts = hostile_texts(world)
    brief = world.captions("brief", [f"brief {number}" for number in range(COUNT)])
    _, data = export([world.captions("dense", texts), brief], format="datasets")
    loaded = offline.load_from_disk(str(data))
    assert loaded["key"] == world.keys
    assert loaded["text_dense"] == [text if isinstance(text, str) else None for text in texts]
    assert loaded["text_brief"] == [f"brief {number}" for number in range(COUNT)]
    assert stored(loaded, offline) == [row["data"] for row in world.rows]
    assert {row["image"].size for row in loaded} == {(64, 48)}
    assert [json.loads(row)["n"] for row in loaded["metadata"]] == list(range(COUNT))
    assert loaded.features["image"] == offline.Image()
    again = world.folder / "again"  # what it writes itself is what it has read
    loaded.save_to_disk(str(again))
    assert offline.load_from_disk(str(again))["text"] == loaded["text"]


@leaves_files_open
@pytest.mark.parametrize("metadata", ["jsonl", "parquet"])
def test_datasets_library_loads_the_imagefolder(world, export, offline, metadata):
    texts = hostile_texts(world)
    _, data = export([world.captions("dense", texts)], format="imagefolder", metadata=metadata, without_caption="keep")
    loaded = offline.load_dataset("imagefolder", data_dir=str(data), split="train")
    by_key = {row: number for number, row in enumerate(loaded["key"])}
    assert sorted(by_key) == sorted(world.keys)
    order = [by_key[key] for key in world.keys]
    assert [loaded["text"][number] for number in order] == [text if isinstance(text, str) else None for text in texts]
    assert [loaded["name"][number] for number in order] == [row["name"] for row in world.rows]
    data = stored(loaded, offline)
    assert [data[number] for number in order] == [row["data"] for row in world.rows]
    assert {row["image"].size for row in loaded} == {(64, 48)}


def test_datasets_library_loads_the_parquet_files(world, export, offline):
    texts = hostile_texts(world)
    _, data = export([world.captions("dense", texts)], format="parquet", without_caption="keep")
    loaded = offline.load_dataset("parquet", data_dir=str(data), split="train")
    assert loaded["key"] == world.keys
    assert loaded["text"] == [text if isinstance(text, str) else None for text in texts]
    assert loaded["image"] == [row["data"] for row in world.rows]
    seen = loaded.cast_column("image", offline.Image())
    assert {row["image"].size for row in seen} == {(64, 48)}


@leaves_files_open
def test_datasets_library_loads_tars_of_one_format(tmp_path, export, offline):
    world = World(tmp_path)
    world.images([{"data": picture(number), "name": str(number)} for number in range(COUNT)], shard_bytes=20_000)
    texts = [f"{HOSTILE[number % len(HOSTILE)]} {number}" for number in range(COUNT)]
    _, data = export([world.captions("dense", texts)], format="webdataset")
    files = {"train": str(data / "*.tar")}
    rows = list(offline.load_dataset("webdataset", data_files=files, split="train", streaming=True))
    assert [row["__key__"] for row in rows] == world.keys
    assert [row["txt"] for row in rows] == texts
    assert [row["json"]["captions"]["dense"]["text"] for row in rows] == texts
    assert {row["png"].size for row in rows} == {(64, 48)}


def test_lance_dataset_reads_back(tmp_path, export):
    lance = pytest.importorskip("lance")
    world = World(tmp_path)
    noise = random.Random(0)
    rows = [{"data": noise.randbytes(9 << 20), "name": f"{HOSTILE[number]} {number}"} for number in range(9)]
    world.images(rows)
    texts = [HOSTILE[number] for number in range(8)]
    inputs = [world.captions("dense", texts), world.captions("brief", [None] * 8 + ["only here"])]
    _, data = export(inputs, format="lance", shard_megabytes=1)
    dataset = lance.dataset(str(data.with_suffix(".lance")))
    assert dataset.count_rows() == 9
    assert dataset.version == 3  # 4, 4 and 1 image
    table = dataset.to_table()
    assert table.column("image").to_pylist() == [row["data"] for row in rows]
    assert table.column("name").to_pylist() == [row["name"] for row in rows]
    assert table.column("text").to_pylist() == [*texts, "only here"]
    assert table.column("text_dense").to_pylist() == [*texts, None]
    taken = dataset.take([8, 2], columns=["key", "text_brief"]).to_pylist()
    assert taken == [{"key": world.keys[8], "text_brief": "only here"}, {"key": world.keys[2], "text_brief": None}]
    assert dataset.to_table(filter="text_brief IS NOT NULL", columns=["key"]).num_rows == 1


def test_lance_without_its_library_says_how_to_get_it(world, export):
    try:
        import lance  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match=r"pylance.*lens-caption\[lance\]"):
            export([world.captions("dense", ["a"])], format="lance")
    else:
        pytest.skip("pylance is installed")


def test_several_layers_give_a_column_each_and_the_first_gives_the_text(world, export):
    brief = world.captions("brief", ["b0", None, "b2", {"text": "", "status": "refusal", "detail": "no"}, "b4"])
    dense = world.captions("dense", ["d0", "d1", None, "d3", "d4"])
    stats, data = export([brief, dense], format="parquet")
    rows = pq.read_table(data / "data-00000.parquet").to_pylist()
    assert [row["text"] for row in rows] == ["b0", "d1", "b2", "d3", "b4"]
    assert [row["text_brief"] for row in rows] == ["b0", None, "b2", None, "b4"]
    assert [row["text_dense"] for row in rows] == ["d0", "d1", None, "d3", "d4"]
    assert json.loads(rows[3]["captions"])["brief"]["status"] == "refusal"
    assert stats["columns"] == ["text", "text_brief", "text_dense"]
    assert stats["captions_by_layer"] == {"brief": 3, "dense": 4}
    stats, data = export([brief, dense], format="parquet", layers=["dense", "brief"])
    assert pq.read_table(data / "data-00000.parquet").column("text").to_pylist() == ["d0", "d1", "b2", "d3", "d4"]
    stats, data = export([brief, dense], format="parquet", layers=["dense"])
    assert pq.read_table(data / "data-00000.parquet").column("text").to_pylist() == ["d0", "d1", "d3", "d4"]


def test_what_a_reviewer_rejected_is_not_replaced_by_another_layer(world, export):
    rejected = {"text": "", "status": "rejected", "provenance": {"review": "reject"}}
    by_a_gate = {"text": "", "status": "rejected", "detail": "length: 2 words", "provenance": {"gates": "0"}}
    reviewed = world.captions("reviewed", [rejected, "better", None, by_a_gate])
    dense = world.captions("dense", ["d0", "d1", "d2", "d3"])
    _, data = export([reviewed, dense], format="parquet")
    assert pq.read_table(data / "data-00000.parquet").column("text").to_pylist() == ["better", "d2", "d3"]
    _, data = export([reviewed, dense], format="parquet", without_caption="keep")
    texts = pq.read_table(data / "data-00000.parquet").column("text").to_pylist()
    assert texts[:4] == [None, "better", "d2", "d3"]
    assert len(texts) == COUNT


def test_licences_are_counted(world, export):
    stats, _ = export([world.captions("dense", [f"{number}" for number in range(COUNT)])], format="webdataset")
    assert stats["licences"] == {"cc0": COUNT // 2, "unknown": COUNT // 2}


def test_mistakes_are_named(world, export, tmp_path, lens_registry):
    dense = world.captions("dense", ["a", "b"])
    with pytest.raises(ConfigError, match="no caption layer 'dens' among the sources \\(there is: dense\\)"):
        export([dense], format="parquet", layers=["dens"])
    again = world.captions("again", ["x"], layer="dense")
    with pytest.raises(ConfigError, match="'dense' stands in both"):
        export([dense, again], format="parquet")
    other = World(tmp_path / "other")
    other.images([{"data": picture(1000), "name": "o"}])
    foreign = other.captions("foreign", ["x"])
    with pytest.raises(ConfigError, match="different sets of images"):
        export([dense, foreign], format="parquet")
    failed = world.captions("failed", [{"text": "", "status": "transport", "detail": "x"}])
    with pytest.raises(LensError, match="none of 30 images has a caption in the layers failed"):
        export([failed], format="parquet")
    for options, message in (
        ({"format": "parquet", "metadata": "jsonl"}, "option of the format imagefolder"),
        ({"format": "parquet", "layers": ["a", "a"]}, "twice"),
        ({"format": "mds"}, "webdataset"),
    ):
        with pytest.raises(ValueError, match=message):
            lens_registry.parse("stages", {"name": "o", "type": "export", "source": "dense", **options})


def test_damage_is_told(world, tmp_path):
    dense = world.captions("dense", ["a", "b"])
    file = tmp_path / "dense" / "captions.parquet"
    whole = file.read_bytes()
    for damaged in (b"", b"PAR1", whole[: len(whole) // 2], whole.replace(b"scene-graph", b"scene-grapf")):
        file.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"captions\.parquet is damaged"):
            LayerStore(tmp_path / f"{len(damaged)}.sqlite", [dense])
    file.unlink()
    with pytest.raises(ArtifactError, match="does not exist"):
        LayerStore(tmp_path / "gone.sqlite", [dense])
    shard = next((tmp_path / "images").glob("*.tar"))
    with shard.open("r+b") as tar:
        tar.truncate(700)
    with StoredImages(world.stored) as images:
        rows = [row for batch in images.batches() for row in batch if row["shard"] == shard.name]
        with pytest.raises(ArtifactError, match="truncated"):
            images.read(rows[-1])


def test_sources_without_captions(world):
    with pytest.raises(ConfigError, match="no captions among the sources"):
        sources([world.stored])


def test_a_pipeline_exports_what_it_captioned(tmp_path, lens_registry):
    stages = [
        {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 12}},
        {
            "name": "brief",
            "type": "caption",
            "source": "images",
            "captioner": {"type": "scene-graph", "style": "brief"},
        },
        {
            "name": "dense",
            "type": "caption",
            "source": "images",
            "captioner": {"type": "scene-graph", "style": "dense"},
        },
        {"name": "tars", "type": "export", "source": ["dense", "brief"], "format": "webdataset"},
    ]
    file = tmp_path / "p.yaml"
    file.write_text(yaml.safe_dump({"run": str(tmp_path / "run"), "stages": stages}))
    made = run_pipeline(load_pipeline(str(file), lens_registry), lens_registry, progress=Progress(stream=io.StringIO()))
    assert made["tars"].type == "export"
    assert [entry.path for entry in made["tars"].files] == ["data/shard-00000.tar"]
    assert made["tars"].stats["captions_by_layer"] == {"dense": 12, "brief": 12}
