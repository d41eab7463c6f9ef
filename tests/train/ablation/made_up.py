"""Made-up measurements, as an ablate stage would leave them: numbers from a seed, with effects that tests know."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

from lens_core.diffusion.receipt import png_with_receipt
from lens_train.ablation.rows import ROWS, SCHEMA, rows_bytes

SKILLS = {"single": 0.2, "two": 0.0, "count": 0.1, "whole": -0.35}
STYLES = ("alt-text", "brief", "dense")
WORDS = {"alt-text": 2.3, "brief": 7.1, "mixed": 17.0, "dense": 27.3}
PROMPTS = ["a red circle", "a small blue square to the left of a large green triangle on a grey background"]


class Ablation:
    """Rows of an ablation under construction.

    Args:
        name: of the stage.
        arms: by name, the style that is the arm's own.
        seeds: of the cells.
        equal: their budget.
        budgets: of arms that have another one.
    """

    def __init__(self, name, arms, seeds=(0, 1, 2), equal=None, budgets=None):
        self.name, self.arms, self.seeds, self.rows = name, arms, seeds, []
        self.equal, self.budgets = equal, budgets or {}

    def add(self, arm, seed, metric, value, *, stage="model", **more):
        row = dict.fromkeys(SCHEMA.names) | {"ablation": self.name, "arm": arm, "seed": seed, "key": f"{arm}{seed}"}
        self.rows.append(row | {"metric": metric, "stage": stage, "value": float(value), **more})

    def score(self, arm, shares, *, styles=STYLES, n=1000, spread=0.02):
        """Answers: `shares` by skill in the arm's own style; others are 0.2 lower."""
        for seed in self.seeds:
            generator = np.random.default_rng([seed, *map(ord, arm)])
            luck = np.random.default_rng(seed).normal(0, spread)  # the same for all arms
            for style in styles:
                for skill, share in shares.items():
                    share = np.clip(share + luck - 0.2 * (style != self.arms[arm]), 0.01, 0.99)
                    right = int(generator.binomial(n, share))
                    answers = {"skill": skill, "style": style, "correct": right, "n": n}
                    self.add(arm, seed, "accuracy", right / n, stage="scores", **answers)

    def train(self, arm, *, words, parameters=2.4e6, images=20_000, flops=2.2e13, samples=60_000, speed=1.0, points=60):
        """Curves, costs and captions."""
        for seed in self.seeds:
            generator = np.random.default_rng([seed + 100, *map(ord, arm)])
            for number in range(1, points + 1):
                share = number / points
                at = {"step": 1000 * number, "samples": round(samples * share)}
                at |= {"tokens": round(samples * share * (64 + words)), "flops": flops * share}
                loss = 0.3 + 1.2 * math.exp(-5 * share * speed) + generator.normal(0, 0.04)
                self.add(arm, seed, "loss", loss, **at)
                if number % 10 == 0:
                    self.add(arm, seed, "validation_loss", 0.32 + 1.2 * math.exp(-5 * share * speed), **at)
                    for skill, ahead in (("single", 0.2), ("two", 0.0)):
                        right = (0.7 * speed + ahead) * (1 - math.exp(-4 * share)) + generator.normal(0, 0.02)
                        self.add(arm, seed, "score", min(1, max(0, right)), skill=skill, **at)
            finals = {"parameters": parameters, "training_images": images, "seconds": 300 + seed, "samples": samples}
            finals |= {"training_flops": flops * (1 + 0.001 * seed), "steps": 60_000, "tokens": samples * (64 + words)}
            finals |= {"caption_words": words, "caption_bits": 0.6 * words + 0.4, "caption_attributes": words / 2}
            for metric, value in finals.items():
                self.add(arm, seed, metric, value)

    def publish(self, publish, *, pictures=(), rewritten=()):
        """The artefact; `pictures` are prompts that each arm drew, in a colour of its own, some of other words."""
        import pyarrow as pa

        def fill(output):
            output.write_bytes(ROWS, rows_bytes(pa.Table.from_pylist(self.rows, schema=SCHEMA)))
            arms = [
                {"name": arm, "style": style, "set": {}, "equal": self.budgets.get(arm, self.equal)}
                for arm, style in self.arms.items()
            ]
            cells = [
                {"arm": arm, "seed": s, "key": f"{arm}{s}", "pictures": []} for arm in self.arms for s in self.seeds
            ]
            told = {"format_version": 1, "name": self.name, "arms": arms, "seeds": list(self.seeds), "sources": []}
            output.write_json("ablation.json", told | {"equal": self.equal, "cells": cells})
            for place, arm in enumerate(self.arms):
                for seed in self.seeds:
                    folder = f"cells/{arm}-{seed}"
                    for number, prompt in enumerate(pictures):
                        told = f"{prompt}, in other words" if arm in rewritten else prompt
                        drawn = picture(prompt, place, number, told)
                        output.write_bytes(f"{folder}/gallery/model/{number:04d}.png", drawn)
                    if pictures:
                        output.write_bytes(f"{folder}/scores/sheets/model-dense.png", sheet())

        return publish("ablation", self.name, fill)


def picture(prompt, place, number, told):
    image = np.full((32, 32, 3), 220, dtype=np.uint8)
    image[8 + 2 * number : 24, 6 : 20 + 2 * place] = (40 + 50 * place, 90, 200 - 40 * place)
    return png_with_receipt(image, {"prompt": prompt, "rewritten_prompt": told, "seed": 0})


def sheet():
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "PNG")
    return stream.getvalue()


def captions(equal=2.2e13):
    """The main ablation: dense is far ahead of brief, mixed is not, alt-text is behind."""
    made = Ablation(
        "captions",
        {"alt-text": "alt-text", "brief": "brief", "mixed": "dense", "dense": "dense"},
        equal={"flops": equal},
    )
    for arm, (base, speed) in {
        "alt-text": (0.3, 0.6),
        "brief": (0.5, 0.8),
        "mixed": (0.5, 0.85),
        "dense": (0.72, 1),
    }.items():
        made.score(arm, {skill: base + more for skill, more in SKILLS.items()})
        made.train(arm, words=WORDS[arm], speed=speed, samples=60_000 - 500 * round(WORDS[arm]))
    return made


def sizes():
    """Two smaller and one larger size: brief must be about four times as large."""
    arms = {f"{style}-{size}": style for size in ("small", "large") for style in ("brief", "dense")}
    made = Ablation("sizes", arms)
    for arm, style in arms.items():
        size = 0.6e6 if "small" in arm else 9.6e6
        base = 0.5 + 0.11 * math.log2(size / 2.4e6) + 0.22 * (style == "dense")
        made.score(arm, {skill: base + more for skill, more in SKILLS.items()})
        made.train(arm, words=WORDS[style], parameters=size)
    return made


def noise():
    """At a fifth of wrong facts the gain of dense is gone."""
    made = Ablation("noise", {f"wrong-{share}": "dense" for share in (5, 10, 20)})
    for arm in made.arms:
        share = int(arm.removeprefix("wrong-"))
        made.score(arm, {skill: 0.72 - 0.014 * share + more for skill, more in SKILLS.items()})
        made.train(arm, words=27.3)
    return made


def others():
    """One seed each."""
    made = Ablation("others", {"shuffled": "dense", "no-colour": "dense", "no-style": None}, seeds=(0,))
    for arm, base in {"shuffled": 0.7, "no-colour": 0.35, "no-style": 0.5}.items():
        made.score(arm, {skill: base + more for skill, more in SKILLS.items()})
        made.train(arm, words=21.9)
    for arm in made.arms:
        made.add(arm, 0, "distance", 0.12, stage="distance", skill="kid")
    return made


AXES = [
    {
        "label": "parameters",
        "long": {"name": "dense", "arms": ["sizes/dense-small", "captions/dense", "sizes/dense-large"]},
        "short": {"name": "brief", "arms": ["sizes/brief-small", "captions/brief", "sizes/brief-large"]},
    }
]
NOISE = [
    {
        "shares": {"captions/dense": 0, "noise/wrong-5": 0.05, "noise/wrong-10": 0.1, "noise/wrong-20": 0.2},
        "rival": "captions/brief",
    }
]
BASELINES = {"captions": "brief", "sizes": "captions/brief", "noise": "captions/dense", "others": "captions/dense"}
