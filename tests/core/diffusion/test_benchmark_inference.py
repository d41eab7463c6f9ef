"""`benchmarks/inference.py`: the rival draws what we draw and what the reference drew, and the FLOPs are counted ones.

Its ratio would mean nothing otherwise.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from core.diffusion.packs import random_lens
from core.diffusion.test_flops import WithoutPadding
from lens_core.diffusion import Request
from lens_core.diffusion.text_to_image import denoise

FILE = Path(__file__).parents[3] / "benchmarks" / "inference.py"


def load(file):
    spec = importlib.util.spec_from_file_location("benchmark_inference", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


inference = load(FILE)


@pytest.fixture(scope="module")
def tiny(saved_model):
    """A loaded model whose denoiser has four text layers and no weight of zero or one."""
    model, _ = saved_model
    return replace(model, transformer=random_lens(in_channels=48, out_channels=12, dtype=torch.float32).eval())


def requests(captions, *, grid=(3, 5), channels=48, width=24, layers=4, stride=4):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return [
        Request(
            height=grid[0] * stride,
            width=grid[1] * stride,
            text=[normal(length, width) for _ in range(layers)],
            negative_text=[torch.zeros(0, width) for _ in range(layers)],
            noise_NC=normal(grid[0] * grid[1], channels),
        )
        for length in captions
    ]


def sampler_of(model, steps):
    return model.registry.parse("samplers", {"type": "flow-euler", "shift": "released", "steps": steps})


@pytest.mark.parametrize("captions", [(9, 1, 20, 4), (7, 7), (3,)], ids=str)
@pytest.mark.parametrize("scale", [5.0, 1.0])
@pytest.mark.parametrize("grid", [(3, 5), (4, 4)], ids=str)
def test_both_sides_draw_the_same(tiny, scale, captions, grid):
    sampler = sampler_of(tiny, 4)
    times_S = tiny.registry.build("samplers", sampler).times(grid[0] * grid[1])
    asked = requests(captions, grid=grid)
    ours = torch.stack(denoise(tiny, asked, sampler=sampler, guidance=scale))
    rival = inference.PaddedLens.sharing(tiny.transformer)
    theirs = inference.denoise_padded(rival, asked, grid, times_S, scale)
    assert float((ours - asked_noise(asked)).abs().max()) > 0.1  # something was drawn
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


def asked_noise(asked):
    return torch.stack([request.noise_NC for request in asked])


def test_the_rival_is_the_released_pipeline(cases, golden_model, lens_registry):
    text = [cases[f"pipe.features.{layer}"][0] for layer in range(4)]
    asked = [Request(height=64, width=64, text=text, noise_NC=cases["pipe.latents"][0])]
    sampler = lens_registry.parse("samplers", {"type": "flow-euler", "shift": "released", "steps": 4})
    times_S = lens_registry.build("samplers", sampler).times(16)
    drawn = inference.denoise_padded(inference.PaddedLens.sharing(golden_model), asked, (4, 4), times_S, 5.0)
    torch.testing.assert_close(drawn, cases["pipe.empty_negative.latents.3"], rtol=0, atol=2e-5)


def test_the_rival_has_no_weights_of_its_own(golden_model):
    rival = inference.PaddedLens.sharing(golden_model)
    ours = {key: tensor.data_ptr() for key, tensor in golden_model.state_dict().items()}
    assert {key: tensor.data_ptr() for key, tensor in rival.state_dict().items()} == ours


@pytest.mark.parametrize("captions", [(9, 1, 20, 4), (7, 7)], ids=str)
@pytest.mark.parametrize("scale", [5.0, 1.0])
def test_flops_are_those_of_the_counter(tiny, scale, captions):
    sampler, grid, steps = sampler_of(tiny, 3), (3, 5), 3
    times_S = tiny.registry.build("samplers", sampler).times(15)
    model = replace(tiny).to(torch.device("cpu"), modulation_table=True)
    before, model.transformer.attention = model.transformer.attention, WithoutPadding()
    rival = inference.PaddedLens.sharing(model.transformer)
    jobs = {
        "lens": lambda: denoise(model, requests(captions), sampler=sampler, guidance=scale),
        "padded": lambda: inference.denoise_padded(rival, requests(captions), grid, times_S, scale),
    }
    counted = {}
    for side, job in jobs.items():
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            job()
        counted[side] = counter.get_total_flops()
    model.transformer.attention = before
    assert counted == inference.flops(model.transformer.config, 15, captions, steps, scale)


def test_captions_are_drawn_evenly_and_always_the_same():
    options = inference.parsed(["--layers", "1", "--batch", "400", "--captions", "20-300", "--size", "8x8"])
    bench = inference.Bench("nano", options)
    assert bench.captions == inference.Bench("nano", options).captions
    assert min(bench.captions) in range(20, 25)
    assert max(bench.captions) in range(296, 301)
    assert abs(sum(bench.captions) / 400 - 160) < 10
    # the encoder makes a token of each word, so that both sides get captions of these lengths
    assert [len(request.text[0]) for request in bench.encoded] == bench.captions


def test_the_command(tmp_path, capfd):
    out = tmp_path / "some" / "result.json"
    options = [
        "--layers",
        "1",
        "--batch",
        "2",
        "--captions",
        "3-9",
        "--size",
        "32x24",
        "--repeats",
        "2",
        "--threads",
        "1",
    ]
    result = inference.main([*options, "--steps", "2", "--guidance", "5", "1", "--out", str(out)])
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    found = result["presets"]["nano"]
    assert found["pixels"] == [24, 32]
    assert found["grid"] == (3, 4)
    assert [(run["steps"], run["guidance"]) for run in found["runs"]] == [(2, 5.0), (2, 1.0)]
    for run in found["runs"]:
        assert run["ratio"] == pytest.approx(run["padded"]["denoise_s"] / run["lens"]["denoise_s"])
        assert run["flops_ratio"] == pytest.approx(run["padded"]["gflop"] / run["lens"]["gflop"])
        assert run["difference"] < 1e-4
        shared = sum(run["shared_stages_s"].values())
        for side in inference.SIDES:
            assert run[side]["all_stages_s"] == pytest.approx(run[side]["denoise_s"] + shared)
            assert 0 < run[side]["over_weights_bytes"] < run[side]["peak_bytes"]
            assert len(run[side]["rounds_s"]) == 2
    assert found["runs"][1]["flops_ratio"] > found["runs"][0]["flops_ratio"] > 1
    told = capfd.readouterr().out
    for word in (
        "2 steps, guidance 5: ",
        "guidance 1: ",
        "encode",
        "denoise",
        "decode",
        "PNG",
        "GFLOP/s",
        "peak memory",
    ):
        assert word in told


def test_the_path_of_the_gpu_run():
    """FLUX.2's autoencoder with the released sizes, half precision, features in place of an encoder: only smaller."""
    options = ["--layers", "1", "--batch", "1", "--size", "32x32", "--dtype", "bfloat16", "--steps", "3", "2"]
    options = inference.parsed([*options, "--guidance", "5", "1", "--device", "cpu"])
    bench = inference.Bench("3.8b", options)
    assert bench.pipe.transformer.config["in_channels"] == 128
    assert {weight.dtype for weight in bench.pipe.transformer.parameters()} == {torch.bfloat16}
    for steps, scale in zip(options.steps, options.guidance, strict=True):
        run = inference.measure(bench, steps, scale, repeats=1)
        assert run["difference"] < 0.1  # bfloat16's, over a few steps
        assert run["shared_stages_s"]["encode"] is None
        for side in inference.SIDES:
            run[side] |= bench.memory(side, steps, scale)
        assert "encode                         -           - ms" in inference.told(run)


@pytest.mark.parametrize(
    "options",
    [["--captions", "9-3"], ["--captions", "0-3"], ["--captions", "many"], ["--steps", "4", "20", "--guidance", "5"]],
    ids=" ".join,
)
def test_options_that_make_no_sense(options, capsys):
    with pytest.raises(SystemExit):
        inference.parsed(options)
    assert "error: " in capsys.readouterr().err


def test_steps_go_with_their_guidance():
    options = inference.parsed(["--steps", "20", "4", "--guidance", "5", "1"])
    assert list(zip(options.steps, options.guidance, strict=True)) == [(20, 5.0), (4, 1.0)]
    assert inference.parsed(["--steps", "7"]).steps == [7, 7]


def test_positions_are_the_released_ones(golden_model):
    table = torch.view_as_complex(inference.rope((3, 2), 2, golden_model.axes_dims_rope)).angle()
    first_of_each_axis = table[:, [0, 2, 5]]
    places = [[0, -2, -1], [0, -2, 0], [0, -1, -1], [0, -1, 0], [0, 0, -1], [0, 0, 0], [1, 1, 1], [2, 2, 2]]
    torch.testing.assert_close(first_of_each_axis, torch.tensor(places).float())
    assert all(earlier < later for earlier, later in pairwise(table[6:, 0].tolist()))
