"""`benchmarks/train_gpu.py`: what of it runs without a GPU, in small; and what it says where there is none."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from lens_core.diffusion import LensTransformer2DModel
from lens_core.diffusion.flops import denoiser_flops

FILE = Path(__file__).parents[2] / "benchmarks" / "train_gpu.py"


def load(file):
    spec = importlib.util.spec_from_file_location("benchmark_train_gpu", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


train_gpu = load(FILE)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # as a CPU must
def test_the_command_in_small(tmp_path, capsys):
    out = tmp_path / "some" / "result.json"
    options = ["--smoke", "--packs", "512", "mixed", "--blocks", "2", "--steps", "2", "--rounds", "2"]
    result = train_gpu.main([*options, "--out", str(out)])
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    assert result["smoke"]
    assert [(row["pack"], row["attention"]) for row in result["cases"]] == [
        (pack, attention) for pack in ("512", "mixed") for attention in ("padded", "varlen", "flex")
    ]
    for row in result["cases"]:
        assert not row["compiled"]
        if row["attention"] == "padded":  # the only one that can be trained on a CPU
            assert row["difference"] == 0
            assert len(row["rounds_s"]) == 2
            assert row["tflops"] / row["measured_peak_tflops"] == pytest.approx(row["share_of_measured_peak"])
            assert row["mfu"] is row["peak_bytes"] is row["over_state_bytes"] is None
            assert 0 < row["tokens_per_pack"] <= 512
        else:
            assert row["problem"]
            assert "\n" not in row["problem"]
    told = capsys.readouterr().out
    table = told[told.index("| Pack") :].splitlines()
    assert len(table) == 2 + 6
    assert {len(re.findall(r"\|", line)) for line in table} == {4 + len(train_gpu.COLUMNS) + 1}


def test_the_rate_counts_what_the_model_needs():
    """Against the closed form of all segments of the packs, made of their lengths here."""
    bench = train_gpu.Bench(train_gpu.parsed(["--smoke", "--blocks", "3"]))
    row = bench.measure(train_gpu.Case(pack="mixed", attention="padded", recompute="none", compiled=False))
    packs = bench.packs("mixed")
    model = LensTransformer2DModel(num_layers=3, **train_gpu.SMOKE)
    images = [length for batch, _ in packs for length in batch.image_lengths]
    texts = [length for batch, _ in packs for length in batch.text_lengths]
    assert set(images) == {4 * 4, 8 * 8}
    assert all(20 <= length <= 300 for length in texts)
    needed = denoiser_flops(model.config, images, texts)
    assert row["tflops"] * 1e12 * row["step_ms"] / 1e3 * len(packs) == pytest.approx(needed)
    whole = denoiser_flops(model.config | {"num_layers": 48}, images, texts)
    assert row["images_per_s_of_all_blocks"] == pytest.approx(len(images) * row["tflops"] * 1e12 / whole)


def test_a_step_moves_the_weights():
    bench = train_gpu.Bench(train_gpu.parsed(["--smoke", "--blocks", "1"]))
    model = LensTransformer2DModel(num_layers=1, **train_gpu.SMOKE)
    before = model.proj_out.weight.detach().clone()
    step = train_gpu.Step(model, bench.device)
    step(*bench.packs("512")[0])
    assert not torch.equal(model.proj_out.weight, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_packs_are_of_one_size_of_picture_or_of_both_and_no_two_alike():
    bench = train_gpu.Bench(train_gpu.parsed(["--smoke", "--tokens", "2000", "--steps", "3"]))
    for kind, sides in {"512": {4}, "1024": {8}, "mixed": {4, 8}}.items():
        packs = bench.packs(kind)
        assert {side for batch, _ in packs for side in batch.grids.flatten().tolist()} == sides
        assert len({tuple(batch.text_lengths) for batch, _ in packs}) == 3
        assert all(1600 < len(batch.image) + sum(batch.text_lengths) <= 2000 for batch, _ in packs)


def test_on_a_gpu_the_blocks_are_the_real_ones():
    options = train_gpu.parsed([])
    with torch.device("meta"):
        config = LensTransformer2DModel(**train_gpu.fields(options)).config
    assert (config["inner_dim"], config["num_layers"], options.tokens) == (1536, 4, 24_576)


def test_a_case_that_does_not_fit_says_so(monkeypatch):
    bench = train_gpu.Bench(train_gpu.parsed(["--smoke"]))

    def measure(case):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nand more")

    monkeypatch.setattr(bench, "measure", measure)
    row = train_gpu.run(bench, train_gpu.Case(pack="512", attention="flex", recompute="full", compiled=True))
    assert row["problem"] == "not enough memory"
    assert "| 512 | flex | full | yes | not enough memory |" in train_gpu.table([row])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line():
    with pytest.raises(SystemExit) as caught:
        train_gpu.main([])
    assert caught.value.code == "train_gpu: there is no CUDA GPU here; --smoke tries the machinery on a CPU"
