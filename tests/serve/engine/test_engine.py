"""An engine draws what `generate` draws, in whatever company, and lets go of what is not wanted any more."""

from __future__ import annotations

import gc
import itertools
import random
import time
import weakref

import msgspec
import numpy as np
import pytest
import torch

from lens_core.diffusion.drawing import Drawing, Pack
from lens_core.errors import LensError
from lens_core.registry import load_registry
from lens_serve.engine import calls, loop
from lens_serve.engine.jobs import Stage
from lens_serve.engine.loaded import EngineModel
from lens_serve.engine.messages import Cancel, Release, StartPicture
from lens_serve.engine.previews import LinearPreview
from serve.engine.bench import INPAINT, KINDS, START, Bench, drawn_alone, picture
from serve.engine.process import draw_of, settings_of
from serve.faulty_engine import faulty_step
from serve.models import tiny_model


@pytest.fixture
def bench(tiny_settings, tiny_models):
    with Bench(tiny_settings, tiny_models) as bench:
        yield bench


@pytest.fixture(scope="module")
def alone(tiny_folder, tiny_loras):
    """What `generate` makes of the kinds."""
    return [drawn_alone(tiny_folder, draw_of("", **kind), tiny_loras.get(kind.get("lora"))) for kind in KINDS]


def test_the_pictures_are_worth_comparing(alone):
    for number, one in enumerate(alone):
        assert one.std() > 20
        assert not any(np.array_equal(one, other) for other in alone[:number])


def test_an_exact_picture_is_that_of_generate_bit_for_bit(bench, alone):
    told = bench.drawn(*(draw_of(str(number), tier="exact", **kind) for number, kind in enumerate(KINDS)))
    for one, expected in zip(told, alone, strict=True):
        assert one.failed is None
        np.testing.assert_array_equal(one.picture, expected)
    bench.work()
    assert bench.rests


def test_a_lossless_picture_is_that_of_generate_but_for_rounding(bench, alone):
    told = bench.drawn(*(draw_of(str(number), **kind) for number, kind in enumerate(KINDS)))
    for one, expected in zip(told, alone, strict=True):
        assert np.abs(one.picture.astype(int) - expected).max() <= 1
    assert max(beat.sequences for beat in bench.beats) > 4


def test_what_a_mask_protects_comes_back_pixel_for_pixel(bench):
    (told,) = bench.drawn(draw_of("a", start=INPAINT))
    np.testing.assert_array_equal(told.picture[:, :5], picture(16, 16)[:, :5])
    assert not np.array_equal(told.picture[:, 5:], picture(16, 16)[:, 5:])


def test_what_is_told_of_a_job(bench):
    draw = draw_of("a", steps=6, previews=2)
    (told,) = bench.drawn(draw)
    assert told.progress == [1, 2, 3, 4, 5, 6]
    assert [preview.number for preview in told.previews] == [0, 1]
    assert {(preview.height, preview.width) for preview in told.previews} == {(8, 8)}
    seconds = told.drawn.seconds
    assert set(seconds) == {"waited", "encode", "denoise", "decode"}
    assert all(part > 0 for part in seconds.values())
    assert sum(seconds.values()) <= time.monotonic() - draw.arrived
    assert told.drawn.features["device"].startswith("cpu ")
    assert int(told.drawn.features["threads"]) >= 1
    assert told.drawn.features["dtype"] == "float32"
    assert told.drawn.features["kernels"] == "reference"
    order = [type(message).__name__ for message in bench.said]
    assert order.index("Heartbeat") < order.index("Progress") < order.index("Preview") < order.index("Drawn")


def test_a_heartbeat_comes_before_every_call_and_tells_of_the_last_tick(bench):
    bench.drawn(draw_of("a"), draw_of("b", guidance=1.0))
    bench.work()
    doing = [beat.doing for beat in bench.beats]
    assert doing == ["encode"] * 3 + ["denoise"] * 3 + ["decode"] * 2 + ["idle"]
    assert [beat.tick for beat in bench.beats[2:8]] == [0, 0, 1, 2, 3, 3]
    last = bench.beats[-1]
    assert last.sequences == 3
    assert last.tokens > 3 * 16
    assert last.tick_s > 0
    assert last.predicted_s > 0
    assert last.rss_bytes > 10 << 20
    assert (last.running, last.waiting) == (0, 0)
    during = bench.beats[5]
    assert during.running == 2
    assert all(beat.expected_s > 0 for beat in bench.beats if beat.doing in {"denoise", "decode"})
    learnt = [beat.costs["lens"] for beat in bench.beats if beat.costs]
    assert learnt[0].corrections == {}


def expected_s(bench, doing):
    """What the calls of a kind were announced to take; forgets them."""
    told = [beat.expected_s for beat in bench.beats if beat.doing == doing]
    bench.said.clear()
    return told


def test_first_calls_are_announced_to_take_long(bench):
    """They read weights and make kernels; nobody is to think that the engine hangs."""
    short = {"prompt": "cat", "guidance": 1.0}
    bench.drawn(draw_of("a", **short))
    assert max(expected_s(bench, "encode")) == calls.FIRST_S
    bench.drawn(draw_of("b", **{**short, "prompt": "dog"}))
    first, begin = expected_s(bench, "encode")
    assert 0 < first < 1  # though it is less than four characters long
    assert begin == 0
    bench.drawn(draw_of("c", lora="ink", **short))
    steps = expected_s(bench, "denoise")
    assert steps[0] == calls.FIRST_S > max(steps[1:])
    bench.drawn(draw_of("d", start=START, **short))
    assert expected_s(bench, "encode")[-1] == calls.FIRST_S
    bench.drawn(draw_of("e", start=START, **short))
    assert 0 < expected_s(bench, "encode")[-1] < 1


def test_an_engine_that_was_warmed_up_has_made_its_first_calls(tiny_folder, tiny_models):
    with Bench(settings_of(tiny_folder, warm_up=True), tiny_models) as bench:
        bench.drawn(draw_of("a", prompt="a warm circle"))
        assert max(beat.expected_s for beat in bench.beats) < calls.FIRST_S


@pytest.mark.parametrize("failing", [{0}, {1}, {0, 1, 2}], ids=str)
def test_a_preview_that_fails_costs_nothing_but_itself(bench, monkeypatch, caplog, failing):
    """Not even a number: clients count previews from 0."""
    tries, show = itertools.count(), LinearPreview.show

    def may_fail(*given):
        if next(tries) in failing:
            raise torch.OutOfMemoryError("too large for a secret prompt")
        return show(*given)

    monkeypatch.setattr(LinearPreview, "show", may_fail)
    (told,) = bench.drawn(draw_of("a", steps=8, previews=3))
    assert told.picture is not None
    assert [preview.number for preview in told.previews] == list(range(3 - len(failing)))
    assert "job a: a preview is left out: OutOfMemoryError" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": "other"}, "no model 'other'"),
        ({"height": 18}, "not a multiple of 4"),
        ({"height": 0}, "not a multiple of 4"),
        ({"height": 128, "width": 128}, "does not fit into"),
        ({"lora": "../ink"}, "no LoRA '../ink'"),
        ({"steps": 0}, "0 steps"),
        ({"guidance": float("nan")}, "no finite number"),
        ({"lora": "ink", "lora_scale": float("inf")}, "no finite number"),
        ({"start": StartPicture(pixels=b"123", strength=0.5)}, "is not of 16x16 pixels"),
        ({"start": StartPicture(pixels=START.pixels, strength=0.5, mask=b"1")}, "is not of 16x16 pixels"),
        ({"start": StartPicture(pixels=START.pixels, strength=2.0)}, "a strength of 2.0"),
    ],
)
def test_what_cannot_be_drawn_is_refused_at_once(bench, wrong, message):
    bench.send(draw_of("a", **wrong))
    bench.work()
    assert bench.told["a"].failed.reason == "invalid"
    assert message in bench.told["a"].failed.message
    assert bench.rests


def test_a_lora_that_cannot_be_read_fails_its_own_jobs_only(bench):
    bad, good = bench.drawn(draw_of("a", lora="broken"), draw_of("b"))
    assert bad.failed.reason == "internal"
    assert "broken" not in bad.failed.message
    assert good.picture is not None
    assert any(beat.doing == "lora" for beat in bench.beats)


def test_a_lora_that_is_no_file_of_weights_is_no_fault_of_the_client(tiny_folder, tmp_path):
    file = tmp_path / "text.bin"
    file.write_text("no weights")
    settings = settings_of(tiny_folder, loras={"text": str(file)})
    with Bench(settings) as bench:
        (told,) = bench.drawn(draw_of("a", lora="text"))
    assert told.failed.reason == "internal"
    assert str(tmp_path) not in told.failed.message


def test_a_lora_that_is_not_there_is_told_at_once(tiny_folder, tmp_path):
    (served,) = settings_of(tiny_folder, loras={"ink": str(tmp_path / "ink.safetensors")}).models
    with pytest.raises(LensError, match="the LoRA 'ink' of the model 'lens': there is no"):
        EngineModel.load(served, load_registry(), torch.device("cpu"))


def test_a_lora_may_be_at_home(tiny_folder, tiny_loras, monkeypatch):
    home, _, name = tiny_loras["ink"].rpartition("/")
    monkeypatch.setenv("HOME", home)
    with Bench(settings_of(tiny_folder, loras={"ink": f"~/{name}"})) as bench:
        (told,) = bench.drawn(draw_of("a", lora="ink"))
    assert told.picture is not None


def test_a_lora_that_was_used_leaves_no_trace(bench, alone):
    told = bench.drawn(draw_of("a", lora="oil"), draw_of("b", lora="ink", lora_scale=0.8, tier="exact"))
    assert not np.array_equal(told[0].picture, told[1].picture)
    np.testing.assert_array_equal(told[1].picture, alone[6])
    (plain,) = bench.drawn(draw_of("c", tier="exact"))
    np.testing.assert_array_equal(plain.picture, alone[0])


def test_a_lora_that_was_refused_leaves_no_trace_either(bench, tiny_folder, tiny_loras):
    """A DoRA has no scale: it is read, then refused, and at that moment the one before is still on."""
    bench.drawn(draw_of("a", lora="ink"))
    (refused,) = bench.drawn(draw_of("b", lora="dora", lora_scale=0.5))
    assert refused.failed.reason == "invalid"
    assert "0.5" in refused.failed.message
    draw = draw_of("c", lora="dora", tier="exact")
    (told,) = bench.drawn(draw)
    np.testing.assert_array_equal(told.picture, drawn_alone(tiny_folder, draw, tiny_loras["dora"]))


def test_jobs_of_different_loras_share_no_step(bench):
    bench.send(draw_of("a"), draw_of("b", lora="ink"), draw_of("c", lora="ink", lora_scale=0.5), draw_of("d"))
    bench.until(lambda: all(told.over for told in bench.told.values()))
    assert max(beat.sequences for beat in bench.beats) == 4


def test_a_prompt_is_encoded_once(bench, tiny_models):
    calls = []
    encoder = tiny_models["lens"].loaded.text_encoder
    handle = encoder.register_forward_pre_hook(lambda _, given: calls.append(len(given[1]) - 1))
    text = {"prompt": "a new one", "negative": "grey"}
    try:
        bench.drawn(*(draw_of(f"a{n}", seed=n, **text) for n in range(4)), draw_of("b", prompt="another"))
        assert calls == [3]
        bench.drawn(draw_of("c", **text))
        assert calls == [3]
        bench.drawn(draw_of("d", tier="exact", **text))  # whose features must not come from that batch
        assert calls == [3, 2]
        bench.drawn(draw_of("e", tier="exact", **text), draw_of("f", **text))
        assert calls == [3, 2]
    finally:
        handle.remove()


def test_two_models_in_one_engine(tmp_path, tiny_folder):
    other = tiny_model(tmp_path / "other", seed=5, guidance=1.0)
    with Bench(settings_of(tiny_folder, other)) as bench:
        one, two = bench.drawn(draw_of("a"), draw_of("b", model="lens-1"))
        assert np.abs(one.picture.astype(int) - drawn_alone(tiny_folder, draw_of("a"))).max() <= 1
        assert np.abs(two.picture.astype(int) - drawn_alone(other, draw_of("b"))).max() <= 1
        assert not np.array_equal(one.picture, two.picture)
        assert max(beat.sequences for beat in bench.beats) == 2


@pytest.mark.parametrize("stage", list(Stage))
def test_a_job_can_be_cancelled_at_every_stage(bench, stage):
    bench.release = False
    taken = bench.drawn(*(draw_of(f"full{n}") for n in range(4)))  # so that "a" waits for a slot in the end
    bench.send(draw_of("a"), draw_of("b"))
    bench.engine.hear()
    bench.until(lambda: bench.engine.jobs["a"].stage is stage)
    heard = len(bench.told["a"].progress)
    bench.send(Cancel(id="a"), Cancel(id="unknown"), *(Release(slot=one.drawn.slot) for one in taken))
    bench.release = True
    bench.until(lambda: bench.told["b"].over)
    bench.work()
    assert not bench.told["a"].over
    assert len(bench.told["a"].progress) == heard
    assert bench.rests


def test_pictures_wait_for_a_slot_while_others_take_steps(bench):
    bench.release = False
    bench.drawn(*(draw_of(f"full{n}") for n in range(4)))
    bench.send(draw_of("a"))
    bench.until(lambda: "a" in bench.engine.jobs and bench.engine.jobs["a"].stage is Stage.SLOT)
    bench.send(draw_of("b", steps=5))
    bench.until(lambda: bench.told["b"].progress == [1, 2, 3, 4, 5])
    assert not bench.told["a"].over
    bench.send(Release(slot=2))
    bench.until(lambda: bench.told["a"].over)
    assert bench.told["a"].drawn.slot == 2
    bench.work()
    assert not bench.told["b"].over
    bench.send(*(Release(slot=slot) for slot in range(4)))
    bench.until(lambda: bench.told["b"].over)


def test_a_job_that_is_late_or_will_be_is_dropped(bench):
    late, hopeless, good = bench.drawn(
        draw_of("a", deadline=time.monotonic() - 1),
        draw_of("b", steps=1000, height=64, width=64, deadline=time.monotonic() + 0.2),
        draw_of("c", deadline=time.monotonic() + 600),
    )
    assert late.failed.reason == hopeless.failed.reason == "deadline"
    assert late.progress == []
    assert len(hopeless.progress) < 1000
    assert good.picture is not None


def test_a_job_whose_deadline_passes_while_it_waits_for_a_slot(bench):
    bench.release = False
    bench.drawn(*(draw_of(f"full{n}") for n in range(4)))
    (told,) = bench.drawn(draw_of("a", deadline=time.monotonic() + 1.0))
    assert told.failed.reason == "deadline"
    assert not bench.engine.jobs


def test_a_failure_holds_on_to_nothing(bench, monkeypatch):
    """Not even until the garbage is collected: on a device this would be gigabytes."""
    monkeypatch.setattr(Pack, "step", faulty_step)
    monkeypatch.setattr(loop.log, "disabled", True)  # pytest keeps what is logged
    gc.collect()
    gc.disable()
    try:
        bench.send(draw_of("a", prompt="poison"), draw_of("b", prompt="too large"), draw_of("c", prompt="crowded"))
        bench.until(lambda: [job.stage for job in bench.engine.jobs.values()] == [Stage.STEPS] * 3)
        drawings = [weakref.ref(job.drawing) for job in bench.engine.jobs.values()]
        bench.until(lambda: all(told.over for told in bench.told.values()))
        assert [ref() for ref in drawings] == [None] * 3
    finally:
        gc.enable()
    assert [told.failed and told.failed.reason for told in bench.told.values()] == ["internal", "memory", None]


def cancels(bench, count):
    """Jobs come and most are cancelled, whenever; nothing of any is left."""
    rng = random.Random(count)
    live = []
    for number in range(count):
        kind = rng.choice(KINDS)
        bench.send(draw_of(str(number), tier=rng.choice(["exact", "lossless"]), previews=rng.randrange(3), **kind))
        live.append(str(number))
        for _ in range(rng.randrange(6)):
            bench.work()
        if rng.random() < 0.8:
            bench.send(Cancel(id=live.pop(rng.randrange(len(live)))))
    bench.until(lambda: all(bench.told[id].over for id in live))
    for _ in range(3):
        bench.work()
    assert bench.rests
    assert all(told.failed is None for told in bench.told.values())
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is Drawing]


def test_cancels_at_any_time_leave_nothing_behind(bench):
    cancels(bench, 60)


@pytest.mark.soak
def test_a_thousand_cancels_leave_nothing_behind(bench):
    cancels(bench, 1000)


def test_the_fast_tier_leaves_out_every_other_second_branch(bench):
    """Seven steps with guidance are eleven sequences, not fourteen; the picture is not the same, but near."""
    bench.send(draw_of("a", tier="fast", guidance=3.0, steps=7))
    bench.until(lambda: "a" in bench.engine.jobs and bench.engine.jobs["a"].stage is Stage.STEPS)
    job = bench.engine.jobs["a"]
    while job.stage is Stage.STEPS:
        assert len(job.entry.next_sequences) == 1 + job.drawing.guided  # what the scheduler counts is what is drawn
        bench.work()
    fast = bench.told["a"]
    bench.until(lambda: fast.over)
    sequences = [beat.sequences for beat in bench.beats if beat.tick_s]
    assert sorted(sequences[-7:]) == [1, 1, 1, 2, 2, 2, 2]
    (lossless,) = bench.drawn(draw_of("b", guidance=3.0, steps=7))
    difference = np.abs(fast.picture.astype(int) - lossless.picture.astype(int))
    assert 0 < difference.mean() < 8


def test_a_fast_job_among_others_costs_them_no_new_pack_at_every_step(bench, monkeypatch):
    """Their texts and places are put together twice, not once a step; and everybody's picture is as it is alone."""
    packs = []

    class Counted(Pack):
        def __init__(self, *given):
            packs.append(given)
            super().__init__(*given)

    monkeypatch.setattr(calls, "Pack", Counted)
    draws = [draw_of("a", tier="fast", steps=8), *(draw_of(f"b{seed}", seed=seed, steps=8) for seed in range(2))]
    together = bench.drawn(*draws)
    assert len(packs) == 2
    for one, draw in zip(together, draws, strict=True):
        (alone,) = bench.drawn(msgspec.structs.replace(draw, id=f"{draw.id} alone"))
        assert np.abs(one.picture.astype(int) - alone.picture).max() <= 1
