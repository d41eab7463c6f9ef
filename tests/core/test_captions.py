"""Caption layers: what was written comes back, layer by layer, and damage is told."""

from __future__ import annotations

import io
import json
import random
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_core.errors import ArtifactError
from lens_core.storage.artifacts import Artifact, OutputFolder
from lens_core.storage.captions import CAPTIONS, CaptionRow, read_captions, read_texts, write_captions

BRIEF = CaptionRow(key="a" * 64, layer="brief", text="a red circle", provenance={"captioner": "rule", "tokens": 3})
DENSE = CaptionRow(key="a" * 64, layer="dense", text="one object on grey.\nupper left: large red circle.")
FAILED = CaptionRow(key="b" * 64, layer="brief", text="", status="refusal", detail="it would rather not")


def store(folder, rows):
    output = OutputFolder(str(folder / "captions"), folder / "scratch")
    write_captions(output, rows)
    return Artifact(output.url, {"type": "captions"})


def test_rows_come_back_in_order(tmp_path):
    rows = [DENSE, FAILED, BRIEF]
    assert read_captions(store(tmp_path, rows)) == rows


# Lone surrogates are no text: nothing can write them as UTF-8.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
values = texts | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, texts, texts, st.dictionaries(texts, values, max_size=3)), max_size=5))
def test_any_text_comes_back(contents):
    rows = [
        CaptionRow(key=f"{number:064x}", layer=layer, text=text, detail=detail, provenance=provenance)
        for number, (layer, text, detail, provenance) in enumerate(contents)
    ]
    with tempfile.TemporaryDirectory() as folder:
        assert read_captions(store(Path(folder), rows)) == rows


@pytest.mark.parametrize(
    "text", ["", " ", "ein größerer Kreis", "一个红色的圆", "🟥 + 🔵", 'line\nbreak\r\n\ttab "quote"']
)
def test_texts_that_trip_others_come_back(tmp_path, text):
    (row,) = read_captions(store(tmp_path, [CaptionRow(key="k", layer=text, text=text, detail=text)]))
    assert (row.layer, row.text, row.detail) == (text, text, text)


def test_layers_are_chosen_by_name(tmp_path):
    artifact = store(tmp_path, [DENSE, FAILED, BRIEF])
    assert read_captions(artifact, layers=["brief"]) == [FAILED, BRIEF]
    assert read_captions(artifact, layers=["dense"]) == [DENSE]
    assert read_captions(artifact, layers=["dense", "brief"]) == [DENSE, FAILED, BRIEF]
    assert read_captions(artifact, layers=[]) == []


def test_texts_alone_are_those_of_images_that_have_one(tmp_path):
    artifact = store(tmp_path, [DENSE, FAILED, BRIEF])
    assert list(read_texts(artifact)) == [(DENSE.key, DENSE.text), (BRIEF.key, BRIEF.text)]
    assert list(read_texts(artifact, layers=["brief"])) == [(BRIEF.key, BRIEF.text)]
    with pytest.raises(ArtifactError, match=r"no caption layer 'x' \(it has: brief, dense\)"):
        list(read_texts(artifact, layers=["x"]))


def test_a_large_table_of_texts_is_read_in_parts(tmp_path):
    rows = [CaptionRow(key=f"{number:064x}", layer="dense", text=f"caption {number}") for number in range(20_000)]
    assert list(read_texts(store(tmp_path, rows))) == [(row.key, row.text) for row in rows]


def test_an_unknown_layer_is_told_with_those_there_are(tmp_path):
    artifact = store(tmp_path, [DENSE, BRIEF])
    with pytest.raises(ArtifactError, match=r"no caption layer 'dens' \(it has: brief, dense\)"):
        read_captions(artifact, layers=["brief", "dens"])
    with pytest.raises(ArtifactError, match=r"no caption layer 'x' \(it has: none\)"):
        read_captions(store(tmp_path / "empty", []), layers=["x"])


def test_two_captions_of_an_image_in_one_layer_are_refused(tmp_path):
    with pytest.raises(ValueError, match=f"image {'a' * 64} has two captions in the layer 'brief'"):
        store(tmp_path, [BRIEF, DENSE, FAILED, BRIEF])
    assert not (tmp_path / "captions").exists()


def test_the_table_is_as_documented(tmp_path):
    table = pq.read_table(io.BytesIO(store(tmp_path, [BRIEF, FAILED]).read_bytes(CAPTIONS)))
    assert table.schema.names == ["key", "layer", "text", "status", "detail", "words", "provenance"]
    first, second = table.to_pylist()
    assert (first["words"], second["words"]) == (3, 0)
    assert json.loads(first["provenance"]) == {"captioner": "rule", "tokens": 3}


def test_the_same_captions_give_the_same_bytes(tmp_path):
    again = CaptionRow(**vars(BRIEF) | {"provenance": dict(reversed(BRIEF.provenance.items()))})
    assert store(tmp_path / "1", [BRIEF]).read_bytes(CAPTIONS) == store(tmp_path / "2", [again]).read_bytes(CAPTIONS)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"captions.parquet: it does not exist"):
        read_captions(Artifact(str(tmp_path), {}))


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"junk" * 99, lambda data: data[:-9]])
def test_a_damaged_table_is_named(tmp_path, damage):
    artifact = store(tmp_path, [BRIEF, DENSE])
    file = Path(artifact.url) / CAPTIONS
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ArtifactError, match=r"captions.parquet is damaged") as caught:
        read_captions(artifact)
    assert str(caught.value).splitlines() == [str(caught.value)]


def test_no_wrong_byte_in_the_table_goes_unseen(tmp_path):
    rows = [BRIEF, DENSE, FAILED]
    artifact = store(tmp_path, rows)
    file = Path(artifact.url) / CAPTIONS
    whole = file.read_bytes()
    rng = random.Random(2)
    seen = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        try:
            found = read_captions(artifact)
        except ArtifactError:
            seen += 1
        else:
            assert found == rows  # it hit what nobody reads, such as the name of the library
    assert seen > 150


def test_a_column_less_is_an_error_and_one_more_is_not(tmp_path):
    artifact = store(tmp_path, [BRIEF, DENSE])
    file = Path(artifact.url) / CAPTIONS
    table = pq.read_table(io.BytesIO(file.read_bytes()))
    pq.write_table(table.append_column("new", pa.array([1, 2])), file)
    assert read_captions(artifact) == [BRIEF, DENSE]
    pq.write_table(table.drop_columns(["status"]), file)
    with pytest.raises(ArtifactError, match=r"captions.parquet is damaged: .*status"):
        read_captions(artifact)
