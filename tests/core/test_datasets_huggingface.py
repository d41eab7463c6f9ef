"""Datasets that Hugging Face datasets has saved, written here by hand as that library lays them out."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from core.textures import encoded, texture
from lens_core.errors import ConfigError, StorageError

IMAGES = [encoded(texture(seed, 16)) for seed in range(7)]
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
    "text": {"dtype": "string", "_type": "Value"},
}
SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("label", pa.int64()),
        ("text", pa.string()),
    ]
)


def save(folder, rows, *, files=2, features=FEATURES, batch=2, licence="cc-by-4.0"):
    """What `Dataset.save_to_disk` leaves: Arrow streams, state.json, dataset_info.json."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    share = -(-len(rows) // files)
    for number, name in enumerate(names):
        table = pa.Table.from_pylist(rows[number * share : (number + 1) * share], schema=SCHEMA)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
            writer.write_table(table, max_chunksize=batch)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features, "license": licence}))


ROWS = [
    {"image": {"bytes": data, "path": None}, "label": number % 2, "text": f"no. {number}"}
    for number, data in enumerate(IMAGES)
]


@pytest.fixture
def source(lens_registry, tmp_path):
    def build(**options):
        config = lens_registry.parse("datasets", {"type": "huggingface", "url": "set"} | options)
        return lens_registry.build("datasets", config, base=str(tmp_path), seed=0)

    return build


@pytest.mark.parametrize("files", [1, 3])
def test_rows_in_order_with_labels_by_name(source, tmp_path, files):
    save(tmp_path / "set", ROWS, files=files)
    records = list(source())
    assert [record.name for record in records] == [f"{number:08d}" for number in range(7)]
    assert [record.read() for record in records] == IMAGES
    assert [record.read() for record in source()] == IMAGES
    assert records[3].metadata == {"label": "dog", "text": "no. 3"}
    assert records[0].licence == "cc-by-4.0"
    assert next(iter(source(licence="mine"))).licence == "mine"


def test_images_beside_the_table(source, tmp_path):
    rows = [{"image": {"bytes": None, "path": path}, "label": 0, "text": ""} for path in ("a.png", "gone.png", None)]
    save(tmp_path / "set", rows, files=1)
    (tmp_path / "set" / "a.png").write_bytes(IMAGES[0])
    first, gone, empty = source()
    assert first.read() == IMAGES[0]
    for record, words in ((gone, "it does not exist"), (empty, "the cell is empty")):
        with pytest.raises(StorageError, match=words):
            record.read()


def test_splits(source, tmp_path):
    save(tmp_path / "set" / "train", ROWS)
    save(tmp_path / "set" / "test", ROWS[:1])
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    assert len(list(source(split="train"))) == 7
    assert len(list(source(split="test"))) == 1
    with pytest.raises(ConfigError, match="name a 'split'; it has: train, test"):
        list(source())
    with pytest.raises(ConfigError, match="there is no split 'dev'"):
        list(source(split="dev"))
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["test"]}))
    assert len(list(source())) == 1


def test_which_column_is_the_image(source, tmp_path):
    two = FEATURES | {"depth": {"_type": "Image"}}
    save(tmp_path / "set", ROWS, features=two)
    with pytest.raises(ConfigError, match="say which column is the 'image'; it has: image, depth"):
        list(source())
    assert len(list(source(image="image"))) == 7
    with pytest.raises(ConfigError, match="has no column 'depth'"):
        list(source(image="depth"))


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("state.json", None, "state.json: it does not exist"),
        ("state.json", "{", "not valid JSON"),
        ("state.json", "{}", "names no data files"),
        ("dataset_info.json", "[]", "not a JSON object"),
        ("data-00000-of-00002.arrow", "nothing", "cannot be read"),
    ],
)
def test_damage_is_one_line(source, tmp_path, file, text, words):
    save(tmp_path / "set", ROWS)
    if text is None:
        (tmp_path / "set" / file).unlink()
    else:
        (tmp_path / "set" / file).write_text(text)
    with pytest.raises(StorageError, match=words) as error:
        list(source())
    assert "\n" not in str(error.value)


def test_a_cut_stream_gives_what_came_before(source, tmp_path):
    save(tmp_path / "set", ROWS, files=1)
    file = tmp_path / "set" / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:-800])
    seen = []
    with pytest.raises(StorageError, match="cannot be read"):
        seen.extend(record.read() for record in source())
    assert 0 < len(seen) < 7
    assert seen == IMAGES[: len(seen)]


def test_the_library_itself_agrees(source, tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": data, "path": None} for data in IMAGES], "label": [0, 1, 0, 1, 0, 1, 0]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "set"), num_shards=2)
    records = list(source())
    assert [record.read() for record in records] == IMAGES
    assert records[1].metadata == {"label": "dog"}


def test_the_fingerprint_changes_with_the_files(source, tmp_path):
    save(tmp_path / "set", ROWS)
    before = source().fingerprint()
    assert source().fingerprint() == before
    save(tmp_path / "set", ROWS[:5])
    assert source().fingerprint() != before
