"""The paper's reasoner in miniature: a short prompt becomes a dense one, by rule.

A model trained on dense captions expects to be told everything; people say little. What a prompt leaves open (sizes,
places, the background) is decided here by lot, and what it says is kept.
"""

from __future__ import annotations

import hashlib
import random
from itertools import permutations
from typing import TYPE_CHECKING

from lens_core.datasets.scenes.language import describe, parse_prompt
from lens_core.datasets.scenes.world import BACKGROUNDS, QUADRANTS, SIZES, Scene, SceneObject, relation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_core.rewriters.scene_expander.config import SceneExpanderConfig

__all__ = ["SceneExpander"]


class SceneExpander:
    """Expands prompts about the procedural scenes; leaves all others, and dense ones, as they are."""

    def __init__(self, config: SceneExpanderConfig):
        self.config = config

    def rewrite(self, prompts: Sequence[str], *, seed: int = 0) -> list[str]:
        """One text per prompt, in order."""
        return [self._expand(prompt, seed) for prompt in prompts]

    def _expand(self, prompt: str, seed: int) -> str:
        said, background, relations = parse_prompt(prompt)
        complete = background and all({"size", "quadrant"} <= item.keys() for item in said)
        if not said or len(said) > len(QUADRANTS) or complete:
            return prompt
        rng = random.Random(int.from_bytes(hashlib.sha256(f"{seed}:{prompt}".encode()).digest(), "big"))
        sizes = [item.get("size") or list(SIZES)[int(rng.random() * len(SIZES))] for item in said]
        plain = background or list(BACKGROUNDS)[int(rng.random() * len(BACKGROUNDS))]
        # Few enough to try them all: places that keep what was said of places and relations.
        fitting = []
        for places in permutations(QUADRANTS, len(said)):
            objects = tuple(
                SceneObject(colour=item["colour"], shape=item["shape"], size=size, quadrant=place)
                for item, size, place in zip(said, sizes, places, strict=True)
            )
            kept = all(item.get("quadrant", place) == place for item, place in zip(said, places, strict=True))
            if kept and all(relation(objects[a], objects[b]) == where for a, where, b in relations):
                fitting.append(objects)
        if not fitting:
            return prompt  # it contradicts itself, or asks for what this world cannot show
        scene = Scene(background=plain, objects=fitting[int(rng.random() * len(fitting))])
        return describe(scene, "dense", seed=seed, key=prompt)
