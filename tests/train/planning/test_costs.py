"""The polynomial of costs against the exact formula, and against counted FLOPs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from lens_core.diffusion.flops import denoiser_flops
from lens_core.diffusion.models.lens.config import load_preset
from lens_core.diffusion.ragged import RaggedBatch, offsets_of
from lens_core.diffusion.text_encoders.small.encoder import SmallTextEncoder
from lens_train.planning.costs import CostModel

RELEASED = load_preset("3.8b") | {
    "in_channels": 128,
    "out_channels": 32,
    "enc_hidden_dim": 2880,
    "selected_layer_index": [5, 11, 17, 23],
}
LENGTHS = st.lists(st.tuples(st.integers(1, 8500), st.integers(0, 600)), min_size=1, max_size=8)


@given(lengths=LENGTHS)
def test_a_pack_costs_what_the_formula_says(lengths):
    image, text = zip(*lengths, strict=True)
    exact = denoiser_flops(RELEASED, image, text)
    planned = CostModel.of(RELEASED)(np.array(image, dtype=float), np.array(text, dtype=float)).sum()
    assert planned == pytest.approx(exact, rel=1e-12)


@given(lengths=LENGTHS)
def test_with_a_text_encoder_that_is_trained(lengths, small_encoder):
    costs = CostModel.of(RELEASED, small_encoder.training_flops)
    image, text = zip(*lengths, strict=True)
    exact = denoiser_flops(RELEASED, image, text) + small_encoder.training_flops(text)
    assert sum(costs(n, m) for n, m in lengths) == pytest.approx(exact, rel=1e-12)
    assert costs.d > 0 == CostModel.of(RELEASED).d


@pytest.fixture(scope="module")
def small_encoder(lens_registry):
    return SmallTextEncoder.fit(lens_registry.parse("text_encoders", "small"), ["a red cat", "two dogs"], seed=1)


def test_counted_on_the_meta_device(lens_registry):
    config = lens_registry.parse("models", {"type": "lens", "preset": "nano", "num_layers": 2})
    with torch.device("meta"):
        model = lens_registry.build("models", config, in_channels=12, enc_hidden_dim=40, num_text_layers=2)
    lengths = [(12, 5), (30, 9), (6, 0)]
    image, text = zip(*lengths, strict=True)
    batch = RaggedBatch(
        image=torch.empty(sum(image), 12, device="meta"),
        text=[torch.empty(sum(text), 40, device="meta") for _ in range(2)],
        image_offsets=offsets_of(image),
        text_offsets=offsets_of(text),
        grids=torch.tensor([(3, 4), (5, 6), (2, 3)]),
        timestep=torch.empty(3, device="meta"),
    )
    with FlopCounterMode(display=False) as counter:
        model.forward_ragged(batch).sum().backward()
    # Attention is padded by the reference backend; that is checked against its own formula in tests/core.
    operations = counter.get_flop_counts()["Global"]
    attention = sum(flops for name, flops in operations.items() if "attention" in str(name) or "bmm" in str(name))
    costs = CostModel.of(model.config)
    linear = sum(costs(n, m) - costs.c * (n + m) ** 2 for n, m in lengths)
    assert counter.get_total_flops() - attention == pytest.approx(linear, rel=1e-12)
