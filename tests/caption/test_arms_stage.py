"""The change-captions stage, run as a pipeline: mixing, swapping, neighbours, failures, measures."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections import Counter

import pytest
import yaml

from caption.outputs import World, picture, rows_of
from lens_caption.stages.change_captions.config import ChangeCaptionsConfig
from lens_caption.stages.change_captions.stage import run
from lens_core.config.pipeline import load_pipeline
from lens_core.errors import ConfigError, LensError
from lens_core.pipeline.context import StageContext
from lens_core.pipeline.progress import Progress
from lens_core.pipeline.runner import run_pipeline
from lens_core.storage.artifacts import Artifact, OutputFolder
from lens_core.storage.captions import read_captions

TEXTS = [f"A red cat on the left side. Two dogs sleep near house {number}." for number in range(8)]


class Arms:
    """Images with captions in a folder, and the stage over them, with no runner between."""

    def __init__(self, folder, registry):
        self.folder, self.registry, self.number = folder, registry, 0
        self.world = World(folder)

    def images(self, count, metadata=None):
        rows = [{"data": picture(n), "name": f"{n:03d}.png", "metadata": metadata or {}} for n in range(count)]
        self.world.images(rows)

    def run(self, *captions, **options):
        self.number += 1
        output = OutputFolder(str(self.folder / f"arm-{self.number}"), self.folder / f"scratch-{self.number}")
        context = StageContext(
            name="arm",
            inputs=captions,
            output=output,
            state_dir=self.folder / "state",
            run_url=str(self.folder),
            base=str(self.folder),
            seed=0,
            registry=self.registry,
            progress=Progress(stream=io.StringIO()),
        )
        config = ChangeCaptionsConfig(name="arm", source=[made.name for made in captions], **options)
        stats = run(config, context)
        made = Artifact(output.url, {})
        return stats, read_captions(made), json.loads((self.folder / f"arm-{self.number}" / "arm.json").read_text())


@pytest.fixture
def arms(tmp_path, lens_registry):
    return Arms(tmp_path, lens_registry)


def test_a_pipeline_from_scenes_to_arms(tmp_path, lens_registry):
    """Through the real runner, as in an experiment: less is said, noise lies, and rows name their source."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "run": str(tmp_path / "run"),
                "stages": [
                    {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 40}},
                    *(
                        {
                            "name": style,
                            "type": "caption",
                            "source": "images",
                            "captioner": {"type": "scene-graph", "style": style},
                        }
                        for style in ("brief", "dense")
                    ),
                    {"name": "mixed", "type": "change-captions", "source": ["brief", "dense"], "odds": [1, 1]},
                    {
                        "name": "no-colour",
                        "type": "change-captions",
                        "source": "dense",
                        "vocabulary": "scenes",
                        "changes": [{"type": "remove", "classes": ["colour"]}],
                    },
                    {
                        "name": "noise",
                        "type": "change-captions",
                        "source": "dense",
                        "vocabulary": "scenes",
                        "changes": [{"type": "wrong-facts", "share": 0.3}],
                    },
                ],
            }
        )
    )
    pipeline = load_pipeline(str(file), lens_registry)
    by_name = run_pipeline(pipeline, lens_registry, progress=Progress(stream=io.StringIO()))
    numbers = {name: by_name[name].stats["layers"][name] for name in ("mixed", "no-colour", "noise")}
    assert 0 < numbers["no-colour"]["scene"]["bits"]["mean"] < numbers["noise"]["scene"]["bits"]["mean"]
    assert numbers["no-colour"]["scene"]["true"] == numbers["mixed"]["scene"]["true"] == 1
    assert numbers["noise"]["scene"]["true"] < 0.3
    assert numbers["no-colour"]["attributes"]["colour"] == {"per_caption": 0, "share": 0}
    assert by_name["noise"].stats["did"]["wrong_facts"] > 100
    dense = {row.key: row for row in read_captions(by_name["dense"])}
    for row in read_captions(by_name["noise"]):
        assert row.provenance["made_from"] == "dense/dense"
        assert row.provenance["made_from_sha256"] == hashlib.sha256(dense[row.key].text.encode()).hexdigest()[:16]
        assert (row.text != dense[row.key].text) == (row.provenance.get("wrong_facts", 0) > 0)
    drawn = {row.key: row.provenance["made_from"] for row in read_captions(by_name["mixed"])}
    assert set(drawn.values()) == {"brief/brief", "dense/dense"}


def test_neighbours_and_order_change_nothing(arms):
    """A larger set, whose table lies in another order, has the same captions of the same images."""
    options = {"odds": [1, 2], "changes": [{"type": "wrong-facts", "share": 0.5}, {"type": "shuffle"}]}
    arms.images(4)
    few = arms.run(arms.world.captions("a", TEXTS[:4]), arms.world.captions("b", TEXTS[4:]), **options)[1]
    arms.images(8)
    a = arms.world.captions("a", TEXTS[:4] + ["x"] * 4, order=[7, 2, 5, 0, 1, 3, 4, 6])
    b = arms.world.captions("b", TEXTS[4:] + ["y"] * 4, order=[3, 2, 1, 0, 7, 6, 5, 4])
    many = arms.run(a, b, **options)[1]
    assert many[:4] == few
    assert [row.key for row in many] == arms.world.keys


def test_odds_hold(arms):
    arms.images(600)
    a = arms.world.captions("a", ["one"] * 600)
    b = arms.world.captions("b", ["two"] * 600)
    stats, rows, _ = arms.run(a, b, odds=[1, 3])
    counts = Counter(row.text for row in rows)
    assert stats["drawn"] == {"a": counts["one"], "b": counts["two"]}
    assert abs(counts["one"] - 150) < 4.5 * math.sqrt(600 * 0.25 * 0.75)
    assert Counter(row.text for row in arms.run(a, b, layers=["b", "a"], odds=[1, 0])[1]) == {"two": 600}


def test_without_odds_all_layers_pass(arms):
    arms.images(2)
    a, b = arms.world.captions("a", ["one", "two"]), arms.world.captions("b", ["three", None])
    cut = {"changes": [{"type": "truncate", "words": 1}]}
    rows = arms.run(a, b, **cut)[1]
    assert [(row.layer, row.text) for row in rows] == [("a", "one"), ("b", "three"), ("a", "two")]
    assert {row.layer for row in arms.run(a, b, layer="cut", **cut)[1]} == {"cut-a", "cut-b"}
    assert {row.layer for row in arms.run(a, **cut)[1]} == {"arm"}


def test_swapped_captions_are_of_other_images_and_none_is_lost(arms):
    arms.images(400)
    texts = [f"A picture of number {number}." for number in range(400)]
    stats, rows, told = arms.run(arms.world.captions("dense", texts), swapped=0.2)
    assert Counter(row.text for row in rows) == Counter(texts)
    moved = [row for row, text in zip(rows, texts, strict=True) if row.text != text]
    assert stats["did"]["swapped"] == told["did"]["swapped"] == len(moved)
    assert abs(len(moved) - 80) < 4.5 * math.sqrt(400 * 0.2 * 0.8)
    own = dict(zip(arms.world.keys, texts, strict=True))
    assert all(row.text == own[row.provenance["caption_of"]] != own[row.key] for row in moved)
    assert all("caption_of" not in row.provenance for row in rows if row not in moved)
    more = arms.run(arms.world.captions("dense", texts), swapped=0.5)[1]
    assert {row.key for row in moved} <= {row.key for row in more if row.text != own[row.key]}


def test_swapped_captions_are_the_finished_ones(arms):
    """What an image gets is just what the other image would have had."""
    arms.images(8)
    dense = arms.world.captions("dense", TEXTS)
    noise = {"changes": [{"type": "wrong-facts", "share": 0.5}], "seed": 3}
    own = {row.key: row.text for row in arms.run(dense, **noise)[1]}
    rows = arms.run(dense, swapped=1, **noise)[1]
    assert all(row.text == own[row.provenance["caption_of"]] for row in rows)
    assert all(row.provenance["caption_of"] != row.key for row in rows)


def test_one_image_alone_swaps_with_nobody(arms):
    arms.images(1)
    stats, (row,), _ = arms.run(arms.world.captions("dense", ["a cat"]), swapped=1)
    assert (row.text, "swapped" in stats["did"]) == ("a cat", False)


def test_what_has_no_caption_gets_none_and_is_listed(arms):
    arms.images(4)
    failed = {"text": "", "status": "refusal", "detail": "it would not", "provenance": {"review": "reject", "usd": 1}}
    dense = arms.world.captions("dense", ["A dog is red.", failed, None, "Red."])
    stats, rows, told = arms.run(dense, changes=[{"type": "remove", "classes": ["colour"]}], swapped=0)
    keys = arms.world.keys
    assert [(row.key, row.text, row.status) for row in rows] == [
        (keys[0], "A dog.", "ok"),
        (keys[1], "", "refusal"),
        (keys[3], "", "empty"),
    ]
    assert rows[1].provenance == {"made_from": "dense/dense", "review": "reject"}
    failures = rows_of(arms.folder / "arm-1" / "failures.jsonl")
    assert [(line["name"], line["status"], line["layer"]) for line in failures] == [
        ("001.png", "refusal", "arm"),
        ("003.png", "empty", "arm"),
    ]
    assert (stats["captions"], stats["failed"]) == (1, 2)
    assert told["layers"]["arm"]["captions"] == 1


def test_nothing_left_is_an_error(arms):
    arms.images(1)
    with pytest.raises(LensError, match=r"not one caption came out \(the first: nothing is left of the caption\)"):
        arms.run(arms.world.captions("dense", ["Red."]), changes=[{"type": "remove", "classes": ["colour"]}])


@pytest.mark.parametrize("scene", [None, "a street", {"background": "grey", "objects": [{"colour": "mauve"}]}])
def test_measures_by_hand(arms, scene):
    """Of captions that can be counted; photos have no bits, whatever somebody calls their scene."""
    arms.images(2, metadata={"scene": scene})
    told = arms.run(arms.world.captions("dense", ["Two red dogs behind a small red car.", "A house."]))[2]
    arm = told["layers"]["arm"]
    assert (told["format_version"], arm["captions"], "scene" in arm) == (1, 2, False)
    assert (arm["words"]["mean"], arm["words"]["median"]) == (5, 5)
    expected = {"colour": (1, 0.5), "size": (0.5, 0.5), "number": (0.5, 0.5), "relation": (0.5, 0.5)}
    for name, counts in arm["attributes"].items():
        assert (counts["per_caption"], counts["share"]) == expected.get(name, (0, 0))
    assert arm["attributes_per_caption"] == 2.5


def test_a_change_that_needs_no_settings_is_a_name(lens_registry):
    stage = {"name": "arm", "type": "change-captions", "source": "dense"}
    named, spelt = (
        lens_registry.parse("stages", {**stage, "changes": [change]}) for change in ("shuffle", {"type": "shuffle"})
    )
    assert named == spelt


def test_bad_settings_are_named(arms):
    arms.images(1)
    a, b = arms.world.captions("a", ["x"]), arms.world.captions("b", ["y"])
    with pytest.raises(ConfigError, match=r"3 odds for 2 layers \(a, b\)"):
        arms.run(a, b, odds=[1, 1, 1])
    with pytest.raises(ConfigError, match="no caption layer 'c'"):
        arms.run(a, b, layers=["c"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"odds": [1, 1], "layers": ["a"]}, "2 numbers for 1 layers"),
        ({"odds": [0, 0]}, "all are 0"),
        ({"odds": [1, -1]}, "greater than or equal to 0"),
        ({"odds": [1, float("inf")]}, "finite"),
        ({"swapped": 1.5}, "less than or equal to 1"),
        ({"changes": [{"type": "truncate"}]}, "words"),
        ({"changes": [{"type": "truncate", "words": 0}]}, "greater than 0"),
        ({"changes": [{"type": "wrong-facts", "share": -0.1}]}, "greater than or equal to 0"),
        ({"changes": [{"type": "remove", "classes": []}]}, "at least 1"),
        ({"changes": [{"type": "remove", "classes": ["smell"]}]}, "colour"),
        ({"changes": [{"type": "translate"}]}, "translate"),
    ],
)
def test_bad_config_is_refused(lens_registry, options, said):
    with pytest.raises(ValueError, match=said):
        lens_registry.parse("stages", {"name": "arm", "type": "change-captions", "source": "dense", **options})
