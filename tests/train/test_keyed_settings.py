"""The settings of a train stage that a run may change on its way: they are no part of the stage's key."""

from __future__ import annotations

import copy

import pytest

TRAIN = {
    "name": "model",
    "type": "train",
    "source": "dense",
    "budget": {"steps": 3},
    "parallel": {"compile": True},
    "watch": {"validation": {}, "evaluate": {"evaluator": "scenes"}},
}
FREE = {
    "device": "cpu",
    "threads": 3,
    "checkpoints.every_s": 7,
    "checkpoints.keep_last": 7,
    "checkpoints.keep_every": 7,
    "data.workers": 2,
    "data.memory_gb": 0,
    "data.text_cache_gb": 1,
    "data.max_bad_samples": 7,
    "optimizer.max_skipped": 1,
    "parallel.replicate": 2,
    "parallel.shard": 4,
    "parallel.timeout_s": 7,
    "parallel.activation_checkpointing": "full",
    "watch.log_every": 7,
    "watch.tensorboard": False,
    "watch.wandb": "cats",
    "watch.trackio": "cats",
    "watch.profile": {"at": 7},
    "watch.validation.limit": 0.5,
    "watch.evaluate.at_least": {"single": 0.5},
}
BOUND = {
    "budget.steps": 4,
    "batch.samples": 7,
    "ema": 0.5,
    "optimizer.clip": 0.5,
    "parallel.precision": "bf16",
    "parallel.compile": False,
    "parallel.float8": True,
    "watch.validation.share": 0.5,
    "watch.validation.max_samples": 7,
    "watch.samples": {"prompts": ["a red circle"]},
    "watch.evaluate.evaluator": {"type": "scenes", "seed": 7},
}


@pytest.fixture
def keyed(lens_registry):
    """What the key is made of, with some settings changed by their paths."""

    def of(changes):
        block = copy.deepcopy(TRAIN)
        for path, value in changes.items():
            *way, last = path.split(".")
            inner = block
            for name in way:
                inner = inner.setdefault(name, {})
            inner[last] = value
        return lens_registry.parse("stages", block).keyed()

    return of


@pytest.mark.parametrize("path", FREE)
def test_free(keyed, path):
    assert keyed({path: FREE[path]}) == keyed({})


def test_a_share_of_the_activations(keyed):
    budget = {"parallel.activation_checkpointing": "budget", "parallel.activation_budget": 0.5}
    assert keyed(budget) == keyed({})


@pytest.mark.parametrize("path", BOUND)
def test_bound(keyed, path):
    assert keyed({path: BOUND[path]}) != keyed({})


def test_nothing_else_is_free(lens_registry):
    """An option that is added later belongs to the key until somebody thinks about it."""
    config = lens_registry.parse("stages", TRAIN)
    assert leaves(config.model_dump(mode="json")) - leaves(config.keyed()) == {*FREE, "parallel.activation_budget"}


def leaves(value, prefix=""):
    if not isinstance(value, dict) or prefix == "watch.evaluate.at_least.":
        return {prefix.rstrip(".")}
    return {path for name, inner in value.items() for path in leaves(inner, f"{prefix}{name}.")}
