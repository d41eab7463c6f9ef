"""The revise-captions stage: every caption is put to a model together with its image, and comes back corrected.

The new layer says of each caption which layer it was made from, the hash of the text that was read, the verdict
("unchanged" or "changed"), and what was changed. An unchanged caption is kept letter by letter. An image that had no
caption, or whose correction failed, has a row without one: the earlier layer is still there.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_caption.captioners.own import seen_from
from lens_caption.engine.journal import Journal
from lens_caption.engine.run import caption_all
from lens_caption.layers import ImageLookup, caption_rows, layer_names
from lens_caption.prompts import load_recipe
from lens_caption.stages.revise_captions.earlier import EarlierCaptions
from lens_core.contracts import ImageItem
from lens_core.errors import ConfigError, LensError
from lens_core.storage.captions import CaptionRow, write_captions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lens_caption.prompts import Recipe
    from lens_caption.stages.revise_captions.config import ReviseCaptionsConfig, ReviserConfig
    from lens_core.contracts import CaptionOutcome
    from lens_core.pipeline.context import StageContext
    from lens_core.storage.artifacts import Artifact

__all__ = ["reviser_recipe", "run"]


def run(config: ReviseCaptionsConfig, context: StageContext) -> dict[str, Any]:
    """Have the captions corrected and write the layer.

    Raises:
        ConfigError: there is no such layer, or the recipe takes something else than a caption.
        LensError: not a single caption came back; the commonest reason is quoted.
        Stopped: the user asked for it, or the budget is used up; what is done is kept.
    """
    context.registry.require_libraries("captioners", "openai")
    from lens_caption.captioners.questions import QuestionCaptioner  # noqa: PLC0415 (its libraries are an extra)

    (captions,) = context.inputs
    layer = _layer(config, captions)
    reviser = seen_from(config.captioner, context.base)
    recipe = reviser_recipe(reviser)
    folder = context.output.local_dir("revise")
    earlier = EarlierCaptions.store(folder / "captions.sqlite", caption_rows(captions, [layer]))
    images = ImageLookup(folder / "images.sqlite", captions.parent("images"))
    journal = Journal(context.state_dir / "journal.sqlite")
    captioner = QuestionCaptioner(reviser, recipe, earlier)
    keys = earlier.keys()
    context.progress.start(len(keys), "captions")
    try:
        caption_all(
            keys,
            lambda key: ImageItem(key=key, data=images.data(key)),
            captioner,
            journal,
            context,
            settings=config.engine,
        )
        tally = _Tally(images)
        rows = _revised(caption_rows(captions, [layer]), journal, f"{captions.name}/{layer}", recipe)
        write_captions(context.output, tally.passing(replace(row, layer=config.layer or context.name) for row in rows))
        return tally.publish(context, journal, len(keys))
    finally:
        captioner.close()
        journal.close()
        images.close()


def reviser_recipe(config: ReviserConfig) -> Recipe:
    """What a reviser is asked.

    Raises:
        ConfigError: there is no such recipe, or its input is not the caption alone.
    """
    recipe = load_recipe(config.prompt, folder=Path(config.recipes) if config.recipes else None)
    if recipe.inputs != ("caption",):
        takes = ", ".join(recipe.inputs) or "no input"
        raise ConfigError(f"the recipe {recipe.id} takes {takes}; a reviser's takes the input caption", key="prompt")
    return recipe


def _layer(config: ReviseCaptionsConfig, captions: Artifact) -> str:
    there = layer_names(captions)
    if config.revises in there:
        return str(config.revises)
    names = ", ".join(sorted(there)) or "none"
    if config.revises:
        raise ConfigError(f"{captions.url} has no caption layer {config.revises!r} (it has: {names})", key="revises")
    if len(there) != 1:
        raise ConfigError(f"{captions.url} has several caption layers: say which 'revises' means ({names})")
    return there[0]


def _revised(rows: Iterator[CaptionRow], journal: Journal, source: str, recipe: Recipe) -> Iterator[CaptionRow]:
    for row in rows:
        facts = {"revises": source}
        if row.status != "ok":
            review = {fact: said for fact, said in row.provenance.items() if fact == "review"}  # exports ask for it
            yield replace(row, provenance=facts | review)
            continue
        outcome = journal.get(row.key)
        assert outcome is not None, f"{row.key} was passed over"
        facts["revises_sha256"] = hashlib.sha256(row.text.encode()).hexdigest()[:16]
        yield _row(row, outcome, facts, recipe)


def _row(row: CaptionRow, outcome: CaptionOutcome, facts: dict[str, str], recipe: Recipe) -> CaptionRow:
    text = outcome.text
    if outcome.status == "ok":
        unchanged = text.split() == row.text.split()
        facts["verdict"] = "unchanged" if unchanged else "changed"
        text = row.text if unchanged else text
        others = {layer.name: outcome.layers.get(layer.name, "") for layer in recipe.layers[1:]}
        facts |= {} if unchanged else {name: said for name, said in others.items() if said}
    provenance = {**outcome.provenance, **facts}
    return replace(row, text=text, status=outcome.status, detail=outcome.detail, provenance=provenance)


class _Tally:
    """Counts of the rows that are written, and the failures among them."""

    def __init__(self, images: ImageLookup):
        self._images = images
        self._statuses, self._verdicts, self._tokens = Counter[str](), Counter[str](), Counter[str]()
        self._reasons = Counter[str]()
        self._failures: list[str] = []

    def passing(self, rows: Iterator[CaptionRow]) -> Iterator[CaptionRow]:
        for row in rows:
            self._statuses[row.status] += 1
            for fact in ("input_tokens", "output_tokens"):
                self._tokens[fact] += int(row.provenance.get(fact, 0))
            if row.status == "ok":
                self._verdicts[str(row.provenance["verdict"])] += 1
            else:
                place = self._images.row(row.key)
                facts = {"key": row.key, "status": row.status, "detail": row.detail}
                self._failures.append(json.dumps({"name": place["name"] if place else "", **facts}) + "\n")
                self._reasons[f"{row.status}: {row.detail}"] += 1
            yield row

    def publish(self, context: StageContext, journal: Journal, asked: int) -> dict[str, Any]:
        """The list of failures, and the stage's numbers."""
        if not self._statuses["ok"]:
            (reason, count), *_ = self._reasons.most_common(1) or [("there are none", 0)]
            raise LensError(f"{context.name}: not one of {asked} captions was corrected ({count} times {reason})")
        context.output.write_text("failures.jsonl", "".join(self._failures))
        spent = journal.spent().usd
        return {
            "captions": self._statuses["ok"],
            "failed": len(self._failures),
            "by_status": self._statuses,
            "unchanged": self._verdicts["unchanged"],
            "changed": self._verdicts["changed"],
            **self._tokens,
            **({"usd": str(spent)} if spent else {}),
        }
