"""What each of two ranks does in `test_adapters_sharded`: a step with adapters, sharded by FSDP2, against one alone.

Run by torchrun with the kind of adapter; rank 0 prints a line of JSON.
"""

from __future__ import annotations

import copy
import json
import sys

import torch

from core.diffusion.packs import SHAPES, pack, random_lens, random_samples
from lens_train.methods.adapters import adapter_parameters, add_adapters, finish_adapters
from lens_train.methods.config import LoraMethod
from lens_train.parallel.config import ParallelConfig
from lens_train.parallel.shard import full_weights, shard
from lens_train.parallel.world import World


def loss_of(model, batch):
    return model.forward_ragged(batch).square().sum()


def main(kind):
    torch.set_num_threads(1)
    world = World.join(torch.device("cpu"), timeout_s=60)
    method = LoraMethod(kind=kind, rank=2, alpha=3)
    model = random_lens(dtype=torch.float32)
    add_adapters(model, method, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    samples = random_samples(SHAPES, dtype=torch.float32)
    halves = [pack(samples[rank::2]) for rank in range(2)]

    alone = copy.deepcopy(model)
    for half in halves:
        loss_of(alone, half).backward()
    expected = {name: parameter.grad for name, parameter in adapter_parameters(alone).items()}

    shard(model, world, ParallelConfig(precision="fp32", activation_checkpointing="full"))
    loss_of(model, halves[world.rank]).backward()
    found = {name: parameter.grad.full_tensor() for name, parameter in adapter_parameters(model).items()}
    frozen = [name for name, parameter in model.named_parameters() if name not in found and parameter.grad is not None]
    whole = full_weights(model, world)
    if world.is_main:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        plain = finish_adapters(random_lens(dtype=torch.float32).to("meta"), method, whole)
        with torch.no_grad():
            torch.testing.assert_close(plain.forward_ragged(halves[0]), alone.forward_ragged(halves[0]))
        smallest = min(float(gradient.abs().max()) for gradient in found.values())
        print(json.dumps({"adapters": len(found), "smallest_gradient": smallest, "frozen_with_gradient": frozen}))
    world.leave()


if __name__ == "__main__":
    main(sys.argv[1])
