"""An exact picture has the same bits alone and in any company."""

from __future__ import annotations

import random
from itertools import count

import pytest

from lens_serve.engine.messages import Cancel
from lens_serve.engine.texts import Texts
from serve.engine.bench import KINDS, Bench
from serve.engine.process import draw_of

NUMBERS = count()
SIZES = [(8, 8), (16, 16), (12, 24), (32, 8), (20, 20)]
PROMPTS = ["", "a red circle", "two blue squares on green, and a star above them"]
EXACT = [
    *KINDS,
    {"prompt": PROMPTS[2], "steps": 2, "seed": 9},
    {"height": 4, "width": 4, "steps": 1, "negative": "grey"},
]


def latent_of(bench, kind):
    (told,) = bench.drawn(draw_of(str(next(NUMBERS)), tier="exact", **kind))
    return told.drawn.latent_sha256, told.drawn.pixel_sha256


@pytest.fixture(scope="module")
def alone(tiny_settings, tiny_models):
    """The bits of the exact pictures, each drawn by an engine that has nothing else to do."""
    bits = []
    for kind in EXACT:
        with Bench(tiny_settings, tiny_models) as bench:
            bits.append(latent_of(bench, kind))
    return bits


def anybody(rng):
    """A job like those of other people."""
    height, width = rng.choice(SIZES)
    return {
        "tier": rng.choice(["exact", "lossless", "lossless"]),
        "prompt": rng.choice(PROMPTS),
        "negative": rng.choice(["", "grey"]),
        "height": height,
        "width": width,
        "steps": rng.randint(1, 4),
        "guidance": rng.choice([1.0, 2.5]),
        "seed": rng.randrange(1 << 40),
        "lora": rng.choice([None, None, "oil"]),
        "previews": rng.randrange(3),
        "key": rng.choice("ab"),
    }


def mixes(bench, alone, number):
    """Exact jobs among others that come and go at any time; how many were compared."""
    rng = random.Random(number)
    compared = 0
    for _ in range(number):
        bench.models["lens"]._texts = Texts(1 << 20)  # whose features another mix might have encoded in better company
        chosen = rng.sample(range(len(EXACT)), rng.randint(1, 2))
        ids = {str(next(NUMBERS)): which for which in chosen}
        draws = [draw_of(id, tier="exact", previews=rng.randrange(2), **EXACT[which]) for id, which in ids.items()]
        draws += [draw_of(str(next(NUMBERS)), **anybody(rng)) for _ in range(rng.randint(1, 4))]
        rng.shuffle(draws)
        for draw in draws:
            bench.send(draw)
            for _ in range(rng.randrange(3)):
                bench.work()
            if draw.id not in ids and rng.random() < 0.2:
                bench.send(Cancel(id=draw.id))
        bench.until(lambda ids=ids: all(bench.told[id].over for id in ids))
        for id, which in ids.items():
            drawn = bench.told[id].drawn
            assert (drawn.latent_sha256, drawn.pixel_sha256) == alone[which], EXACT[which]
            compared += 1
    return compared


def test_an_exact_picture_does_not_depend_on_its_company(tiny_settings, tiny_models, alone):
    with Bench(tiny_settings, tiny_models) as bench:
        assert mixes(bench, alone, 100) >= 100
        assert max(beat.sequences for beat in bench.beats) > 4  # there was company


@pytest.mark.soak
def test_an_exact_picture_does_not_depend_on_its_company_in_a_thousand_mixes(tiny_settings, tiny_models, alone):
    with Bench(tiny_settings, tiny_models) as bench:
        assert mixes(bench, alone, 1000) >= 1000


def test_without_the_tier_company_shows(tiny_settings, tiny_models, alone):
    """So the test above would notice: the same jobs, lossless, in one pack, differ in their last bits."""
    with Bench(tiny_settings, tiny_models) as bench:
        told = bench.drawn(*(draw_of(str(next(NUMBERS)), **kind) for kind in EXACT))
        assert any(one.drawn.latent_sha256 != bits[0] for one, bits in zip(told, alone, strict=True))
