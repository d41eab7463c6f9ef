"""From prompts to pictures: requests share batches and do not notice; the whole loop equals the reference."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from core.diffusion.packs import Sample, pack, random_model
from lens_core.diffusion import Request, generate, noise
from lens_core.diffusion.guidance import guide
from lens_core.diffusion.samplers.flow_euler.config import FlowEulerConfig
from lens_core.diffusion.samplers.flow_euler.sampler import FlowEuler
from lens_core.errors import ConfigError

REQUESTS = [
    Request(prompt="a red circle", height=16, width=16, seed=7),
    Request(prompt="", height=8, width=24, seed=7, index=1, negative="grey"),
    Request(prompt="two blue squares on green, and a star above them", height=12, width=12, seed=9),
    Request(prompt="a star", height=16, width=16, seed=7, index=2, negative="a red circle, small"),
    Request(prompt="a red circle", height=4, width=40, seed=8),
]


@pytest.fixture(scope="module")
def model(saved_model):
    return saved_model[0]


def nearly_equal(first, second):
    """A matmul rounds by its number of rows, so that now and then a value falls to its neighbour; no more."""
    assert first.shape == second.shape
    difference = np.abs(first.astype(int) - second.astype(int))
    return difference.max() <= 1 and (difference > 0).mean() < 0.02


def draw(model, request, **options):
    (image,) = generate(model, [request], **options)
    return image


def test_pictures_have_the_size_and_order_of_their_requests(model):
    images = generate(model, REQUESTS)
    assert [image.shape for image in images] == [(r.height, r.width, 3) for r in REQUESTS]
    assert {image.dtype for image in images} == {np.dtype(np.uint8)}
    for request, image in zip(REQUESTS, images, strict=True):
        assert nearly_equal(image, draw(model, request))
        assert image.std() > 10


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_how_batches_are_cut_changes_nothing(model, guidance):
    whole = generate(model, REQUESTS, guidance=guidance)
    for max_batch_tokens in (1, 20, 45):
        cut = generate(model, REQUESTS, guidance=guidance, max_batch_tokens=max_batch_tokens)
        assert all(map(nearly_equal, whole, cut))


def test_batches_are_cut_by_tokens_and_told(model):
    """16 image tokens and 3 words each: two go into 40, and a request that is too large goes alone."""
    done = []
    generate(model, [REQUESTS[0]] * 5, on_batch=done.append, max_batch_tokens=40)
    assert done == [2, 4, 5]
    done.clear()
    generate(model, [REQUESTS[0]] * 3, on_batch=done.append, max_batch_tokens=1)
    assert done == [1, 2, 3]


def test_each_size_has_its_own_time_grid(tmp_path, lens_registry):
    """The released grid depends on the number of tokens; so in one batch the times differ."""
    model = random_model(tmp_path / "m", lens_registry, shift="released")
    sizes = [(4, 4), (64, 64)]
    grids = [FlowEuler(model.sampler).times(h * w // 16) for h, w in sizes]
    assert (grids[0] - grids[1]).abs().max() > 0.003  # 3 radians in the sinusoid
    requests = [replace(REQUESTS[0], height=h, width=w) for h, w in sizes]
    for order in (requests, requests[::-1]):
        for image, request in zip(generate(model, order), order, strict=True):
            assert nearly_equal(image, draw(model, request))


def test_no_requests(model):
    assert generate(model, []) == []


def test_same_request_same_picture(model):
    first, again = draw(model, REQUESTS[3]), draw(model, REQUESTS[3])
    assert np.array_equal(first, again)


@pytest.mark.parametrize(
    "change", [{"seed": 8}, {"index": 3}, {"prompt": "a blue star"}, {"negative": "grey"}], ids=lambda c: next(iter(c))
)
def test_everything_in_a_request_matters(model, change):
    assert not nearly_equal(draw(model, REQUESTS[3]), draw(model, replace(REQUESTS[3], **change)))


def test_without_guidance_the_negative_is_not_heard(model):
    images = [draw(model, replace(REQUESTS[0], negative=text), guidance=1.0) for text in ("", "grey", "a star")]
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(images[0], images[2])


def test_guidance_away_from_the_prompt_itself_is_none(model):
    """u + g·(c - u) is c where both branches are the same."""
    alone = draw(model, REQUESTS[0], guidance=1.0)
    assert nearly_equal(draw(model, replace(REQUESTS[0], negative=REQUESTS[0].prompt), guidance=9.0), alone)


def test_defaults_are_the_models_own(model):
    request = REQUESTS[0]
    assert np.array_equal(draw(model, request), draw(model, request, guidance=model.guidance, sampler=model.sampler))
    assert not nearly_equal(draw(model, request), draw(model, request, guidance=1.0))
    assert not nearly_equal(draw(model, request), draw(model, request, sampler=FlowEulerConfig(steps=1)))


@pytest.mark.parametrize(("height", "width"), [(15, 16), (16, 18), (0, 16), (16, -4), (2, 2)])
def test_size_that_is_no_multiple_of_the_stride(model, height, width):
    bad = replace(REQUESTS[0], height=height, width=width)
    drawn = []
    with pytest.raises(ConfigError, match=f"{width}x{height} is not a multiple of 4 pixels"):
        generate(model, [REQUESTS[0], bad], on_batch=drawn.append, max_batch_tokens=1)
    assert drawn == []  # told before anything is drawn


@pytest.mark.parametrize("prediction", ["velocity", "x"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("shift", ["none", "released"])
def test_picture_is_that_of_a_plain_loop(tmp_path, lens_registry, prediction, guidance, shift):
    """One request, step by step, with a call of the denoiser per branch."""
    model = random_model(tmp_path / "m", lens_registry, prediction=prediction, shift=shift)
    request = REQUESTS[3]
    sampler = FlowEuler(model.sampler)
    x = noise(request.seed, request.index, (16, 48))
    times = sampler.times(16)
    for t, t_next in pairwise(times):
        velocities = []
        for prompt in (request.prompt, request.negative):
            (ids,) = model.text_encoder.tokenize([prompt])
            with torch.no_grad():
                text = model.text_encoder(torch.tensor(ids), torch.tensor([0, len(ids)]))
                output = model.transformer.forward_ragged(pack([Sample((4, 4), x, tuple(text), t)]))
            velocities.append(output if prediction == "velocity" else (x - output) / t.clamp_min(0.05))
        cond, uncond = velocities
        x = x + (t_next - t) * (cond if guidance == 1 else guide(cond, uncond, guidance, rescale=True))
    # h w (c p q) -> (h p) (w q) c
    pixels = x.view(4, 4, 3, 4, 4).permute(0, 3, 1, 4, 2).reshape(16, 16, 3)
    expected = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    assert nearly_equal(draw(model, request, guidance=guidance), expected)


@pytest.mark.parametrize("run", ["empty_negative", "with_negative"])
def test_latents_are_those_of_the_reference(golden_model, cases, run):
    """Four guided steps of the released pipeline: no negative prompt means no text at all."""
    prompt = tuple(cases[f"pipe.features.{layer}"][0] for layer in range(4))
    negative = tuple(layer[:0] for layer in prompt)
    if run == "with_negative":
        negative = tuple(cases[f"pipe.with_negative.negative_features.{layer}"][0] for layer in range(4))
    sampler = FlowEuler(FlowEulerConfig(steps=4, shift="released"))
    x = cases["pipe.latents"][0]
    times = sampler.times(len(x))
    for step, (t, t_next) in enumerate(pairwise(times)):
        batch = pack([Sample((4, 4), x, prompt, t), Sample((4, 4), x, negative, t)])
        with torch.no_grad():
            cond, uncond = golden_model.forward_ragged(batch).chunk(2)
        x = sampler.step(x, guide(cond, uncond, 5.0, rescale=True), t, t_next)
        # The last t differs from the reference's in its last bit, and the sinusoid sees a thousand times that.
        tolerance = 5e-6 if step < 3 else 5e-5
        torch.testing.assert_close(x, cases[f"pipe.{run}.latents.{step}"][0], rtol=0, atol=tolerance)
