"""The planned bytes against those that a trainer holds, and that a forward pass leaves for the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lens_core.diffusion import LensTransformer2DModel
from lens_core.diffusion.ragged import RaggedBatch, offsets_of
from lens_train.estimate.memory import activation_bytes, reached_parameters, state_bytes
from lens_train.loop.budget import Budget
from lens_train.methods.adapters import add_adapters
from lens_train.methods.config import LoraMethod
from lens_train.optim.build import Optimizers
from lens_train.optim.config import OptimizerConfig
from lens_train.optim.ema import Ema
from lens_train.parallel.config import ParallelConfig
from lens_train.parallel.shard import shard
from lens_train.parallel.world import World

ALONE = World(device=torch.device("cpu"))
FIELDS = {
    "patch_size": 1,
    "in_channels": 8,
    "out_channels": 8,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "axes_dims_rope": (8, 12, 12),
    "enc_hidden_dim": 16,
    "selected_layer_index": (0,),
}
IMAGE, TEXT = (16, 16), 64


def bytes_of(tensors):
    """Of the storages behind them, each counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def planned(registry, model, optimizer, **parallel):
    settings = {"name": "model", "type": "train", "source": "captions", "budget": {"steps": 1}}
    config = registry.parse(
        "stages", settings | {"optimizer": optimizer, "parallel": {"precision": "fp32", **parallel}}
    )
    return state_bytes(config, model, reached_parameters(model), 1)


def on_meta(config):
    with torch.device("meta"):
        return LensTransformer2DModel(**{name: config[name] for name in (*FIELDS, "num_layers")})


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_state_is_what_a_trainer_holds(optimizer, new_trainer, progress, lens_registry):
    trainer = new_trainer(budget=Budget(steps=2), optimizer=OptimizerConfig(type=optimizer))
    model, gradients, step = trainer.transformer, [], trainer.optimizers.step

    def counting():
        gradients.append(bytes_of(p.grad for p in model.parameters() if p.grad is not None))
        step()

    trainer.optimizers.step = counting
    trainer.run(progress)
    plan = planned(lens_registry, on_meta(model.config), {"type": optimizer})
    own = {id(parameter) for parameter in model.parameters()}
    states = [
        value
        for part in trainer.optimizers.parts
        for parameter, state in part.state.items()
        if id(parameter) in own
        for value in state.values()
    ]
    averages = [tensor for name, tensor in trainer.ema.averages.items() if name.startswith("transformer/")]
    assert plan.weights == bytes_of(model.parameters())
    assert [plan.gradients] * 2 == gradients
    assert plan.optimizer == bytes_of(states)
    assert plan.averages == bytes_of(averages)
    assert plan.gathered == 0


def test_the_state_beside_an_adapter(lens_registry):
    """Of the parts that a trainer is made of."""
    method = LoraMethod(rank=4)
    model, plain = LensTransformer2DModel(**FIELDS, num_layers=3), on_meta({**FIELDS, "num_layers": 3})
    add_adapters(model, method, seed=0)
    add_adapters(plain, method, seed=0)
    optimizers, ema = Optimizers(OptimizerConfig(type="adamw"), [model]), Ema({"transformer": model}, 0.9)
    model.forward_ragged(batch(1)).sum().backward()
    gradients = bytes_of(p.grad for p in model.parameters() if p.grad is not None)
    optimizers.step()
    plan = planned(lens_registry, plain, {"type": "adamw"})
    assert plan.weights == bytes_of(model.parameters())
    assert plan.gradients == gradients
    assert plan.optimizer == bytes_of(
        value for part in optimizers.parts for state in part.state.values() for value in state.values()
    )
    assert plan.averages == bytes_of(ema.averages.values())
    assert 0 < plan.averages < plan.weights / 4


def batch(segments):
    """Segments that are all alike."""
    generator = torch.Generator().manual_seed(0)
    tokens = IMAGE[0] * IMAGE[1]
    return RaggedBatch(
        image=torch.randn(segments * tokens, FIELDS["in_channels"], generator=generator),
        text=[torch.randn(segments * TEXT, FIELDS["enc_hidden_dim"], generator=generator)],
        image_offsets=offsets_of([tokens] * segments),
        text_offsets=offsets_of([TEXT] * segments),
        grids=torch.tensor([IMAGE] * segments),
        timestep=torch.rand(segments, generator=generator),
    )


class Made(TorchDispatchMode):
    """Remembers the storages of all results, without holding on to them."""

    def __init__(self, *, but):
        super().__init__()
        self._but = {tensor.untyped_storage()._cdata for tensor in but}
        self._storages = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._but:
                    self._storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return results

    def held(self):
        """Bytes of those that somebody still holds."""
        return sum(size for storage, size in self._storages.values() if not storage.expired())


def kept(blocks, segments, settings):
    """Bytes that a forward pass leaves behind."""
    model, one = LensTransformer2DModel(**FIELDS, num_layers=blocks), batch(segments)
    shard(model, ALONE, settings)
    with Made(but=[*model.parameters(), one.image, *one.text]) as made:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
            output = model.forward_ragged(one)
        held = made.held()
    output.sum().backward()
    return held


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("policy", ["none", "selective", "full"])
def test_activations_are_what_a_forward_pass_keeps(policy, precision):
    """What two blocks more keep of so many tokens more: nothing else is in this difference.

    Here attention makes dense calls, which do without the copy of the values that is planned for.
    """
    settings = ParallelConfig(activation_checkpointing=policy, precision=precision)
    few, many = 2, 6
    found = kept(4, many, settings) - kept(4, few, settings) - kept(2, many, settings) + kept(2, few, settings)
    tokens = (many - few) * (IMAGE[0] * IMAGE[1] + TEXT)
    expected = activation_bytes(settings, FIELDS | {"num_layers": 4}, tokens)
    expected -= activation_bytes(settings, FIELDS | {"num_layers": 2}, tokens)
    if policy == "none" and precision == "bf16":
        expected -= 2 * tokens * 2 * FIELDS["num_attention_heads"] * FIELDS["attention_head_dim"]
    assert found == pytest.approx(expected, rel=0.02)
