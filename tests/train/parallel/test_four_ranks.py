"""Four processes over gloo, as two copies of two shards, against one."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from lens_train.parallel.world import World
from train.parallel import four_ranks, ranks
from train.parallel.nano import Run


def test_two_copies_of_two_shards_train_as_one_process(tmp_path):
    ranks.finish(ranks.start(four_ranks.__file__, 4, tmp_path))
    run = Run(World(device=torch.device("cpu")), dtype=torch.float64)
    run.backward(0)
    gradients = {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}
    run.optimizers.zero_grad()
    run.steps(0, 2)
    for name, expected in {"gradients": gradients, "weights": dict(run.model.named_parameters())}.items():
        found = load_file(tmp_path / f"{name}.safetensors")
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor.detach(), rtol=1e-9, atol=1e-9, msg=key)
