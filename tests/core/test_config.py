"""Pipeline files: what is accepted, and one clear line for each mistake."""

from __future__ import annotations

import json

import pytest

from lens_core.config.overrides import apply_override
from lens_core.config.pipeline import load_pipeline
from lens_core.config.schema import pipeline_schema
from lens_core.config.yaml import parse_yaml
from lens_core.errors import ConfigError, LensError, MissingExtraError, PluginError
from lens_core.plugins import Offer, Plugin
from lens_core.registry import registry_of
from lens_core.specs import FilterSpec

GOOD = """\
run: runs/x
stages:
  - {name: images, type: ingest, source: {type: scenes, count: 20}}
  - name: dense
    type: caption
    source: images
    captioner: {type: scene-graph, style: dense}
"""


@pytest.fixture
def check(tmp_path, lens_registry):
    def load(text, overrides=(), registry=lens_registry):
        file = tmp_path / "pipeline.yaml"
        file.write_text(text)
        return load_pipeline(str(file), registry, overrides)

    return load


def test_good_pipeline_keeps_names_and_base(check, tmp_path):
    pipeline = check(GOOD)
    assert [stage.name for stage in pipeline.stages] == ["images", "dense"]
    assert pipeline.base == str(tmp_path)
    assert pipeline.stages[1].captioner.style == "dense"


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (("count: 20", "cuont: 20"), 3, ["stages[0].source.cuont", "did you mean 'count'?"]),
        (("count: 20", "count: many"), 3, ["stages[0].source.count", "integer", "'many'"]),
        (("count: 20", "count: -1"), 3, ["stages[0].source.count", "greater than 0", "-1"]),
        (("type: scenes", "type: scnes"), 3, ["stages[0].source", "did you mean 'scenes'?"]),
        (("style: dense", "style: dens"), 7, ["stages[1].captioner.style", "'dense'"]),
        (("    source: images", "    source: imags"), 6, ["did you mean 'images'?"]),
        (("    source: images\n", ""), 4, ["stages[1].source", "required"]),
        (("name: dense", "name: images"), 4, ["two stages are called 'images'"]),
        (("name: dense", "name: ../dense"), 4, ["stages[1].name"]),
        (("run: runs/x\n", ""), 1, ["run", "required"]),
        (("run: runs/x\n", "run: runs/x\nsed: 1\n"), 2, ["sed", "did you mean 'seed'?"]),
        (("run: runs/x\n", "run: s3://me:secret@bucket/x\n"), 1, ["must not carry credentials"]),
        *(
            (
                ("type: scenes, count: 20", f"type: {name}, url: 'ftp://me:secret@h/x'"),
                3,
                ["must not carry credentials"],
            )
            for name in ("image-folder", "parquet", "huggingface", "webdataset")
        ),
        (("type: caption", "type: [caption]"), 4, ["needs a 'type'"]),
    ],
)
def test_each_mistake_is_one_line_with_file_line_and_key(check, change, line, words):
    with pytest.raises(ConfigError) as caught:
        check(GOOD.replace(*change))
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert f"pipeline.yaml:{line}:" in message
    for word in words:
        assert word in message
    assert "secret" not in message


def test_every_mistake_is_told(check):
    with pytest.raises(ConfigError) as caught:
        check(GOOD.replace("count: 20", "cuont: 20").replace("style: dense", "style: dens"))
    assert len(str(caught.value).splitlines()) == 2


def test_wrong_artefact_type(check):
    text = GOOD + "  - {name: again, type: caption, source: dense, captioner: {type: scene-graph, style: brief}}\n"
    with pytest.raises(ConfigError, match="the stage 'dense' makes captions, but a caption stage takes images"):
        check(text)


def test_missing_extra_is_told_before_anything_runs(check, with_fakes):
    text = GOOD.replace("count: 20}}", "count: 20}, filters: [needs-extra]}")
    with pytest.raises(MissingExtraError, match=r"pipeline.yaml:3: .*pip install 'lens_fake_good\[extra\]'"):
        check(text, registry=with_fakes("good"))


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("run: x\nrun: y\n", 2, "stands twice"),
        ("run: [x\n", 2, "not valid YAML"),
        ("a: 1\n b: 2\n", 2, "not valid YAML"),
        ("run: !!python/object:os.system x\n", 1, "not valid YAML"),
        ("1.5: x\n", 1, "not a text"),
        ("{512: 1, '512': 2}\n", 1, "stands twice"),
        ("run: x\n---\nrun: y\n", 2, "not valid YAML"),
        ("run: x\na: \x07\n", 2, "not valid YAML: special characters are not allowed (#x0007)"),
        ("run: x\nlicence: 2024-02-30\n", 2, "'2024-02-30' is no timestamp; if it is text, put it in quotes"),
        ("a: 0b_\n", 1, "'0b_' is no int"),
        ("a:\n  - !!int foo\n", 2, "'foo' is no int"),
        ("a: !!int ''\n", 1, "'' is no int"),
        ("a: !!bool foo\n", 1, "'foo' is no bool"),
        ("a: !!timestamp foo\n", 1, "'foo' is no timestamp"),
        ("2024-02-30: x\n", 1, "'2024-02-30' is no timestamp"),
    ],
)
def test_bad_yaml_says_where(text, line, words):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, file="p.yaml")
    assert words in str(caught.value)
    assert f"p.yaml:{line}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_whole_number_is_a_key():
    assert parse_yaml("bases: {512: 1, 1024: 2}", file="p").data == {"bases": {"512": 1, "1024": 2}}


@pytest.mark.parametrize("text", ["", "- a\n", "just words\n"])
def test_not_a_mapping(check, text):
    with pytest.raises(ConfigError, match="a pipeline is a mapping"):
        check(text)


@pytest.mark.parametrize(
    ("text", "value"), [("1e12", 1e12), ("1.2e13", 1.2e13), ("-3E-2", -0.03), ("1e", "1e"), ("3", 3)]
)
def test_numbers_mean_what_people_mean(text, value):
    parsed = parse_yaml(f"x: {text}", file="p").data["x"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_overrides_reach_everywhere(check):
    pipeline = check(
        GOOD,
        [
            "seed=3",
            "images.source.count=5",
            "stages.dense.captioner.style=brief",
            "stages.0.source.size=64",
            "run=other",
        ],
    )
    assert pipeline.config.seed == 3
    assert pipeline.config.run == "other"
    assert pipeline.stages[0].source.count == 5
    assert pipeline.stages[0].source.size == 64
    assert pipeline.stages[1].captioner.style == "brief"


@pytest.mark.parametrize("text", ["seed", "=3", "a..b=1", "stages.nobody.count=1", "stages.9.count=1", "seed.x.y=1"])
def test_bad_overrides(text):
    with pytest.raises(ConfigError, match="--set"):
        apply_override({"seed": 1, "stages": [{"name": "images"}]}, text)


def test_overrides_of_what_is_no_list_of_stages(check):
    with pytest.raises(ConfigError, match=r"a: unknown option"):
        check("run: x\nstages: 5\n", ["a.b=1"])


def test_no_error_shows_a_secret(lens_registry):
    with pytest.raises(ValueError, match="credentials") as caught:
        lens_registry.parse("datasets", {"type": "image-folder", "url": "ftp://me:secret@h/x"})
    assert "secret" not in str(caught.value)


def test_a_file_url_has_the_base_of_its_path(check, tmp_path, lens_registry):
    check(GOOD)
    assert load_pipeline(f"file://{tmp_path}/pipeline.yaml", lens_registry).base == str(tmp_path)


def test_override_errors_point_at_the_key(check):
    with pytest.raises(LensError, match=r"stages\[0\].source.cuont"):
        check(GOOD, ["images.source.cuont=5"])


def test_resolved_config_is_a_pipeline_again(check):
    import yaml

    pipeline = check(GOOD)
    dumped = yaml.safe_dump(pipeline.config.model_dump(mode="json"))
    assert check(dumped).config == pipeline.config


def test_schema_offers_every_component(lens_registry):
    schema = pipeline_schema(lens_registry)
    text = json.dumps(schema)
    assert "x-lens-kind" not in text
    for kind, catalog in lens_registry.catalogs.items():
        if kind == "commands":
            continue
        for name in catalog:
            assert f'"const": "{name}"' in text, (kind, name)
    references = {part.split('"')[0] for part in text.split('"$ref": "#/$defs/')[1:]}
    assert references <= schema["$defs"].keys()


def test_a_broken_plugin_does_not_take_the_schema_with_it(lens_registry, tmp_path, monkeypatch):
    (tmp_path / "torn_config.py").write_text("raise RuntimeError('torn in two')")
    monkeypatch.syspath_prepend(str(tmp_path))
    torn = FilterSpec(name="torn", summary="x", config="torn_config:Torn", target="torn:Torn")
    plugin = Plugin(name="torn", module="torn", distribution="torn", version="1")
    offers = [
        offer for catalog in lens_registry.catalogs.values() for rivals in catalog.offers.values() for offer in rivals
    ]
    registry = registry_of([*offers, Offer(kind="filters", spec=torn, plugin=plugin)])
    with pytest.raises(PluginError, match="torn: the module 'torn_config' cannot be imported: RuntimeError: torn in"):
        torn.load_config()
    text = json.dumps(pipeline_schema(registry))
    assert '"const": "decodable"' in text
    assert '"const": "torn"' not in text
