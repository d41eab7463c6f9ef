"""Single files as ComfyUI keeps them: found under any prefix, sized by their shapes, loaded strictly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core.diffusion.packs import TINY, pack, random_lens, random_samples
from lens_core.diffusion import LensTransformer2DModel
from lens_core.diffusion.models.lens.config import PRESETS, load_preset
from lens_core.diffusion.weights import load_single_file, save_single_file
from lens_core.diffusion.weights.single_file import infer_config
from lens_core.diffusion.weights.stored import StoredTensor
from lens_core.errors import ArtifactError, ConfigError

AXES = {"axes_dims_rope": [4, 6, 6]}
LENS_TINY = Path(__file__).parents[2] / "goldens" / "lens-tiny"
OTHERS = {
    "text_encoders.gpt_oss.transformer.model.embed_tokens.weight": torch.zeros(3, 2),
    "vae.bn.running_mean": torch.zeros(4),
    "first_stage_model.decoder.conv_in.weight": torch.zeros(1, 1, 3, 3),
}


@pytest.fixture(scope="module")
def model():
    return random_lens(dtype=torch.float32)


def write(path, model, prefix="", **others):
    save_file({prefix + key: tensor.clone() for key, tensor in model.state_dict().items()} | others, path)
    return path


def refused(path, error=ArtifactError, **options):
    with pytest.raises(error) as caught:
        load_single_file(path, **options)
    message = str(caught.value)
    assert message.splitlines() == [message]
    return message


def draws_the_same(first, second):
    batch = pack(random_samples(dtype=torch.float32))
    return torch.equal(first.forward_ragged(batch), second.forward_ragged(batch))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "transformer.", "net."])
@pytest.mark.parametrize("others", [{}, OTHERS], ids=["alone", "with other models"])
def test_prefixes(model, tmp_path, prefix, others):
    path = write(tmp_path / "lens.safetensors", model, prefix, **others)
    loaded = load_single_file(path, config=AXES)
    assert draws_the_same(loaded, model)
    assert not loaded.training
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_round_trip_needs_no_config(model, tmp_path, prefix):
    path = tmp_path / "new" / "lens.safetensors"
    save_single_file(model, path, prefix=prefix)
    loaded = load_single_file(path)
    assert draws_the_same(loaded, model)
    assert loaded.config == model.config
    assert load_file(path).keys() == {prefix + key for key in model.state_dict()}
    assert [file.name for file in path.parent.iterdir()] == ["lens.safetensors"]


def test_the_golden_file(golden_config, golden_model):
    """A file that the reference code wrote, which says nothing but names and shapes."""
    loaded = load_single_file(LENS_TINY / "transformer.safetensors", config=AXES)
    fields = (
        "num_layers",
        "num_attention_heads",
        "attention_head_dim",
        "in_channels",
        "out_channels",
        "enc_hidden_dim",
    )
    assert {field: loaded.config[field] for field in fields} == {field: golden_config[field] for field in fields}
    assert draws_the_same(loaded, golden_model)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_inferred(preset):
    """Shapes alone give back the architecture; axes only where they are the released ones."""
    fields = {**load_preset(preset), "in_channels": 128, "out_channels": 32, "enc_hidden_dim": 2880}
    if fields["patch_size"] == 1:
        fields |= {"in_channels": 27, "out_channels": 27, "selected_layer_index": [0], "enc_hidden_dim": 192}
    with torch.device("meta"):
        model = LensTransformer2DModel(**fields)
    shapes = {key: StoredTensor(t.dtype, tuple(t.shape), 0, 0) for key, t in model.state_dict().items()}
    inferred = infer_config(shapes, path=Path("x"))
    axes = inferred.pop("axes_dims_rope")
    assert axes == ([8, 28, 28] if fields["attention_head_dim"] == 64 else None)
    assert inferred == {field: model.config[field] for field in inferred}


def test_dtypes(model, tmp_path):
    path = write(tmp_path / "half.safetensors", random_lens(dtype=torch.bfloat16))
    for dtype, expected in ((None, torch.bfloat16), (torch.float32, torch.float32), (torch.float16, torch.float16)):
        loaded = load_single_file(path, dtype=dtype, config=AXES)
        assert {parameter.dtype for parameter in loaded.parameters()} == {expected}


def test_config_wins(model, tmp_path):
    path = tmp_path / "lens.safetensors"
    save_single_file(model, path)
    loaded = load_single_file(path, config={"selected_layer_index": [5, 11, 17, 23], "axes_dims_rope": [8, 4, 4]})
    assert loaded.config["selected_layer_index"] == [5, 11, 17, 23]
    assert loaded.axes_dims_rope == (8, 4, 4)


def test_axes_that_nothing_tells(model, tmp_path):
    path = write(tmp_path / "lens.safetensors", model)
    assert "its heads of 16 channels" in refused(path, ConfigError)
    assert "axes_dims_rope" in refused(path, ConfigError)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"axes_dims_rope": [4, 4, 4]}, "must add up to 16"),
        ({**AXES, "layers": 3}, "'layers'"),
        ({**AXES, "gate_mlp": False}, "gate_mlp"),
    ],
)
def test_a_config_that_describes_no_model(model, tmp_path, config, words):
    path = write(tmp_path / "lens.safetensors", model)
    message = refused(path, ConfigError, config=config)
    assert message.startswith(str(path))
    assert words in message


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_missing_unknown_and_wrong_tensors(model, tmp_path, prefix):
    path = tmp_path / "lens.safetensors"

    def told(edit):
        weights = {prefix + key: tensor.clone() for key, tensor in model.state_dict().items()}
        edit(weights)
        save_file(weights, path)
        return refused(path, config=AXES)

    fits = f"{path} does not fit its config:"
    assert told(lambda w: w.pop(f"{prefix}img_in.bias")) == f"{fits} 'img_in.bias' is missing"
    assert told(lambda w: w.update({f"{prefix}lora": torch.zeros(1)})) == f"{fits} 'lora' is unknown"
    wrong = told(lambda w: w.update({f"{prefix}img_in.bias": torch.zeros(3)}))
    assert wrong == f"{fits} 'img_in.bias' has shape (3,), not (32,)"
    # Keys that tell the size of the model.
    for key in ("img_in.weight", "proj_out.weight", "txt_norm.0.weight", "transformer_blocks.0.attn.norm_q.weight"):
        gone = told(lambda w, key=key: w.pop(prefix + key))
        assert gone == f"{path} does not hold all of a denoiser: {key!r} is missing"
        flat = told(lambda w, key=key: w.update({prefix + key: torch.zeros(2, 2, 2)}))
        assert flat == f"{path} holds no denoiser of Lens: {key!r} has shape (2, 2, 2)"
    odd = told(lambda w: w.update({f"{prefix}transformer_blocks.0.attn.norm_q.weight": torch.zeros(5)}))
    assert odd == f"{path} holds no denoiser of Lens: width 32 is no multiple of 5 per head"


def test_blocks_with_a_gap(model, tmp_path):
    """However large the number in a name, no more blocks are made than the file has."""
    weights = {key.replace("blocks.1.", "blocks.987654321."): t.clone() for key, t in model.state_dict().items()}
    save_file(weights, tmp_path / "lens.safetensors")
    assert "'transformer_blocks.1." in refused(tmp_path / "lens.safetensors", config=AXES)


def test_no_denoiser(tmp_path):
    path = tmp_path / "vae.safetensors"
    save_file(OTHERS, path)
    assert "holds no denoiser of Lens: no key ends with" in refused(path)
    save_file({}, path)
    assert "(it holds nothing)" in refused(path)


def test_two_denoisers(model, tmp_path):
    twice = {f"{prefix}{key}": t.clone() for prefix in ("a.", "b.") for key, t in model.state_dict().items()}
    save_file(twice, tmp_path / "lens.safetensors")
    assert "holds 2 denoisers, under 'a.' and 'b.'" in refused(tmp_path / "lens.safetensors")


@pytest.mark.parametrize("key", ["scaled_fp8", "img_in.scale_weight", "img_in.weight_scale", "img_in.comfy_quant"])
def test_quantised_files(model, tmp_path, key):
    path = write(tmp_path / "fp8.safetensors", model, **{key: torch.zeros(1)})
    assert f"is quantised (it has '{key}')" in refused(path, config=AXES)


def test_truncated(model, tmp_path):
    path = tmp_path / "lens.safetensors"
    save_single_file(model, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert f"is damaged or truncated: it ends at byte {len(whole) // 2:,} of {len(whole):,}" in refused(path)


def test_pickles(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "lens.pt")
    assert "it looks like a pickle, and those are never read" in refused(tmp_path / "lens.pt")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[" * 100_000,
        '["a"]',
        "3",
        '{"axes_dims_rope": 3}',
        '{"axes_dims_rope": ["4", 6, 6]}',
        '{"patch_size": -2}',
    ],
)
def test_metadata_that_are_none(model, tmp_path, text):
    path = tmp_path / "lens.safetensors"
    save_file({key: tensor.clone() for key, tensor in model.state_dict().items()}, path, {"lens_config": text})
    assert "lens_config" in refused(path, config=AXES)


def test_metadata_say_no_more_than_shapes_leave_open(model, tmp_path):
    path = tmp_path / "lens.safetensors"
    noted = json.dumps({"num_layers": 10**9, "axes_dims_rope": [4, 6, 6]})
    save_file({key: tensor.clone() for key, tensor in model.state_dict().items()}, path, {"lens_config": noted})
    assert load_single_file(path).config["num_layers"] == TINY["num_layers"]


def test_loras_are_in_the_way(tmp_path):
    from lens_core.diffusion.weights import load_lora

    model = random_lens(dtype=torch.float32)
    load_lora(model, {"img_in.lora_A.weight": torch.zeros(1, 16), "img_in.lora_B.weight": torch.zeros(32, 1)})
    with pytest.raises(ConfigError, match="unload_loras"):
        save_single_file(model, tmp_path / "lens.safetensors")


def test_what_a_written_file_says_of_itself(model, tmp_path):
    save_single_file(model, tmp_path / "lens.safetensors")
    with safe_open(tmp_path / "lens.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert file.metadata()["modelspec.architecture"] == "lens"
