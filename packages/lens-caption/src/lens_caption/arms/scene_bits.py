"""How much a caption tells of a procedural scene, in bits, exactly.

Scenes are drawn by `lens_core.datasets.scenes.world`: one, two or three objects, equally often; their kinds (24 of
colour and shape) and quadrants (4) all different, and sizes (2) and background (4) at will; every scene with the same
number of objects is equally likely. A caption leaves some of them possible. It *states* -log2 of the probability that
a scene drawn by lot is one of these: halving what is possible is one bit. Nothing said is 0 bits. All said, but for
where within its quadrant an object sits, is log2(3 * 4 * number of arrangements): 11.2 bits for one object, 17.3 for
two and 22.2 for three.

Backgrounds multiply, so what is counted are the 402,048 arrangements of objects in quadrants, in arrays. Whether a
claim fits the object in a quadrant is looked up, and a caption fits an arrangement if its claims can be given to
different objects such that all fit. Truth does not matter: a wrong caption states as many bits as a right one. A
caption that no scene fits, such as one that puts two objects in a quadrant, has no finite number.

The prior is that of all scenes. Scenes of the split "train" lack a fifth of the compositions: under that prior a
caption that tells the composition states 0.3 bits less.
"""

from __future__ import annotations

import itertools
import math
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lens_core.datasets.scenes.world import BACKGROUNDS, COLOURS, MAX_OBJECTS, QUADRANTS, SHAPES, SIZES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lens_caption.arms.scene_claims import ObjectClaim, SceneClaims
    from lens_core.datasets.scenes.world import Scene

__all__ = ["bits_stated", "is_true", "probability"]

_THINGS = [(colour, shape, size) for colour in COLOURS for shape in SHAPES for size in SIZES]
_NOTHING = len(_THINGS)


def bits_stated(claims: SceneClaims) -> float:
    """Bits that the claims state; infinite if no scene fits them."""
    fits = probability(claims)
    return -math.log2(fits) + 0.0 if fits else math.inf


@lru_cache(maxsize=8192)
def probability(claims: SceneClaims) -> float:
    """Share of the scenes drawn by lot that fit the claims."""
    if claims.contradictory or len(claims.objects) > MAX_OBJECTS:
        return 0.0
    total = 0.0
    for count in range(max(1, len(claims.objects)), MAX_OBJECTS + 1):
        if claims.count in (None, count):
            rows = _arrangements(count)
            if not claims.relations and all(claim.quadrant is None for claim in claims.objects):
                rows = rows[: len(rows) // math.comb(len(QUADRANTS), count)]  # no word of places: all are alike
            total += float(_fitting(claims, rows).mean()) / MAX_OBJECTS
    return total / (len(BACKGROUNDS) if claims.background else 1)


def is_true(claims: SceneClaims, scene: Scene) -> bool:
    """Whether a scene fits the claims."""
    if claims.contradictory or claims.count not in (None, len(scene.objects)):
        return False
    if claims.background not in (None, scene.background):
        return False
    row = [_NOTHING] * len(QUADRANTS)
    for item in scene.objects:
        row[QUADRANTS.index(item.quadrant)] = _THINGS.index((item.colour, item.shape, item.size))
    return bool(_fitting(claims, np.array([row], np.uint8))[0])


@cache
def _arrangements(count: int) -> NDArray[np.uint8]:
    """All arrangements of so many objects: for each quadrant the number of the thing in it, or of nothing."""
    kinds = list(itertools.permutations(range(len(_THINGS) // len(SIZES)), count))
    sizes = list(itertools.product(range(len(SIZES)), repeat=count))
    things_NS = np.array(kinds, np.uint8)[:, None] * len(SIZES) + np.array(sizes, np.uint8)[None]
    things_N = things_NS.reshape(-1, count)
    blocks = []
    for places in itertools.combinations(range(len(QUADRANTS)), count):
        block_NQ = np.full((len(things_N), len(QUADRANTS)), _NOTHING, np.uint8)
        block_NQ[:, places] = things_N
        blocks.append(block_NQ)
    return np.concatenate(blocks)


def _fitting(claims: SceneClaims, rows_NQ: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which arrangements fit: the claims can be given to the objects of different quadrants."""
    fits_N = np.zeros(len(rows_NQ), np.bool_)
    tables = [_table(claim) for claim in claims.objects]
    allowed = [
        [quadrant for quadrant in range(len(QUADRANTS)) if claim.quadrant in (None, QUADRANTS[quadrant])]
        for claim in claims.objects
    ]
    for places in itertools.product(*allowed):
        if len(set(places)) == len(places) and _related(claims, places):
            here_N = np.ones(len(rows_NQ), np.bool_)
            for quadrant, table in zip(places, tables, strict=True):
                here_N &= table[rows_NQ[:, quadrant]]
            fits_N |= here_N
    return fits_N


def _related(claims: SceneClaims, places: tuple[int, ...]) -> bool:
    return all(_relation(places[a], places[b]) == word for a, word, b in claims.relations)


def _relation(first: int, second: int) -> str:
    """As `world.relation`, of two quadrants."""
    if first % 2 != second % 2:
        return "left of" if first % 2 < second % 2 else "right of"
    return "above" if first // 2 < second // 2 else "below"


@cache
def _table(claim: ObjectClaim) -> NDArray[np.bool_]:
    """Whether each thing is what the claim says, whatever its place; nothing never is."""
    said = (claim.colour, claim.shape, claim.size)
    fits = [all(a in (None, b) for a, b in zip(said, thing, strict=True)) for thing in _THINGS]
    return np.array([*fits, False])
