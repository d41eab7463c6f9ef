"""What an engine measures before it is ready."""

from __future__ import annotations

import mmap

import pytest

from lens_core.diffusion.flops import denoiser_flops
from lens_serve.engine import calibration
from lens_serve.engine.cost import Branch, CostModel
from lens_serve.engine.memory import resident_bytes


@pytest.fixture
def model(tiny_models):
    return tiny_models["lens"].loaded


def test_flops_of_a_step_follow_the_models_own_count(model):
    """But for what a segment costs whatever its size, and the gradient that training does not need either."""
    costs, _ = calibration.assumed(model)
    one = CostModel(costs)
    for n, m in [(16, 0), (64, 9), (400, 100), (4096, 415)]:
        whole = denoiser_flops(model.transformer.config, [n], [m]) / 3
        fixed = denoiser_flops(model.transformer.config, [1], [0]) / 3 - one.flops(Branch(1, 0))
        assert one.flops(Branch(n, m)) == pytest.approx(whole - fixed, rel=1e-6)


def test_what_is_measured_predicts_what_it_was_measured_on(model):
    costs, knee = calibration.measured(model)
    one = CostModel(costs)
    own = Branch(image_tokens=16, text_tokens=8)
    assert costs.flops_per_s > 1e6
    assert min(costs.tick_s, costs.encode_token_s, costs.decode_pixel_s) >= 0
    assert one.tick_s([own]) > 0
    assert one.tick_s([own] * 64) > one.tick_s([own])
    assert one.encode_s(8) > 0
    assert one.decode_s(256) > 0
    assert 4 <= knee <= 64 * (16 + 32)


def test_the_line_through_two_sizes_is_found_and_never_falls():
    fixed, slope = calibration._line((1, 2), (10, 30), lambda call: {1: 2.0, 2: 6.0}[call])
    assert (fixed, slope) == (pytest.approx(0.2), pytest.approx(0.2))
    fixed, slope = calibration._line((1, 2), (10, 30), lambda call: {1: 5.0, 2: 6.0}[call])
    assert (fixed, slope) == (pytest.approx(4.5), pytest.approx(0.05))
    assert calibration._line((1, 2), (10, 30), lambda call: {1: 5.0, 2: 4.0}[call]) == (5.0, 0.0)
    assert calibration._line((1, 2), (10, 10), lambda call: 3.0) == (3.0, 0.0)


def test_resident_memory_grows_by_what_is_touched():
    ones = bytes(1 << 20)
    before = resident_bytes()
    with mmap.mmap(-1, 64 << 20) as held:  # what is allocated may lie where something else has lain
        for _ in range(64):
            held.write(ones)
        assert resident_bytes() - before > 48 << 20
