"""How much a caption layer says: words, attributes by class, and of the procedural scenes the bits."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from lens_caption.arms.attributes import stated
from lens_caption.arms.scene_bits import bits_stated, is_true
from lens_caption.arms.scene_claims import read_claims
from lens_caption.quality.statistics import mean_of, percentile_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lens_caption.arms.vocabulary import Attribute, AttributeClass
    from lens_core.datasets.scenes.world import Scene

__all__ = ["LayerMeasure"]


class LayerMeasure:
    """Counts of one layer's captions as they pass by; how many there are makes no difference to its size.

    Args:
        vocabulary: by which attributes are found.
    """

    def __init__(self, vocabulary: Mapping[AttributeClass, Attribute]):
        self._vocabulary = vocabulary
        self._words: Counter[int] = Counter()
        self._stated: Counter[AttributeClass] = Counter()
        self._stating: Counter[AttributeClass] = Counter()
        self._bits: Counter[float] = Counter()
        self._true = 0
        self._impossible = 0

    def add(self, text: str, scene: Scene | None = None) -> None:
        """Count a caption; with the scene that it is a caption of, its bits and whether it is true, too."""
        self._words[len(text.split())] += 1
        found = stated(text, self._vocabulary)
        self._stated += found
        self._stating += Counter(name for name, count in found.items() if count)
        if scene is not None:
            claims = read_claims(text)
            bits = bits_stated(claims)
            self._true += is_true(claims, scene)
            if math.isinf(bits):
                self._impossible += 1
            else:
                self._bits[round(bits, 4)] += 1

    def to_json(self) -> dict[str, Any]:
        """Plain numbers.

        `words` as separated by spaces; `attributes` by class, `per_caption` and the `share` of captions with any. Where
        there were scenes, `scene` has how many `captions` of them were measured, the `bits` they state, the share that
        is `true` of its scene, and the share that is `impossible`: true of none, and so without a number of bits.
        """
        captions = self._words.total()
        if not captions:
            return {"captions": 0}
        measured = self._bits.total() + self._impossible
        numbers: dict[str, Any] = {
            "captions": captions,
            "words": _spread(self._words),
            "attributes": {
                name: {
                    "per_caption": round(self._stated[name] / captions, 4),
                    "share": round(self._stating[name] / captions, 4),
                }
                for name in self._vocabulary
            },
            "attributes_per_caption": round(self._stated.total() / captions, 4),
        }
        if measured:
            numbers["scene"] = {
                "captions": measured,
                "bits": _spread(self._bits),
                "true": round(self._true / measured, 4),
                "impossible": round(self._impossible / measured, 4),
            }
        return numbers


def _spread(counts: Counter[int] | Counter[float]) -> dict[str, float]:
    """Mean and percentiles of values with how often each occurs; empty if there is none."""
    if not counts:
        return {}
    percents = {"p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95}
    values: Counter[Any] = Counter(counts)
    return {"mean": round(mean_of(values), 4)} | {
        name: round(percentile_of(values, at), 4) for name, at in percents.items()
    }
