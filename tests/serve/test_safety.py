"""What is refused: words in prompts, kinds of pictures, and everything that could not be checked."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Literal

import numpy as np
import pytest

from lens_core.config.base import ComponentConfig
from lens_core.errors import ConfigError
from lens_core.plugins import Offer, Plugin
from lens_core.registry import registry_of
from lens_core.specs import SafetyCheckerSpec
from lens_core.testing import SafetyCheckerContract
from lens_serve.safety.block_list.checker import BlockList, words_of
from lens_serve.safety.block_list.config import BlockListConfig
from lens_serve.safety.gate import CheckFailed, Gate, Unsafe
from lens_serve.safety.image_classifier.config import ImageClassifierConfig

IMAGE = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def anyio_backend():
    return "asyncio"


# --- the block list ---


def refuses(prompt, *words):
    return BlockList(BlockListConfig(words=list(words))).check_prompt(prompt) is not None


@pytest.mark.parametrize(
    ("prompt", "entry"),
    [
        ("a gun on a table", "gun"),
        ("GUN", "gun"),
        ("gun", "GUN"),
        ("a (gun), loaded", "gun"),
        ("a gun's barrel", "gun"),
        ("gun_gun", "gun"),
        ("ｇｕｎ in wide letters", "gun"),
        ("𝐠𝐮𝐧 in bold", "gun"),
        ("a g\u00adu\u200dn", "gun"),
        ("gun\ufe0f g\u034fun", "gun gun"),
        ("STRASSE", "straße"),
        ("die Straße", "STRASSE"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("caf\u00e9", "cafe\u0301"),
        ("blood  and\n\tgore", "Blood and Gore"),
        ("blood-and-gore!", "blood and gore"),
        ("blood", "blood."),
        ("一个暴力场景", "暴力"),
        ("ﾃｽﾄです", "テスト"),
        ("ฉันรักแมว", "รัก"),
        ("हिन्दी में", "हिन्दी"),
        ("room 101", "101"),
        ("so bad a b", "a b"),
    ],
)
def test_entries_are_found_as_whole_words(prompt, entry):
    assert refuses(prompt, entry)
    assert refuses(f"before, {prompt}, behind", "something else", entry)


@pytest.mark.parametrize(
    ("prompt", "entry"),
    [
        ("an assassin and a cassette", "ass"),
        ("two guns", "gun"),
        ("begun", "gun"),
        ("blood and some gore", "blood and gore"),
        ("gore and blood", "blood and gore"),
        ("cafe", "café"),
        ("हिन्द", "हिन्दी"),
        ("暴 露", "暴力"),
        ("", "gun"),
        ("a b", "a b c"),
    ],
)
def test_other_words_are_not(prompt, entry):
    assert not refuses(prompt, entry)


@pytest.mark.parametrize("prompt", ["g u n", "gvn", "9un", "g\u0443n", "g.u.n"])
def test_evasions_that_are_out_of_scope(prompt):
    """Said in the docs; should one of these ever be caught, say so there."""
    assert not refuses(prompt, "gun")


def test_the_reason_does_not_tell_the_list():
    reason = BlockList(BlockListConfig(words=["unspeakable"])).check_prompt("an unspeakable thing")
    assert reason
    assert "unspeakable" not in reason


def test_words_in_a_file(tmp_path):
    file = tmp_path / "list.txt"
    file.write_bytes("\ufeff# what is not drawn\ngun\r\n\n  blood and gore  # both\n".encode())
    checker = BlockList(BlockListConfig(file=str(file), words=["knife"]))
    assert [bool(checker.check_prompt(text)) for text in ("gun", "blood and gore", "knife", "both", "drawn")] == [
        *[True] * 3,
        *[False] * 2,
    ]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"gun\n!!!\n", "list.txt:2: an entry needs a letter or a digit"),
        (b"gun\nfine\n\xff\xfe\n", "list.txt:3: not UTF-8"),
        (b"gun\n" + b"x" * 201, "list.txt:2: an entry has 200 characters at most"),
        (b"# nothing\n\n", "list.txt: a block list without an entry"),
        (b"x\n" * 100_001, "list.txt: a block list has 100000 lines at most"),
    ],
)
def test_bad_files_say_where(tmp_path, data, reason):
    file = tmp_path / "list.txt"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=reason):
        BlockList(BlockListConfig(file=str(file)))


def test_other_mistakes_of_a_list(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        BlockList(BlockListConfig(file=str(tmp_path / "absent.txt")))
    with pytest.raises(ConfigError, match=r"words\[1\]: an entry needs a letter"):
        BlockList(BlockListConfig(words=["fine", "…"]))
    with pytest.raises(ValueError, match="needs words, or a file"):
        BlockListConfig()
    with pytest.raises(ValueError, match="at most 200"):
        BlockListConfig(words=["x" * 201])


def test_long_lists_and_prompts_are_compared_quickly():
    """Work grows with the prompt and the lengths of entries, not with their number."""
    checker = BlockList(BlockListConfig(words=[f"entry {number}" for number in range(20_000)]))
    assert checker.check_prompt("word " * 6000) is None
    assert checker.check_prompt("word " * 6000 + "entry 19999") is not None
    assert len(words_of("\u0301" * 32_000)) == 1


# --- the image classifier ---


def classifier(folder, *, seed=0, **options):
    from core.vision_models import vit
    from lens_serve.safety.image_classifier.checker import ImageClassifier

    vit(folder, ("normal", "nsfw", "gore"), seed=seed)
    return ImageClassifier(ImageClassifierConfig(model=str(folder), device="cpu", **options))


def pictures():
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (40, 56, 3), dtype=np.uint8) for _ in range(8)]


def test_pictures_are_refused_above_the_bound(tmp_path):
    """Held against transformers' own pipeline over Pillow's pixels."""
    import torch
    from PIL import Image
    from transformers import ViTForImageClassification

    from core.vision_models import PREPROCESSOR

    checker = classifier(tmp_path)
    model = ViTForImageClassification.from_pretrained(tmp_path).eval()
    expected = []
    for image in pictures():
        small = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC), np.float32) / 255
        values = (small - PREPROCESSOR["image_mean"]) / PREPROCESSOR["image_std"]
        with torch.inference_mode():
            logits = model(pixel_values=torch.tensor(values.transpose(2, 0, 1)[None], dtype=torch.float32)).logits
        expected.append(logits.softmax(-1)[0].tolist())
    middle = sorted(share[1] for share in expected)[3:5]
    bound = sum(middle) / 2
    checker = classifier(tmp_path, max=bound)
    reasons = [checker.check_image(image) for image in pictures()]
    assert [bool(reason) for reason in reasons] == [share[1] > bound for share in expected]
    assert sum(map(bool, reasons)) == 4
    both = classifier(tmp_path, labels=["nsfw", "gore"], max=bound)
    assert [bool(both.check_image(image)) for image in pictures()] == [
        share[1] + share[2] > bound for share in expected
    ]
    assert checker.check_prompt("anything") is None


def test_a_model_that_is_no_number_refuses(tmp_path):
    from safetensors.torch import load_file, save_file

    from lens_serve.safety.image_classifier.checker import ImageClassifier

    classifier(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: weight * float("nan") for name, weight in weights.items()}, tmp_path / "model.safetensors")
    checker = ImageClassifier(ImageClassifierConfig(model=str(tmp_path), device="cpu", max=1.0))
    assert checker.check_image(IMAGE)


def test_bad_models_and_labels_say_so(tmp_path):
    from lens_serve.safety.image_classifier.checker import ImageClassifier

    with pytest.raises(ConfigError, match="image-classifier: there is no model at"):
        ImageClassifier(ImageClassifierConfig(model=str(tmp_path / "absent")))
    with pytest.raises(ConfigError, match="image-classifier: there is no label 'nswf'"):
        classifier(tmp_path, labels=["nswf"])


# --- the gate ---


class AskedConfig(ComponentConfig):
    """A checker that refuses one thing."""

    type: Literal["asked"] = "asked"
    refuse: str = ""


class Asked:
    def __init__(self, config):
        self.config = config
        self.asked, self.threads = [], set()

    def check_prompt(self, prompt):
        self.asked.append(prompt)
        self.threads.add(threading.get_ident())
        if prompt == "break":
            raise RuntimeError("it was my secret prompt")
        return f"no {prompt} here" if prompt == self.config.refuse else None

    def check_image(self, image_HW3):
        self.asked.append(image_HW3.shape)
        self.threads.add(threading.get_ident())
        if image_HW3.max() == 255:
            raise MemoryError
        return "too bright" if image_HW3.max() > 9 else None


SPEC = SafetyCheckerSpec(
    name="asked", summary="For tests.", config=f"{__name__}:AskedConfig", target=f"{__name__}:Asked"
)
PLUGIN = Plugin(name="tests", module=__name__, distribution="tests", version="0")
REGISTRY = registry_of([Offer(kind="safety_checkers", spec=SPEC, plugin=PLUGIN)])


def gate(*refuse):
    made = Gate([AskedConfig(refuse=word) for word in refuse], REGISTRY)
    return made, [checker for _, checker in made._checkers]


@pytest.mark.anyio
async def test_prompts_are_checked_by_everybody_in_threads():
    made, (first, second) = gate("cats", "dogs")
    await made.check_prompt("birds", "prompt")
    await made.check_prompt("many birds", "rewritten prompt")
    assert first.asked == second.asked == ["birds", "many birds"]
    assert threading.get_ident() not in first.threads | second.threads


@pytest.mark.anyio
async def test_the_first_refusal_decides():
    made, (first, second) = gate("cats", "dogs")
    with pytest.raises(Unsafe) as caught:
        await made.check_prompt("cats", "prompt")
    assert (caught.value.reason, caught.value.where, str(caught.value)) == (
        "no cats here",
        "prompt",
        "prompt: no cats here",
    )
    assert not isinstance(caught.value, CheckFailed)
    assert (first.asked, second.asked) == (["cats"], [])
    with pytest.raises(Unsafe) as caught:
        await made.check_prompt("dogs", "rewritten prompt")
    assert (caught.value.reason, caught.value.where) == ("no dogs here", "rewritten prompt")
    with pytest.raises(Unsafe) as caught:
        await made.check_image(IMAGE + 10)
    assert (caught.value.reason, caught.value.where) == ("too bright", "image")
    await made.check_image(IMAGE)


@pytest.mark.anyio
async def test_a_checker_that_breaks_refuses(caplog):
    made, _ = gate("cats")
    with caplog.at_level(logging.DEBUG):
        with pytest.raises(CheckFailed) as caught:
            await made.check_prompt("break", "rewritten prompt")
        assert caught.value.where == "rewritten prompt"
        assert caught.value.__cause__ is None  # what fails of it is logged with its cause
        with pytest.raises(CheckFailed, match="could not be checked"):
            await made.check_image(IMAGE + 255)
    assert "secret" not in f"{caught.value} {caplog.text}"
    assert "the safety checker asked broke on the rewritten prompt: RuntimeError at" in caplog.text
    assert "MemoryError" in caplog.text


@pytest.mark.anyio
async def test_a_checker_that_hangs_refuses(caplog, monkeypatch):
    monkeypatch.setattr("lens_serve.safety.gate.TIMEOUT_S", 0.05)
    made, (checker,) = gate("cats")
    held = threading.Event()
    checker.check_prompt = lambda prompt: held.wait(60) and None
    with pytest.raises(CheckFailed, match="could not be checked"):
        await made.check_prompt("birds", "prompt")
    held.set()
    assert "the safety checker asked took longer than 0.05 s on the prompt" in caplog.text


@pytest.mark.anyio
async def test_without_checkers_everything_passes():
    made = Gate([], REGISTRY)
    await made.check_prompt("anything at all", "prompt")
    await made.check_image(IMAGE)


@pytest.mark.anyio
async def test_a_request_that_goes_away_need_not_wait_for_the_verdict():
    made, (checker,) = gate("cats")
    held = threading.Event()
    checker.check_prompt = lambda prompt: held.wait(60) and None
    waiting = asyncio.create_task(made.check_prompt("birds", "prompt"))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    held.set()


# --- the contracts ---


class TestBlockList(SafetyCheckerContract):
    name = "block-list"
    config = {"words": ["gun", "blood and gore"]}
    refused = ("a gun", "blood, and gore")


class TestImageClassifier(SafetyCheckerContract):
    name = "image-classifier"
    config = {"model": "a-folder", "device": "cpu"}

    @pytest.fixture
    def checker(self, lens_registry, parsed, tmp_path):
        from core.vision_models import vit

        return lens_registry.build(self.kind, parsed.model_copy(update={"model": str(vit(tmp_path))}))
