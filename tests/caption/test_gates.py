"""The gates: good captions pass, every fault is found, and the layer that is checked stays as it is."""

from __future__ import annotations

import io
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from caption.vision_server import VisionServer
from lens_caption.captioners.openai.captioner import OpenAICaptioner
from lens_caption.captioners.openai.config import OpenAIConfig
from lens_caption.quality.check import Check
from lens_caption.quality.config import (
    BoilerplateGate,
    GatesConfig,
    LanguageGate,
    LengthGate,
    LoopsGate,
    ReasoningGate,
    RefusalGate,
    SharedSentenceGate,
)
from lens_caption.quality.gates import (
    CAPTION_GATES,
    boilerplate,
    failures,
    language,
    length,
    loops,
    reasoning,
    refusal,
)
from lens_caption.quality.looks import look_of
from lens_caption.quality.repeats import Repeats, digest_of
from lens_caption.quality.statistics import LayerStatistics, mean_of, percentile_of
from lens_caption.quality.text import normal, resemblance, script_shares, sentences, unquoted, words
from lens_caption.testing.openai_server import OpenAIServer
from lens_core.config.pipeline import load_pipeline
from lens_core.contracts import ImageItem
from lens_core.datasets.scenes.language import describe
from lens_core.datasets.scenes.world import sample_scene
from lens_core.errors import ConfigError, LensError, MissingExtraError
from lens_core.pipeline.progress import Progress
from lens_core.pipeline.runner import run_pipeline
from lens_core.storage.artifacts import load_artifact
from lens_core.storage.captions import CaptionRow, read_captions

GOOD = [
    "A ginger cat sleeps on a folded blue blanket in the lower left of a sunlit kitchen, its tail around a white "
    'cup. Behind it, three copper pans hang from a rail, the left one larger than the others. A sign reads "Sorry, we '
    'are closed. Please share this picture!" in red capitals, and a smaller one "Okay, let me think". The light falls '
    "from a window on the right, and the floor is of grey stone tiles.",
    "Two men in dark suits shake hands in front of a glass building; the man on the left, Barack Obama, smiles.",
    'A poster says "SALE SALE SALE SALE SALE" five times in yellow letters on a black ground, over a row of shoes.',
    'A page from a French cookery book is headed "Les soupes de la maison, et comment on les prépare dans la cuisine" '
    "over a drawing of an onion with its roots cut off and laid beside a knife.",
    "Photograph of a street market at night: strings of bulbs, a woman frying noodles, and steam that hides her face.",
    "a red bicycle leaning on a green door",
    "Hand-drawn diagram of a pump, with arrows from left to right and the labels “inlet”, “valve” and “outlet”.",
    "Great white shark seen from below, its mouth closed, with three small fish beside its left fin.",
    "The painting of a lighthouse hangs askew over a sofa; the picture frame has lost its gold in places.",
    "A mirror shows the photographer from behind, camera raised; the image-stabilised lens has a red ring.",
]

REFUSALS = [
    "I'm sorry, but I can't assist with that request.",
    "I’m sorry, I can’t help with identifying people in images.",
    "Sorry, but I cannot describe this image.",
    "I cannot identify the person in this image, but they wear a red coat.",
    "A man in a red coat. I can't identify real people based on their appearance.",
    "As an AI language model, I do not have the ability to see images.",
    "I don't see any image attached. Please upload the image and I will describe it.",
    "Unable to process the image.",
    "It looks like no image was provided.",
    "This goes against our content policy.",
    "We are not able to view this file.",
    "Lo siento, pero no puedo ayudar con eso.",
    "Je suis désolé, mais je ne peux pas décrire cette personne.",
    "Es tut mir leid, ich kann das nicht beschreiben.",
    "抱歉，我无法描述这张图片。",
    "申し訳ありませんが、この画像についてはお答えできません。",
]

REASONING = [
    "<think>The user wants a caption.</think> A cat on a mat.",
    "A cat on a mat.<|im_end|>",
    "Okay, let me look at this image. There is a cat on a mat in the middle.",
    "The user wants a dense caption. A cat sits on a mat.",
    "Hmm, I should mention the background. A cat sits on a mat.",
    "A cat on a mat. Wait, I need to count the cats again.",
    "analysisWe see a cat.assistantfinal A cat on a mat.",
    "Final caption: A cat on a mat.",
    "A cat on a mat, described in fewer than 500 words.",
    "```\nA cat on a mat.\n```",
    "Let me describe what can be seen: a cat on a mat.",
    "I'll now describe the scene: a cat on a mat.",
]

BOILERPLATE = [
    "The image shows a cat on a mat.",
    "This image depicts a cat.",
    "In this photograph, a cat sits on a mat.",
    "In the black-and-white photo, a cat sits on a mat.",
    "The provided image captures a cat.",
    "**The image** shows a cat.",
    "Here is a detailed description of the image: a cat.",
    "Here's the caption: a cat on a mat",
    "Sure! A cat on a mat.",
    "Certainly, a cat on a mat.",
    "Caption: A cat on a mat.",
    "**Description:** A cat on a mat.",
    "An image of a cat on a mat.",
    "This is a photograph of a cat.",
    "We can see a cat on a mat.",
    "La imagen muestra un gato.",
    "L'image montre un chat.",
    "Das Bild zeigt eine Katze.",
    "这张图片中有一只猫。",
    "この画像には猫が写っています。",
]

LOOPS = [
    "A shelf of books: " + "a red book, " * 40,
    "A sign that reads " + "SALE " * 30,
    "A cat sits on a mat. " * 5,
    'Text: "' + "ha" * 200 + '"',
    "A long wall." + "-" * 300,
    "A dog and a cat. The sky is very blue. A tree stands left. The sky is very blue. A car. The sky is very blue.",
    "一只猫坐在垫子上，" * 12,
    "猫が座っています。" * 4,
    " ".join(f"the {a} is next to the {b}, and" for a in ("cat", "dog") * 4 for b in ("cat", "dog") * 2),
]

LANGUAGES = {
    "en": "A ginger cat sleeps on a folded blanket in the corner of the kitchen, and its tail is curled around a cup.",
    "fr": "Un chat roux dort sur une couverture pliée dans le coin de la cuisine, et sa queue est près d'une tasse.",
    "es": "Un gato anaranjado duerme sobre una manta doblada en el rincón de la cocina, con la cola junto a una taza.",
    "de": "Eine rote Katze schläft auf einer gefalteten Decke in der Ecke der Küche, der Schwanz um eine Tasse.",
    "it": "Un gatto rosso dorme su una coperta nell'angolo della cucina, con la coda che è vicino a una tazza.",
    "pt": "Um gato laranja dorme sobre uma manta dobrada no canto da cozinha, com a cauda ao lado de uma xícara.",
    "nl": "Een rode kat slaapt op een opgevouwen deken in de hoek van de keuken, en de staart ligt naast een kopje.",
    "ru": "Рыжий кот спит на сложенном одеяле в углу кухни, и его хвост лежит рядом с белой чашкой.",
    "uk": "Рудий кіт спить на складеній ковдрі у кутку кухні, і його хвіст лежить поруч із білою чашкою.",
    "zh": "一只橘猫睡在厨房角落里折好的毯子上，尾巴卷在杯子旁边，窗户在右边。",
    "ja": "オレンジ色の猫が台所の隅で畳んだ毛布の上に眠っていて、尻尾はカップのそばにあります。",
    "ko": "주황색 고양이가 부엌 구석에 접힌 담요 위에서 자고 있고, 꼬리는 컵 옆에 말려 있다.",
    "ar": "قطة برتقالية تنام على بطانية مطوية في زاوية المطبخ وذيلها بجانب كوب أبيض.",
    "el": "Μια πορτοκαλί γάτα κοιμάται σε μια διπλωμένη κουβέρτα στη γωνία της κουζίνας.",
    "he": "חתול כתום ישן על שמיכה מקופלת בפינת המטבח והזנב שלו ליד ספל לבן.",
    "hi": "एक नारंगी बिल्ली रसोई के कोने में मुड़े हुए कंबल पर सो रही है और उसकी पूँछ प्याले के पास है।",
    "th": "แมวสีส้มนอนหลับบนผ้าห่มที่พับไว้ตรงมุมห้องครัว หางอยู่ข้างถ้วยสีขาว",
}


def row(text, key="k", layer="dense", **fields):
    return CaptionRow(key=key, layer=layer, text=text, **fields)


def check_rows(rows, gates, **options):
    """All rows through the gates: the rows that come out, the findings, and the sentences that images share."""
    with tempfile.TemporaryDirectory() as folder:
        check = Check(lambda: iter(rows), gates, Path(folder), **options)
        passed = list(check)
    findings = [item for _, found in passed for item in found]
    return SimpleNamespace(rows=[row for row, _ in passed], findings=findings, shared=check.shared)


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("text", GOOD)
def test_good_captions_pass_every_gate(text):
    assert failures(text, GatesConfig()) == []


def test_good_captions_by_rule_pass_every_gate():
    for number in range(300):
        text = describe(sample_scene(3, number), "dense", seed=0, key=str(number))
        assert failures(text, GatesConfig()) == [], text


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals(text):
    assert refusal(text, RefusalGate())


@pytest.mark.parametrize("text", REASONING)
def test_leaked_reasoning(text):
    assert reasoning(text, ReasoningGate())


@pytest.mark.parametrize("text", BOILERPLATE)
def test_boilerplate_openings(text):
    assert boilerplate(text, BoilerplateGate())


def test_openings_of_ones_own():
    gate = BoilerplateGate(also=("Once upon a time",))
    assert boilerplate("ONCE upon a time, there was a cat.", gate) == 'begins with "Once upon a time"'
    assert boilerplate("A cat, once upon a time.", gate) is None
    assert boilerplate("Once upon a timer.", gate) is None


@pytest.mark.parametrize("text", LOOPS)
def test_loops(text):
    assert loops(text, LoopsGate())


def test_loops_say_what_is_repeated():
    assert loops("A shelf of " + "red books and " * 9, LoopsGate()) == 'repeats "red books and" 9 times in a row'
    assert loops("very " * 11 + "large", LoopsGate()) is None
    assert loops("very " * 12 + "large", LoopsGate()) == 'repeats "very" 12 times in a row'


@pytest.mark.parametrize("period", [1, 2, 7, 30])
def test_the_longest_row_is_found_at_any_period(period):
    phrase = [f"w{number}" for number in range(period)]
    text = " ".join(["before", *phrase * 12, *phrase[: period // 2], "after"])
    assert loops(text, LoopsGate(max_repeats=11, max_repeated_share=1)) is not None
    assert loops(text, LoopsGate(max_repeats=12, max_repeated_share=1)) is None


def test_lengths():
    gate = LengthGate(min_words=3, max_words=5)
    assert [length(text, gate) for text in ("a red cat", "a red cat sits here")] == [None, None]
    assert length("red cat", gate) == "2 words, fewer than 3"
    assert length("a b c d e f", gate) == "6 words, more than 5"
    assert length("一只猫坐着", gate) is None
    with pytest.raises(ValidationError, match="min_words is larger"):
        LengthGate(min_words=6, max_words=5)


@pytest.mark.parametrize("code", LANGUAGES)
def test_each_language_is_itself_and_no_other(code):
    for other in LANGUAGES:
        reason = language(LANGUAGES[code], LanguageGate(languages=(other,)))
        assert (reason is None) == (other == code), (code, other, reason)
    assert language(LANGUAGES[code], LanguageGate(languages=tuple(LANGUAGES))) is None


def test_short_captions_are_judged_by_script_alone():
    assert language("un chat roux", LanguageGate()) is None
    assert language("кот спит", LanguageGate()) == "is in cyrillic letters, not in 'en'"
    assert language("12:30", LanguageGate()) is None


def test_quotations_are_in_their_own_language():
    text = f"A sign over the door of the shop reads “{LANGUAGES['zh']}” and is lit from below by a lamp."
    assert failures(text, GatesConfig()) == []


def test_the_classifier_comes_with_an_extra():
    gate = LanguageGate(detector="py3langid", languages=("en", "sw"))
    try:
        import py3langid  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(MissingExtraError, match=r"py3langid.*packages/lens-caption\[language\]"):
            language(LANGUAGES["en"], gate)


def test_the_classifier_tells_languages_apart():
    pytest.importorskip("py3langid")
    for code, text in LANGUAGES.items():
        assert language(text, LanguageGate(detector="py3langid", languages=(code,))) is None
    assert language(LANGUAGES["fr"], LanguageGate(detector="py3langid"))


def test_unknown_languages_are_refused():
    with pytest.raises(ValidationError, match="does not know 'sw'"):
        LanguageGate(languages=("sw",))


def test_each_gate_can_be_skipped():
    text = "I'm sorry, I can't help with that."
    skipping = GatesConfig.model_validate({name: {"action": "skip"} for name in CAPTION_GATES})
    assert failures(text, skipping) == []
    assert [name for name, _ in failures(text, GatesConfig())] == ["refusal"]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=400))
def test_no_text_breaks_a_gate(text):
    failures(text, GatesConfig())
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    "text",
    [
        "“" * 30_000,
        '"' * 30_001,
        "a" * 60_000,
        "ab" * 30_000,
        "the " * 8_000,
        "sorry " * 8_000,
        "(" * 50_000,
        "Mr. " * 9_000,
    ],
)
def test_no_text_takes_long(text):
    started = time.thread_time()  # what else this machine does does not count
    failures(text, GatesConfig())
    assert time.thread_time() - started < 5


def test_sentences():
    text = 'A dog by Mr. Hill\'s door. "Sale. Now! 50% off" stands on it. It is 3.5 m wide… Is it?'
    assert sentences(text) == [
        "A dog by Mr. Hill's door.",
        '"Sale. Now! 50% off" stands on it.',
        "It is 3.5 m wide…",
        "Is it?",
    ]
    assert sentences("一只狗。它在跑！「大減価。今日」と書いてある。") == [
        "一只狗。",
        "它在跑！",
        "「大減価。今日」と書いてある。",
    ]
    assert sentences('The sign reads "Stop." A man waits.') == ['The sign reads "Stop."', "A man waits."]
    for whole in (
        'A sign that says "Stop!" hangs on a pole.',
        "It is 5 p.m. and the sun sets.",
        "Cups (red etc.) stand.",
    ):
        assert sentences(f"{whole} It rains at 6 p.m. A dog sleeps.") == [whole, "It rains at 6 p.m.", "A dog sleeps."]
    assert sentences("a cat sits. a dog runs.") == ["a cat sits.", "a dog runs."]
    assert sentences("  ") == []
    assert unquoted('a “b. c” d "e" f') == 'a "" d "" f'


def test_words_and_what_two_texts_share():
    assert words("A Cat's 3 mats, 猫が") == ["a", "cat's", "3", "mats", "猫", "が"]
    assert normal("  A cat; on THE mat!") == normal("a cat on the mat.")
    assert script_shares("aб猫") == {"LATIN": 1 / 3, "CYRILLIC": 1 / 3, "CJK": 1 / 3}
    assert resemblance("a red cat", "A red cat.") == 1
    assert resemblance("a red cat", "nothing here") == 0
    # {a, red, cat, (a, red), (red, cat)} and {a, red, dog, (a, red), (red, dog)} share 3 of 7
    assert resemblance("a red cat", "a red dog") == pytest.approx(3 / 7)


def test_shared_sentences_agree_with_counting_by_hand(tmp_path):
    rng = random.Random(0)
    pool = [" ".join(rng.choices("abcdefghij", k=rng.randrange(4, 12))) + "." for _ in range(40)]
    texts = [" ".join(rng.choices(pool, k=3)) for _ in range(200)]
    gate = SharedSentenceGate(min_words=8, min_images=12, min_share=0.05)
    expected = {}
    for sentence in pool:
        members = [number for number, text in enumerate(texts) if sentence in sentences(text)]
        if len(sentence.split()) >= 8 and len(members) >= 12:
            expected[sentence] = members
    repeats = Repeats(tmp_path / "repeats.sqlite", GatesConfig(shared_sentence=gate))
    for number, text in enumerate(texts):
        repeats.add(f"{number:03d}", "dense", text)
    assert repeats.shared_sentences() == {
        ("dense", digest_of(normal(sentence))): len(members) for sentence, members in expected.items()
    }
    repeats.close()
    rows = [row(text, key=f"{number:03d}") for number, text in enumerate(texts)]
    skip = {name: {"action": "skip"} for name in (*CAPTION_GATES, "repeated_caption")}
    checked = check_rows(rows, GatesConfig(shared_sentence=gate, **skip))
    assert checked.shared["dense"] == {sentence: len(members) for sentence, members in expected.items()}
    assert list(checked.shared["dense"].values()) == sorted(checked.shared["dense"].values(), reverse=True)
    assert {item.key for item in checked.findings} == {
        f"{member:03d}" for members in expected.values() for member in members
    }


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 700), min_size=1, max_size=60), st.sampled_from([5, 50, 95]))
def test_percentiles_agree_with_numpy(values, percent):
    assert percentile_of(Counter(values), percent) == pytest.approx(np.percentile(values, percent))
    assert mean_of(Counter(values)) == pytest.approx(np.mean(values))


def test_flags_that_were_there_stay():
    checked = check_rows(
        [row("The image shows a cat on a mat.", provenance={"flags": "canary"})],
        GatesConfig(boilerplate=BoilerplateGate(action="flag")),
    )
    assert checked.rows[0].provenance["flags"] == "canary,boilerplate"


def test_looks():
    rng = np.random.default_rng(0)
    scene = np.asarray(Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8)).resize((200, 150), Image.BICUBIC))
    other = np.asarray(Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8)).resize((200, 150), Image.BICUBIC))
    smaller = np.asarray(Image.fromarray(scene).resize((100, 75), Image.LANCZOS))
    assert not look_of(scene).differs(look_of(smaller), min_bits=11)
    assert look_of(scene).differs(look_of(other), min_bits=11)
    red, dark_red, blue = (np.full((20, 20, 3), colour, np.uint8) for colour in ((200, 9, 9), (190, 9, 9), (9, 9, 200)))
    assert not look_of(red).differs(look_of(dark_red), min_bits=11)
    assert look_of(red).differs(look_of(blue), min_bits=11)


LONG = "A ginger cat sleeps on a folded blue blanket in the lower left corner of a bright kitchen with {}."


def test_one_caption_for_images_that_look_different_is_rejected():
    colours = {"a": (200, 0, 0), "b": (0, 0, 200), "c": (0, 200, 0), "d": (2, 198, 1), "e": (9, 9, 9)}
    texts = {"a": "three pans", "b": "three pans", "c": "one pan", "d": "one pan", "e": "no pan"}
    opened = []

    def image_of(key):
        opened.append(key)
        return png(np.full((8, 8, 3), colours[key]))

    rows = [row(LONG.format(text), key=key) for key, text in texts.items()]
    checked = check_rows(rows, GatesConfig(), image_of=image_of)
    assert [item.status for item in checked.rows] == ["rejected", "rejected", "ok", "ok", "ok"]
    assert checked.rows[0].detail == "repeated_caption: 2 images have this caption, and they look different"
    assert sorted(opened) == ["a", "b", "c", "d"]
    assert [item.status for item in check_rows(rows, GatesConfig()).rows] == ["ok"] * 5
    short = [row("a ginger cat on a blanket", key=key) for key in texts]
    assert {item.status for item in check_rows(short, GatesConfig(), image_of=image_of).rows} == {"ok"}


def test_rows_come_out_with_reasons_and_the_old_ones_are_untouched():
    rows = [
        row(GOOD[0], key="good", provenance={"served_model": "m"}),
        row("The image shows a cat on a mat.", key="opening"),
        row("I'm sorry, I can't help with that.", key="sorry"),
        row("", key="lost", status="transport", detail="HTTP 500"),
    ]
    before = [(item.text, item.status, dict(item.provenance)) for item in rows]
    checked = check_rows(rows, GatesConfig(boilerplate=BoilerplateGate(action="flag")))
    assert [(item.text, item.status, dict(item.provenance)) for item in rows] == before
    good, opening, sorry, lost = checked.rows
    assert (good.text, good.status, good.provenance["served_model"]) == (GOOD[0], "ok", "m")
    assert (opening.status, opening.text, opening.provenance["flags"]) == ("ok", rows[1].text, "boilerplate")
    assert (sorry.status, sorry.text) == ("refusal", "")
    assert sorry.detail == 'refusal: says "I\'m sorry"'
    assert lost == rows[3]
    assert len({item.provenance["gates"] for item in (good, opening, sorry)}) == 1
    assert [(item.key, item.gate, item.action) for item in checked.findings] == [
        ("opening", "boilerplate", "flag"),
        ("sorry", "refusal", "reject"),
    ]


class Polyglot(VisionServer):
    """Answers in the languages that it is asked for, but for Japanese."""

    def answer(self, body):
        asked = body["response_format"]["json_schema"]["schema"]["properties"]
        return json.dumps({code: LANGUAGES[code if code != "ja" else "en"] for code in asked})


def test_layers_have_languages_of_their_own():
    rows = [row(LANGUAGES["zh"], layer="dense-zh"), row(LANGUAGES["fr"], layer="other")]
    checked = check_rows(rows, GatesConfig(), languages={"dense-zh": ["zh"]}, layers=["dense-zh"])
    assert [item.status for item in checked.rows] == ["ok", "ok"]
    assert "gates" not in checked.rows[1].provenance
    with pytest.raises(ConfigError, match="does not know 'sw', the language of the layer 'dense-zh'"):
        check_rows(rows, GatesConfig(), languages={"dense-zh": ["sw"]})


def test_shared_sentences_are_flagged():
    shared = "The background is a smooth and evenly lit wall of pale grey plaster."
    rows = [row(f"{LANGUAGES['en'][:-1]} number {key}. {shared}", key=str(key)) for key in range(6)]
    checked = check_rows([*rows, row(GOOD[1], key="other")], GatesConfig())
    assert checked.shared == {"dense": {shared: 6}}
    assert [item.provenance.get("flags") for item in checked.rows] == ["shared_sentence"] * 6 + [None]
    assert {item.status for item in checked.rows} == {"ok"}


def test_statistics():
    rows = [row("w " * count) for count in (3, 12, 15, 700)] + [
        row("", status="refusal"),
        row("", status="content-filter"),
        row("a b", layer="brief"),
    ]
    found = LayerStatistics(rows).to_json()
    dense = found["dense"]
    assert (dense["images"], dense["captions"], dense["refusal_rate"]) == (6, 4, pytest.approx(2 / 6, abs=1e-6))
    assert dense["histogram"] == {"0": 1, "10": 2, "600": 1}
    assert (dense["words"]["median"], dense["words"]["max"]) == (13.5, 700)
    assert found["brief"]["captions"] == 1
    assert LayerStatistics([row("", status="refusal")]).to_json()["dense"]["words"] == {}


PIPELINE = """\
run: run
stages:
  - {{name: images, type: ingest, source: {{type: scenes, count: 12}}}}
  - {{name: dense, type: caption, source: images, captioner: {{type: scene-graph, style: dense}}}}
  - {{name: checked, type: check-captions, source: dense{more}}}
"""


@pytest.fixture
def stage(tmp_path, lens_registry, monkeypatch):
    """Run a pipeline that ends in the stage; returns its artefact and what was said."""

    def run(more=""):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "pipeline.yaml").write_text(PIPELINE.format(more=more))
        said = io.StringIO()
        pipeline = load_pipeline("pipeline.yaml", lens_registry)
        return run_pipeline(pipeline, lens_registry, progress=Progress(stream=said, live=False))[
            "checked"
        ], said.getvalue()

    return run


def test_stage_leaves_the_old_layer_and_writes_a_new_one(stage, tmp_path):
    artifact, said = stage(", gates: {length: {min_words: 25}}")
    old = read_captions(load_artifact(str(tmp_path / "run" / "dense")))
    new = read_captions(artifact, layers=["dense"])
    short = {item.key for item in old if len(words(item.text)) < 25}
    assert 0 < len(short) < 12
    assert {item.key for item in new if item.status == "rejected"} == short
    assert {item.text for item in new if item.status == "ok"} == {item.text for item in old if item.key not in short}
    assert artifact.stats["captions"] == 12 - len(short)
    assert artifact.stats["rejected_by"] == {"length": len(short)}
    assert f"length rejects {len(short)} of 12, such as: " in said
    listed = [json.loads(line) for line in artifact.read_bytes("checks.jsonl").decode().splitlines()]
    assert {(item["key"], item["gate"], item["action"]) for item in listed} == {
        (key, "length", "reject") for key in short
    }
    assert all(item["name"].startswith("scene-") for item in listed)
    failed = [json.loads(line) for line in artifact.read_bytes("failures.jsonl").decode().splitlines()]
    assert {item["key"] for item in failed} == short
    numbers = artifact.read_json("statistics.json")
    assert numbers["layers"]["dense"]["by_status"] == {"ok": 12 - len(short), "rejected": len(short)}
    table = pq.read_table(tmp_path / "run" / "checked" / "captions.parquet").to_pylist()
    assert all(item["text"] == "" for item in table if item["status"] != "ok")


def test_stage_fails_when_too_much_is_rejected(stage, tmp_path):
    with pytest.raises(LensError, match=r"checked: \d+ of 12 captions are rejected.*max_rejected allows \(length"):
        stage(", gates: {length: {min_words: 40}}")
    assert not (tmp_path / "run" / "checked" / "manifest.json").exists()
    with pytest.raises(LensError, match="not one of 12 captions is left"):
        stage(", max_rejected: 1, gates: {length: {min_words: 400}}")


def test_stage_refuses_layers_that_are_not_there(stage):
    with pytest.raises(ConfigError, match=r"checked.layers: dense has no caption layer 'x' \(it has: dense\)"):
        stage(", layers: [x]")


@pytest.mark.parametrize("executor", ["process", "leases"])
def test_stage_checks_each_layer_in_the_language_it_was_asked_for_in(tmp_path, lens_registry, monkeypatch, executor):
    monkeypatch.chdir(tmp_path)
    with Polyglot() as server:
        asks = f"{{type: openai, model: m, base_url: '{server.url}', prompt: multilingual-1}}"
        Path("pipeline.yaml").write_text(
            PIPELINE.format(more="")
            .replace("count: 12", "count: 1")
            .replace("{type: scene-graph, style: dense}", f"{asks}, executor: {{type: {executor}}}")
        )
        progress = Progress(stream=io.StringIO(), live=False)
        made = run_pipeline(load_pipeline("pipeline.yaml", lens_registry), lens_registry, progress=progress)
    before, after = ({row.layer: row for row in read_captions(made[name])} for name in ("dense", "checked"))
    asked = {layer: row.provenance["asked_language"] for layer, row in before.items()}
    assert asked == {f"dense-{code}": code for code in ("en", "zh", "fr", "ja", "es")}
    rejected = [layer for layer, row in after.items() if row.status != "ok"]
    assert (rejected, after["dense-ja"].detail.partition(":")[0]) == (["dense-ja"], "language")


def test_what_a_model_says_cannot_steer_the_terminal(tmp_path, lens_registry, monkeypatch):
    class Painter(VisionServer):
        def answer(self, body):
            return "I'm sorry,\n\x1b[2Jno."

    monkeypatch.chdir(tmp_path)
    said = io.StringIO()
    with Painter() as server:
        asks = f"{{type: openai, model: m, base_url: '{server.url}'}}"
        Path("pipeline.yaml").write_text(PIPELINE.format(more="").replace("{type: scene-graph, style: dense}", asks))
        pipeline = load_pipeline("pipeline.yaml", lens_registry)
        with pytest.raises(LensError, match=r"got a caption \(12 times refusal: I'm sorry, \ufffd\[2Jno\.\)"):
            run_pipeline(pipeline, lens_registry, progress=Progress(stream=said, live=False))
    assert "no caption for" in said.getvalue()
    assert "\x1b[2J" not in said.getvalue()


def test_command_prints_what_the_gates_find(stage, lens, tmp_path):
    stage()
    done = lens("caption", "check", "run/dense", "--set", "length.min_words=30", "--examples", "1")
    assert done.returncode == 0, done.stderr
    assert "dense: 12 images" in done.stdout
    assert "to reject" in done.stdout
    told = json.loads(lens("caption", "check", "run/dense", "--json").stdout)
    assert told["layers"]["dense"]["captions"] == 12
    assert told["findings"] == []
    wrong = lens("caption", "check", "run/dense", "--set", "length.min_word=30")
    assert (wrong.returncode, "did you mean 'min_words'?" in wrong.stderr) == (2, True)
    assert lens("caption", "check", "run/nowhere").returncode == 2


@pytest.mark.parametrize(
    ("fault", "gate"),
    [
        ("loop", "loops"),
        ("boilerplate", "boilerplate"),
        ("wrong-language", "language"),
        ("reasoning-leak", "reasoning"),
        ("refusal-prose", "refusal"),
    ],
)
def test_faults_of_the_text_from_a_server_never_become_captions(fault, gate):
    """What the fake server says when all is well passes; what it says with the fault is rejected by the right gate."""
    config = OpenAIConfig(model="m", max_wait_s=0, base_url="http://127.0.0.1:9/v1")
    image = ImageItem(key="k", data=png(np.random.default_rng(0).integers(0, 255, (40, 60, 3))))
    with OpenAIServer(faults=["ok", fault]) as server:
        captioner = OpenAICaptioner(config.model_copy(update={"base_url": server.url}))
        good, bad = (captioner.caption([image])[0] for _ in range(2))
        captioner.close()
    assert failures(good.text, GatesConfig()) == []
    if bad.status == "ok":
        assert gate in [name for name, _ in failures(bad.text, GatesConfig())], bad.text
    else:
        assert bad.status == "refusal"
