"""The model folder: what was saved draws the same, and what is damaged is refused in one line."""

from __future__ import annotations

import gc
import json
import math
import shutil
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.diffusion.language_models import qwen3
from lens_core.config.prediction import PredictionConfig
from lens_core.diffusion import LensPipeline, Request, generate, load_model_folder, save_model_folder
from lens_core.diffusion.samplers.config import TimeGridConfig
from lens_core.diffusion.samplers.time_grid import trained_mu
from lens_core.errors import ArtifactError, StorageError

DENOISER = "transformer/diffusion_pytorch_model.safetensors"
ENCODER = "text_encoder/model.safetensors"
REQUESTS = [
    Request(prompt="a red circle", height=16, width=16, seed=7),
    Request(prompt="two blue squares", height=8, width=24, seed=7, index=1, negative="grey"),
]


@pytest.fixture
def folder(saved_model, tmp_path):
    """A copy of a saved model that a test may damage."""
    shutil.copytree(saved_model[1], tmp_path / "model")
    return tmp_path / "model"


def refused(folder, registry):
    """The one line with which a folder is refused."""
    with pytest.raises(ArtifactError) as caught:
        load_model_folder(str(folder), registry=registry)
    message = str(caught.value)
    assert message.splitlines() == [message]
    return message


def change(folder, **fields):
    """Set fields of lens.json, or leave them out."""
    lens = json.loads((folder / "lens.json").read_text()) | fields
    kept = {key: value for key, value in lens.items() if value is not ...}
    (folder / "lens.json").write_text(json.dumps(kept))


def change_weights(folder, part, edit):
    weights = load_file(folder / part)
    edit(weights)
    save_file(weights, folder / part)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_round_trip_draws_the_same(saved_model, lens_registry, scheme):
    model, path = saved_model
    loaded = load_model_folder(f"{scheme}{path}", registry=lens_registry)
    for drawn, again in zip(generate(model, REQUESTS), generate(loaded, REQUESTS), strict=True):
        assert np.array_equal(drawn, again)
        assert drawn.std() > 1  # not a picture of nothing


def test_object_store_too(saved_model, lens_registry, tmp_path):
    import fsspec

    model, path = saved_model
    store = fsspec.filesystem("memory")
    store.put(f"{path}/", "/models/tiny/", recursive=True)
    loaded = load_model_folder("memory://models/tiny", registry=lens_registry)
    store.rm("/models", recursive=True)
    assert np.array_equal(generate(loaded, REQUESTS[:1])[0], generate(model, REQUESTS[:1])[0])


def test_what_came_from_an_object_store_can_be_saved(lens_registry, tmp_path):
    """A pretrained encoder is saved by copying its files, so these stay for as long as it does."""
    import fsspec

    encoder = {"type": "causal-lm", "path": str(qwen3(tmp_path / "qwen")), "layers": [1, 2], "template": "{prompt}"}
    pretrained_model(tmp_path / "first", lens_registry, encoder)
    store = fsspec.filesystem("memory")
    store.put(f"{tmp_path / 'first'}/", "/models/pretrained/", recursive=True)
    pipeline = LensPipeline.from_pretrained("memory://models/pretrained")
    store.rm("/models", recursive=True)
    pipeline.save_pretrained(tmp_path / "second")
    for part in ("text_encoder", "tokenizer"):
        for file in (tmp_path / "first" / part).iterdir():
            assert (tmp_path / "second" / part / file.name).read_bytes() == file.read_bytes()
    copy = pipeline.text_encoder.files.model
    assert copy.exists()
    del pipeline
    gc.collect()
    assert not copy.exists()


def test_a_store_whose_names_lead_out_of_the_folder(saved_model, lens_registry, bucket, tmp_path):
    import s3fs

    store = s3fs.S3FileSystem()
    store.put(f"{saved_model[1]}/", f"{bucket}/tiny/", recursive=True)
    out = f"{tmp_path.relative_to('/')}/evil.txt"
    for name in ("transformer/" + "../" * 9 + out, "transformer//" + out):
        store.pipe_file(f"{bucket}/tiny/{name}", b"evil")
        with pytest.raises(ArtifactError, match=r"evil\.txt', which is no path below a folder") as caught:
            load_model_folder(f"{bucket}/tiny", registry=lens_registry)
        assert len(str(caught.value).splitlines()) == 1
        store.rm_file(f"{bucket}/tiny/{name}")
    assert list(tmp_path.iterdir()) == []
    assert load_model_folder(f"{bucket}/tiny", registry=lens_registry).image_size == saved_model[0].image_size


def test_a_connection_that_is_lost_is_one_line(saved_model, lens_registry, monkeypatch):
    from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

    MemoryFileSystem().put(f"{saved_model[1]}/", "/models/lost/", recursive=True)

    def read(self, size=-1):
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(MemoryFile, "read", read, raising=False)
    with pytest.raises(StorageError, match=r"cannot copy memory://models/lost/.*: connection reset by peer"):
        load_model_folder("memory://models/lost", registry=lens_registry)


SHIFT = TimeGridConfig.model_fields["shift"].annotation


@pytest.mark.parametrize(
    "shift", [*(value for part in get_args(SHIFT) for value in get_args(part) if isinstance(value, str)), 0.5]
)
def test_every_shift_is_saved_in_the_words_of_diffusers(folder, lens_registry, tmp_path, shift):
    change(folder, sampler={"type": "flow-euler", "steps": 4, "shift": shift})
    LensPipeline.from_pretrained(str(folder)).save_pretrained(tmp_path / "again")
    said = json.loads((tmp_path / "again" / "scheduler" / "scheduler_config.json").read_text())
    assert said["use_dynamic_shifting"] == (shift in {"released", "continuous", "trained"})
    if shift in {"none", 0.5}:
        assert said["shift"] == {"none": 1.0, 0.5: math.exp(0.5)}[shift]
    if shift == "trained":
        for tokens in (256, 1024, 4096):  # the line that diffusers' pipelines draw
            share = (tokens - said["base_image_seq_len"]) / (said["max_image_seq_len"] - said["base_image_seq_len"])
            mu = said["base_shift"] + share * (said["max_shift"] - said["base_shift"])
            assert mu == pytest.approx(trained_mu(tokens))
    assert load_model_folder(str(tmp_path / "again"), registry=lens_registry).sampler.shift == shift


def test_a_denoiser_that_says_nothing_of_its_text_features(folder, lens_registry):
    file = folder / "transformer" / "config.json"
    whole = json.loads(file.read_text())
    change(folder, text_encoder=None)
    for key in ("enc_hidden_dim", "selected_layer_index"):
        file.write_text(json.dumps({name: value for name, value in whole.items() if name != key}))
        assert "transformer/config.json has no enc_hidden_dim and selected_layer_index" in refused(
            folder, lens_registry
        )


def pretrained_model(folder, registry, settings):
    """A model folder whose text encoder is a pretrained one."""
    encoder_class = registry.spec("text_encoders", settings["type"]).load_target()
    encoder = encoder_class.fit(registry.parse("text_encoders", settings), [])
    autoencoder = registry.build("autoencoders", registry.parse("autoencoders", {"type": "pixels", "patch": 4}))
    model = registry.parse("models", {"type": "lens", "preset": "nano", "num_layers": 1})
    transformer = registry.build(
        "models",
        model,
        in_channels=autoencoder.channels,
        enc_hidden_dim=encoder.width,
        num_text_layers=encoder.num_layers,
    )
    save_model_folder(
        folder,
        transformer=transformer,
        model=model,
        text_encoder=encoder,
        autoencoder=autoencoder,
        sampler=registry.parse("samplers", "flow-euler"),
        prediction=PredictionConfig(type="x"),
        image_size=(16, 16),
        guidance=3.0,
        guidance_rescale=False,
        parents=[],
        licence="",
    )


def test_settings_come_back(saved_model, lens_registry):
    model, path = saved_model
    loaded = load_model_folder(str(path), registry=lens_registry)
    for field in ("sampler", "prediction", "image_size", "guidance", "guidance_rescale"):
        assert getattr(loaded, field) == getattr(model, field), field
    assert not loaded.transformer.training
    assert not loaded.text_encoder.training
    assert loaded.device == torch.device("cpu")


def test_layout(saved_model):
    files = sorted(str(file.relative_to(saved_model[1])) for file in saved_model[1].rglob("*") if file.is_file())
    assert files == [
        "lens.json",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        ENCODER,
        "text_encoder/tokenizer.json",
        "transformer/config.json",
        DENOISER,
        "vae/config.json",
    ]


def test_config_of_the_denoiser_is_that_of_the_release(saved_model, golden_config):
    config = json.loads((saved_model[1] / "transformer" / "config.json").read_text())
    assert config.keys() == golden_config.keys() | {"_class_name"}


def test_no_lens_json(folder, lens_registry):
    (folder / "lens.json").unlink()
    assert "is no model folder (it has no lens.json)" in refused(folder, lens_registry)


def test_no_folder(tmp_path, lens_registry):
    assert "is no model folder" in refused(tmp_path / "nowhere", lens_registry)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
    ],
)
def test_lens_json_that_is_none(folder, lens_registry, text, words):
    (folder / "lens.json").write_bytes(text)
    message = refused(folder, lens_registry)
    assert f"{folder}/lens.json" in message
    assert words in message


@pytest.mark.parametrize("version", [2, 0, "1", None, ...])
def test_other_formats(folder, lens_registry, version):
    change(folder, format_version=version)
    told = None if version is ... else version
    assert refused(folder, lens_registry).endswith(f"lens.json has format version {told}; this Lens reads version 1")


@pytest.mark.parametrize(
    "field", ["model", "autoencoder", "text_encoder", "sampler", "prediction", "image_size", "guidance"]
)
@pytest.mark.parametrize("value", [..., None, 3, "x", {"no": 1}, [], [0, 16]], ids=str)
def test_field_that_is_missing_or_wrong(folder, lens_registry, field, value):
    if (field, value) == ("text_encoder", None):
        return  # the model takes features only
    change(folder, **{field: value})
    assert f"{folder}/lens.json: {field}" in refused(folder, lens_registry)


def test_unknown_component(folder, lens_registry):
    change(folder, model={"type": "lenz"})
    words = f"{folder}/lens.json: model: there is no model 'lenz' (did you mean 'lens'?)"
    assert words in refused(folder, lens_registry)


def test_wrong_option(folder, lens_registry):
    change(folder, model={"type": "lens", "preset": "nano", "layers": 2})
    words = f"{folder}/lens.json: model.layers: unknown option (did you mean 'num_layers'?)"
    assert words in refused(folder, lens_registry)


@pytest.mark.parametrize("part", [DENOISER, ENCODER])
def test_missing_weights(folder, lens_registry, part):
    (folder / part).unlink()
    assert f"{folder}/{part} cannot be read" in refused(folder, lens_registry)


@pytest.mark.parametrize("part", [DENOISER, ENCODER])
@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated_weights(folder, lens_registry, part, kept):
    data = (folder / part).read_bytes()
    (folder / part).write_bytes(data[:kept])
    assert f"{folder}/{part} is damaged or truncated" in refused(folder, lens_registry)


@pytest.mark.parametrize(("part", "key"), [(DENOISER, "img_in.weight"), (ENCODER, "position.weight")])
def test_missing_tensor(folder, lens_registry, part, key):
    change_weights(folder, part, lambda weights: weights.pop(key))
    assert f"{folder}/{part} does not fit its config: '{key}' is missing" in refused(folder, lens_registry)


@pytest.mark.parametrize("part", [DENOISER, ENCODER])
def test_extra_tensor(folder, lens_registry, part):
    change_weights(folder, part, lambda weights: weights.update(lora=torch.zeros(1)))
    assert f"{folder}/{part} does not fit its config: 'lora' is unknown" in refused(folder, lens_registry)


def test_wrong_shape(folder, lens_registry):
    change_weights(folder, DENOISER, lambda weights: weights.update({"img_in.bias": torch.zeros(7)}))
    assert "'img_in.bias' has shape (7,), not (32,)" in refused(folder, lens_registry)


def test_many_wrong_tensors_are_counted(folder, lens_registry):
    change_weights(folder, DENOISER, lambda weights: (weights.pop("img_in.bias"), weights.pop("img_in.weight")))
    assert refused(folder, lens_registry).endswith("'img_in.bias' is missing (and 1 more)")


def test_half_precision_weights_load(folder, lens_registry):
    change_weights(folder, DENOISER, lambda weights: weights.update({k: v.half() for k, v in weights.items()}))
    loaded = load_model_folder(str(folder), registry=lens_registry)
    assert {parameter.dtype for parameter in loaded.transformer.parameters()} == {torch.float32}


def test_missing_tokenizer(folder, lens_registry):
    (folder / "text_encoder" / "tokenizer.json").unlink()
    assert f"{folder}/text_encoder/tokenizer.json" in refused(folder, lens_registry)


def test_what_else_lies_there_is_ignored(folder, saved_model, lens_registry):
    change(folder, invented_later={"a": 1})
    for name in ("manifest.json", "transformer/readme.md", "text_encoder/vocab.bin"):
        (folder / name).write_bytes(b"\xff\x00 not text")
    (folder / "text_encoder" / "onnx").mkdir()
    (folder / "tb").mkdir()
    loaded = load_model_folder(str(folder), registry=lens_registry)
    assert np.array_equal(generate(loaded, REQUESTS[:1])[0], generate(saved_model[0], REQUESTS[:1])[0])


@pytest.mark.parametrize("part", [DENOISER, ENCODER])
def test_pickles_are_never_read(folder, lens_registry, part):
    """Neither one that takes the place of the weights, nor one that lies beside them under an old name."""
    harm = folder / "harm"
    bomb = f"cos\nmkdir\n(V{harm}\ntR.".encode()
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "model.pt"):
        (folder / part).with_name(name).write_bytes(bomb)
    load_model_folder(str(folder), registry=lens_registry)
    (folder / part).write_bytes(bomb)
    assert "is damaged or truncated" in refused(folder, lens_registry)
    (folder / part).unlink()
    assert "cannot be read" in refused(folder, lens_registry)
    assert not harm.exists()
