"""MFU's and HFU's FLOPs against torch's own counter, on the meta device and on real steps."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from core.diffusion.packs import pack, random_lens, random_samples
from core.diffusion.test_flops import WithoutPadding
from lens_core.diffusion import LensTransformer2DModel
from lens_core.diffusion.flops import block_flops, denoiser_flops
from lens_core.errors import ConfigError
from lens_train.methods.adapters import add_adapters
from lens_train.methods.config import LoraMethod
from lens_train.parallel.activations import checkpoint_activations
from lens_train.parallel.config import ParallelConfig
from lens_train.watch.flops import (
    PEAKS,
    count_flops,
    peak_flops,
    peak_of,
    stated_peak,
    utilisation,
)

SHAPES = (((2, 3), 5), ((4, 4), 0), ((1, 2), 3), ((3, 3), 9))
"""Grids and text lengths of a pack."""
LENGTHS = [6, 16, 2, 9], [5, 0, 3, 9]


def really(model):
    """FLOPs of a real step, segment by segment, so that nothing is padded."""
    model.attention = WithoutPadding()
    batch = pack(random_samples(SHAPES, dtype=torch.float32))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.forward_ragged(batch).square().sum().backward()
    counts = counter.get_flop_counts()["Global"]
    assert counts[torch.ops.aten.bmm] > 0  # attention is seen
    return counter.get_total_flops()


@pytest.mark.parametrize("policy", ["none", "selective", "full"])
@pytest.mark.parametrize("layers", [1, 3, 5])
def test_every_weight_is_trained(layers, policy):
    """Closed form, count on the meta device and a real step say the same, to the last FLOP."""
    model = random_lens(num_layers=layers, dtype=torch.float32)
    formula = denoiser_flops(model.config, *LENGTHS) + (policy == "full") * model.block_flops(*LENGTHS)
    assert count_flops(model, policy=policy)(*LENGTHS) == pytest.approx(formula, rel=1e-12)
    checkpoint_activations(model.transformer_blocks, ParallelConfig(activation_checkpointing=policy))
    assert really(model) == formula


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr"])
@pytest.mark.parametrize("policy", ["none", "full"])
def test_adapters_are_trained(kind, policy):
    model = random_lens(num_layers=5, dtype=torch.float32)
    add_adapters(model, LoraMethod(kind=kind, rank=2), seed=0)
    counted = count_flops(model, policy=policy)
    checkpoint_activations(model.transformer_blocks, ParallelConfig(activation_checkpointing=policy))
    assert counted(*LENGTHS) == pytest.approx(really(model), rel=1e-12)


def test_adapters_beside_some_blocks_only():
    """Then no block stands for the others."""
    model = random_lens(num_layers=5, dtype=torch.float32)
    add_adapters(model, LoraMethod(rank=2, targets=("transformer_blocks.2.attn.img_qkv", "img_in")), seed=0)
    assert count_flops(model)(*LENGTHS) == pytest.approx(really(model), rel=1e-12)


def test_counting_touches_nothing():
    model = random_lens()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forwards = [block.forward for block in model.transformer_blocks]
    count_flops(model, policy="full")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert [block.forward for block in model.transformer_blocks] == forwards


def test_the_released_size():
    """A LoRA needs about two thirds of the linears' FLOPs and all of attention's; the study's number for 1024 px."""
    with torch.device("meta"):
        model = LensTransformer2DModel()
    full = denoiser_flops(model.config, [4096], [200])
    assert full == pytest.approx(51.4e12, rel=2e-3)
    assert block_flops(model.config, [4096], [200]) == pytest.approx(full / 3, rel=5e-3)
    add_adapters(model, LoraMethod(), seed=0)
    assert 0.7 < count_flops(model)([4096], [200]) / full < 0.85


def test_utilisation():
    assert utilisation(989e12, 2.0, 989e12) == 0.5
    assert utilisation(8e12, 1.0, 2e12, ranks=8) == 0.5


def test_peaks():
    assert peak_of("H200") == 989e12
    with pytest.raises(ConfigError, match="the peak of 'H9' is not known; known are B300,"):
        peak_of("H9")
    measured, stated = peak_flops(torch.device("cpu"), torch.float32)
    assert not stated
    assert 1e8 < measured < 1e15


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A10G", None),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA RTX A6000", "A6000"),
        ("NVIDIA RTX 6000 Ada Generation", None),
    ],
)
def test_device_names(name, part):
    assert stated_peak(name) == (PEAKS[part] if part else None)
