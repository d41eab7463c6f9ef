"""Captions that the images bring: from the field of an image, and from a WebDataset to the caption table."""

from __future__ import annotations

import io
import json
import tarfile

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from lens_caption.captioners.metadata.captioner import MetadataCaptioner
from lens_caption.captioners.metadata.config import MetadataConfig
from lens_core.config.pipeline import load_pipeline
from lens_core.contracts import ImageItem
from lens_core.errors import LensError
from lens_core.pipeline.progress import Progress
from lens_core.pipeline.runner import run_pipeline


def caption(metadata, **config):
    (outcome,) = MetadataCaptioner(MetadataConfig(**config)).caption([ImageItem(key="k", data=b"", metadata=metadata)])
    assert outcome.key == "k"
    return outcome


@pytest.mark.parametrize(
    ("metadata", "field", "text"),
    [
        ({"txt": "a fox", "text": "a dog"}, "txt", "a fox"),
        ({"txt": "a fox", "text": "a dog"}, "text", "a dog"),
        ({"txt": " \ta fox.\r\nIt  sleeps.\n"}, "txt", "a fox.\r\nIt  sleeps."),
        ({"captions": ["a fox", "an animal"]}, "captions", "a fox"),
        ({"captions": {"dense": {"text": "a fox"}}}, "captions.dense.text", "a fox"),
        ({"caption.txt": "a fox", "caption": {"txt": "a dog"}}, "caption.txt", "a fox"),
    ],
)
def test_the_text_of_the_field_is_the_caption(metadata, field, text):
    outcome = caption(metadata, field=field)
    assert (outcome.status, outcome.text, outcome.detail) == ("ok", text, "")
    assert outcome.provenance == {"captioner": "metadata", "field": field}


@pytest.mark.parametrize(
    ("metadata", "field", "there"),
    [
        ({}, "txt", "none"),
        ({"url": "u", "caption": "a fox"}, "txt", "caption, url"),
        ({"a\nb": 1}, "txt", "a b"),
        ({"captions": {"dense": "a fox"}}, "captions.brief", "captions"),
        ({"captions": "a fox"}, "captions.brief", "captions"),
    ],
)
def test_a_field_that_is_missing_is_named_with_those_that_are_there(metadata, field, there):
    outcome = caption(metadata, field=field)
    assert (outcome.status, outcome.text) == ("bad-image", "")
    assert outcome.detail == f"its metadata has no field {field!r} (there is: {there})"


def test_of_many_fields_some_are_shown():
    outcome = caption({f"column_{number:03d}": 0 for number in range(500)})
    assert "column_000, column_001" in outcome.detail
    assert outcome.detail.endswith(" …)")
    assert len(outcome.detail) < 300


@pytest.mark.parametrize("value", ["", " \n\t", None, 7, True, [], [""], [7, "a fox"], [["a fox"]], {"en": "a fox"}])
def test_what_is_no_text_is_no_caption(value):
    outcome = caption({"txt": value})
    assert (outcome.status, outcome.text, outcome.detail) == ("empty", "", "the field 'txt' holds no text")


def test_from_a_webdataset_to_the_caption_table(tmp_path, lens_registry):
    images = []
    for shade in range(4):
        stream = io.BytesIO()
        Image.new("RGB", (24, 16), (shade * 60, 9, 9)).save(stream, "JPEG")
        images.append(stream.getvalue())
    texts = ["a red fox\n", None, "  \n", "ein Fuchs, süß"]
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for number, (image, text) in enumerate(zip(images, texts, strict=True)):
            members = {"jpg": image, "json": b'{"licence": "cc0"}', **({} if text is None else {"txt": text.encode()})}
            for ending, data in members.items():
                info = tarfile.TarInfo(f"{number}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    def run(field):
        stages = [
            {"name": "images", "type": "ingest", "source": {"type": "webdataset", "url": "photos.tar"}},
            {"name": "own", "type": "caption", "source": "images", "captioner": {"type": "metadata", "field": field}},
        ]
        file = tmp_path / "p.yaml"
        file.write_text(yaml.safe_dump({"run": str(tmp_path / "run"), "stages": stages}))
        loaded = load_pipeline(str(file), lens_registry)
        return run_pipeline(loaded, lens_registry, progress=Progress(stream=io.StringIO()))["own"]

    made = run("txt")
    rows = pq.read_table(io.BytesIO(made.read_bytes("captions.parquet"))).to_pylist()
    assert [(row["layer"], row["status"], row["text"]) for row in rows] == [
        ("own", "ok", "a red fox"),
        ("own", "bad-image", ""),
        ("own", "empty", ""),
        ("own", "ok", "ein Fuchs, süß"),
    ]
    assert json.loads(rows[0]["provenance"]) == {"captioner": "metadata", "field": "txt"}
    assert made.stats["by_status"] == {"ok": 2, "bad-image": 1, "empty": 1}
    with pytest.raises(LensError, match=r"no field 'text' \(there is: licence, txt\)") as caught:
        run("text")
    assert len(str(caught.value).splitlines()) == 1
