"""The tidy table: what metrics, scores and manifests become, and what is refused."""

from __future__ import annotations

import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lens_core.errors import ArtifactError, StorageError
from lens_train.ablation.rows import COLUMNS, SCHEMA, read_rows, rows_bytes, rows_of
from lens_train.loop.metrics import METRICS

CELL = {"ablation": "captions", "arm": "dense", "seed": 2, "key": "k"}
STATS = {
    "steps": 500,
    "images": 2000,
    "image_tokens": 32_000,
    "text_tokens": 9_000,
    "training_flops": 5e9,
    "parameters": 1234,
    "training_images": 24,
    "seconds": 6.5,
}
LAYER = {"captions": 3, "words": {"mean": 40.0}, "attributes_per_caption": 9.0, "scene": {"bits": {"mean": 25.0}}}
OTHER = {"captions": 1, "words": {"mean": 8.0}, "attributes_per_caption": 1.0}


def line(step, **more):
    told = {"step": step, "flops": 1e7 * step, "images": 4 * step, "image_tokens": 64 * step, "text_tokens": 18 * step}
    return json.dumps({**told, "grad_norm": 1.0, **more}) + "\n"


@pytest.fixture
def cell(publish):
    """The artefacts of a cell: `cell(captions stats, lines)`."""

    def make(stats=None, lines=(), config=None):
        captions = publish("captions", "layers", lambda output: output.write_text("x", ""), stats=stats or {})
        model = publish(
            "model",
            "model",
            lambda output: output.write_text(METRICS, "".join(lines or [line(1, loss=2.0)])),
            parents=[captions],
            stats=STATS,
            config={"type": "train", **(config or {})},
        )
        cells = [{"model": "model", "skill": "two", "style": "brief", "correct": 3, "n": 4, "accuracy": 0.75}]
        scores = publish(
            "scores",
            "scores",
            lambda output: output.write_json("scores.json", {"format_version": 1, "cells": cells}),
            parents=[model],
        )
        distances = [{"model": "model", "distance": "kid", "value": 0.25, "n": 64}]
        distance = publish(
            "scores",
            "far",
            lambda output: output.write_json("scores.json", {"format_version": 1, "distances": distances}),
            parents=[model, captions],
        )
        samples = publish("samples", "gallery", lambda output: output.write_text("x", ""), parents=[model])
        return [model, scores, distance, samples]

    return make


def rows(artifacts, metric):
    found = rows_of(artifacts, **CELL).to_pylist()
    return [row for row in found if row["metric"] == metric]


def test_final_values(cell):
    artifacts = cell()
    end = {"step": 500, "samples": 2000, "tokens": 41_000, "flops": 5e9}
    nothing = dict.fromkeys(("skill", "style", "correct", "n"))
    (accuracy,) = rows(artifacts, "accuracy")
    own = {"metric": "accuracy", "stage": "scores", "skill": "two", "style": "brief"}
    assert accuracy == {**CELL, **own, **end, "value": 0.75, "correct": 3, "n": 4}
    (distance,) = rows(artifacts, "distance")
    own = {"metric": "distance", "stage": "far", "skill": "kid", "style": None}
    assert distance == {**CELL, **own, **end, "value": 0.25, "correct": None, "n": 64}
    told = {
        "parameters": 1234,
        "training_images": 24,
        "training_flops": 5e9,
        "seconds": 6.5,
        "steps": 500,
        "samples": 2000,
        "tokens": 41_000,
    }
    for metric, value in told.items():
        (row,) = rows(artifacts, metric)
        assert row == {**CELL, "metric": metric, "stage": "model", **nothing, **end, "value": value}


def test_curves(cell):
    lines = [line(1, loss=2.0), line(2, loss=None), line(3, loss=1.0, val_loss=1.5, score_two=0.25, score_whole=0.0)]
    artifacts = cell(lines=lines)
    assert [(row["step"], row["value"]) for row in rows(artifacts, "loss")] == [(1, 2.0), (3, 1.0)]
    (row,) = rows(artifacts, "validation_loss")
    assert [row[name] for name in ("step", "samples", "tokens", "flops", "value")] == [3, 12, 246, 3e7, 1.5]
    assert [(row["skill"], row["value"]) for row in rows(artifacts, "score")] == [("two", 0.25), ("whole", 0.0)]
    assert {row["metric"] for row in rows_of(artifacts, **CELL).to_pylist()}.isdisjoint({"grad_norm", "lr"})


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (199, 199), (200, 200), (201, 200), (5000, 200)])
def test_long_curves_are_thinned(cell, count, kept):
    artifacts = cell(lines=[line(step, loss=float(step)) for step in range(1, count + 1)])
    steps = [row["step"] for row in rows(artifacts, "loss")]
    assert len(steps) == kept
    assert (steps[0], steps[-1]) == (1, count)
    gaps = [after - before for before, after in itertools.pairwise(steps)]
    assert max(gaps, default=0) - min(gaps, default=0) <= 1


@pytest.mark.parametrize(
    ("stats", "config", "expected"),
    [
        ({}, {}, {}),
        ({"words_mean": 12.5}, {}, {"words": 12.5}),
        ({"layers": {"a": LAYER}}, {}, {"words": 40.0, "attributes": 9.0, "bits": 25.0}),
        # A mean over captions, and bits of those that have any.
        ({"layers": {"a": LAYER, "b": OTHER}}, {}, {"words": 32.0, "attributes": 7.0, "bits": 25.0}),
        ({"layers": {"a": LAYER, "b": OTHER}}, {"layers": ["b"]}, {"words": 8.0, "attributes": 1.0}),
        ({"layers": {"a": {"captions": 0}}}, {}, {}),
    ],
)
def test_what_captions_say(cell, stats, config, expected):
    artifacts = cell(stats, config=config)
    for metric in ("words", "attributes", "bits"):
        assert [row["value"] for row in rows(artifacts, f"caption_{metric}")] == [
            value for name, value in expected.items() if name == metric
        ]


def test_scores_of_several_models_say_whose(cell, publish):
    model, *_ = cell()
    other = publish("model", "other", lambda output: output.write_text("x", ""), parents=[])
    both = [
        {"model": name, "skill": "two", "style": "brief", "correct": 1, "n": 2, "accuracy": 0.5}
        for name in ("model", "other")
    ]
    scores = publish(
        "scores", "both", lambda output: output.write_json("scores.json", {"cells": both}), parents=[model, other]
    )
    assert [(row["stage"], row["step"]) for row in rows([scores], "accuracy")] == [
        ("both/model", 500),
        ("both/other", None),
    ]


def test_a_round_trip(cell, tmp_path, publish):
    table = rows_of(cell(), **CELL)
    assert tuple(table.schema.names) == COLUMNS
    file = tmp_path / "dense-2.parquet"
    file.write_bytes(rows_bytes(table))
    assert read_rows(str(file)).equals(table)
    artifact = publish("ablation", "all", lambda output: output.write_bytes("rows.parquet", rows_bytes(table)))
    assert read_rows(artifact).equals(table)
    assert rows_bytes(table) == rows_bytes(read_rows(artifact))
    empty = rows_of([], **CELL)
    file.write_bytes(rows_bytes(empty))
    assert read_rows(str(file)).schema.equals(SCHEMA)


def test_what_is_no_table_of_rows(cell, tmp_path):
    file = tmp_path / "dense-2.parquet"
    with pytest.raises(StorageError, match="does not exist"):
        read_rows(str(file))
    file.write_bytes(b"")
    with pytest.raises(ArtifactError, match="is no Parquet file, or a damaged one"):
        read_rows(str(file))
    whole = rows_bytes(rows_of(cell(), **CELL))
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="is no Parquet file, or a damaged one"):
        read_rows(str(file))
    place = whole.index(b"captions")
    file.write_bytes(whole[:place] + b"CAPTIONS" + whole[place + 8 :])
    with pytest.raises(ArtifactError, match="damaged"):
        read_rows(str(file))
    pq.write_table(pa.table({"ablation": ["x"]}), file)
    with pytest.raises(ArtifactError, match="does not hold the rows of an ablation: ablation is not as it should be"):
        read_rows(str(file))
