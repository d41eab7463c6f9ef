"""The GenEval evaluator with tiny random models: what they see is what counts, and folders that hold none are named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from lens_core.contracts import verdicts
from lens_core.errors import ArtifactError, ConfigError
from lens_train.evaluation.geneval.colours import ColourClassifier, cut_out
from lens_train.evaluation.geneval.config import GenevalEvaluatorConfig
from lens_train.evaluation.geneval.detector import ObjectDetector
from lens_train.evaluation.geneval.evaluator import GenevalEvaluator
from lens_train.evaluation.geneval.prompts import COLOURS
from train.evaluation.models import clip, detr, rt_detr


@pytest.fixture(scope="module")
def random_detr(tmp_path_factory):
    return detr(tmp_path_factory.mktemp("detr"))


@pytest.fixture(scope="module")
def dogs(tmp_path_factory):
    """Sees twelve dogs in every picture, each with a probability of e³ / (e³ + 5) = 0.80."""
    return detr(tmp_path_factory.mktemp("dogs"), sees=("dog", 3.0))


@pytest.fixture(scope="module")
def random_clip(tmp_path_factory):
    return clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def image():
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((90, 60), Image.Resampling.BICUBIC))


def evaluator(tmp_path, detector, lines, **options):
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    config = GenevalEvaluatorConfig(prompts=str(file), detector=str(detector), device="cpu", **options)
    return GenevalEvaluator(config)


def line(tag, *include, exclude=(), prompt="a photo"):
    return {"tag": tag, "prompt": prompt, "include": list(include), "exclude": list(exclude)}


def one(name, count=1, **more):
    return {"class": name, "count": count, **more}


# --- the detector ---


def test_detections_are_what_the_model_puts_out(random_detr, image):
    """From logits and boxes by hand: softmax, "no object" left out, centre and size to corners, the surest first."""
    detector = ObjectDetector(random_detr, device="cpu")
    found = detector(image, {"dog", "cat", "bus"}, threshold=0.2)
    model, processor = detector._model, detector._processor
    outputs = model(**processor(images=Image.fromarray(image), return_tensors="pt"))
    shares = outputs.logits[0].softmax(-1)[:, :-1]
    for number, name in enumerate(model.config.id2label.values()):
        if name not in found:
            continue
        own = [q for q in range(len(shares)) if shares[q].argmax() == number and shares[q, number] > 0.2]
        own.sort(key=lambda q: -float(shares[q, number]))
        assert [one.confidence for one in found[name]] == pytest.approx([float(shares[q, number]) for q in own])
        for one_found, q in zip(found[name], own, strict=True):
            x, y, width, height = outputs.pred_boxes[0, q].tolist()
            corners = ((x - width / 2) * 90, (y - height / 2) * 60, (x + width / 2) * 90, (y + height / 2) * 60)
            assert one_found.box == pytest.approx(corners, abs=1e-3)
    assert sum(map(len, found.values())) >= 2, "or the above proves little"


def test_detectors_that_are_sure_of_each_class_apart(tmp_path, image):
    """An RT-DETR's confidences are sigmoids: of all queries and classes as many as there are queries."""
    detector = ObjectDetector(rt_detr(tmp_path), device="cpu")
    names = ("dog", "cat", "bus")
    found = detector(image, set(names), threshold=0.1)
    model, processor = detector._model, detector._processor
    outputs = model(**processor(images=Image.fromarray(image), return_tensors="pt"))
    shares_QK = outputs.logits[0].sigmoid()
    ranked = sorted(((float(shares_QK[q, k]), names[k]) for q in range(8) for k in range(3)), reverse=True)[:8]
    for name in names:
        own = [share for share, other in ranked if other == name]
        assert [one.confidence for one in found[name]] == pytest.approx(own)
    assert sum(map(len, found.values())) == 8


def test_not_more_than_sixteen_of_a_class(tmp_path, image):
    detector = ObjectDetector(detr(tmp_path, sees=("dog", 3.0), queries=20), device="cpu")
    assert len(detector(image, {"dog"}, threshold=0.3)["dog"]) == 16


def test_classes_have_other_names_elsewhere(random_detr, tmp_path):
    detector = ObjectDetector(random_detr, device="cpu")
    assert detector.knows("dog")
    assert detector.knows("computer mouse")  # GenEval's word for COCO's mouse
    assert not detector.knows("tv")
    assert not detector.knows("horse")
    labels = ("aeroplane", "motorbike", "sofa", "pottedplant", "diningtable", "tvmonitor", "remote", "keyboard")
    other = ObjectDetector(detr(tmp_path, labels), device="cpu")
    for name in ("airplane", "motorcycle", "couch", "potted plant", "dining table", "tv", "tv remote"):
        assert other.knows(name), name
    assert other.knows("computer keyboard")


def test_folders_without_a_detector(tmp_path, random_clip):
    from core.vision_models import vit

    with pytest.raises(ConfigError, match=r"geneval: there is no detector at '.*nowhere'; give a folder"):
        ObjectDetector(tmp_path / "nowhere", device="cpu")
    for folder in (tmp_path, random_clip, vit(tmp_path / "vit")):
        with pytest.raises(ArtifactError) as caught:
            ObjectDetector(folder, device="cpu")
        assert f"{folder} holds no object detector that transformers can load: " in str(caught.value)
        assert "\n" not in str(caught.value)


def test_weights_that_are_missing_are_no_random_numbers(tmp_path):
    from safetensors.torch import load_file, save_file

    weights = detr(tmp_path) / "model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if "class_labels_classifier" not in name}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"lacks weights, such as 'class_labels_classifier\.bias'"):
        ObjectDetector(tmp_path, device="cpu")


# --- colours ---


def test_cut_outs_stay_within_the_picture(image):
    assert np.array_equal(cut_out(image, (10.2, 5.9, 20.1, 9.0)), image[5:9, 10:21])
    assert np.array_equal(cut_out(image, (-5, -5, 200, 200)), image)
    assert cut_out(image, (95, 70, 99, 80)).shape == (1, 1, 3)
    assert cut_out(image, (20, 20, 20, 20)).shape == (1, 1, 3)
    assert cut_out(image, (20, 20, 10, 10)).shape == (1, 1, 3)


def test_colours_are_those_of_the_closest_sentence(random_clip, image):
    """By transformers' own steps: mean of the three sentences' unit features, largest product with the image's."""
    import torch.nn.functional as F
    from transformers import AutoTokenizer, CLIPModel

    boxes = [(0, 0, 30, 30), (30, 0, 60, 60), (60, 30, 90, 60), (0, 30, 90, 60), (5, 5, 15, 15)]
    classifier = ColourClassifier(random_clip, device="cpu")
    model, tokenizer = CLIPModel.from_pretrained(random_clip), AutoTokenizer.from_pretrained(random_clip)
    sums = []
    for colour in COLOURS:
        sentences = [
            f"a photo of a {colour} dog",
            f"a photo of a {colour}-colored dog",
            f"a photo of a {colour} object",
        ]
        units = []
        for sentence in sentences:
            with torch.no_grad():
                output = model.get_text_features(**tokenizer([sentence], return_tensors="pt"))
            units.append(F.normalize(output if isinstance(output, torch.Tensor) else output.pooler_output, dim=-1))
        mean = torch.cat(units).mean(0)
        sums.append(mean / mean.norm())
    expected = []
    for one_box in boxes:
        pixels = torch.from_numpy(classifier._embed._preprocess(cut_out(image, one_box)))
        with torch.no_grad():
            output = model.get_image_features(pixel_values=pixels)
        features = output if isinstance(output, torch.Tensor) else output.pooler_output
        expected.append(COLOURS[int((torch.stack(sums) @ F.normalize(features, dim=-1)[0]).argmax())])
    assert classifier(image, "dog", boxes) == expected
    assert len(set(expected)) > 1, "or the above proves little"


def test_folders_without_a_clip(tmp_path):
    from core.vision_models import clip as without_tokenizer
    from core.vision_models import vit

    with pytest.raises(ConfigError, match=r"geneval: there is no CLIP at '.*nowhere'"):
        ColourClassifier(tmp_path / "nowhere", device="cpu")
    with pytest.raises(ArtifactError, match="ViTModel does not read texts; give a CLIP"):
        ColourClassifier(vit(tmp_path / "vit"), device="cpu")
    with pytest.raises(ArtifactError, match=r"holds no tokenizer: there is none of tokenizer\.json, "):
        ColourClassifier(without_tokenizer(tmp_path / "clip"), device="cpu")


# --- tasks and verdicts ---


def test_several_pictures_of_each_prompt(tmp_path, dogs):
    lines = [
        line("single_object", one("dog"), prompt="a dog"),
        line("two_object", one("dog"), one("cat"), prompt="two"),
    ]
    tasks = evaluator(tmp_path, dogs, lines, samples=3, size=64).tasks()
    assert [task.id for task in tasks] == [f"{number:05d}-{sample}" for number in (1, 2) for sample in range(3)]
    assert [task.skills for task in tasks] == [("single_object",)] * 3 + [("two_object",)] * 3
    assert [dict(task.prompts) for task in tasks[::3]] == [{"geneval": "a dog"}, {"geneval": "two"}]
    assert {(task.height, task.width) for task in tasks} == {(64, 64)}
    assert {(task.height, task.width) for task in evaluator(tmp_path, dogs, lines).tasks()} == {(None, None)}


def test_only_the_first_prompts_of_each_skill(tmp_path, dogs):
    lines = [line(tag, one("dog"), prompt=f"{tag} {i}") for i in range(3) for tag in ("colors", "counting")]
    tasks = evaluator(tmp_path, dogs, lines, samples=1, prompts_per_skill=2).tasks()
    assert [task.prompts["geneval"] for task in tasks] == ["colors 0", "counting 0", "colors 1", "counting 1"]


def test_verdicts_are_the_rules_on_what_is_seen(tmp_path, dogs, image):
    """The detector sees twelve dogs with 0.80: enough for all but counts, where it must be surer than 0.9."""
    lines = [
        line("single_object", one("dog")),
        line("single_object", one("cat")),
        line("two_object", one("dog"), one("cat")),
        line("counting", one("dog", 12)),
        line("many", one("dog", 12), exclude=[one("dog", 13)]),
        line("many", one("dog", 13)),
        line("few", one("dog", 2), exclude=[one("dog", 3)]),
        line("position", one("dog"), one("dog", position=["left of", 0])),
    ]
    judge = evaluator(tmp_path, dogs, lines, samples=1)
    given = [verdicts(task, judge.score(task, image))[0][1] for task in judge.tasks()]
    assert given == [True, False, False, False, True, False, False, False]
    sure = evaluator(tmp_path, dogs, lines, samples=1, counting_threshold=0.5)
    assert sure.score(sure.tasks()[3], image) is True
    blind = evaluator(tmp_path, dogs, lines, samples=1, threshold=0.85)
    assert blind.score(blind.tasks()[0], image) is False


def test_a_colour_is_the_one_that_clip_sees(tmp_path, dogs, random_clip, image):
    lines = [line("colors", one("dog", color=colour)) for colour in COLOURS]
    judge = evaluator(tmp_path, dogs, lines, samples=1, clip=str(random_clip))
    given = [judge.score(task, image) for task in judge.tasks()]
    surest = ObjectDetector(dogs, device="cpu")(image, {"dog"}, threshold=0.3)["dog"][0]
    (seen,) = ColourClassifier(random_clip, device="cpu")(image, "dog", [surest.box])
    assert given == [colour == seen for colour in COLOURS]


def test_what_cannot_be_judged_is_refused_at_once(tmp_path, dogs):
    with pytest.raises(ConfigError, match=r"prompts\.jsonl:2: the detector at .* knows no class 'unicorn'"):
        evaluator(tmp_path, dogs, [line("x", one("dog")), line("x", one("unicorn"))])
    with pytest.raises(ConfigError, match=r"prompts\.jsonl:1: it asks for a colour, which needs `clip`"):
        evaluator(tmp_path, dogs, [line("colors", one("dog", color="red"))])
    with pytest.raises(ConfigError, match=r"knows no class 'horse'"):
        evaluator(tmp_path, dogs, [line("x", one("dog"), exclude=[one("horse")])])
