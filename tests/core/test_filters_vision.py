"""The filters that run a model: tiny random ones, made on the spot, against transformers itself."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest
from PIL import Image

from core.textures import candidate, texture
from core.vision_models import PREPROCESSOR, clip, vit
from lens_core.errors import ArtifactError, ConfigError, ImageError, MissingExtraError
from lens_core.filters.embedding_duplicates.index import ExactIndex, make_index
from lens_core.filters.vision.models import labels_of
from lens_core.filters.vision.preprocess import Preprocessor
from lens_core.filters.vision.scores import score
from lens_core.images import Candidate
from lens_core.pipeline.runner import outside_of


@pytest.fixture
def build(lens_registry):
    def run(type_, model, **options):
        return lens_registry.build(
            "filters", lens_registry.parse("filters", {"type": type_, "model": str(model)} | options)
        )

    return run


PIXELS = texture(1, 80)[:60]


def processed(name, options):
    """What the Pillow processors of transformers make of `PIXELS`."""
    import transformers

    processor = getattr(transformers, name, None)
    if processor is None:
        pytest.skip(f"this transformers has no {name}")
    return processor(**options)(images=Image.fromarray(PIXELS), return_tensors="np")["pixel_values"]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ViTImageProcessorPil", {}),
        ("ViTImageProcessorPil", {"resample": 2, "size": {"height": 20, "width": 44}}),
        ("ViTImageProcessorPil", {"do_normalize": False}),
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 30}}),
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 24}, "crop_size": {"height": 32, "width": 32}}),
        ("SiglipImageProcessorPil", {"resample": 3}),
    ],
)
def test_preprocessing_is_that_of_transformers(tmp_path, name, changes):
    options = {key: value for key, value in PREPROCESSOR.items() if key != "image_processor_type"} | changes
    options |= {"do_center_crop": True} if "crop_size" in options else {}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(options))
    ours = Preprocessor.from_folder(tmp_path)(PIXELS)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, processed(name, options), atol=1e-5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "no image processor's"),
        ('{"crop_pct": 0.9}', "asks for crop_pct"),
        ('{"size": {"height": "x", "width": 2}}', "no image processor's"),
    ],
)
def test_bad_preprocessors_are_one_line(tmp_path, text, words):
    if text is not None:
        (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ArtifactError, match=words) as error:
        Preprocessor.from_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_probabilities_are_those_of_transformers(build, tmp_path):
    import torch
    import transformers

    model = transformers.ViTForImageClassification.from_pretrained(vit(tmp_path)).eval()
    item = candidate(PIXELS)
    values = torch.from_numpy(Preprocessor.from_folder(tmp_path)(item.pixels()))
    with torch.no_grad():
        shares = model(pixel_values=values).logits.softmax(-1)[0].numpy()
    assert build("nsfw", tmp_path).check(item).score == pytest.approx(shares[1], abs=1e-6)
    assert build("watermark", tmp_path).check(item).score == pytest.approx(shares[2], abs=1e-6)
    both = build("nsfw", tmp_path, labels=["nsfw", "watermark"]).check(item).score
    assert both == pytest.approx(shares[1] + shares[2], abs=1e-6)


def test_outputs_become_scores():
    outputs = np.array([1.0, -2.0, 0.5], np.float32)
    shares = np.exp(outputs) / np.exp(outputs).sum()
    assert score(outputs, [0, 2], "softmax") == pytest.approx(shares[0] + shares[2])
    assert score(outputs, [1, 2], "sigmoid") == pytest.approx(1 / (1 + np.exp(-0.5)))
    assert score(outputs, [1], "value") == -2.0
    assert score(np.array([1e4, -1e4], np.float32), [1], "sigmoid") == 0.0
    assert labels_of({"id2label": {"0": "a"}}, 2) == ["a", "1"]


def test_a_model_with_one_output_is_a_score(build, tmp_path):
    vit(tmp_path, ["beauty"])
    item = candidate(PIXELS)
    value = build("aesthetics", tmp_path).check(item).score
    assert build("aesthetics", tmp_path, min=value).check(item).reason is None
    dropped = build("aesthetics", tmp_path, min=value + 1).check(item)
    assert dropped.reason == f"it is not beautiful (score {value:.2f} < {value + 1:g})"
    assert build("aesthetics", tmp_path, output="auto").check(item).score == pytest.approx(1 / (1 + np.exp(-value)))


def test_several_labels_may_hold_at_once(build, tmp_path):
    vit(tmp_path, problem_type="multi_label_classification")
    item = candidate(PIXELS)
    (raw,) = [value for value in _measured(build("nsfw", tmp_path), item) if isinstance(value, bytes)]
    assert build("nsfw", tmp_path).check(item).score == pytest.approx(1 / (1 + np.exp(-np.frombuffer(raw, "<f4")[1])))


def _measured(filter_, item):
    filter_.check(item)
    return item.measures.values()


def test_one_models_outputs_serve_all_its_labels(build, tmp_path):
    vit(tmp_path)
    item = candidate(PIXELS)
    build("nsfw", tmp_path).check(item)
    build("watermark", tmp_path, max=0.1).check(item)
    assert len(item.measures) == 1
    vit(tmp_path, seed=1)
    build("nsfw", tmp_path).check(item)
    assert len(item.measures) == 2  # other weights are another measure


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": ["naked"]}, "there is no label 'naked' in .*; it has: normal, nsfw, watermark"),
        ({"device": "abacus"}, "there is no device 'abacus'"),
    ],
)
def test_wrong_settings_are_one_line(build, tmp_path, options, words):
    vit(tmp_path)
    with pytest.raises(ConfigError, match=words):
        build("nsfw", tmp_path, **options)


def test_an_unnamed_label_of_several_is_asked_for(build, tmp_path):
    vit(tmp_path)
    with pytest.raises(ConfigError, match="name one of the labels"):
        build("aesthetics", tmp_path)


def test_a_model_that_is_not_there(build, tmp_path):
    with pytest.raises(ConfigError, match="there is no model at"):
        build("nsfw", tmp_path / "gone")


def test_a_model_without_a_head_is_not_used_with_a_random_one(build, tmp_path):
    with pytest.raises(ArtifactError, match=r"lacks weights, such as .*: it is not trained for this task"):
        build("nsfw", _without_head(tmp_path))


def _without_head(folder):
    from transformers import AutoModel

    AutoModel.from_pretrained(vit(folder, ["nsfw", "other"])).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_damaged_weights_are_one_line(build, tmp_path):
    (weights,) = vit(tmp_path).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="holds no model that transformers can load") as error:
        build("nsfw", tmp_path)
    assert "\n" not in str(error.value)


def test_embeddings_are_clips_and_of_length_one(build, tmp_path):
    import torch
    import transformers

    model = transformers.CLIPModel.from_pretrained(clip(tmp_path)).eval()
    item = candidate(PIXELS)
    values = torch.from_numpy(Preprocessor.from_folder(tmp_path)(item.pixels()))
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model(pixel_values=values).pooler_output)[0].numpy()
    vector = build("embedding-duplicates", tmp_path)._vector(item)
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)


def test_a_model_saved_without_its_pooler_gives_its_first_token(build, tmp_path):
    import torch
    import transformers

    item = candidate(PIXELS)
    vector = build("embedding-duplicates", vit(tmp_path))._vector(item)
    model = transformers.ViTModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    values = torch.from_numpy(Preprocessor.from_folder(tmp_path)(item.pixels()))
    with torch.no_grad():
        expected = model(pixel_values=values).last_hidden_state[0, 0].numpy()
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)


def test_of_images_that_mean_the_same_the_first_stays(build, tmp_path):
    filter_ = build("embedding-duplicates", clip(tmp_path), max=0.999)
    first = candidate(PIXELS, "first")
    assert filter_.check(first).reason is filter_.check(first).score is None
    filter_.kept(first)
    verdict = filter_.check(candidate(PIXELS, "again"))
    assert verdict.reason == f"it means the same as first (cosine {verdict.score:.4f} > 0.999)"
    assert verdict.score == pytest.approx(1)
    other = filter_.check(candidate(255 - PIXELS, "other"))
    assert other.reason is None
    assert other.score < 0.999


@pytest.mark.parametrize("search", ["exact", "faiss", "faiss-hnsw"])
def test_the_search_is_a_plain_search(search):
    if search != "exact":
        pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2500, 24)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = make_index(search, 24)
    assert index.nearest(vectors[0]) is None
    for vector in vectors:
        index.add(vector)
    asked = vectors[:200] + rng.normal(size=(200, 24)).astype(np.float32) * 0.1
    cosines = asked @ vectors.T
    found = [index.nearest(vector) for vector in asked]
    right = np.mean([hit[0] == best for hit, best in zip(found, cosines.argmax(1), strict=True)])
    assert right == 1 if search != "faiss-hnsw" else right > 0.95
    assert found[0][1] == pytest.approx(cosines[0].max(), abs=1e-5)


def test_without_faiss_the_way_out_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"lens-core\[faiss\].*or use 'search: exact'"):
        make_index("faiss", 4)
    assert isinstance(make_index("exact", 4), ExactIndex)


def test_without_onnxruntime_the_extra_is_named(build, tmp_path, monkeypatch):
    import sys

    (tmp_path / "model.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "lens_core.filters.vision.onnx", raising=False)
    with pytest.raises(MissingExtraError, match=r"lens-core\[onnx\]"):
        build("nsfw", tmp_path / "model.onnx")


def test_garbage_is_an_image_error(build, tmp_path):
    filter_ = build("nsfw", vit(tmp_path))
    with pytest.raises(ImageError):
        filter_.check(Candidate("x", b"garbage"))


# A hand-written ONNX file: protobuf fields as (number, value), where bytes and messages are length-delimited.


def _message(*fields):
    stream = io.BytesIO()
    for number, value in fields:
        data = value.encode() if isinstance(value, str) else value
        if isinstance(data, int):
            stream.write(_varint(number << 3) + _varint(data))
        else:
            stream.write(_varint(number << 3 | 2) + _varint(len(data)) + data)
    return stream.getvalue()


def _varint(value):
    parts = []
    while True:
        value, low = value >> 7, value & 127
        parts.append(low | (128 if value else 0))
        if not value:
            return bytes(parts)


def _value_info(name, *dims):
    shape = _message(*[(1, _message((1, dim))) for dim in dims])
    return _message((1, name), (2, _message((1, _message((1, 1), (2, shape))))))


def onnx_classifier(folder, weights):
    """Mean colour times `weights` [3, labels], as an ONNX file beside its JSON files."""
    count = weights.shape[1]
    tensor = _message((1, 3), (1, count), (2, 1), (8, "w"), (9, weights.astype("<f4").tobytes()))
    nodes = [
        _message((1, "pixels"), (2, "pooled"), (4, "GlobalAveragePool")),
        _message((1, "pooled"), (2, "flat"), (4, "Flatten")),
        _message((1, "flat"), (1, "w"), (2, "logits"), (4, "MatMul")),
    ]
    graph = _message(
        *[(1, node) for node in nodes],
        (2, "graph"),
        (5, tensor),
        (11, _value_info("pixels", 1, 3, 32, 32)),
        (12, _value_info("logits", 1, count)),
    )
    model = _message((1, 8), (7, graph), (8, _message((1, ""), (2, 13))))
    (folder / "model.onnx").write_bytes(model)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "normal", "1": "nsfw"}}))
    return folder / "model.onnx"


def test_an_onnx_classifier_is_run(build, tmp_path):
    pytest.importorskip("onnxruntime")
    weights = np.array([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.25]], np.float32)
    model = onnx_classifier(tmp_path, weights)
    item = candidate(PIXELS)
    values = Preprocessor.from_folder(tmp_path)(item.pixels()).mean(axis=(2, 3))[0]
    logits = values @ weights
    expected = np.exp(logits[1]) / np.exp(logits).sum()
    assert build("nsfw", model).check(item).score == pytest.approx(expected, abs=1e-5)
    model.write_bytes(b"no model")
    with pytest.raises(ArtifactError, match="cannot be run"):
        build("nsfw", model)


def test_the_handwritten_onnx_bytes_are_protobuf(tmp_path):
    """The varints are checked here, where onnxruntime may be missing."""
    assert _varint(300) == bytes([0xAC, 0x02])
    assert _message((1, 8)) == struct.pack("BB", 8, 8)
    assert onnx_classifier(tmp_path, np.zeros((3, 2))).read_bytes()[:2] == b"\x08\x08"


@pytest.mark.parametrize("kind", ["folder", "onnx"])
def test_ingest_notices_another_model(lens_registry, tmp_path, kind):
    folder = vit(tmp_path / "model")
    (folder / "model.onnx").write_bytes(b"weights")
    model = str(folder / "model.onnx" if kind == "onnx" else folder)
    stage = {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 3}}

    def outside(*filters):
        config = lens_registry.parse("stages", stage | {"filters": list(filters)})
        return outside_of(config, registry=lens_registry, base=str(tmp_path), seed=0)

    nsfw = {"type": "nsfw", "model": model, "labels": ["nsfw"]}
    assert outside("decodable", {"type": "min-area"}) == outside()
    before = outside("decodable", nsfw)
    assert before == outside(nsfw) != outside()
    weights = folder / ("model.onnx" if kind == "onnx" else "model.safetensors")
    weights.write_bytes(weights.read_bytes() + b"more")
    assert outside(nsfw) != before
    with pytest.raises(ConfigError, match="nsfw: there is no model at"):
        outside(nsfw | {"model": str(tmp_path / "gone")})
