"""A cell's key: what is asked of it and what it is given, and nothing that a later version may add beside them."""

from __future__ import annotations

import pytest

from lens_train.ablation.cells import cell_key

TRAIN = {"name": "model", "type": "train", "source": "dense", "model": "lens", "budget": {"steps": 3}}
SCORES = {"name": "scores", "type": "evaluate", "source": "model", "evaluator": {"type": "scenes", "seed": 1}}


@pytest.fixture
def given(publish):
    """A caption artefact over images: `given(name, text=…, image=…, config=…)`."""

    def make(name, *, text="a dog", image="pixels", config=None):
        images = publish("images", f"{name}-images", lambda out: out.write_text("shard", image))
        return publish("captions", name, lambda out: out.write_text("layer", text), parents=[images], config=config)

    return make


@pytest.fixture
def key(lens_registry, tmp_path):
    def of(*stages, seed=0, **given):
        parsed = [lens_registry.parse("stages", stage) for stage in stages]
        return cell_key(parsed, given, seed=seed, base=str(tmp_path), registry=lens_registry)

    return of


def test_what_was_asked_is_part_of_it(key, given):
    dense = given("dense")
    same = key(TRAIN, SCORES, dense=dense)
    assert same == key(TRAIN, SCORES, dense=dense)
    others = [
        key(TRAIN, SCORES, seed=1, dense=dense),
        key({**TRAIN, "budget": {"steps": 4}}, SCORES, dense=dense),
        key({**TRAIN, "model": {"type": "lens", "num_layers": 1}}, SCORES, dense=dense),
        key(TRAIN, {**SCORES, "evaluator": {"type": "scenes", "seed": 2}}, dense=dense),
        key(TRAIN, {**SCORES, "evaluator": "scenes"}, dense=dense),
        key(TRAIN, dense=dense),
    ]
    assert len({same, *others}) == 7


def test_defaults_are_not_so_that_new_options_change_nothing(key, given, lens_registry):
    dense = given("dense")
    stage = lens_registry.parse("stages", TRAIN)
    written = stage.model_dump(mode="json", exclude_unset=True)
    assert written.keys() == TRAIN.keys()
    assert written["model"] == {"type": "lens"}
    assert key(TRAIN, dense=dense) == key(written, dense=dense)


def test_content_is_and_the_settings_that_made_it_are_not(key, given):
    first = key(TRAIN, dense=given("first"))
    assert key(TRAIN, dense=given("second", config={"new-option": 1})) == first
    assert key(TRAIN, dense=given("third", text="a cat")) != first
    assert key(TRAIN, dense=given("fourth", image="other pixels")) != first
