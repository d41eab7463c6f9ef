"""AdamW in 8 bits: what is said without its library, and what it does with it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from lens_core.errors import MissingExtraError
from lens_train.checkpoint.state import TrainingState
from lens_train.checkpoint.store import CheckpointStore
from lens_train.optim.build import Optimizers
from lens_train.optim.config import OptimizerConfig
from lens_train.parallel.world import World
from train.optim import eight_bit_ranks
from train.parallel import ranks

TORCHAO = importlib.util.find_spec("torchao")
needs_torchao = pytest.mark.skipif(TORCHAO is None, reason="torchao is not installed")


def test_the_missing_library_is_named_with_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(MissingExtraError, match=r"needs the library 'torchao'.*lens-train\[eight-bit\]"):
        Optimizers(OptimizerConfig(type="adamw-8bit"), [torch.nn.Linear(2, 2)])


@needs_torchao
@pytest.mark.filterwarnings("ignore")
def test_learns_as_adamw_does_and_goes_on_exactly(tmp_path):
    def run(kind):
        torch.manual_seed(0)
        model = torch.nn.Linear(64, 128)
        return model, Optimizers(OptimizerConfig(type=kind, lr=0.01), [model])

    def steps(model, optimizers, first, last):
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(8, 64, generator=generator)
            loss = (model(x) - x.sum(-1, keepdim=True)).square().mean()
            loss.backward()
            optimizers.set_factor(1 / (1 + step))
            optimizers.step()
            optimizers.zero_grad()
        return loss.item()

    eight, full = run("adamw-8bit"), run("adamw")
    assert steps(*eight, 0, 20) == pytest.approx(steps(*full, 0, 20), rel=0.02)

    world = World(device=torch.device("cpu"))
    store = CheckpointStore(tmp_path, world)
    store.save(20, TrainingState({"model": eight[0]}, eight[1].parts), {})
    store.wait()
    again = run("adamw-8bit")
    store.load_latest(TrainingState({"model": again[0]}, again[1].parts))
    assert steps(*again, 20, 25) == steps(*eight, 20, 25)
    assert torch.equal(again[0].weight, eight[0].weight)


@needs_torchao
def test_two_ranks_go_on_exactly_and_so_does_another_number_but_for_rounding(tmp_path, monkeypatch):
    library = Path(TORCHAO.origin).parents[1]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    for time in ("first", "again"):  # the second time, what is compiled is found on the disk
        (tmp_path / time).mkdir()
        ranks.finish(ranks.start(eight_bit_ranks.__file__, 2, tmp_path / time, library), timeout=140)
    found = [json.loads((tmp_path / "again" / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert [own["loaded"] for own in found] == [True, True]
    assert [own["resumed"] for own in found] == [True, True]
    elsewhere = [found[0]["on one"], *(own["on two again"] for own in found)]
    for name in elsewhere[0]:
        rounded = 0.02 if "/exp_avg" in name else 0
        assert all(own[name] <= rounded for own in elsewhere), name
    # Only what has other blocks there is rounded.
    assert elsewhere[0]["optimizer/model/small/exp_avg"] == 0 < elsewhere[0]["optimizer/model/large/exp_avg"]
    assert all(own["both went on"][f"model/{name}"] < 0.02 for own in found for name in eight_bit_ranks.SHAPES)


@needs_torchao
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("signed", [True, False])
def test_what_is_saved_gives_the_same_codes_again(signed):
    from torchao.optim.subclass_8bit import OptimState8bit

    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(512, 256, generator=generator) * 10 ** (-9 * torch.rand(512, 1, generator=generator))
    numbers[3] = 0
    first, second = (OptimState8bit.zeros((512, 256), signed=signed) for _ in range(2))
    first.copy_(numbers if signed else numbers.square())
    parameter = torch.nn.Parameter(torch.zeros(512, 256))
    optimizer = torch.optim.SGD([parameter])
    state = TrainingState({"model": torch.nn.ParameterDict({"weight": parameter})}, [optimizer])
    optimizer.state[parameter] = {"exp_avg": first}
    saved = state.tensors()
    optimizer.state[parameter] = {"exp_avg": second}
    state.quantise(saved)
    assert torch.equal(second.codes, first.codes)
    assert torch.equal(second.scale, first.scale)
