"""`lens verify`: true receipts are found true, and each way of being false has a line of its own."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lens_core.cli.generate import generate_file
from lens_core.diffusion import LoadedModel
from lens_core.diffusion.model_folder import load_model_folder
from lens_core.diffusion.weights.lora import load_lora, save_lora
from lens_core.errors import ArtifactError, ConfigError, LensError
from lens_serve.engine.loaded import device_name
from lens_serve.engine.messages import StartPicture
from lens_serve.images.encoders import encode_image
from lens_serve.images.metadata import without_prompts
from lens_serve.images.sign import Signer
from lens_serve.provenance.claims import read_claims
from lens_serve.provenance.verify import DifferentError, psnr, verify_file
from serve.images.certificates import signing_files
from serve.models import half_model
from serve.provenance.made import made, model_artifact

IDENTICAL = "verdict: identical, bit for bit"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_artifact(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def picture(folder):
    return made(folder, prompt="a big cat", typed="a cat", negative="dogs")


@pytest.fixture
def verify(folder, tmp_path):
    """Write a picture or a receipt and verify it; returns the lines."""

    def run(receipt, image=None, *, format="png", quality=100, model=folder, **options):
        file = tmp_path / "receipt.json"
        if image is None:
            file.write_text(json.dumps(receipt))
        else:
            file = tmp_path / f"picture.{format}"
            file.write_bytes(encode_image(image, format=format, quality=quality, receipt=receipt))
        return list(verify_file(str(file), model=model, device="cpu", **options))

    return run


def different(verify, *arguments, **options):
    with pytest.raises(DifferentError) as error:
        verify(*arguments, **options)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    return str(error.value)


def with_noise(image, amount, seed=0):
    noise = np.random.default_rng(seed).integers(-amount, amount + 1, image.shape)
    return np.clip(image.astype(int) + noise, 0, 255).astype(np.uint8)


def sha256_of(image):
    return hashlib.sha256(image.tobytes()).hexdigest()


# --- true receipts -------------------------------------------------------------------------------------------------


def test_a_picture_is_found_identical(verify, picture, folder):
    image, receipt = picture
    lines = verify(receipt, image)
    assert lines[-1] == IDENTICAL
    assert lines[1:-1] == [
        f"model: {folder} is {receipt['model'][:12]}, with all its files",
        "file: its pixels are those of the receipt",
        "latents: the same bits when drawn again",
        "pixels: the same bits when drawn again",
    ]
    assert lines[0].endswith(f"device {device_name(torch.device('cpu'))}, tier exact")


def test_a_receipt_without_its_picture_is_enough(verify, picture):
    assert verify(picture[1])[-1] == IDENTICAL


@pytest.mark.parametrize("format", ["jpeg", "webp"])
@pytest.mark.parametrize("quality", [100, 30])
def test_formats_that_lose_something_are_compared_after_the_same_loss(verify, picture, format, quality):
    assert verify(picture[1], picture[0], format=format, quality=quality)[-1] == IDENTICAL


def drawn(model, folder, *, size="16x16", dtype=None):
    """A picture of `lens generate`."""
    options = {"rewriter": None, "image": None, "mask": None, "strength": 0.6, "lora": (), "offload": False}
    options |= {"steps": 2, "seed": 3, "guidance": 1.0, "negative": "", "device": "cpu"}
    output = str(folder / "a.png")
    list(generate_file("a cat", model=str(model), output=output, size=size, dtype=dtype, **options))
    return output


@pytest.mark.parametrize("size", ["16x16", "28x20"])
def test_pictures_of_lens_generate_are_verified_by_their_pixels(folder, tmp_path, size):
    output = drawn(folder, tmp_path, size=size)
    assert list(verify_file(output, model=folder, device="cpu"))[-1] == IDENTICAL


@pytest.mark.parametrize("asked", [None, "float32"])
def test_pictures_of_lens_generate_say_the_dtype_that_was_asked_for(tmp_path, asked):
    model = half_model(tmp_path / "model")
    output = drawn(model, tmp_path, dtype=asked)
    claims, _ = read_claims(output)
    assert (claims.asked_dtype, claims.dtype) == (asked, "float32")
    assert list(verify_file(output, model=str(model), device="cpu"))[-1] == IDENTICAL


def test_a_lora_is_put_on_again(verify, folder, tmp_path):
    file = a_lora(folder, tmp_path)
    image, receipt = made(folder, lora=(file, 0.5))
    assert sha256_of(image) != sha256_of(made(folder)[0])
    assert verify(receipt, image, lora=[str(file)])[-1] == IDENTICAL
    with pytest.raises(ConfigError, match=r"LoRAs of the receipt: some\.safetensors; give the file of each"):
        verify(receipt, image)


def test_a_cpu_computes_with_as_many_threads_as_before(verify, folder, monkeypatch):
    image, receipt = made(folder, threads="2")
    assert receipt["threads"] == 2
    seen = []
    load = LoadedModel.stage
    monkeypatch.setattr(LoadedModel, "stage", lambda *args: [seen.append(torch.get_num_threads()), load(*args)][1])
    before = torch.get_num_threads()
    verify({**receipt, "tier": "lossless"}, image)
    assert set(seen) == {2}
    assert torch.get_num_threads() == before


def test_a_signed_picture_is_verified_like_any_other(folder, picture, tmp_path):
    data = encode_image(picture[0], format="png", receipt=picture[1])
    (tmp_path / "a.png").write_bytes(Signer(*signing_files(tmp_path)).sign(data, "image/png"))
    assert list(verify_file(str(tmp_path / "a.png"), model=folder, device="cpu"))[-1] == IDENTICAL


def test_a_model_in_another_dtype_is_loaded_in_it(verify, folder, picture):
    image, receipt = picture
    lines = verify({**receipt, "dtype": "bfloat16", "tier": "lossless"}, image)
    assert "pixels: other bits when drawn again" in lines
    assert lines[-1].startswith("verdict: equal up to rounding (PSNR ")


def test_a_model_without_manifest_may_be_the_one(verify, folder, picture, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    lines = verify(*reversed(picture), model=str(tmp_path / "model"))
    assert "has no manifest" in lines[1]
    assert lines[-1] == IDENTICAL


# --- rounding ------------------------------------------------------------------------------------------------------


def rounded(picture, **changes):
    """The picture as another machine might have drawn it, and its receipt."""
    image = with_noise(picture[0], 1)
    return {**picture[1], "pixel_sha256": sha256_of(image), "latent_sha256": "0" * 64, **changes}, image


def test_rounding_is_told_with_its_size(verify, picture):
    receipt, image = rounded(picture, tier="lossless")
    assert verify(receipt, image)[-1] == f"verdict: equal up to rounding (PSNR {psnr(image, picture[0]):.1f} dB)"


def test_the_exact_tier_may_not_round(verify, picture):
    assert "the tier exact promises the same bits" in different(verify, *rounded(picture))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"device": "NVIDIA H100 80GB HBM3"}, "device NVIDIA H100 80GB HBM3, here cpu"),
        ({"versions": {"torch": "2.0.0"}}, f"torch 2.0.0, here {torch.__version__}"),
        ({"lens": "0.0.1"}, "Lens 0.0.1, here "),
    ],
    ids=["device", "torch", "lens"],
)
def test_another_machine_explains_rounding(verify, picture, changes, told):
    lines = verify(*rounded(picture, **changes))
    (machine,) = [line for line in lines if line.startswith("machine: ")]
    assert told in machine
    assert machine.endswith("the same bits cannot be expected")
    assert lines[-1].startswith("verdict: equal up to rounding (PSNR ")


@pytest.mark.parametrize("changes", [{}, {"device": "mps"}])
def test_hashes_alone_do_not_tell_rounding_from_forgery(verify, picture, changes):
    receipt, _ = rounded(picture, tier="lossless", **changes)
    message = different(verify, receipt)
    assert "only the picture itself can tell" in message
    assert ("the other machine" in message) == bool(changes)


# --- false receipts ------------------------------------------------------------------------------------------------


def test_an_edited_picture_is_told_before_anything_is_drawn(verify, picture, folder, monkeypatch):
    monkeypatch.setattr("lens_serve.provenance.redraw.redraw", None)
    edited = picture[0].copy()
    edited[0, 0, 0] ^= 1
    assert "its pixels are not those of its receipt" in different(verify, picture[1], edited)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_an_edited_picture_is_told_in_formats_that_lose_something(verify, picture, format):
    edited = picture[0].copy()
    edited[:6, :6] = 255 - edited[:6, :6]
    assert "this file was edited since" in different(verify, picture[1], edited, format=format, quality=90)


def test_another_model_is_told(verify, picture, tmp_path):
    other = model_artifact(tmp_path / "other", seed=1)
    assert different(verify, *reversed(picture), model=other).startswith("another model: the receipt says ")


def test_weights_that_were_exchanged_below_a_manifest_are_told(verify, picture, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    weights = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    message = different(verify, *reversed(picture), model=str(tmp_path / "model"))
    assert message == f"another model: {weights} is not what the manifest says"


@pytest.mark.parametrize(
    "forged", [{"seed": 8}, {"index": 0}, {"guidance": 4.0}, {"negative": "", "negative_sha256": None}]
)
def test_a_receipt_of_another_picture_is_told(verify, picture, forged):
    assert different(verify, {**picture[1], **forged}, picture[0]).startswith("different: the picture is ")


def test_a_forged_prompt_does_not_match_its_hash(verify, picture):
    with pytest.raises(ConfigError, match=r"^the receipt: a text does not match its hash$"):
        verify({**picture[1], "rewritten_prompt": "a small cat"}, picture[0])


def test_a_receipt_with_another_size_is_told(verify, picture):
    receipt = {**picture[1], "height": 24, "width": 16, "pixel_sha256": None}
    assert "another size" in different(verify, receipt, picture[0])


# --- prompts that are left out -------------------------------------------------------------------------------------


def test_a_prompt_that_is_left_out_is_given(verify, picture):
    receipt, image = without_prompts(picture[1]), picture[0]
    assert verify(receipt, image, prompt="a big cat", negative="dogs")[-1] == IDENTICAL
    for options, told in (
        ({}, "give the text with --prompt"),
        ({"prompt": "a big cat"}, "give the text with --negative"),
        ({"prompt": "a dog", "negative": "dogs"}, "^--prompt: a text does not match its hash$"),
        ({"prompt": "a cat", "negative": "dogs"}, "this was typed, and then rewritten"),
        ({"prompt": "a big cat", "negative": "cats"}, "^--negative: a text does not match its hash$"),
    ):
        with pytest.raises(ConfigError, match=told):
            verify(receipt, image, **options)


def test_no_negative_prompt_needs_none(verify, folder):
    image, receipt = made(folder)
    assert verify(without_prompts(receipt), image, prompt="a cat")[-1] == IDENTICAL


# --- what cannot be checked ----------------------------------------------------------------------------------------


def test_files_without_a_receipt_are_told(verify, folder, tmp_path):
    for name, format_ in (("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.webp", "WEBP")):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / name, format_)
        with pytest.raises(ConfigError, match="carries no receipt of Lens"):
            list(verify_file(str(tmp_path / name), model=folder))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not valid JSON"),
        ("{}", "its receipt cannot be used: seed"),
        ('{"seed": 1, "guidance": 1, "sampler": {}, "height": 1000000}', "cannot be used: height"),
        (
            '{"seed": 1, "guidance": 1, "sampler": {"type": "flow-euler", "steps": 2}}',
            "does not say the picture's size",
        ),
        ("[1]", "carries no receipt"),
        ("", "carries no receipt"),
    ],
)
def test_receipts_that_are_none_are_told(folder, tmp_path, text, told):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=told) as error:
        list(verify_file(str(tmp_path / "a.json"), model=folder, device="cpu"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": {"type": "flow-euler", "steps": 10**9}},
        {"sampler": {"type": "none"}},
        {"height": 17},
        {"dtype": "x"},
    ],
    ids=["steps", "sampler", "size", "dtype"],
)
def test_what_cannot_be_drawn_is_one_line(verify, picture, changes):
    with pytest.raises(LensError) as error:
        verify({**picture[1], **changes, "pixel_sha256": None}, picture[0])
    assert not isinstance(error.value, DifferentError)
    assert "\n" not in str(error.value)


def test_a_picture_drawn_from_another_cannot_be_drawn_again(verify, folder):
    image, receipt = made(folder, start=StartPicture(pixels=b"123", strength=0.5))
    with pytest.raises(ConfigError, match="it was drawn from another picture"):
        verify(receipt, image)


def test_a_receipt_without_hashes_needs_the_picture(verify, picture):
    receipt = {key: value for key, value in picture[1].items() if key not in ("latent_sha256", "pixel_sha256")}
    assert "give the picture itself" in different(verify, receipt)


def test_a_folder_that_is_no_model_is_told(verify, picture, tmp_path):
    with pytest.raises(ArtifactError):
        verify(*reversed(picture), model=str(tmp_path))


def test_psnr_is_what_opencv_says():
    import cv2

    generator = np.random.default_rng(0)
    a = generator.integers(0, 256, (30, 20, 3), dtype=np.uint8)
    for amount in (1, 5, 100):
        b = with_noise(a, amount)
        assert psnr(a, b) == pytest.approx(cv2.PSNR(a, b), abs=1e-6)
    assert psnr(a, a) == float("inf")


def a_lora(folder, tmp_path):
    """A LoRA that changes the tiny model; returns its file."""
    transformer = load_model_folder(folder).transformer
    key, linear = next(
        (name, module)
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and "transformer_blocks" in name
    )
    generator = torch.Generator().manual_seed(0)
    rank = {"A": (2, linear.in_features), "B": (linear.out_features, 2)}
    tensors = {
        f"transformer.{key}.lora_{side}.weight": torch.randn(shape, generator=generator) for side, shape in rank.items()
    }
    load_lora(transformer, tensors, name="some")
    file = Path(tmp_path) / "some.safetensors"
    save_lora(transformer, file, name="some")
    return file
