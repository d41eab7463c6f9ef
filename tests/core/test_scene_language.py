"""Scenes in words: dense captions say all, brief ones no more than they should; and the expander keeps what it is told.

What a prompt says is known here because the prompt is put together from it, not because `parse_prompt` says so.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_core.datasets.scenes.language import LANGUAGE_VERSION, STYLES, describe, parse_prompt
from lens_core.datasets.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    QUADRANTS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    relation,
    sample_scene,
)

MANY = 3000
NUMBERS = {1: ("one", "1"), 2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4"), 5: ("five", "5")}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
RELATION_WORDS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}


def described(style, number=MANY, *, seed=0):
    """Scenes and their captions."""
    for index in range(number):
        scene = sample_scene(seed, index)
        yield scene, describe(scene, style, seed=seed, key=str(index))


def facts(item):
    return item.colour, item.shape, item.size, item.quadrant


def read(text):
    """The objects that a complete text says, as `SceneObject`s, and the rest."""
    said, background, relations = parse_prompt(text)
    return [SceneObject(**item) for item in said], background, relations


@pytest.fixture
def expand(lens_registry):
    expander = lens_registry.build("rewriters", lens_registry.parse("rewriters", "scene-expander"))
    return lambda prompt, seed=0: expander.rewrite([prompt], seed=seed)[0]


# --- captions


def test_the_wording_has_a_version():
    # Pinned: whoever changes a wording raises LANGUAGE_VERSION, which tells old captions from new ones.
    scene = sample_scene(1, 5, split="held-out", num_objects=3)
    assert LANGUAGE_VERSION == 1
    assert describe(scene, "alt-text", key="a") == "a green triangle"
    assert describe(scene, "brief", key="a") == "a yellow triangle and a green triangle and a purple square"
    assert describe(scene, "dense", key="a") == (
        "lower left: small yellow triangle. upper right: small purple square. upper left: large green triangle. "
        "the yellow triangle is left of the purple square. the purple square is right of the green triangle. "
        "there are three objects on a black background."
    )
    assert describe(scene, "dense", seed=1, key="b") == (
        "black background, three objects. lower left: small yellow triangle. "
        "a large green triangle in the upper left. upper right: small purple square. "
        "the yellow triangle is below the green triangle. the green triangle is left of the purple square."
    )


def test_a_scene_can_be_redrawn_from_a_dense_caption():
    for scene, text in described("dense"):
        objects, background, _ = read(text)
        assert sorted(map(facts, objects)) == sorted(map(facts, scene.objects)), text
        assert background == scene.background, text


def test_a_dense_caption_counts_right():
    words = ("no", "one object", "two objects", "three objects")
    for scene, text in described("dense", 500):
        assert words[len(scene.objects)] in text
        assert sum(word in text for word in words[1:]) == 1


def test_the_relations_in_a_dense_caption_are_true_and_tie_all_objects():
    for scene, text in described("dense"):
        objects, _, relations = read(text)
        assert len(relations) == len(scene.objects) - 1
        for a, where, b in relations:
            assert relation(objects[a], objects[b]) == where, text
        assert {number for a, _, b in relations for number in (a, b)} == (
            set(range(len(objects))) if relations else set()
        )


def test_a_relation_never_speaks_of_one_of_two_alike():
    kind = {"colour": "red", "shape": "circle"}
    objects = (
        SceneObject(**kind, size="small", quadrant="lower left"),
        SceneObject(**kind, size="large", quadrant="upper right"),
        SceneObject(colour="blue", shape="cross", size="small", quadrant="lower right"),
    )
    scene = Scene(background="grey", objects=objects)
    for key in range(50):
        text = describe(scene, "dense", key=str(key))
        assert "the red circle" not in text
        assert sorted(map(facts, read(text)[0])) == sorted(map(facts, objects))


def test_a_brief_caption_names_every_object_and_no_more():
    allowed = {"a", "and", *COLOURS, *SHAPES}
    for scene, text in described("brief"):
        assert set(text.split()) <= allowed, text
        said, background, relations = parse_prompt(text)
        assert Counter((item["colour"], item["shape"]) for item in said) == Counter(scene.composition)
        assert all(item.keys() == {"colour", "shape"} for item in said)
        assert (background, relations) == (None, [])


def test_alt_text_is_true_of_one_object_or_says_nothing():
    nothing = 0
    for scene, text in described("alt-text"):
        words = set(text.split())
        colours, shapes = words & set(COLOURS), words & set(SHAPES)
        nothing += not colours | shapes
        assert len(colours) <= 1
        assert len(shapes) <= 1
        assert any(colours <= {item.colour} and shapes <= {item.shape} for item in scene.objects)
        assert not words & {*SIZES, *BACKGROUNDS, "left", "right", "upper", "lower", "above", "below"}
    assert 0.2 < nothing / MANY < 0.4


@pytest.mark.parametrize("style", STYLES)
def test_the_wording_varies_with_key_and_seed_and_is_stable(style):
    scene = sample_scene(0, 1, num_objects=3)
    texts = [describe(scene, style, key=str(key)) for key in range(60)]
    assert texts == [describe(scene, style, key=str(key)) for key in range(60)]
    assert len(set(texts)) > 4
    assert [describe(scene, style, seed=1, key=str(key)) for key in range(60)] != texts


def test_every_wording_and_order_comes_up():
    texts = [text for _, text in described("dense", 400)]
    for words in ("there is one", "there are", "background, ", " on a ", "in the upper left", "upper left: "):
        assert any(words in text for text in texts)
    starts = Counter(text.split(" ")[0] in {"there", "one", "two", "three", *BACKGROUNDS} for text in texts)
    assert min(starts.values()) > 50


def test_the_order_of_telling_is_no_order_of_the_world():
    scene = sample_scene(0, 1, num_objects=3)
    orders = {tuple(map(facts, read(describe(scene, "dense", key=str(key)))[0])) for key in range(100)}
    assert len(orders) == 6


# --- prompts


@pytest.mark.parametrize(
    ("prompt", "objects"),
    [
        ("a red circle", [("red", "circle")]),
        ("RED CIRCLE", [("red", "circle")]),
        ("the red circle and the blue cross", [("red", "circle"), ("blue", "cross")]),
        ("two red circles", [("red", "circle")] * 2),
        ("3 yellow crosses", [("yellow", "cross")] * 3),
        ("red circles", [("red", "circle")] * 2),
        ("one red circle and two blue squares", [("red", "circle"), ("blue", "square"), ("blue", "square")]),
        ("a red circle. the red circle is in the upper left", [("red", "circle")]),
        ("a red circle and a red circle", [("red", "circle")] * 2),
        ("zero red circles", []),
        ("a red dog and a circle", []),
        ("redcircle", []),
        ("", []),
    ],
)
def test_objects_of_a_prompt(prompt, objects):
    said, _, _ = parse_prompt(prompt)
    assert [(item["colour"], item["shape"]) for item in said] == objects


@pytest.mark.parametrize("number", ["five", "7", "10", "1234567890" * 500])
def test_more_than_a_scene_holds_is_more(number):
    assert len(parse_prompt(f"{number} red circles")[0]) > len(QUADRANTS)


@pytest.mark.parametrize(
    ("prompt", "background"),
    [
        ("a red circle on a grey background", "grey"),
        ("a red circle on a gray background", "grey"),
        ("a red circle on pink", "pink"),
        ("a red circle against a plain white background", "white"),
        ("black background, a red circle", "black"),
        ("a red circle on the black background", "black"),
        ("a red circle", None),
        ("a red circle in the white house", None),
    ],
)
def test_the_background_of_a_prompt(prompt, background):
    assert parse_prompt(prompt)[1] == background


@pytest.mark.parametrize(
    ("prompt", "relations"),
    [
        ("a red circle left of a blue cross", [(0, "left of", 1)]),
        ("a red circle is to the right of a blue cross", [(0, "right of", 1)]),
        ("a red circle on the left of a blue cross", [(0, "left of", 1)]),
        ("a red circle over a blue cross under a green square", [(0, "above", 1), (1, "below", 2)]),
        ("a blue cross and a red circle. the red circle is on top of the blue cross", [(1, "above", 0)]),
        ("two red circles above a blue cross", [(0, "above", 2), (1, "above", 2)]),
        ("two red circles are above a blue cross", [(0, "above", 2), (1, "above", 2)]),
        ("a red circle and a blue cross", []),
        ("a red circle over a pink background", []),
    ],
)
def test_relations_of_a_prompt(prompt, relations):
    assert parse_prompt(prompt)[2] == relations


@pytest.mark.parametrize(("word", "size"), [(word, size) for size, words in SIZE_WORDS.items() for word in words])
def test_sizes_of_a_prompt(word, size):
    assert parse_prompt(f"a {word} red circle")[0][0]["size"] == size
    assert parse_prompt(f"a {word}, red circle")[0][0]["size"] == size


@pytest.mark.parametrize("place", ["top left", "top-left", "upper left", "upper-left"])
def test_places_of_a_prompt(place):
    for prompt in (f"a red circle in the {place}", f"a red circle at the {place} corner", f"{place}: red circle"):
        assert parse_prompt(prompt)[0][0]["quadrant"] == "upper left"


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_around_an_object_is_no_matter(before, after):
    parse_prompt(before + after)
    said = parse_prompt(f"{before}. a red circle. {after}")[0]
    assert ("red", "circle") in {(item["colour"], item["shape"]) for item in said}


# --- the expander


def composed(rng):
    """A short prompt by lot, and what it says: objects (None where it is silent), background, and relations."""
    said, relations, text, last = [], [], "", []
    for number in range(rng.choice([1, 1, 2, 2, 3])):
        count = rng.choice([1, 1, 1, 1, 2, 3, 5])
        colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
        size = rng.choice([None, None, *SIZES])
        # Several objects in one place would contradict each other; that is a case of its own.
        place = rng.choice([None, None, *QUADRANTS]) if count == 1 else None
        article = rng.choice(("a", "one", "")) if count == 1 else rng.choice(NUMBERS[count])
        noun = shape if count == 1 else f"{shape}{'es' if shape == 'cross' else 's'}"
        phrase = " ".join(word for word in (article, size and rng.choice(SIZE_WORDS[size]), colour, noun) if word)
        if place:
            vertical, horizontal = place.split()
            vertical = rng.choice([vertical, {"upper": "top", "lower": "bottom"}[vertical]])
            phrase += f" {rng.choice(['in', 'at'])} the {vertical}{rng.choice(' -')}{horizontal}"
        these = list(range(len(said), len(said) + count))
        said += [{"colour": colour, "shape": shape, "size": size, "quadrant": place}] * count
        if number:
            where = rng.choice([None, *RELATION_WORDS])
            relations += [(a, where, b) for a in last for b in these if where]
            text += f" {rng.choice(RELATION_WORDS[where])} " if where else rng.choice([" and ", ", ", " with "])
        text += phrase
        last = these
    background = rng.choice([None, None, *BACKGROUNDS])
    if background:
        text += rng.choice([" on a {} background", ", {} background", " on {}"]).format(background)
    return text, said, background, relations


def keeps(objects, said, relations):
    """Whether some reading of the objects has all that was said of them."""
    return any(
        all(
            all(value in (None, getattr(item, name)) for name, value in wanted.items())
            for item, wanted in zip(order, said, strict=True)
        )
        and all(relation(order[a], order[b]) == where for a, where, b in relations)
        for order in itertools.permutations(objects)
    )


def is_possible(said, relations):
    """Whether any arrangement has all that was said."""
    return len(said) <= len(QUADRANTS) and any(
        keeps(
            [
                SceneObject(**{**wanted, "size": wanted["size"] or "small", "quadrant": place})
                for wanted, place in zip(said, places, strict=True)
            ],
            said,
            relations,
        )
        for places in itertools.permutations(QUADRANTS, len(said))
    )


def test_the_expander_keeps_what_is_said_and_completes_the_rest(expand):
    kinds = Counter()
    for seed in range(1500):
        prompt, said, background, relations = composed(random.Random(seed))
        text = expand(prompt, seed)
        complete = background and all(item["size"] and item["quadrant"] for item in said)
        if complete or not is_possible(said, relations):
            kinds["complete" if complete else "impossible"] += 1
            assert text == prompt
            continue
        kinds["expanded"] += 1
        objects, plain, stated = read(text)
        assert len(objects) == len(said), (prompt, text)
        assert len({item.quadrant for item in objects}) == len(objects), (prompt, text)
        assert plain in BACKGROUNDS
        assert background in (None, plain), (prompt, text)
        assert keeps(objects, said, relations), (prompt, text)
        assert all(relation(objects[a], objects[b]) == where for a, where, b in stated), (prompt, text)
    assert kinds["expanded"] > 600
    assert kinds["impossible"] > 100
    assert kinds["complete"] > 5


def test_an_expansion_is_worded_as_dense_captions_are(expand):
    words = {word for _, text in described("dense", 500) for word in text.replace(".", "").split()}
    for seed in range(50):
        assert set(expand("a red circle and a blue cross", seed).replace(".", "").split()) <= words


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "   ",
        "a dog on the beach",
        "circle",
        "a red dog",
        "colourful shapes",
        "一个红色的圆",
        "five red circles",
        "two red circles and three blue crosses",
        "a red circle in the upper left and a blue cross in the upper left",
        "two red circles in the upper left",
        "a red circle left of a blue cross. the blue cross is left of the red circle",
        "a red circle in the upper left below a blue cross",
        "three red circles above a blue cross",
        "a large red circle in the upper left on grey",
    ],
)
def test_what_it_cannot_expand_stays(expand, prompt):
    for seed in range(5):
        assert expand(prompt, seed) == prompt


def test_dense_prompts_stay_and_so_does_an_expansion(expand):
    for _, text in described("dense", 300):
        assert expand(text) == text
    for prompt in ("a red circle", "two blue crosses", "four red circles", "a red circle above a blue cross"):
        for seed in range(10):
            text = expand(prompt, seed)
            assert text != prompt
            assert expand(text, seed + 1) == text


def test_a_brief_caption_becomes_a_scene_of_its_composition(expand):
    for scene, text in described("brief", 300):
        objects, _, _ = read(expand(text))
        assert tuple(sorted((item.colour, item.shape) for item in objects)) == scene.composition


def test_the_seed_decides_what_was_left_open(expand):
    texts = [expand("a red circle", seed) for seed in range(100)]
    assert texts == [expand("a red circle", seed) for seed in range(100)]
    read_back = [read(text) for text in texts]
    assert {background for _, background, _ in read_back} == set(BACKGROUNDS)
    assert {objects[0].quadrant for objects, _, _ in read_back} == set(QUADRANTS)
    assert {objects[0].size for objects, _, _ in read_back} == set(SIZES)


def test_prompts_in_one_batch_do_not_touch_each_other(lens_registry, expand):
    expander = lens_registry.build("rewriters", lens_registry.parse("rewriters", "scene-expander"))
    prompts = ["a red circle", "", "a dog", "a red circle", "two blue crosses"]
    assert expander.rewrite(prompts, seed=4) == [expand(prompt, 4) for prompt in prompts]
