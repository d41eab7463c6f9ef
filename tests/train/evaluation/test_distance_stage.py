"""The distance stage, with models whose pictures are known: one draws what captions say, the other nothing."""

from __future__ import annotations

import io
import json
from functools import partial

import numpy as np
import pytest

from core.vision_models import vit
from lens_core.errors import ConfigError, LensError
from lens_core.images import decode
from lens_core.pipeline.progress import Progress
from lens_core.storage.captions import read_captions
from lens_core.storage.shards import ShardReader
from lens_train.evaluation.distances import frechet_distance, kernel_distance
from lens_train.evaluation.features import features_by
from train.oracle import drawn, oracle_folder, registry_with_oracle


@pytest.fixture(scope="module")
def registry():
    return registry_with_oracle()


@pytest.fixture(scope="module")
def models(registry, scenes, publish_for_all):
    """Both are said to be trained on the scenes with brief captions."""

    def make(name, *, mute):
        fill = partial(oracle_folder, registry, mute=mute)
        return publish_for_all("model", name, fill, parents=[scenes["brief"]])

    return [make("draws", mute=False), make("mute", mute=True)]


@pytest.fixture(scope="module")
def held_out(run_stages, tmp_path_factory):
    """20 scenes of other compositions, with two layers of captions."""
    images = {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 20, "split": "held-out"}}
    captions = [
        {"name": style, "type": "caption", "source": "images", "captioner": {"type": "scene-graph", "style": style}}
        for style in ("brief", "dense")
    ]
    return run_stages(tmp_path_factory.mktemp("held-out"), [images, *captions])


@pytest.fixture
def measured(registry, run_stage):
    """Run the stage: its scores, its stats, and what it said."""

    def run(inputs, **options):
        config = registry.parse(
            "stages", {"name": "how-like", "type": "distance", "source": [made.name for made in inputs], **options}
        )
        said = io.StringIO()
        folder, stats = run_stage(registry, config, inputs, progress=Progress(stream=said, live=False))
        return json.loads((folder / "scores.json").read_text()), stats, said.getvalue()

    return run


def test_distances_are_those_of_the_features(measured, models, held_out):
    captions = held_out["brief"]
    scores, stats, said = measured([*models, captions])
    assert stats == {"pictures": 40, "models": 2, "left_out": 0}
    assert [(d["model"], d["distance"], d["n"]) for d in scores["distances"]] == [
        ("draws", "kid", 20),
        ("draws", "frechet", 20),
        ("mute", "kid", 20),
        ("mute", "frechet", 20),
    ]
    assert scores["cells"] == []
    assert scores["models"] == [{"name": "draws", "own_style": "brief"}, {"name": "mute", "own_style": "brief"}]
    assert scores["seen"] == {"draws": 0, "mute": 0}
    assert "was trained on" not in said
    # The images and the pictures of their captions, put together here.
    features_of = features_by("pixels", device="cpu", asked_by="test")
    rows = sorted(read_captions(captions), key=lambda row: row.key)
    reader = ShardReader(held_out["images"])
    real = np.stack([features_of(decode(reader.by_key(row.key).data)) for row in rows])
    reader.close()
    pictures = {
        "draws": np.stack([features_of(drawn(row.text, 32)) for row in rows]),
        "mute": np.stack([features_of(np.full((32, 32, 3), 246, np.uint8))] * 20),
    }
    for entry in scores["distances"]:
        compare = {"kid": kernel_distance, "frechet": frechet_distance}[entry["distance"]]
        expected = compare(real, pictures[entry["model"]])
        assert entry["value"] == pytest.approx(expected.value, abs=1e-6)
        assert [entry["low"], entry["high"]] == pytest.approx([expected.low, expected.high], abs=1e-6)


def test_who_draws_what_dense_captions_say_is_near(measured, models, held_out):
    """Nearer than who draws nothing, and no further than chance: captions leave out a few pixels of every place."""
    scores, _, _ = measured([*models, held_out["dense"]], images=16)
    by = {(d["model"], d["distance"]): d for d in scores["distances"]}
    assert by["draws", "kid"]["low"] < 0 < by["mute", "kid"]["low"]
    assert by["draws", "kid"]["high"] < by["mute", "kid"]["low"]
    assert by["draws", "frechet"]["value"] < by["mute", "frechet"]["value"] / 4
    assert {d["n"] for d in scores["distances"]} == {16}


def test_images_that_the_model_knows_are_told(measured, models, scenes):
    scores, _, said = measured([models[0], scenes["dense"]])
    assert scores["seen"] == {"draws": 24}
    assert "warning: draws was trained on 24 of these 24 images" in said


def test_features_of_a_vision_model(measured, models, held_out, tmp_path):
    folder = str(vit(tmp_path))
    scores, _, _ = measured([*models, held_out["dense"]], features=folder)
    assert scores["features"] == folder
    by = {(d["model"], d["distance"]): d["value"] for d in scores["distances"]}
    for name in ("kid", "frechet"):
        assert by["draws", name] < by["mute", name]


def test_what_cannot_be_measured(measured, models, held_out, few_captions):
    with pytest.raises(ConfigError, match=r"source: .*there are 2 models and 0 stages of captions"):
        measured(models)
    with pytest.raises(ConfigError, match="there are 0 models and 2 stages of captions"):
        measured([held_out["brief"], held_out["dense"]])
    with pytest.raises(LensError, match="4 captioned images can be decoded; a distance takes at least 8"):
        measured([models[0], few_captions])
    with pytest.raises(ConfigError, match=r"how-like: there is no model at '.*nowhere'"):
        measured([models[0], held_out["dense"]], features="nowhere")


@pytest.fixture(scope="module")
def few_captions(run_stages, tmp_path_factory):
    images = {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 4}}
    captions = {"name": "dense", "type": "caption", "source": "images", "captioner": {"type": "scene-graph"}}
    return run_stages(tmp_path_factory.mktemp("four"), [images, captions])["dense"]
