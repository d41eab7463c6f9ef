"""Predictions are the formula's, learn from what happened, and travel; calibration finds what was planted."""

from __future__ import annotations

import itertools
import math
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_serve.engine.cost import Branch, CostModel, calibrate
from lens_serve.engine.messages import Costs

# The 3.8b model on an H100, as a study counted and estimated it.
COSTS = Costs(
    per_image=2.718e9,
    per_text=2.718e9,
    per_square=2.951e5,
    tick_s=4e-3,
    flops_per_s=620e12,
    half_tokens=350.0,
    encode_s=1e-3,
    encode_token_s=1e-5,
    decode_s=2e-3,
    decode_pixel_s=2.5e-8,
)
TURBO = (Branch(4096, 150),)
GUIDED = (Branch(4096, 150), Branch(4096, 0))
LADDER = [[Branch(n, 64)] * copies for n, copies in ((64, 1), (256, 1), (1024, 1), (4096, 1), (4096, 2), (4096, 4))]


@pytest.mark.parametrize(
    ("side", "text", "tera"), [(512, 150, 3.61), (768, 150, 8.46), (1024, 150, 16.87), (1024, 0, 16.09)]
)
def test_flops_are_those_that_were_counted(side, text, tera):
    assert CostModel(COSTS).flops(Branch((side // 16) ** 2, text)) == pytest.approx(tera * 1e12, rel=0.005)


def test_a_tick_takes_its_fixed_part_and_its_arithmetic():
    flops = 2.718e9 * (4096 + 150 + 4096) + 2.951e5 * (4246**2 + 4096**2)
    assert CostModel(COSTS).tick_s(GUIDED) == pytest.approx(4e-3 + flops / (620e12 * 8342 / (8342 + 350)), rel=1e-12)
    assert CostModel(COSTS).tick_s([]) == 0


def test_texts_and_pictures_take_a_fixed_part_and_one_by_size():
    model = CostModel(COSTS)
    assert model.encode_s(100) == pytest.approx(2e-3)
    assert model.encode_s(0) == 0
    assert model.decode_s(1 << 20) == pytest.approx(2e-3 + 2.5e-8 * 2**20)


def test_a_job_is_the_sum_of_its_parts():
    model = CostModel(COSTS)
    by_hand = model.encode_s(150) + 20 * model.tick_s(GUIDED) + model.decode_s(1024**2)
    assert model.solo_s(GUIDED, 20, 1024**2) == pytest.approx(by_hand)
    assert model.solo_s(GUIDED, 20, 1024**2, text_tokens=0) == pytest.approx(by_hand - model.encode_s(150))
    assert model.solo_s(GUIDED, 20, 1024**2) == pytest.approx(1.21, rel=0.02)
    assert model.solo_s(TURBO, 4, 1024**2) == pytest.approx(0.16, rel=0.05)


def test_predictions_go_to_where_the_truth_is_and_only_there():
    model, fresh = CostModel(COSTS), CostModel(COSTS)
    for _ in range(60):
        model.observe_tick(TURBO, 3 * fresh.tick_s(TURBO))
        model.observe_encode(100, fresh.encode_s(100) / 3)
        model.observe_decode(1024**2, 5 * fresh.decode_s(1024**2))
    assert model.tick_s(TURBO) == pytest.approx(3 * fresh.tick_s(TURBO), rel=0.01)
    assert model.tick_s([Branch(5000, 0)]) == pytest.approx(3 * fresh.tick_s([Branch(5000, 0)]), rel=0.01)
    assert model.tick_s(GUIDED) == fresh.tick_s(GUIDED)
    assert model.encode_s(100) == pytest.approx(fresh.encode_s(100) / 3, rel=0.01)
    assert model.decode_s(1024**2) == pytest.approx(5 * fresh.decode_s(1024**2), rel=0.01)
    assert model.decode_s(256**2) == fresh.decode_s(256**2)


@settings(deadline=None)
@given(factor=st.floats(1e-6, 1e6))
def test_one_measurement_does_little_harm(factor):
    model, fresh = CostModel(COSTS), CostModel(COSTS)
    model.observe_tick(TURBO, factor * fresh.tick_s(TURBO))
    assert 0.87 <= model.tick_s(TURBO) / fresh.tick_s(TURBO) <= 1.15
    if factor != 1:
        assert (model.tick_s(TURBO) > fresh.tick_s(TURBO)) == (factor > 1)


def test_the_error_is_the_mean_distance_and_falls_as_the_model_learns():
    model = CostModel(COSTS)
    truth = 2 * model.tick_s(TURBO)
    assert model.error == 0
    model.observe_tick(TURBO, truth)
    first = model.error
    assert first == pytest.approx(0.05 * math.log(2))
    for _ in range(100):
        model.observe_tick(TURBO, truth)
    assert model.error < first / 4


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_what_cannot_be_a_duration_teaches_nothing(seconds):
    model = CostModel(COSTS)
    model.observe_tick(TURBO, seconds)
    model.observe_encode(0, 1.0)
    assert model.costs() == COSTS


def test_costs_travel():
    model = CostModel(COSTS)
    for n in (64, 700, 5000):
        model.observe_tick([Branch(n, 10)], 0.5)
    model.observe_decode(640 * 480, 0.1)
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(model.costs()), type=Costs)
    other = CostModel(sent)
    assert other.costs() == model.costs()
    assert other.error == model.error > 0
    for n in (70, 600, 4500, 9000):
        assert other.solo_s([Branch(n, 20)], 4, 640 * 480) == model.solo_s([Branch(n, 20)], 4, 640 * 480)
    other.observe_tick(TURBO, 1.0)
    assert model.costs() != other.costs()
    assert model.costs().corrections == sent.corrections
    before = msgspec.msgpack.encode(snapshot := model.costs())
    model.observe_tick(TURBO, 1.0)
    assert msgspec.msgpack.encode(snapshot) == before


@pytest.mark.parametrize(
    ("tick_s", "rate", "half"), [(4e-3, 620e12, 350.0), (0.0, 5e10, 0.0), (2e-3, 3e10, 0.0), (0.0, 4e14, 900.0)]
)
def test_calibration_finds_what_was_planted(tick_s, rate, half):
    truth = msgspec.structs.replace(COSTS, tick_s=tick_s, flops_per_s=rate, half_tokens=half)
    start = msgspec.structs.replace(COSTS, tick_s=0.0, flops_per_s=1.0, half_tokens=0.0, corrections={"tick:64": 2.0})
    fitted, _ = calibrate(CostModel(truth).tick_s, start, LADDER)
    assert fitted.flops_per_s == pytest.approx(rate, rel=1e-6)
    assert fitted.tick_s == pytest.approx(tick_s, rel=1e-6, abs=1e-9)
    assert fitted.half_tokens == pytest.approx(half, rel=1e-6, abs=1e-4)
    assert (fitted.corrections, fitted.error) == ({}, 0.0)
    assert (fitted.per_image, fitted.decode_pixel_s) == (COSTS.per_image, COSTS.decode_pixel_s)


def test_calibration_shrugs_off_noise_and_a_first_call_that_compiles():
    lots, truth, seen = random.Random(3), CostModel(COSTS), set()

    def measure(sequences):
        slow = 50 if len(seen) < len(seen | {tuple(sequences)}) else 1
        seen.add(tuple(sequences))
        return slow * truth.tick_s(sequences) * lots.uniform(0.97, 1.03)

    fitted, knee = calibrate(measure, COSTS, LADDER, repeats=5)
    for rung in LADDER:
        assert CostModel(fitted).tick_s(rung) == pytest.approx(truth.tick_s(rung), rel=0.06)
    assert knee == 4160


def test_the_knee_is_where_four_fifths_of_the_best_rate_begin():
    truth = CostModel(COSTS)
    _, knee = calibrate(truth.tick_s, COSTS, LADDER)
    rates = {
        sum(sequence.tokens for sequence in rung): sum(map(truth.flops, rung)) / truth.tick_s(rung) for rung in LADDER
    }
    assert rates[knee] >= 0.8 * max(rates.values())
    assert all(rate < 0.8 * max(rates.values()) for tokens, rate in rates.items() if tokens < knee)
    assert knee == 4160, "one picture of 1024 by 1024, as in the study"
    assert calibrate(lambda sequences: sum(map(truth.flops, sequences)) / 1e12, COSTS, LADDER)[1] == 128


@settings(deadline=None)
@given(
    seconds=st.lists(st.floats(1e-5, 1e3), min_size=1, max_size=len(LADDER)),
    repeats=st.integers(1, 3),
)
def test_whatever_is_measured_the_costs_can_be_predicted_with(seconds, repeats):
    calls = itertools.count()
    rungs = LADDER[: len(seconds)]
    fitted, knee = calibrate(lambda _: seconds[next(calls) // repeats], COSTS, rungs, repeats=repeats)
    assert next(calls) == repeats * len(rungs)
    assert knee in [sum(sequence.tokens for sequence in rung) for rung in rungs]
    assert min(fitted.tick_s, fitted.half_tokens) >= 0 < fitted.flops_per_s < math.inf
    assert all(0 < CostModel(fitted).tick_s(rung) < math.inf for rung in LADDER)


def test_one_rung_is_met_exactly():
    fitted, knee = calibrate(lambda _: 0.25, COSTS, [[Branch(256, 30)]], repeats=1)
    assert CostModel(fitted).tick_s([Branch(256, 30)]) == pytest.approx(0.25)
    assert knee == 286
