"""GenEval's rules on made-up detections: numbers, colours, places, and what must not be there."""

from __future__ import annotations

import numpy as np
import pytest

from lens_train.evaluation.geneval.prompts import GenevalPrompt
from lens_train.evaluation.geneval.rules import Detection, does, relations


def prompt(*include, exclude=(), tag="x"):
    return GenevalPrompt.model_validate(
        {"tag": tag, "prompt": "a photo", "include": list(include), "exclude": list(exclude)}
    )


def wanted(name, count=1, **more):
    return {"class": name, "count": count, **more}


def seen(*boxes):
    """Detections of a class, the surest first."""
    return [Detection(box, 0.9 - 0.1 * number) for number, box in enumerate(boxes)]


def box(x, y, width=10, height=10):
    """Around a centre."""
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def no_colours(name, boxes):
    raise AssertionError("no colour was asked for")


# --- how many ---


def test_as_many_as_asked_for_or_more():
    two = prompt(wanted("dog", 2))
    for number in range(4):
        found = {"dog": seen(*[box(20 * i, 0) for i in range(number)])}
        assert does(two, found, no_colours) == (number >= 2)
    assert not does(two, {}, no_colours)
    assert not does(two, {"cat": seen(box(0, 0), box(9, 9))}, no_colours)


def test_what_is_excluded_may_be_there_less_often():
    two = prompt(wanted("dog", 2), exclude=[wanted("dog", 3)])
    verdicts = [does(two, {"dog": seen(*[box(20 * i, 0) for i in range(n)])}, no_colours) for n in range(5)]
    assert verdicts == [False, False, True, False, False]


def test_every_object_must_be_there():
    both = prompt(wanted("dog"), wanted("cat"))
    dog, cat = {"dog": seen(box(0, 0))}, {"cat": seen(box(9, 0))}
    assert does(both, dog | cat, no_colours)
    assert not does(both, dog, no_colours)
    assert not does(both, cat, no_colours)


# --- of which colour ---


def test_only_the_surest_objects_are_looked_at():
    asked = []

    def colours(name, boxes):
        asked.append((name, list(boxes)))
        return ["red" if one[0] < 50 else "blue" for one in boxes]

    red, blue = box(10, 10), box(90, 10)
    one_red = prompt(wanted("bus", color="red"))
    assert does(one_red, {"bus": seen(red, blue)}, colours)
    assert not does(one_red, {"bus": seen(blue, red)}, colours)
    assert asked == [("bus", [red]), ("bus", [blue])]
    two_red = prompt(wanted("bus", 2, color="red"))
    assert does(two_red, {"bus": seen(red, red, blue)}, colours)
    assert not does(two_red, {"bus": seen(red, blue, red)}, colours)


def test_each_object_has_its_own_colour():
    pair = prompt(wanted("bus", color="red"), wanted("dog", color="blue"))
    found = {"bus": seen(box(0, 0)), "dog": seen(box(50, 0))}
    for bus, dog in (("red", "blue"), ("blue", "red"), ("red", "red"), ("blue", "blue")):
        assert does(pair, found, lambda name, boxes, own={"bus": bus, "dog": dog}: [own[name]]) == (
            (bus, dog) == ("red", "blue")
        )


# --- where ---


@pytest.mark.parametrize(
    ("offset", "named"),
    [
        ((-40, 0), {"left of"}),
        ((40, 0), {"right of"}),
        ((0, -40), {"above"}),
        ((0, 40), {"below"}),
        ((-40, -40), {"left of", "above"}),
        ((40, 40), {"right of", "below"}),
        ((0, 0), set()),
        ((1.9, 0), set()),  # both boxes are 10 wide: less than a tenth of 20 is no offset
        ((3.9, 0), set()),  # beyond the tenth by 1.9, less than half of 3.9
        ((4.1, 0), {"right of"}),
        ((40, 15), {"right of"}),  # beyond the tenth by 13, less than half of 42.7
    ],
)
def test_places_by_centres(offset, named):
    assert relations(box(*offset), box(0, 0)) == named
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert relations(box(0, 0), box(*offset)) == {opposite[one] for one in named}


def test_large_boxes_leave_more_slack():
    assert relations(box(20, 0, width=10), box(0, 0, width=10)) == {"right of"}
    assert relations(box(20, 0, width=100), box(0, 0, width=10)) == set()  # 20 less 11 is 9, less than half
    assert relations(box(20, 0, width=100, height=1), box(0, 0, width=10)) == set()
    assert relations(box(0, 20, width=100), box(0, 0, width=10)) == {"below"}  # only the size along the axis counts


def test_places_agree_with_the_rule_as_published():
    """The definition in vectors: the offset less a tenth of both sizes, over the distance, beyond a half."""
    rng = np.random.default_rng(0)
    counted = dict.fromkeys(("left of", "right of", "above", "below"), 0)
    for _ in range(500):
        a, b = (np.sort(rng.uniform(0, 100, (2, 2)), axis=0) for _ in range(2))  # corners, then x and y
        offset = a.mean(0) - b.mean(0)
        sizes = (a[1] - a[0]) + (b[1] - b[0])
        left = np.sign(offset) * np.clip(np.abs(offset) - 0.1 * sizes, 0, None) / np.linalg.norm(offset)
        expected = {
            name
            for name, holds in zip(counted, (left[0] < -0.5, left[0] > 0.5, left[1] < -0.5, left[1] > 0.5), strict=True)
            if holds
        }
        assert relations(tuple(a.ravel()), tuple(b.ravel())) == expected
        for name in expected:
            counted[name] += 1
    assert min(counted.values()) > 50


def test_a_place_is_seen_from_an_earlier_object():
    left = prompt(wanted("dog"), wanted("cat", position=["left of", 0]))
    assert does(left, {"dog": seen(box(60, 0)), "cat": seen(box(0, 0))}, no_colours)
    assert not does(left, {"dog": seen(box(0, 0)), "cat": seen(box(60, 0))}, no_colours)
    assert not does(left, {"cat": seen(box(0, 0))}, no_colours)
    # The surest dog counts, wherever others are.
    assert not does(left, {"dog": seen(box(-60, 0), box(60, 0)), "cat": seen(box(0, 0))}, no_colours)
    # And of several objects, all must stand there.
    two = prompt(wanted("dog", 2), wanted("cat", position=["left of", 0]))
    assert does(two, {"dog": seen(box(60, 0), box(60, 20)), "cat": seen(box(0, 0))}, no_colours)
    assert not does(two, {"dog": seen(box(60, 0), box(-60, 0)), "cat": seen(box(0, 0))}, no_colours)


def test_the_place_of_what_stands_nowhere():
    assert relations(box(5, 5), box(5, 5, width=50, height=2)) == set()
    assert relations((3.0, 3.0, 3.0, 3.0), (3.0, 3.0, 3.0, 3.0)) == set()
    assert relations((0.0, 0.0, 0.0, 0.0), (1e9, 0.0, 1e9, 0.0)) == {"left of"}
