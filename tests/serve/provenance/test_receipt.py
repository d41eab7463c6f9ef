"""Receipts of served pictures: all that `lens generate` writes, and what it takes to compare."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
import torch

from lens_core.cli.generate import generate_file
from lens_core.storage.lineage import read_receipt, trace
from lens_serve.config import ServeSettings
from lens_serve.engine.loaded import device_name
from lens_serve.engine.messages import StartPicture
from lens_serve.images.png import encode_png
from lens_serve.provenance.receipt import versions
from serve.provenance.made import made, model_artifact


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_artifact(tmp_path_factory.mktemp("models") / "model")


def test_a_receipt_has_all_that_lens_generate_writes(folder, tmp_path):
    options = {"rewriter": None, "image": None, "mask": None, "strength": 0.6, "lora": (), "dtype": None}
    lines = generate_file(
        "a cat",
        model=folder,
        output=str(tmp_path / "a.png"),
        size="24x16",
        steps=2,
        seed=7,
        guidance=2.0,
        negative="dogs",
        offload=False,
        device="cpu",
        **options,
    )
    list(lines)
    generated = read_receipt((tmp_path / "a.png").read_bytes())
    _, receipt = made(folder, negative="dogs")
    same = {key: receipt[key] for key in generated}
    assert same == {**generated, "index": 1}


def test_a_receipt_is_json_and_says_what_was_asked(folder):
    _, receipt = made(folder, prompt="a big cat", typed="a cat", negative="dogs", tier="lossless")
    assert json.loads(json.dumps(receipt)) == receipt
    digest = {text: hashlib.sha256(text.encode()).hexdigest() for text in ("a cat", "a big cat", "dogs")}
    assert (
        receipt.items()
        >= {
            "format_version": 1,
            "prompt": "a cat",
            "rewritten_prompt": "a big cat",
            "negative": "dogs",
            "prompt_sha256": digest["a cat"],
            "rewritten_sha256": digest["a big cat"],
            "negative_sha256": digest["dogs"],
            "rewrite": {"outcome": "rewritten", "by": "a rewriter", "template": None},
            "seed": 7,
            "index": 1,
            "height": 16,
            "width": 24,
            "guidance": 2.0,
            "tier": "lossless",
            "device": device_name(torch.device("cpu")),
            "kernels": "sdpa",
        }.items()
    )
    assert receipt["sampler"]["steps"] == 2
    assert "lora" not in receipt
    assert "start" not in receipt


def test_versions_are_those_that_are_loaded():
    import PIL

    assert versions()["torch"] == torch.__version__
    assert versions()["pillow"] == PIL.__version__


def test_the_process_that_answers_needs_no_torch():
    modules = ("images.encoders", "images.store", "images.upload", "provenance.receipt", "provenance.verify")
    code = "import sys\n" + "".join(f"import lens_serve.{name}\n" for name in modules)
    code += "assert not {'torch', 'c2pa', 's3fs'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_a_start_is_named_by_its_hash(folder):
    start = StartPicture(pixels=b"123", strength=0.5, mask=b"4")
    _, receipt = made(folder, start=start)
    expected = {"pixel_sha256": hashlib.sha256(b"123").hexdigest(), "strength": 0.5}
    assert receipt["start"] == {**expected, "mask_sha256": hashlib.sha256(b"4").hexdigest()}


def test_lens_trace_follows_it_to_the_model(folder, tmp_path):
    image, receipt = made(folder)
    (tmp_path / "a.png").write_bytes(encode_png(image, receipt))
    lineage = trace(str(tmp_path / "a.png"))
    assert lineage.receipt == receipt
    assert [artifact.url for _, artifact in lineage.artifacts] == [folder]


@pytest.mark.parametrize(
    "listen",
    [
        {"keys": "keys.json"},
        {"insecure": True, "host": "0.0.0.0"},
        {"insecure": True},
        {"allowed_hosts": ["images.example.org"]},  # it is behind a proxy
        {"host": "192.168.1.7"},
    ],
    ids=str,
)
def test_strangers_are_not_told_of_our_folders(folder, tmp_path, listen):
    settings = ServeSettings(models=[{"name": "lens", "folder": folder}], listen=listen)
    image, receipt = made(folder, settings=settings)
    assert folder not in json.dumps(receipt)
    (tmp_path / "a.png").write_bytes(encode_png(image, receipt))
    assert trace(str(tmp_path / "a.png")).receipt == receipt
