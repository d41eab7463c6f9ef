"""Speed's numbers against FLOPs counted by torch, and clocks that tick by the look."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from core.diffusion.test_flops import WithoutPadding
from lens_core.config.base import ComponentConfig
from lens_core.diffusion.text_encoders.small.encoder import SmallTextEncoder
from lens_core.specs import ModelSpec
from lens_train.loop.budget import Budget
from lens_train.loop.metrics import METRICS
from lens_train.methods.adapters import add_adapters, freeze
from lens_train.methods.config import LoraMethod
from lens_train.optim.config import OptimizerConfig
from lens_train.parallel.activations import checkpoint_activations
from lens_train.parallel.config import ParallelConfig
from lens_train.parallel.world import World
from lens_train.planning.config import BatchConfig
from lens_train.watch.flops import count_flops
from lens_train.watch.speed import Speed
from train.oracle import registry_with

PEAK = 3e12
TICK = 1 / 64


class Clock:
    """Stands for the module `time`: each look at one of its clocks finds it a tick later."""

    def __init__(self):
        self.now = {"monotonic": 0.0, "perf_counter": 0.0}

    def monotonic(self):
        self.now["monotonic"] += 8 * TICK
        return self.now["monotonic"]

    def perf_counter(self):
        self.now["perf_counter"] += TICK
        return self.now["perf_counter"]


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """A clock whose every tick is known, and a device whose peak is."""
    clock = Clock()
    for module in ("loop.trainer", "data.loader", "watch.stopwatch"):
        monkeypatch.setattr(f"lens_train.{module}.time", clock)
    monkeypatch.setattr("lens_train.watch.speed.peak_flops", lambda device, dtype: (PEAK, True))


def metrics(trainer):
    return [json.loads(line) for line in (trainer.folder / METRICS).read_text().splitlines()]


def test_a_line_tells_of_all_packs_since_the_last(new_trainer, progress):
    batch = BatchConfig(samples=4, packs_per_step=2)
    trainer = new_trainer(batch=batch, fixed_size=True, log_every=2, budget=Budget(steps=5))
    trainer.run(progress)
    image, text = trainer.plan.capacity
    done, seconds = 0, 0.0
    for line in metrics(trainer):
        packs = [trainer.plan.pack(index) for index in range(2 * done, 2 * line["step"])]
        took = line["seconds"] - seconds
        needed = sum(pack.flops for pack in packs)
        rooms = [(image - pack.image_tokens, text - pack.text_tokens) for pack in packs]
        assert all(min(room) >= 0 for room in rooms)
        # Padding is a segment of its own, of which the text encoder sees nothing.
        filled = sum(trainer.transformer.training_flops([n], [m], text_gradient=True) for n, m in rooms)
        assert filled > 0
        assert line["mfu"] == pytest.approx(needed / (took * PEAK), rel=1e-9)
        assert line["hfu"] == pytest.approx((needed + filled) / (took * PEAK), rel=1e-9)
        assert line["padding"] == pytest.approx(sum(map(sum, rooms)) / (len(packs) * (image + text)))
        assert line["data_wait"] == pytest.approx(len(packs) * TICK / took)
        assert line["encoder_share"] == pytest.approx(len(packs) * TICK / took)
        done, seconds = line["step"], line["seconds"]
    assert done == 5


class Frozen(SmallTextEncoder):
    trainable = False


def test_a_frozen_encoders_captions_are_encoded_too(new_trainer, progress):
    trainer = new_trainer(encoder_class=Frozen, budget=Budget(steps=1))
    trainer.run(progress)
    (line,) = metrics(trainer)
    assert line["encoder_share"] == pytest.approx(2 * TICK / line["seconds"])  # once for images, once for captions


def test_each_rank_has_a_peak_and_what_was_done_before_is_no_matter(new_trainer):
    trainer = new_trainer()
    loader = trainer.loader()

    def step():
        trainer.train_step([next(loader)])
        trainer.counters.seconds += 2.0
        return trainer.counters.flops

    before = step()
    speed = Speed(trainer, loader)
    after = step()
    trainer.world = World(device=trainer.world.device, size=4)
    assert speed.take()["mfu"] == pytest.approx((after - before) / (2.0 * PEAK * 4), rel=1e-9)
    trainer.counters.seconds += 1.0
    nothing = speed.take()
    assert (nothing["mfu"], nothing["hfu"], nothing["padding"], nothing["encoder_share"]) == (0, 0, 0, 0)


def test_memory_is_the_most_that_the_process_has_held(new_trainer):
    trainer = new_trainer()
    page = os.sysconf("SC_PAGE_SIZE")
    held = torch.ones(50_000_000)
    now = int(Path("/proc/self/statm").read_text().split()[1]) * page / 1e9
    assert now > 0.2
    del held
    machine = os.sysconf("SC_PHYS_PAGES") * page / 1e9
    assert 0.99 * now <= Speed(trainer, trainer.loader()).take()["memory_gb"] <= machine


def first_step(trainer):
    """FLOPs of a step by torch's counter, and those that the trainer says it made beyond what the model needs."""
    trainer.transformer.attention = WithoutPadding()
    pack = next(trainer.loader())
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        trainer.train_step([pack])
    return counter.get_total_flops(), trainer.counters.executed_flops - trainer.counters.flops


@pytest.fixture
def made(new_trainer):
    """A trainer of every weight, or of a DoRA, whose lengths are computed once a step."""

    def make(state, *, adapters=False, recomputes=False, **options):
        # Muon's own products are no part of the count.
        trainer = new_trainer(state=state, optimizer=OptimizerConfig(type="adamw"), **options)
        again = trainer.transformer.block_flops
        if adapters:
            freeze(trainer.captions.encoder)
            add_adapters(trainer.transformer, LoraMethod(kind="dora", rank=2), seed=0)
            flops = count_flops(trainer.transformer)
            again = count_flops(trainer.transformer, policy="full").plus(flops, -1)
            trainer = replace(trainer, flops=flops)
            assert trainer.flops.per_step > 0
        if recomputes:
            trainer = replace(trainer, recomputed_flops=again)
            checkpoint_activations(
                trainer.transformer.transformer_blocks, ParallelConfig(activation_checkpointing="full")
            )
        return trainer

    return make


@pytest.mark.parametrize(
    "options",
    [
        {"fixed_size": True},
        {"recomputes": True},
        {"fixed_size": True, "recomputes": True},
        {"fixed_size": True, "adapters": True},
        {"recomputes": True, "adapters": True},
    ],
    ids=lambda options: " and ".join(options),
)
def test_what_is_carried_out_besides_is_what_torch_counts(made, options):
    """Against the same step without padding and recomputation, which has all the rest, the text encoder's too."""
    bare, none = first_step(made("bare", adapters=options.get("adapters", False)))
    whole, told = first_step(made("whole", **options))
    assert none == 0
    assert told > 0
    assert whole - bare == pytest.approx(told, rel=1e-12)


@pytest.mark.parametrize("kind", ["all weights", "lora", "dora", "lokr"])
def test_full_checkpointing_shows_in_hfu(scenes, run_stage, lens_registry, kind):
    """A third more than every weight's training needs, and more than that of a LoRA, whose backward pass is shorter."""
    train = {
        "name": "model",
        "type": "train",
        "source": "dense",
        "model": {"type": "lens", "preset": "nano"},
        "parallel": {"activation_checkpointing": "full"},
        "watch": {"log_every": 1},
        "budget": {"steps": 3},
        **({"method": {"type": "lora", "kind": kind, "rank": 2}} if kind != "all weights" else {}),
    }
    folder, _ = run_stage(lens_registry, lens_registry.parse("stages", train), [scenes["dense"]])
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    low, high = (1.25, 1.34) if kind == "all weights" else (1.33, 1.6)
    assert all(low < line["hfu"] / line["mfu"] < high for line in lines)


class Plain(nn.Module):
    """A denoiser that has what it must have, and nothing else."""

    def __init__(self, config, *, in_channels, enc_hidden_dim, num_text_layers):
        super().__init__()
        self.config = {}
        self.linear = nn.Linear(in_channels, in_channels)

    def init_weights(self, seed):
        nn.init.zeros_(self.linear.weight)

    def training_flops(self, image_lengths, text_lengths, *, text_gradient):
        return 4.0 * self.linear.weight.numel() * sum(image_lengths)

    def forward_ragged(self, batch):
        return self.linear(batch.image) + sum(text.mean() for text in batch.text)


class PlainConfig(ComponentConfig):
    type: Literal["plain"] = "plain"


def test_of_a_denoiser_that_does_not_say_it_nothing_is_counted_twice(scenes, run_stage):
    spec = ModelSpec(name="plain", summary="One product.", config=f"{__name__}:PlainConfig", target=f"{__name__}:Plain")
    registry = registry_with({"models": spec})
    train = {
        "name": "model",
        "type": "train",
        "source": "dense",
        "model": {"type": "plain"},
        "parallel": {"activation_checkpointing": "full"},
        "watch": {"log_every": 1},
        "budget": {"steps": 3},
    }
    folder, _ = run_stage(registry, registry.parse("stages", train), [scenes["dense"]])
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    assert [line["hfu"] for line in lines] == [line["mfu"] for line in lines]
    assert all(line["hfu"] > 0 for line in lines)
