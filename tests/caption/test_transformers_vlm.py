"""The captioner for models on this machine, with two families of tiny random ones."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from caption.vlm_models import change, ends_with_any_letter_of, idefics3, llava, parrot
from lens_caption.captioners.transformers_vlm.captioner import TransformersVlmCaptioner
from lens_caption.captioners.transformers_vlm.config import TransformersVlmConfig
from lens_core.contracts import ImageItem
from lens_core.errors import ArtifactError, ConfigError, LensError

FAMILIES = {"llava": llava, "idefics3": idefics3}
SHORT = {"instruction": "Describe this.", "max_new_tokens": 24, "device": "cpu"}


def item(seed, size=(48, 32)):
    stream = io.BytesIO()
    Image.effect_noise(size, 40 + 30 * seed).convert("RGB").save(stream, "PNG")
    return ImageItem(key=hashlib.sha256(stream.getvalue()).hexdigest(), data=stream.getvalue())


# Of several shapes, so that Idefics3's prompts differ in length and are padded.
IMAGES = [item(1), item(2, (64, 64)), item(3, (20, 60)), item(4, (90, 40)), item(5, (33, 33))]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request, tmp_path_factory):
    """A random model, of which one token in nine ends an answer."""
    made = FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    ends_with_any_letter_of(made, 9)
    return made


@pytest.fixture
def captioner():
    made = []

    def make(folder, **options):
        made.append(TransformersVlmCaptioner(TransformersVlmConfig(model=str(folder), **SHORT | options)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_batch_says_what_each_image_alone_is_told(folder, captioner):
    model = captioner(folder)
    assert model.deterministic
    together = model.caption(IMAGES)
    alone = [model.caption([image])[0] for image in IMAGES]
    assert together == alone
    assert {outcome.status for outcome in together} <= {"ok", "truncated"}
    assert len({outcome.text for outcome in together if outcome.status == "ok"}) > 1
    again = captioner(folder).caption(IMAGES[::-1])
    assert again[::-1] == together


def test_the_words_are_those_of_a_loop_of_our_own(folder, captioner):
    """Greedy decoding written out: one token after the other, without a cache, without padding."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    ends = set(model.generation_config.eos_token_id)
    outcomes = captioner(folder).caption(IMAGES)
    for image, outcome in zip(IMAGES, outcomes, strict=True):
        inputs = processor(
            text="user: <image>Describe this.<end>\nassistant: ",
            images=[Image.open(io.BytesIO(image.data))],
            return_tensors="pt",
        )
        ids, said = inputs.pop("input_ids"), []
        inputs.pop("attention_mask")
        assert outcome.provenance["input_tokens"] == ids.shape[1]
        while len(said) < 24 and not ends & set(said):
            with torch.inference_mode():
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits
            said.append(int(logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([said[-1:]])], 1)
        assert outcome.provenance["output_tokens"] == len(said)
        if said[-1] in ends:
            assert outcome.text == processor.tokenizer.decode(said[:-1], skip_special_tokens=True).strip()
        else:
            assert outcome.status == "truncated"


def test_an_answer_without_an_end_is_truncated(tmp_path, captioner):
    llava(tmp_path)
    outcomes = captioner(tmp_path, max_new_tokens=5).caption(IMAGES)
    assert {outcome.status for outcome in outcomes} == {"truncated"}
    assert "max_new_tokens (5)" in outcomes[0].detail
    assert {outcome.provenance["output_tokens"] for outcome in outcomes} == {5}


def test_an_answer_that_ends_at_once_is_empty(tmp_path, captioner):
    llava(tmp_path)
    ends_with_any_letter_of(tmp_path, 1)
    outcomes = captioner(tmp_path).caption(IMAGES)
    assert {outcome.status for outcome in outcomes} == {"empty"}


LAYERS = {"brief": "A cat", "short": "A cat sleeps.", "dense": "A grey cat sleeps on a red sofa."}


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (json.dumps(LAYERS), "ok"),
        (json.dumps(LAYERS | {"brief": ""}), "schema-invalid"),
        (json.dumps({"brief": "A cat"}), "schema-invalid"),
        ("A grey cat sleeps.", "schema-invalid"),
        ("I'm sorry, I can't help with that.", "refusal"),
    ],
)
def test_several_layers_in_one_answer(tmp_path, captioner, answer, status):
    parrot(tmp_path, answer)
    model = captioner(tmp_path, instruction=None, prompt="layered-1")
    outcomes = model.caption(IMAGES[:2])
    assert [outcome.status for outcome in outcomes] == [status, status], outcomes[0].detail
    assert model.layers == ("brief", "short", "dense")
    if status == "ok":
        assert outcomes[0].layers == LAYERS
        assert outcomes[0].text == "A cat"
    else:
        assert outcomes[0].detail
        assert not outcomes[0].layers


def test_the_model_is_told_the_schema(tmp_path, captioner):
    parrot(tmp_path, json.dumps(LAYERS))
    with_schema = captioner(tmp_path, instruction=None, prompt="layered-1")
    assert '"additionalProperties": false' in with_schema._prompt
    assert with_schema._prompt.startswith("system: You write captions")
    assert "schema" not in captioner(tmp_path, instruction=None, prompt="dense-1")._prompt


def test_bad_images_are_told_by_sample(folder, captioner):
    huge = io.BytesIO()
    Image.new("L", (20000, 20000)).save(huge, "PNG")
    poison = [b"not an image", b"", IMAGES[0].data[:60], huge.getvalue()]
    bad = [ImageItem(key=f"{number:064d}", data=data) for number, data in enumerate(poison)]
    outcomes = captioner(folder).caption([IMAGES[0], *bad, IMAGES[1]])
    assert [outcome.status for outcome in outcomes[1:-1]] == ["bad-image"] * 4
    assert all(outcome.detail for outcome in outcomes[1:-1])
    assert [outcomes[0], outcomes[-1]] == captioner(folder).caption(IMAGES[:2])


def test_an_image_that_the_model_refuses_spoils_no_other(tmp_path, captioner):
    """A processor that scales nothing, and a tower that takes one size only."""
    llava(tmp_path)
    ends_with_any_letter_of(tmp_path, 9)
    processor = json.loads((tmp_path / "processor_config.json").read_text())
    processor["image_processor"] |= {"do_resize": False, "do_center_crop": False}
    change(tmp_path, "processor_config.json", **processor)
    good = [item(number, (28, 28)) for number in range(5)]
    model = captioner(tmp_path)
    expected = model.caption(good)
    odd = [item(7, (28, 14)), item(8, (40, 28))]
    outcomes = model.caption([*good[:2], odd[0], *good[2:4], odd[1], good[4]])
    assert [outcomes[place] for place in (0, 1, 3, 4, 6)] == expected
    assert {outcomes[place].status for place in (2, 5)} == {"bad-image"}
    assert "the model refuses it: ValueError: " in outcomes[2].detail


def test_provenance(folder, captioner):
    import torch
    import transformers

    (outcome,) = captioner(folder).caption(IMAGES[:1])
    facts = outcome.provenance
    assert facts["captioner"] == "transformers-vlm"
    assert facts["asked_model"] == str(folder)
    assert facts["decoding"] == "greedy"
    assert (facts["torch"], facts["transformers"]) == (torch.__version__, transformers.__version__)
    assert (facts["prompt"], facts["prep"], facts["dtype"], facts["device"]) == ("own", "area", "float32", "cpu")
    assert json.loads(json.dumps(facts)) == facts


def test_other_weights_are_another_model(tmp_path, captioner):
    one, other = llava(tmp_path / "one"), llava(tmp_path / "other", seed=1)
    hashes = {captioner(folder).caption(IMAGES[:1])[0].provenance["model_sha256"] for folder in (one, other, one)}
    assert len(hashes) == 2


def test_drawn_words_repeat_with_their_seed(folder, captioner):
    import torch

    state = torch.random.get_rng_state()
    drawn = {
        seed: [outcome.text for outcome in captioner(folder, temperature=1.5, seed=seed).caption(IMAGES)]
        for seed in (1, 2)
    }
    assert drawn[1] == [outcome.text for outcome in captioner(folder, temperature=1.5, seed=1).caption(IMAGES)]
    assert drawn[1] != drawn[2]
    assert not captioner(folder, temperature=1.5).deterministic
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_short_dtype_promises_less(folder, captioner):
    model = captioner(folder, dtype="bfloat16")
    assert not model.deterministic
    assert model.caption(IMAGES[:2])[0].provenance["dtype"] == "bfloat16"


def test_the_folders_own_way_of_drawing_does_not_matter(tmp_path, captioner):
    llava(tmp_path)
    ends_with_any_letter_of(tmp_path, 9)
    before = captioner(tmp_path).caption(IMAGES)
    change(tmp_path, "generation_config.json", do_sample=True, temperature=0.1, top_k=3, max_length=20, num_beams=2)
    after = captioner(tmp_path).caption(IMAGES)
    assert [outcome.text for outcome in after] == [outcome.text for outcome in before]


def _empty(folder):
    for file in folder.iterdir():
        file.unlink()


def _no_weights(folder):
    (folder / "model.safetensors").unlink()


def _half_the_weights(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file(dict(list(weights.items())[::2]), folder / "model.safetensors", metadata={"format": "pt"})


def _pickled(folder):
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _own_code(folder):
    change(folder, "config.json", auto_map={"AutoConfig": "theirs.Config"}, model_type="theirs")
    (folder / "theirs.py").write_text("raise SystemExit('it was run')")


def _no_template(folder):
    (folder / "chat_template.jinja").unlink()


def _no_end(folder):
    change(folder, "generation_config.json", eos_token_id=None)
    change(folder, "tokenizer_config.json", eos_token=None)


def _template_without_system(folder):
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system message, please') }}")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_empty, "holds no image-text-to-text model"),
        (_no_weights, "holds no image-text-to-text model"),
        (_pickled, "holds no image-text-to-text model"),
        (_half_the_weights, "lacks weights, such as"),
        (_own_code, "holds no image-text-to-text model"),
        (_no_template, "has no chat template"),
        (_no_end, "names no eos_token_id"),
        (_template_without_system, "does not take the recipe: TemplateError: no system message"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path, captioner, spoil, words):
    llava(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ArtifactError, match=words) as caught:
        captioner(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_model_that_needs_torchvision_is_refused_with_the_way_out(tmp_path, captioner):
    if find_spec("torchvision") is not None:
        pytest.skip("torchvision is here")
    llava(tmp_path)
    change(tmp_path, "config.json", model_type="qwen2_vl", text_config=None, vision_config=None)
    change(tmp_path, "tokenizer_config.json", processor_class="Qwen2VLProcessor")
    pixels = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"}
    (tmp_path / "processor_config.json").unlink()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pixels))
    with pytest.raises(ArtifactError, match="needs torchvision, which Lens does not bring: install"):
        captioner(tmp_path)


def test_no_folder_no_recipe_no_device(tmp_path, captioner):
    with pytest.raises(ConfigError, match="there is no model in"):
        captioner(tmp_path / "nowhere")
    llava(tmp_path)
    with pytest.raises(ConfigError, match="there is no recipe 'sparse-9'"):
        captioner(tmp_path, instruction=None, prompt="sparse-9")
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(LensError, match="device: cuda is not available"):
            captioner(tmp_path, device="cuda")


def test_a_closed_captioner_says_so(folder, captioner):
    model = captioner(folder)
    model.close()
    model.close()
    with pytest.raises(LensError, match="closed"):
        model.caption(IMAGES)


def test_without_its_libraries_one_line_says_what_is_missing():
    """Of everything else in lens-caption, nothing needs them."""
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])
sys.meta_path.insert(0, Absent())
from lens_core.registry import load_registry
registry = load_registry()
config = registry.parse("captioners", {"type": "transformers-vlm", "model": "x"})
registry.parse("captioners", {"type": "openai", "model": "x"})
registry.spec("captioners", "openai").load_target()
try:
    registry.build("captioners", config)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("MissingExtraError transformers-vlm needs the library 'torch'")
    assert line.endswith("pip install -c constraints.txt -e 'packages/lens-caption[transformers]'")


def test_in_a_pipeline(tmp_path):
    """Numbers of a stage, with a damaged file among the photos."""
    parrot(tmp_path / "model", json.dumps(LAYERS))
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(IMAGES):
        (tmp_path / "photos" / f"{number}.png").write_bytes(image.data)
    source = {"type": "image-folder", "url": "photos"}
    captioner = {"type": "transformers-vlm", "model": str(tmp_path / "model"), "prompt": "layered-1", "device": "cpu"}
    stages = [
        {"name": "images", "type": "ingest", "source": source},
        {"name": "words", "type": "caption", "source": "images", "captioner": captioner, "batch_size": 2},
    ]
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump({"run": "run", "stages": stages}))
    lens = Path(sys.executable).with_name("lens")
    done = subprocess.run([lens, "run", "pipeline.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "run" / "words" / "captions.parquet").to_pylist()
    assert {row["layer"] for row in rows} == {"brief", "short", "dense"}
    assert {row["text"] for row in rows if row["layer"] == "dense"} == {LAYERS["dense"]}
    assert len(rows) == 15
