"""Drawings join and leave packs between any two steps, and come out as if they had been alone."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch

from core.diffusion.packs import random_model
from lens_core.diffusion import Request
from lens_core.diffusion.drawing import Drawing, Pack
from lens_core.diffusion.guidance import guide
from lens_core.diffusion.prediction import to_velocity
from lens_core.diffusion.ragged import RaggedBatch, offsets_of
from lens_core.diffusion.samplers.flow_euler.config import FlowEulerConfig
from lens_core.diffusion.samplers.flow_euler.sampler import FlowEuler
from lens_core.diffusion.text_to_image import denoise, encode

REQUESTS = [
    Request(prompt="a red circle", height=16, width=16, seed=7),
    Request(prompt="", height=8, width=24, seed=7, index=1, negative="grey"),
    Request(prompt="two blue squares on green, and a star above them", height=12, width=12, seed=9),
    Request(prompt="a star", height=4, width=40, seed=8, negative="a red circle, small"),
]
WAYS = [(1.0, 3, "flow-euler"), (4.0, 5, "flow-multistep"), (2.5, 7, "flow-euler"), (1.0, 4, "flow-multistep")]


@pytest.fixture(scope="module")
def model(saved_model):
    return saved_model[0]


def begin(model, request, way, **options):
    guidance, steps, name = way
    (encoded,) = encode(model, [request], guidance=guidance)
    sampler = model.registry.build("samplers", model.registry.parse("samplers", {"type": name, "steps": steps}))
    return Drawing(model, encoded, sampler=sampler, guidance=guidance, **options)


@torch.inference_mode()
def test_mixed_packs_change_nothing(model):
    """Guidance, steps, samplers and sizes differ, and who shares a step is drawn by lot."""
    rng = random.Random(3)
    drawings = [begin(model, request, way) for request, way in zip(REQUESTS, WAYS, strict=True)]
    while waiting := [one for one in drawings if not one.done]:
        Pack(model, rng.sample(waiting, rng.randint(1, len(waiting)))).step()
    for one, request, (guidance, steps, name) in zip(drawings, REQUESTS, WAYS, strict=True):
        assert one.taken == one.steps == steps
        sampler = model.registry.parse("samplers", {"type": name, "steps": steps})
        (alone,) = denoise(model, encode(model, [request], guidance=guidance), sampler=sampler, guidance=guidance)
        torch.testing.assert_close(one.tokens_NC, alone, rtol=0, atol=2e-5)


@torch.inference_mode()
def test_one_pack_goes_on_until_its_drawings_are_done(model):
    one, other = begin(model, REQUESTS[0], WAYS[1]), begin(model, REQUESTS[2], WAYS[1])
    pack = Pack(model, [one, other])
    for taken in range(1, 6):
        assert not one.done
        x_NC, time = one.tokens_NC, one.time
        pack.step()
        if taken == 1:  # Euler's step, so that the way back to time 0 is along the same line
            step_NC = (one.tokens_NC - x_NC) / (one.time - time)
            torch.testing.assert_close(one.promised_NC, x_NC - time * step_NC, rtol=0, atol=1e-4)
        assert (one.taken, other.taken) == (taken, taken)
    assert one.done
    assert float(one.time) == 0
    torch.testing.assert_close(one.promised_NC, one.tokens_NC, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_times_that_are_told_ahead_are_those_that_are_told(model, tmp_path, lens_registry):
    """The modulation table is looked up by step; with it and without, the picture is the same."""
    tables = random_model(tmp_path / "m", lens_registry, shift="released")
    plain = [begin(tables, request, way) for request, way in zip(REQUESTS, WAYS, strict=True)]
    for one in plain:
        for step in range(one.steps):
            torch.testing.assert_close(one.seen, one.seen_S[step], rtol=0, atol=0)
            Pack(tables, [one]).step()
    tables.to(modulation_table=True)
    ahead = [begin(tables, request, way) for request, way in zip(REQUESTS, WAYS, strict=True)]
    while waiting := [one for one in ahead if not one.done]:
        Pack(tables, waiting).step()
    for one, other in zip(plain, ahead, strict=True):
        torch.testing.assert_close(one.tokens_NC, other.tokens_NC, rtol=0, atol=2e-5)


def said(model, text, x_NC, time, grid):
    """The velocity at a place, from the denoiser itself."""
    batch = RaggedBatch(
        image=x_NC,
        text=text,
        image_offsets=offsets_of([len(x_NC)]),
        text_offsets=offsets_of([len(text[0])]),
        grids=torch.tensor([grid]),
        timestep=time[None],
    )
    return to_velocity(model.prediction, model.transformer.forward_ragged(batch).float(), x_NC, time)


@torch.inference_mode()
def test_guidance_may_be_reused_in_every_other_step(model):
    """By hand, along Euler's way: the odd steps take the difference that the second branch made a step before."""
    guidance, steps = 4.0, 5
    one = begin(model, REQUESTS[3], (guidance, steps, "flow-euler"), reuse_guidance=True)
    request, x_NC, difference_NC = one.request, one.tokens_NC, None
    times = FlowEuler(FlowEulerConfig(steps=steps)).times(len(x_NC))
    for step, (time, following) in enumerate(pairwise(times)):
        assert one.guided == (step % 2 == 0)
        pack = Pack(model, [one])
        pack.step()
        assert pack.stale
        cond_NC = said(model, request.text, x_NC, time, one.grid)
        if step % 2 == 0:
            difference_NC = cond_NC - said(model, request.negative_text, x_NC, time, one.grid)
        velocity_NC = guide(cond_NC, cond_NC - difference_NC, guidance, rescale=model.guidance_rescale)
        x_NC = x_NC + (following - time) * velocity_NC
        torch.testing.assert_close(one.tokens_NC, x_NC, rtol=1e-4, atol=1e-4)
    (all_of_it,) = denoise(
        model,
        [request],
        sampler=model.registry.parse("samplers", {"type": "flow-euler", "steps": 5}),
        guidance=guidance,
    )
    assert float((one.tokens_NC - all_of_it).abs().max()) > 1e-3
    (again,) = denoise(
        model,
        [request],
        sampler=model.registry.parse("samplers", {"type": "flow-euler", "steps": 5}),
        guidance=guidance,
        reuse_guidance=True,
    )
    torch.testing.assert_close(again, one.tokens_NC, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_a_sampler_that_failed_is_not_mistaken_for_one_that_is_done(model):
    """What raises ends a generator, and the next that asks it is told the end, of nothing."""
    one = begin(model, REQUESTS[0], WAYS[0])

    def walk(x_NC, time):
        yield x_NC, time
        raise torch.OutOfMemoryError("too large")

    one._walk = walk(one.tokens_NC, one.time)
    next(one._walk)
    with pytest.raises(torch.OutOfMemoryError):
        Pack(model, [one]).step()
    with pytest.raises(RuntimeError, match="the sampler was lost in an earlier step"):
        Pack(model, [one]).step()
    assert not one.done
    assert one.taken == 0
    assert one.tokens_NC is not None
