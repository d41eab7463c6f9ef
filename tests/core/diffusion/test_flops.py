"""Closed-form FLOPs against torch's own counter on real steps.

The counter sees no fused attention on a CPU, hence the math kernel. It does see what the reference backend pads, which
the formulas leave out on purpose; so the denoiser attends segment by segment here.
"""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from core.diffusion.packs import pack, random_lens, random_samples
from lens_core.diffusion.attention import attention_backend
from lens_core.diffusion.attention.varlen import VarlenAttention
from lens_core.diffusion.text_encoders.small.config import SmallTextEncoderConfig
from lens_core.diffusion.text_encoders.small.encoder import SmallTextEncoder

BATCHES = [
    (((2, 3), 4),),
    (((2, 3), 0),),
    (((2, 3), 4), ((3, 2), 4)),
    (((2, 3), 5), ((4, 4), 0), ((1, 2), 3)),
    (((4, 4), 0), ((2, 2), 0)),
    (((5, 4), 1), ((5, 4), 30), ((1, 1), 7), ((3, 9), 2)),
]


class WithoutPadding(VarlenAttention):
    """An attention backend that calls each segment for itself."""

    def __call__(self, sections, plan):
        cuts = plan.offsets[1:-1].tolist()
        segments = zip(*(x.transpose(0, 1).tensor_split(cuts, dim=1) for x in sections[0]), strict=True)
        outputs = [F.scaled_dot_product_attention(*(x[None] for x in parts))[0] for parts in segments]
        return torch.cat(outputs, dim=1).transpose(0, 1)


def counted(step):
    """Matmul FLOPs of a step, forward and backward: all of them, and those of attention's batched products."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step()
    operations = counter.get_flop_counts()["Global"]
    return counter.get_total_flops(), operations[torch.ops.aten.bmm]


@pytest.mark.parametrize("text_gradient", [True, False], ids=["text trained", "text frozen"])
@pytest.mark.parametrize(
    "shapes", BATCHES, ids=lambda shapes: f"{len(shapes)} segments, {sum(n for _, n in shapes)} text"
)
def test_denoiser(shapes, text_gradient):
    model = random_lens(num_layers=3, dtype=torch.float32)
    batch = pack(random_samples(shapes, dtype=torch.float32))
    model.attention = WithoutPadding()
    for layer in batch.text:
        layer.requires_grad_(text_gradient)
    total, attention = counted(lambda: model.forward_ragged(batch).square().sum().backward())
    assert total == model.training_flops(batch.image_lengths, batch.text_lengths, text_gradient=text_gradient)
    squares = sum((n + m) ** 2 for n, m in zip(batch.image_lengths, batch.text_lengths, strict=True))
    assert attention == 3 * 3 * 4 * squares * 32 > 0


def test_reference_backend_adds_its_padding_and_no_more():
    model = random_lens(num_layers=3, dtype=torch.float32)
    batch = pack(random_samples(BATCHES[3], dtype=torch.float32))
    lengths = batch.image_lengths, batch.text_lengths
    total, attention = counted(lambda: model.forward_ragged(batch).square().sum().backward())
    plan = attention_backend("reference").plan(*lengths, device=batch.image.device)
    padded = sum(group.count * group.size**2 for group in plan.groups)
    padding = padded - sum((n + m) ** 2 for n, m in zip(*lengths, strict=True))
    assert padding > 0
    assert attention == 3 * 3 * 4 * padded * 32
    assert total - 3 * 3 * 4 * padding * 32 == model.training_flops(*lengths, text_gradient=False)


@pytest.mark.parametrize("changes", [{"out_channels": None}, {"in_channels": 12, "out_channels": 3}, {"num_layers": 1}])
def test_denoiser_of_another_shape(changes):
    model = random_lens(dtype=torch.float32, **changes)
    batch = pack(random_samples(BATCHES[3], channels=changes.get("in_channels", 16), dtype=torch.float32))
    model.attention = WithoutPadding()
    total, _ = counted(lambda: model.forward_ragged(batch).square().sum().backward())
    assert total == model.training_flops(batch.image_lengths, batch.text_lengths, text_gradient=False)


@pytest.mark.parametrize(
    ("lengths", "layers"), [([5], 1), ([4, 4, 4], 2), ([3, 0, 3], 2), ([7, 2, 0, 30, 5], 2), ([5, 3], 0)], ids=str
)
def test_small_text_encoder(lengths, layers):
    config = SmallTextEncoderConfig(vocab_size=300, width=24, heads=2, layers=layers, max_tokens=64)
    encoder = SmallTextEncoder.fit(config, ["a red circle"])
    ids = torch.arange(sum(lengths))
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    if layers == 0:
        assert encoder.training_flops(lengths) == 0
        return
    total, attention = counted(lambda: encoder(ids, offsets)[0].square().sum().backward())
    plan = attention_backend("reference").plan(lengths, device=ids.device)
    padded = sum(group.count * group.size**2 for group in plan.groups)
    padding = padded - sum(length**2 for length in lengths)
    assert total - 3 * layers * 4 * padding * 24 == encoder.training_flops(lengths)
    assert attention == 3 * layers * 4 * padded * 24 > 0
