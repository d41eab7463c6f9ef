"""The process of an engine: how it begins and ends, and steps that go wrong where prompts say so."""

from __future__ import annotations

import json
import os
import signal

import msgspec
import numpy as np
import pytest

from serve.engine.bench import drawn_alone
from serve.engine.process import EngineProcess, draw_of, settings_of
from serve.engine.scripted_engine import COSTS


def test_it_says_what_it_has_and_ends_with_its_parent(tiny_folder, tiny_loras):
    with EngineProcess(settings_of(tiny_folder, loras=tiny_loras, warm_up=True, tier="exact")) as engine:
        ready = engine.until_ready()
        assert [type(message).__name__ for message in engine.said[:1]] == ["Ready"]
        (info,) = ready.models
        assert (info.name, info.height, info.width, info.stride) == ("lens", 16, 16, 4)
        assert (info.steps, info.guidance, info.dtype, info.licence) == (3, 3.0, "float32", "MIT")
        assert info.tiers == ("exact", "lossless", "fast")
        assert info.loras == ("ink", "oil", "dora", "broken")
        assert info.sampler["type"] == "flow-euler"
        assert info.created > 1_600_000_000
        assert ready.costs["lens"].flops_per_s > 0
        assert ready.knee_tokens["lens"] > 0
        engine.process.send_signal(signal.SIGINT)  # Ctrl-C is the parent's business
        (told,) = engine.drawn(draw_of("a", tier="exact"))
        np.testing.assert_array_equal(told.picture, drawn_alone(tiny_folder, draw_of("a")))
        engine.channel.close()
        assert engine.ended()[0] == 0


def test_what_an_engine_before_it_learnt_is_not_measured_again(tiny_folder):
    learnt = {**msgspec.to_builtins(COSTS), "corrections": {"tick:16": 1.5}, "error": 0.25}
    settings = settings_of(tiny_folder, tiny_folder, warm_up=True).model_dump(mode="json")
    text = json.dumps({**settings, "costs": {"lens": learnt}, "knee_tokens": {"lens": 77}})
    with EngineProcess(text) as engine:
        ready = engine.until_ready()
        assert msgspec.to_builtins(ready.costs["lens"]) == learnt
        assert ready.knee_tokens["lens"] == 77
        assert ready.costs["lens-1"].flops_per_s > COSTS.flops_per_s  # nobody knew the other's
        (told,) = engine.drawn(draw_of("a", tier="exact"))
        np.testing.assert_array_equal(told.picture, drawn_alone(tiny_folder, draw_of("a")))


@pytest.mark.parametrize("engine", [{"threads": 3}, {"threads": None}, {"threads": None, "replicas": 2}], ids=str)
def test_engines_share_the_cores(tiny_folder, engine):
    threads = engine["threads"] or max(1, os.cpu_count() // engine.get("replicas", 1))
    with EngineProcess(settings_of(tiny_folder, **engine)) as process:
        (told,) = process.drawn(draw_of("a", steps=1))
        assert told.drawn.features["threads"] == str(threads)


@pytest.mark.parametrize(
    ("settings", "message"),
    [(settings_of("/nothing"), "/nothing is no model folder"), ("{}", "settings: models: field required")],
)
def test_a_mistake_in_a_model_or_the_settings_is_told_in_one_line(settings, message):
    with EngineProcess(settings) as engine:
        code, said = engine.ended()
        assert code == 2
        assert said.startswith(message)
        assert said.count("\n") == 1


@pytest.fixture(scope="module")
def engine(tiny_folder):
    with EngineProcess(settings_of(tiny_folder), module="serve.faulty_engine") as engine:
        engine.until_ready()
        yield engine


def test_only_the_guilty_fails(engine):
    draws = [draw_of(f"g{n}", seed=n) for n in range(3)] + [draw_of("bad", prompt="poison")]
    *good, bad = engine.drawn(*draws)
    assert bad.failed.reason == "internal"
    assert bad.failed.message == "ZeroDivisionError while it was drawn; the engine's log says more"
    assert [one.progress for one in good] == [[1, 2, 3]] * 3
    assert all(one.picture is not None for one in good)


def test_what_is_too_large_for_company_is_drawn_alone(engine):
    told = engine.drawn(*(draw_of(f"c{n}", prompt="crowded", seed=n) for n in range(3)), draw_of("plain"))
    assert [one.failed for one in told] == [None] * 4
    assert [one.progress for one in told] == [[1, 2, 3]] * 4


def test_what_is_too_large_alone_fails(engine):
    large, plain = engine.drawn(draw_of("large", prompt="too large"), draw_of("beside"))
    assert large.failed.reason == "memory"
    assert plain.picture is not None


def test_what_is_not_finite_fails(engine):
    nan, plain = engine.drawn(draw_of("nan", prompt="NaN"), draw_of("finite", prompt="slow"))
    assert nan.failed.reason == "not-finite"
    assert "float32" in nan.failed.message
    assert plain.picture is not None


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_its_parent_says_and_not_by_signals_to_both(engine, name):
    engine.process.send_signal(name)
    (told,) = engine.drawn(draw_of(f"after {name}"))
    assert told.picture is not None


def test_what_loses_the_device_ends_the_process_for_another_to_begin(tiny_folder):
    with EngineProcess(settings_of(tiny_folder), module="serve.faulty_engine") as engine:
        engine.until_ready()
        engine.send(draw_of("a", prompt="lost"), draw_of("b"))
        code, said = engine.ended()
        assert code == 1
        assert said == "cpu is lost: an illegal memory access was encountered\n"


def test_it_ends_with_its_parent_even_amid_a_call(tiny_folder):
    with EngineProcess(settings_of(tiny_folder), module="serve.faulty_engine") as engine:
        engine.until_ready()
        engine.send(draw_of("a", prompt="hang"))
        engine.until(lambda: engine.beats and engine.beats[-1].doing == "denoise")
        engine.channel.close()
        assert engine.ended()[0] == 0
