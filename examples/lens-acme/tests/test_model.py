"""What the contract cannot know: that the FLOPs it declares are those it spends."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from lens_acme.configs import MlpConfig
from lens_acme.model import Mlp
from lens_core.diffusion import RaggedBatch


def test_declared_flops_are_spent():
    model = Mlp(MlpConfig(width=16, depth=2), in_channels=12, enc_hidden_dim=8, num_text_layers=2)
    model.init_weights(0)
    text = [torch.randn(5, 8, requires_grad=True) for _ in range(2)]
    batch = RaggedBatch(
        image=torch.randn(10, 12),
        text=text,
        image_offsets=torch.tensor([0, 6, 10], dtype=torch.int32),
        text_offsets=torch.tensor([0, 5, 5], dtype=torch.int32),
        grids=torch.tensor([[2, 3], [2, 2]]),
        timestep=torch.tensor([0.3, 0.7]),
    )
    with FlopCounterMode(display=False) as counter:
        model.forward_ragged(batch).square().mean().backward()
    assert counter.get_total_flops() == model.training_flops([6, 4], [5, 0], text_gradient=True)
