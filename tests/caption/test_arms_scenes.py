"""What captions of scenes claim, and the bits they state: against enumeration in plain Python, and closed forms."""

from __future__ import annotations

import itertools
import math
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_caption.arms.changes import apply_changes
from lens_caption.arms.config import (
    AltTextChange,
    BriefChange,
    RemoveChange,
    ShuffleChange,
    StructuredChange,
    TruncateChange,
)
from lens_caption.arms.scene_bits import bits_stated, is_true, probability
from lens_caption.arms.scene_claims import ObjectClaim, SceneClaims, read_claims
from lens_core.datasets.scenes.language import STYLES, describe
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

RED_CIRCLE, BLUE_CROSS = ObjectClaim("red", "circle"), ObjectClaim("blue", "cross")

OBJECT_CLAIMS = st.builds(
    ObjectClaim,
    st.sampled_from([None, *COLOURS]),
    st.sampled_from([None, *SHAPES]),
    st.sampled_from([None, *SIZES]),
    st.sampled_from([None, *QUADRANTS]),
)
RELATION_CLAIMS = st.tuples(
    st.sampled_from([(0, 1), (1, 0)]), st.sampled_from(["left of", "right of", "above", "below"])
).map(lambda drawn: (drawn[0][0], drawn[1], drawn[0][1]))
SCENES = st.builds(sample_scene, st.integers(0, 2**31), st.just(0))


@st.composite
def claims(draw, count):
    objects = draw(st.lists(OBJECT_CLAIMS, max_size=3))
    return SceneClaims(
        objects=tuple(objects),
        count=count,
        background=draw(st.sampled_from([None, *BACKGROUNDS])),
        relations=(draw(RELATION_CLAIMS),) if len(objects) >= 2 and draw(st.booleans()) else (),
    )


@cache
def all_scenes(count):
    """Every scene of so many objects, in the order in which they are drawn, before backgrounds."""
    kinds = list(itertools.product(COLOURS, SHAPES))
    return [
        tuple(
            SceneObject(colour=colour, shape=shape, size=size, quadrant=quadrant)
            for (colour, shape), quadrant, size in zip(chosen, quadrants, sizes, strict=True)
        )
        for chosen in itertools.permutations(kinds, count)
        for quadrants in itertools.permutations(QUADRANTS, count)
        for sizes in itertools.product(SIZES, repeat=count)
    ]


def holds(said, objects):
    """Some different objects are as claimed, and stand as claimed."""
    return any(
        all(
            wanted in (None, getattr(item, fact))
            for claim, item in zip(said.objects, chosen, strict=True)
            for fact, wanted in vars(claim).items()
        )
        and all(relation(chosen[a], chosen[b]) == word for a, word, b in said.relations)
        for chosen in itertools.permutations(objects, len(said.objects))
    )


@pytest.mark.parametrize("count", [1, 2])
def test_probability_is_the_share_of_an_enumerated_world(count):
    """A world of one object has 192 scenes before backgrounds, one of two 26,496 in the order of drawing."""
    assert len(all_scenes(count)) == {1: 192, 2: 26_496}[count]

    @settings(max_examples=12, deadline=None)
    @given(claims(count))
    def same(said):
        share = sum(holds(said, objects) for objects in all_scenes(count)) / len(all_scenes(count))
        background = 1 / len(BACKGROUNDS) if said.background else 1
        assert probability(said) == pytest.approx(share * background / 3)

    same()


@settings(max_examples=150, deadline=None)
@given(st.one_of(claims(None), claims(1), claims(2), claims(3)), SCENES)
def test_truth_is_the_same_by_both_ways(said, scene):
    expected = (
        holds(said, scene.objects)
        and said.count in (None, len(scene.objects))
        and said.background in (None, scene.background)
    )
    assert is_true(said, scene) == expected


@pytest.mark.parametrize(
    "said",
    [
        SceneClaims(objects=(RED_CIRCLE,)),
        SceneClaims(objects=(ObjectClaim("red"), ObjectClaim("blue")), relations=((0, "above", 1),)),
        SceneClaims(objects=(ObjectClaim(shape="circle", size="small"),), count=3, background="pink"),
        SceneClaims(objects=(ObjectClaim(quadrant="upper left"),), count=2),
        SceneClaims(objects=(ObjectClaim(size="large"),) * 3),
    ],
)
def test_probability_is_how_often_the_world_fits(said):
    """The world itself is asked: 20,000 scenes drawn by lot."""
    scenes = _drawn()
    fits = probability(said)
    found = sum(holds(said, scene.objects) and is_true(said, scene) for scene in scenes)
    assert abs(found - fits * len(scenes)) < 4.5 * math.sqrt(len(scenes) * fits * (1 - fits))


@cache
def _drawn():
    return [sample_scene(11, number) for number in range(20_000)]


@pytest.mark.parametrize("said", [1, 2, 3])
def test_brief_in_closed_form(said):
    """Of all sets of n kinds, those that hold the m that are named."""
    scene = sample_scene(5, 0, num_objects=said)
    fits = sum(math.comb(24 - said, n - said) / math.comb(24, n) for n in range(said, 4)) / 3
    assert bits_stated(read_claims(describe(scene, "brief"))) == pytest.approx(-math.log2(fits))


@settings(max_examples=80, deadline=None)
@given(SCENES, st.integers(0, 99))
def test_dense_captions_are_read_whole(scene, key):
    said = read_claims(describe(scene, "dense", key=str(key)))
    assert (said.count, said.background, said.contradictory) == (len(scene.objects), scene.background, False)
    objects = {(item.colour, item.shape, item.size, item.quadrant) for item in scene.objects}
    assert {tuple(vars(claim).values()) for claim in said.objects} == objects
    n = len(scene.objects)
    arrangements = math.perm(24, n) * math.perm(4, n) * 2**n / math.factorial(n)
    assert bits_stated(said) == pytest.approx(math.log2(3 * 4 * arrangements))


@settings(max_examples=150, deadline=None)
@given(
    SCENES,
    st.sampled_from(STYLES),
    st.integers(0, 99),
    st.one_of(
        st.builds(TruncateChange, words=st.integers(1, 30)),
        st.just(ShuffleChange()),
        st.just(StructuredChange()),
        st.just(BriefChange()),
        st.just(AltTextChange(useless=0)),
        st.builds(
            RemoveChange,
            classes=st.lists(st.sampled_from(["colour", "size", "number", "shape", "place", "relation"]), min_size=1),
        ),
    ),
)
def test_changes_that_only_leave_out_stay_true_and_state_no_more(scene, style, seed, change):
    caption = describe(scene, style, key=str(seed))
    text, _ = apply_changes(caption, [change], "scenes", seed=seed, key="k")
    before, after = read_claims(caption), read_claims(text)
    assert is_true(before, scene)
    assert is_true(after, scene), (caption, text)
    assert bits_stated(after) <= bits_stated(before) + 1e-9
    if change.type in {"shuffle", "structured"}:
        assert bits_stated(after) == pytest.approx(bits_stated(before))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", SceneClaims()),
        ("geometric art", SceneClaims()),
        ("red shape", SceneClaims(objects=(ObjectClaim("red"),))),
        ("a circle", SceneClaims(objects=(ObjectClaim(shape="circle"),))),
        ("two objects on grey.", SceneClaims(count=2, background="grey")),
        ("Upper left: small red circle.", SceneClaims(objects=(ObjectClaim("red", "circle", "small", "upper left"),))),
        (
            "the red circle is above the blue cross. a small red circle in the upper left. a blue cross",
            SceneClaims(
                objects=(ObjectClaim("red", "circle", "small", "upper left"), BLUE_CROSS), relations=((0, "above", 1),)
            ),
        ),
        (  # which circle is not said: nothing new
            "a small circle. a large circle. the circle is above the circle.",
            SceneClaims(objects=(ObjectClaim(None, "circle", "small"), ObjectClaim(None, "circle", "large"))),
        ),
    ],
)
def test_claims_by_example(text, said):
    assert read_claims(text) == said


@pytest.mark.parametrize(
    "text",
    [
        "a small red circle. a large red circle.",
        "a red circle in the upper left. a blue cross in the upper left.",
        "one object on white. a red circle and a blue cross",
        "a red circle. a blue circle. a red cross. a blue cross.",
        "a red circle in the upper left. a blue cross in the lower left. the red circle is below the blue cross.",
    ],
)
def test_what_no_scene_fits_has_no_bits(text):
    said = read_claims(text)
    assert math.isinf(bits_stated(said))
    assert not any(is_true(said, sample_scene(0, number)) for number in range(200))


def test_bits_of_single_facts():
    """Half of all is one bit; nothing said is none."""
    assert bits_stated(SceneClaims()) == 0
    assert bits_stated(SceneClaims(background="pink")) == pytest.approx(2)
    assert bits_stated(SceneClaims(count=2)) == pytest.approx(math.log2(3))
    assert bits_stated(SceneClaims(count=1, objects=(ObjectClaim(size="small"),))) == pytest.approx(math.log2(6))
    item = SceneObject(colour="red", shape="cross", size="small", quadrant="upper left")
    scene = Scene(background="pink", objects=(item,))
    assert is_true(SceneClaims(objects=(ObjectClaim("red", "cross", "small", "upper left"),)), scene)
    assert not is_true(SceneClaims(objects=(ObjectClaim("red", "cross", "large"),)), scene)
