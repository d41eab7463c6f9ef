"""A folder in the released layout, whole but tiny: imported, loaded, drawn with, saved again."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import GptOssModel

from core.diffusion.conftest import LENS_TINY
from core.diffusion.language_models import TEMPLATE, gpt_oss_config, shake, tokenizer
from lens_core.cli.import_model import import_model
from lens_core.diffusion import LensPipeline, load_model_folder
from lens_core.diffusion.ragged import offsets_of
from lens_core.diffusion.text_encoders.gpt_oss import template as template_module
from lens_core.diffusion.text_encoders.gpt_oss.template import RELEASED_HASHES, sha256
from lens_core.errors import ArtifactError, ConfigError

LAYERS = [3, 2, 1, 0]  # not the order that counting would give
CALL = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 3.0, "seed": 1, "output_type": "np"}


@pytest.fixture(autouse=True)
def _known_strings(monkeypatch):
    """As if the strings of these tests were the released ones, which are not in this repository."""
    for name in RELEASED_HASHES:
        monkeypatch.setitem(template_module.RELEASED_HASHES, name, sha256(TEMPLATE[name]))


@pytest.fixture
def released(tmp_path):
    """Folder and code, as somebody downloads them."""
    folder = tmp_path / "Lens"
    (folder / "transformer").mkdir(parents=True)
    config = json.loads((LENS_TINY / "transformer_config.json").read_text())
    config |= {"_class_name": "LensTransformer2DModel", "_diffusers_version": "0.37.1", "selected_layer_index": LAYERS}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    shutil.copy(LENS_TINY / "transformer.safetensors", folder / "transformer" / "diffusion_pytorch_model.safetensors")
    shutil.copytree(LENS_TINY / "vae", folder / "vae")
    # The golden encoder knows 64 tokens, fewer than there are bytes.
    shake(GptOssModel(gpt_oss_config(hidden_size=24))).save_pretrained(folder / "text_encoder")
    tokenizer().save_pretrained(folder / "tokenizer")
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "LensPipeline"}))
    (tmp_path / "code.py").write_text(f"A = {TEMPLATE['system']!r}\nB = {TEMPLATE['thinking']!r}\n")
    return folder


def imported(released):
    list(import_model(str(released), code=str(released.parent / "code.py")))
    return LensPipeline.from_pretrained(released)


def test_imported_folder_draws_what_is_asked(released):
    pipe = imported(released)
    first, second = (pipe(prompt, **CALL).images for prompt in ("a red circle", "two blue squares"))
    assert first.shape == (1, 64, 64, 3)
    assert np.abs(first - second).max() > 1e-3
    assert np.array_equal(first, pipe("a red circle", **CALL).images)


def test_features_of_a_prompt_are_what_the_encoder_says(released):
    """Handed over as `prompt_embeds`, they draw the same picture."""
    pipe = imported(released)
    (ids,) = pipe.text_encoder.tokenize(["a red circle"])
    layers = pipe.text_encoder(torch.tensor(ids), offsets_of([len(ids)]))
    images = pipe(prompt_embeds=[layer[None] for layer in layers], **CALL).images
    np.testing.assert_allclose(images, pipe("a red circle", **CALL).images, rtol=0, atol=1e-6)


def test_settings_are_those_of_the_release(released):
    model = imported(released).model
    assert (model.guidance, model.guidance_rescale, model.image_size) == (5.0, True, (1024, 1024))
    assert (model.sampler.type, model.sampler.steps, model.sampler.shift) == ("flow-euler", 20, "released")


def test_without_an_import_it_loads_but_reads_no_prompts(released):
    pipe = LensPipeline.from_pretrained(released)
    features = [torch.ones(1, 3, 24)] * 4
    assert pipe(prompt_embeds=features, **CALL).images.shape == (1, 64, 64, 3)
    with pytest.raises(ConfigError, match=r"the model has no text_encoder: .*, or complete .*Lens with `lens import`$"):
        pipe("a red circle", **CALL)
    assert not (released / "lens.json").exists()


def test_half_precision_throughout(released):
    exact = imported(released)("a red circle", **CALL).images
    half = LensPipeline.from_pretrained(released, torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.transformer.parameters()} == {torch.bfloat16}
    rough = half("a red circle", **CALL).images
    assert 0 < np.abs(rough - exact).mean() < 0.1


def test_saved_again_it_is_whole(released, tmp_path):
    pipe = imported(released)
    pipe.save_pretrained(tmp_path / "again")
    again = LensPipeline.from_pretrained(tmp_path / "again")
    assert np.array_equal(again("a red circle", **CALL).images, pipe("a red circle", **CALL).images)
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert index["text_encoder"] == ["transformers", "GptOssModel"]
    config = json.loads((tmp_path / "again" / "transformer" / "config.json").read_text())
    assert config["selected_layer_index"] == LAYERS
    assert json.loads((tmp_path / "again" / "lens.json").read_text())["template"]["system"] == TEMPLATE["system"]


def test_a_changed_template_is_refused(released):
    imported(released)
    lens = json.loads((released / "lens.json").read_text())
    lens["template"]["system"] += "!"
    (released / "lens.json").write_text(json.dumps(lens))
    with pytest.raises(ArtifactError, match=r"lens\.json"):
        load_model_folder(str(released))


@pytest.mark.parametrize("name", ["owner/nothing-like-this", "owner/nothing"])
def test_a_name_that_is_neither_folder_nor_hub_id(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ArtifactError) as caught:
        load_model_folder(name)
    message = str(caught.value)
    assert message.startswith(f"{name} is no folder here, and cannot be had from the hub")
    assert message.splitlines() == [message]
