"""A sample's loss is the same whichever rank computes it, and however many there are.

What its neighbours in a pack have to do with it is asked in `test_trainer.py`. Started once for each of two ranks,
with FOLDER and the captions' URL, this file leaves each rank's losses in FOLDER/rank-R.json.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from lens_core.registry import load_registry
from lens_core.storage.artifacts import load_artifact
from lens_train import launch
from lens_train.parallel.world import World
from lens_train.stages.train.stage import build_trainer
from train.contexts import context_in
from train.parallel import ranks

SAMPLES, PACK = 24, 4
TRAIN = {
    "name": "model",
    "type": "train",
    "source": "dense",
    "model": {"type": "lens", "preset": "nano", "num_layers": 2},
    "budget": {"steps": 3},
    "batch": {"samples": PACK, "packs_per_step": 2},
    "threads": 1,
    "device": "cpu",
}


def losses(folder, captions, dtype):
    """The losses of this rank's samples of an epoch, by their numbers."""
    registry = load_registry()
    trainer, _ = build_trainer(registry.parse("stages", TRAIN), context_in(folder, registry, [captions]))
    away_from_the_start(trainer)
    for module in trainer.modules.values():
        module.to(dtype)
    loader, found = trainer.loader(), {}
    for _ in range(SAMPLES // PACK // trainer.world.size):
        loaded = next(loader)
        batch = trainer.assemble(loaded)
        exact = {name: getattr(batch, name).to(dtype) for name in ("x_NC", "velocity_NC", "timestep_G")}
        with torch.no_grad():
            losses_G = trainer.sample_losses(replace(batch, **exact))
        assert losses_G.dtype == dtype
        found |= dict(zip([str(sample.number) for sample in loaded.samples], losses_G.tolist(), strict=True))
    return found


@torch.no_grad()
def away_from_the_start(trainer):
    """Where every block is the identity."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trainer.parameters:
        noise = 0.02 * torch.randn(parameter.shape, generator=generator)
        if isinstance(parameter, DTensor):
            noise = distribute_tensor(noise, parameter.device_mesh, parameter.placements)
        parameter.add_(noise)


@pytest.fixture(scope="module")
def two(scenes, tmp_path_factory):
    """The losses of each of two ranks, by dtype."""
    folder = tmp_path_factory.mktemp("two")
    ranks.finish(ranks.start(__file__, 2, folder, scenes["dense"].url))
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_a_samples_loss_does_not_depend_on_its_rank_or_their_number(scenes, two, tmp_path, dtype, tolerance):
    alone, shared = losses(tmp_path, scenes["dense"], dtype), [rank[str(dtype)] for rank in two]
    assert [len(alone), *map(len, shared)] == [SAMPLES, SAMPLES // 2, SAMPLES // 2]
    assert len(set(alone.values())) == SAMPLES
    assert shared[0] | shared[1] == pytest.approx(alone, rel=tolerance, abs=0)


def main(folder, captions):
    world = launch._world = World.join(torch.device("cpu"), timeout_s=60)
    torch.set_num_threads(1)
    told = {str(dtype): losses(folder, load_artifact(captions), dtype) for dtype in (torch.float32, torch.float64)}
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(told))
    world.barrier("the end")
    world.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
