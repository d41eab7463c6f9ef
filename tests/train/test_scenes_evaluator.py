"""The scenes evaluator: right pictures pass, each wrongness fails the skill it is about, and only unseen is asked."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lens_core.contracts import EvalTask
from lens_core.datasets.scenes.language import parse_prompt
from lens_core.datasets.scenes.render import render
from lens_core.datasets.scenes.world import COLOURS, SHAPES, Scene, SceneObject, is_held_out, relation, sample_scene
from lens_train.evaluation.scenes.config import SKILLS, ScenesEvaluatorConfig
from lens_train.evaluation.scenes.evaluator import ScenesEvaluator


def thing(colour, shape, quadrant="upper left", size="large", dx=0, dy=0):
    return SceneObject(colour=colour, shape=shape, size=size, quadrant=quadrant, dx=dx, dy=dy)


def scene(*objects, background="white"):
    return Scene(background=background, objects=objects)


def changed(original, number, **changes):
    objects = list(original.objects)
    objects[number] = replace(objects[number], **changes)
    return replace(original, objects=tuple(objects))


def with_more(original, *objects):
    return replace(original, objects=original.objects + objects)


def judged(skill, truth, picture, size=32):
    """The verdict on a picture (a scene, or pixels) where `truth` was asked for."""
    task = EvalTask(
        id="t", skill=skill, prompts={"brief": "?"}, height=size, width=size, truth={"scene": truth.to_json()}
    )
    pixels = render(picture, size) if isinstance(picture, Scene) else picture
    return ScenesEvaluator(ScenesEvaluatorConfig()).score(task, pixels)


def wanted_by(skill, truth, shown):
    """The rules in words of the scene graph, without looking at a picture."""
    a, b = truth.objects, shown.objects

    def facts(objects, *names):
        return Counter(tuple(getattr(item, name) for name in names) for item in objects)

    if skill in {"single", "two"}:
        return facts(a, "colour", "shape") == facts(b, "colour", "shape")
    if skill == "count":
        return len(a) == len(b)
    if skill == "colour":
        return facts(a, "colour") == facts(b, "colour")
    if skill == "position":
        return not facts(a, "colour", "shape", "quadrant") - facts(b, "colour", "shape", "quadrant")
    if skill == "relation":
        found = [[item for item in b if (item.colour, item.shape) == (x.colour, x.shape)] for x in a]
        return all(found) and relation(found[0][0], found[1][0]) == relation(*a)
    everything = ("colour", "shape", "size", "quadrant")
    return facts(a, *everything) == facts(b, *everything) and truth.background == shown.background


@pytest.mark.parametrize("size", [32, 64])
def test_perfect_pictures_are_right_in_every_skill(size):
    evaluator = ScenesEvaluator(ScenesEvaluatorConfig(prompts_per_skill=40, size=size))
    tasks = evaluator.tasks()
    wrong = [task.id for task in tasks if not evaluator.score(task, render(Scene.from_json(task.truth["scene"]), size))]
    assert wrong == []
    assert Counter(task.skill for task in tasks) == dict.fromkeys(SKILLS, 40)


def test_pictures_of_other_scenes_are_judged_as_their_scene_graphs_say():
    evaluator = ScenesEvaluator(ScenesEvaluatorConfig(prompts_per_skill=60))
    tasks = evaluator.tasks()
    truths = [Scene.from_json(task.truth["scene"]) for task in tasks]
    pictures = [render(truth, 32) for truth in truths]
    for shift in (1, 17):
        right = Counter()
        for number, task in enumerate(tasks):
            # A neighbour of the same skill: it has a like number of objects.
            other = number // 60 * 60 + (number + shift) % 60
            verdict = evaluator.score(task, pictures[other])
            assert verdict == wanted_by(task.skill, truths[number], truths[other]), task.id
            right[task.skill] += verdict
        # There are but six unseen single objects; the rest is nearly impossible to hit by chance, or a guess among few.
        assert right["single"] <= 25
        for skill in ("two", "position", "relation", "whole"):
            assert right[skill] <= 3
        assert right["colour"] <= 12


@pytest.mark.parametrize("skill", SKILLS)
def test_a_plain_or_noisy_picture_is_wrong(skill):
    objects = (thing("red", "circle"), thing("blue", "cross", "lower right"))
    truth = scene(*objects[: 1 if skill in {"single", "position"} else 2])
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for picture in (scene(), scene(background="black"), noise, np.full((32, 32, 3), 127, dtype=np.uint8)):
        assert not judged(skill, truth, picture)


ONE = scene(thing("red", "circle"))
TWO = scene(thing("red", "circle", "upper left"), thing("blue", "cross", "upper right"))
THREE = with_more(TWO, thing("green", "square", "lower left", "small"))
EXTRA = thing("yellow", "triangle", "lower right")


@pytest.mark.parametrize(
    ("skill", "truth", "picture"),
    [
        ("single", ONE, changed(ONE, 0, colour="green")),
        ("single", ONE, changed(ONE, 0, shape="square")),
        ("single", ONE, with_more(ONE, EXTRA)),
        ("single", ONE, with_more(ONE, thing("red", "circle", "lower right"))),
        ("two", TWO, scene(TWO.objects[0])),
        ("two", TWO, with_more(TWO, EXTRA)),
        ("two", TWO, scene(thing("blue", "circle"), thing("red", "cross", "upper right"))),  # colours swapped
        ("two", TWO, scene(thing("red", "circle"), thing("red", "circle", "upper right"))),
        ("count", TWO, scene(TWO.objects[0])),
        ("count", TWO, with_more(TWO, EXTRA)),
        ("count", THREE, TWO),
        ("colour", TWO, changed(TWO, 0, colour="purple")),
        ("colour", TWO, changed(TWO, 0, colour="blue")),  # blue twice instead of red and blue
        ("colour", TWO, scene(TWO.objects[0])),
        ("colour", TWO, with_more(TWO, EXTRA)),
        ("position", TWO, changed(TWO, 0, quadrant="lower left")),
        ("position", TWO, scene(thing("red", "circle", "upper right"), thing("blue", "cross", "upper left"))),
        ("position", TWO, scene(TWO.objects[0])),
        ("position", TWO, changed(TWO, 0, colour="cyan")),
        ("relation", TWO, scene(thing("red", "circle", "upper right"), thing("blue", "cross", "upper left"))),
        ("relation", TWO, scene(thing("red", "circle", "upper left"), thing("blue", "cross", "lower left"))),
        ("relation", TWO, scene(TWO.objects[1])),
        ("relation", TWO, changed(TWO, 1, shape="square")),
        ("whole", THREE, changed(THREE, 2, size="large")),
        ("whole", THREE, replace(THREE, background="grey")),
        ("whole", THREE, TWO),
        ("whole", THREE, with_more(THREE, EXTRA)),
        ("whole", THREE, changed(THREE, 2, quadrant="lower right")),
        ("whole", THREE, changed(THREE, 2, colour="cyan")),
        ("whole", THREE, changed(THREE, 2, shape="triangle")),
    ],
)
def test_the_wrongness_that_a_skill_is_about(skill, truth, picture):
    assert judged(skill, truth, truth)
    assert not judged(skill, truth, picture)


@pytest.mark.parametrize(
    ("skill", "truth", "picture"),
    [
        ("single", ONE, changed(ONE, 0, quadrant="lower right", size="small", dx=5, dy=-5)),
        ("single", ONE, replace(ONE, background="pink")),
        ("two", TWO, scene(thing("blue", "cross", "lower left", "small"), thing("red", "circle", "upper left"))),
        ("two", TWO, replace(TWO, background="black")),
        ("count", TWO, scene(thing("cyan", "square", "lower left"), thing("cyan", "square", "upper left", "small"))),
        ("colour", TWO, scene(thing("blue", "square", "lower left"), thing("red", "triangle", "upper left"))),
        ("position", TWO, with_more(replace(TWO, background="grey"), EXTRA)),
        ("position", TWO, changed(TWO, 0, size="small", dx=-5, dy=5)),
        ("relation", TWO, scene(thing("red", "circle", "lower left"), thing("blue", "cross", "lower right"))),
        ("relation", TWO, scene(thing("blue", "cross", "lower right", "small"), thing("red", "circle", "upper left"))),
        ("relation", TWO, with_more(TWO, EXTRA)),
        ("whole", THREE, changed(THREE, 0, dx=5, dy=5)),
        ("whole", THREE, replace(THREE, objects=THREE.objects[::-1])),
    ],
)
def test_what_a_skill_does_not_care_about(skill, truth, picture):
    assert judged(skill, truth, picture)


@pytest.mark.parametrize("skill", ["single", "two", "count", "colour", "whole"])
def test_scribbles_beside_the_right_objects_count_against_it(skill):
    truth = {"single": ONE, "whole": THREE}.get(skill, TWO)
    picture = render(truth, 32)
    scribbled = picture.copy()
    # A chequerboard of two colours resembles no object.
    scribbled[18:30, 18:30] = np.where(np.indices((12, 12)).sum(0)[..., None] % 2, COLOURS["red"], COLOURS["blue"])
    assert judged(skill, truth, picture)
    assert not judged(skill, truth, scribbled)


@pytest.mark.parametrize("seed", [0, 1])
def test_only_compositions_that_training_never_shows(seed):
    evaluator = ScenesEvaluator(ScenesEvaluatorConfig(prompts_per_skill=60, seed=seed))
    asked = [Scene.from_json(task.truth["scene"]) for task in evaluator.tasks()]
    assert all(is_held_out(truth) for truth in asked)
    shown = {sample_scene(seed, number, split="train").composition for number in range(4000)}
    assert not shown & {truth.composition for truth in asked}


def test_each_skill_asks_for_the_numbers_of_objects_that_it_needs():
    counts = {skill: set() for skill in SKILLS}
    for task in ScenesEvaluator(ScenesEvaluatorConfig(prompts_per_skill=12)).tasks():
        counts[task.skill].add(len(task.truth["scene"]["objects"]))
    assert counts == {
        "single": {1},
        "two": {2},
        "count": {1, 2, 3},
        "colour": {2, 3},
        "position": {1, 2},
        "relation": {2},
        "whole": {3},
    }


def test_single_objects_cover_every_colour_and_shape():
    tasks = ScenesEvaluator(ScenesEvaluatorConfig(skills=["single"])).tasks()
    things = [task.truth["scene"]["objects"][0] for task in tasks]
    assert {item["colour"] for item in things} == set(COLOURS)
    assert {item["shape"] for item in things} == set(SHAPES)


def test_every_task_is_worded_in_every_style_and_the_words_are_true():
    for task in ScenesEvaluator(ScenesEvaluatorConfig(prompts_per_skill=15)).tasks():
        truth = Scene.from_json(task.truth["scene"])
        assert list(task.prompts) == ["alt-text", "brief", "dense"]
        assert all(task.prompts.values())
        brief, _, _ = parse_prompt(task.prompts["brief"])
        assert sorted((said["colour"], said["shape"]) for said in brief) == list(truth.composition)
        dense, background, relations = parse_prompt(task.prompts["dense"])
        said = {(item["colour"], item["shape"], item["size"], item["quadrant"]) for item in dense}
        assert said == {(item.colour, item.shape, item.size, item.quadrant) for item in truth.objects}
        assert background == truth.background
        there = {(item.colour, item.shape): item for item in truth.objects}
        for first, words, second in relations:
            a, b = (there[dense[number]["colour"], dense[number]["shape"]] for number in (first, second))
            assert relation(a, b) == words


def test_styles_skills_size_and_seed_are_as_configured():
    def tasks(**options):
        return ScenesEvaluator(ScenesEvaluatorConfig(prompts_per_skill=6, **options)).tasks()

    only = tasks(skills=["whole", "single"], styles=["brief"], size=64)
    assert [task.skill for task in only] == ["whole"] * 6 + ["single"] * 6
    assert all(list(task.prompts) == ["brief"] and (task.height, task.width) == (64, 64) for task in only)
    truths = [[task.truth for task in tasks(seed=seed)] for seed in (0, 0, 1)]
    assert truths[0] == truths[1]
    assert truths[0] != truths[2]
    # What is asked for a skill does not depend on which others are.
    assert [task.truth for task in tasks(skills=["single"])] == truths[0][:6]


def test_skills_ask_about_scenes_of_their_own():
    """Some want the same number of objects; with the same scenes, one skill's luck would be the other's."""
    tasks = ScenesEvaluator(ScenesEvaluatorConfig(prompts_per_skill=20, skills=["two", "relation"])).tasks()
    truths = [str(task.truth) for task in tasks]
    assert len(set(truths)) == 40
