"""The quickstart pipeline, shrunk: from nothing to a report, killed on the way, and then looked at."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "examples" / "quickstart" / "pipeline.yaml")


@pytest.fixture(scope="module")
def shrunk():
    import yaml

    pipeline = yaml.safe_load(Path(QUICKSTART).read_text())
    sets = []
    for stage in pipeline["stages"]:
        name = stage["name"]
        if stage["type"] == "ingest":
            sets.append(f"{name}.source.count=48")
        if stage["type"] == "train":
            sets += [f"{name}.budget={{flops: 1.6e10}}", f"{name}.batch.samples=8", f"{name}.threads=1"]
        if stage["type"] == "evaluate":
            sets += [f"{name}.evaluator.prompts_per_skill=3", f"{name}.steps=2"]
        if stage["type"] == "sample":
            sets += [f"{name}.steps=2"]
    return sets


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, shrunk):
    """The finished run, after one SIGKILL in the middle."""
    folder = tmp_path_factory.mktemp("quickstart")
    command = [Path(sys.executable).with_name("lens"), "run", QUICKSTART, "--set", f"run={folder / 'run'}"]
    for text in shrunk:
        command += ["--set", text]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    time.sleep(6)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "run" / "stdout").write_text(done.stdout)
    return folder / "run"


def test_headline_is_one_line(run_folder):
    text = (run_folder / "stdout").read_text()
    assert len(text.strip().splitlines()) == 1
    assert "one training seed" in text


def test_summary_holds_what_the_table_needs(run_folder):
    summary = json.loads((run_folder / "summary.json").read_text())
    assert len(summary["arms"]) == 2
    flops = [arm["training_flops"] for arm in summary["arms"].values()]
    assert max(flops) / min(flops) < 1.1  # a tenth of the real budget's precision: here a step is a large share
    for arm in summary["arms"].values():
        assert {"steps", "training_flops", "text_tokens", "seconds", "accuracy"} <= arm.keys()
        for style in arm["accuracy"].values():
            for skill, cell in style.items():
                assert 0 <= cell["low"] <= cell["accuracy"] <= cell["high"] <= 1, skill


def test_report_is_one_self_contained_page(run_folder):
    page = (run_folder / "report.html").read_text()
    assert "Content-Security-Policy" in page
    assert "http-equiv" in page
    assert 'src="http' not in page
    assert "one training seed" in page


def test_everything_traces_back_to_the_images(run_folder, lens):
    picture = next((run_folder / "gallery-dense").rglob("*.png"))
    traced = lens("trace", str(picture))
    assert traced.returncode == 0, traced.stderr
    assert "images by ingest" in traced.stdout
    assert "prompt:" in traced.stdout


def test_generate_draws_the_same_picture_for_the_same_seed(run_folder, lens, tmp_path):
    arguments = ["a red circle", "--model", str(run_folder / "model-dense"), "--steps", "2", "--seed", "7"]
    for name in ("a.png", "b.png"):
        done = lens("generate", *arguments, "--rewriter", "scene-expander", "-o", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    traced = lens("trace", "a.png", cwd=tmp_path)
    assert "seed: 7" in traced.stdout
    other = lens("generate", *arguments[:-1], "8", "-o", "c.png", cwd=tmp_path)
    assert other.returncode == 0
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "c.png").read_bytes()


def test_generate_refuses_nonsense_in_one_line(run_folder, lens, tmp_path):
    for arguments, words in (
        (["x", "--model", str(tmp_path)], "no model folder"),
        (["x", "--model", str(run_folder / "model-dense"), "--size", "33x32"], "multiples of 8"),
        (["x", "--model", str(run_folder / "model-dense"), "--size", "big"], "WIDTHxHEIGHT"),
        (["x", "--model", str(run_folder / "model-dense"), "--rewriter", "nobody"], "there is no rewriter"),
    ):
        done = lens("generate", *arguments)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert words in line


def test_generate_redraws_a_part_of_a_picture(run_folder, lens, tmp_path):
    """--image, --mask, --lora: outside the mask the picture comes back pixel for pixel."""
    shades = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    Image.fromarray(shades).save(tmp_path / "photo.png")
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 16:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    model = str(run_folder / "model-dense")
    weights = load_file(run_folder / "model-dense" / "transformer" / "diffusion_pytorch_model.safetensors")
    rows, columns = weights["proj_out.weight"].shape
    key = "transformer.proj_out"
    lora = {f"{key}.lora_A.weight": torch.ones(1, columns), f"{key}.lora_B.weight": torch.ones(rows, 1)}
    save_file(lora, tmp_path / "lora.safetensors")
    arguments = [
        "generate",
        "a red circle",
        "--model",
        model,
        "--steps",
        "4",
        "--image",
        "photo.png",
        "--strength",
        "1",
    ]
    for name, more in (("a.png", []), ("b.png", ["--lora", "lora.safetensors"])):
        done = lens(*arguments, "--mask", "mask.png", *more, "-o", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    first, second = (np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png"))
    assert np.array_equal(first[:, :16], shades[:, :16])
    assert np.array_equal(second[:, :16], shades[:, :16])
    assert not np.array_equal(first[:, 16:], shades[:, 16:])
    assert not np.array_equal(first[:, 16:], second[:, 16:])
    for wrong, words in (
        (["--mask", "mask.png"], "--mask needs --image"),
        (["--image", "lora.safetensors"], "lora.safetensors"),
        (["--lora", "photo.png"], "photo.png"),
        (["--dtype", "int4"], "dtype 'int4' is not one of"),
    ):
        done = lens("generate", "x", "--model", model, *wrong, cwd=tmp_path)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert words in line
