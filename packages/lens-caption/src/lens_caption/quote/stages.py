"""Quote the caption stages of a pipeline: survey, pilot, estimate, one after the other."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_caption.captioners.own import seen_from
from lens_caption.engine.request import PROFILE_LANES
from lens_caption.profiles import load_profile
from lens_caption.quote.estimate import Quote, estimate
from lens_caption.quote.pilot import run_pilot
from lens_caption.quote.survey import survey
from lens_caption.stages.revise_captions.stage import reviser_recipe
from lens_core.errors import ConfigError

if TYPE_CHECKING:
    from lens_caption.engine.settings import EngineSettings
    from lens_core.config.pipeline import Pipeline
    from lens_core.config.stage import StageConfig
    from lens_core.registry import Registry

__all__ = ["quote_pipeline"]

_EARLIER_WORDS = 110
"""About the length of a dense caption."""


def quote_pipeline(
    pipeline: Pipeline,
    registry: Registry,
    *,
    stage: str | None = None,
    pilot: int = 0,
    sample: int | None = None,
    rpm: int | None = None,
    tpm: int | None = None,
    today: datetime.date | None = None,
) -> list[Quote]:
    """Quote the stages that send images to a model.

    Args:
        pipeline: a checked pipeline.
        registry: where components come from.
        stage: quote only this stage; None quotes all that there are.
        pilot: caption so many images first; they are billed.
        sample: read only so many headers.
        rpm: the account's requests per minute, if known.
        tpm: the account's tokens per minute, if known.
        today: the day of the question; None is today.

    Raises:
        ConfigError: there is no such stage, it asks no model, or its model has no profile.
        UnknownPriceError: a pilot was asked for and its price is not known.
        RetiredModelError: the model is gone.
    """
    day = today or datetime.datetime.now(datetime.UTC).date()
    quotes = []
    for config in _asked(pipeline, stage):
        captioner: Any = seen_from(config.captioner, pipeline.base)  # type: ignore[attr-defined]
        folder = Path(captioner.profiles) if getattr(captioner, "profiles", None) else None
        profile = load_profile(captioner.model, base_url=captioner.base_url, folder=folder)
        profile.refuse_if_retired(day)
        corrects = config.type == "revise-captions"
        if corrects:
            captioner = _as_long_as(captioner)
        wanted = 0 if corrects else pilot
        if wanted:
            profile.price("standard")
        found = survey(pipeline, config, registry, pilot=wanted, sample=sample)
        bought = run_pilot(found.pilot, captioner, registry, profile) if wanted else None
        engine: EngineSettings = config.engine  # type: ignore[attr-defined]
        quote = estimate(
            stage=config.name,
            survey=found,
            config=captioner,
            profile=profile,
            pilot=bought,
            rpm=rpm or engine.rpm,
            tpm=tpm or engine.tpm,
            today=day,
        )
        notes = _budget_notes(quote, engine)
        if corrects:
            notes.append(f"each caption that is corrected is taken to have {_EARLIER_WORDS} words; no pilot can tell")
        quotes.append(dataclasses.replace(quote, warnings=(*quote.warnings, *notes)))
    return quotes


def _as_long_as(captioner: Any) -> Any:
    """A reviser's config with the words of a request in it, as they would be with a caption of the usual length."""
    recipe = reviser_recipe(captioner)
    words = recipe.fill(caption=" ".join(["caption"] * _EARLIER_WORDS))
    schema = json.dumps(recipe.answer_format()) if recipe.schema else ""
    asked = "\n".join(part for part in (recipe.system, words, schema) if part)
    return captioner.model_copy(update={"instruction": asked})


def _asked(pipeline: Pipeline, name: str | None) -> list[StageConfig]:
    captions = [stage for stage in pipeline.stages if getattr(stage, "captioner", None)]
    known = ", ".join(stage.name for stage in captions) or "none"
    if name is not None:
        captions = [stage for stage in captions if stage.name == name]
        if not captions:
            raise ConfigError(f"there is no caption stage {name!r} (there is: {known})", file=pipeline.file)
    asking = [stage for stage in captions if hasattr(stage.captioner, "model") and hasattr(stage.captioner, "base_url")]  # type: ignore[attr-defined]
    if not asking:
        raise ConfigError(f"no caption stage asks a model at an endpoint (caption stages: {known})", file=pipeline.file)
    return asking


def _budget_notes(quote: Quote, engine: EngineSettings) -> list[str]:
    """How far the stage's budget goes in the lane that it has chosen."""
    lane = PROFILE_LANES[engine.lane]
    offer = quote.lanes[lane]
    if offer is None:
        return [f"the stage's lane ({engine.lane}) has no known price, so a run is refused"]
    budget = engine.budget
    if budget is None or budget.usd is None or not offer.dollars:
        return []
    if budget.usd >= offer.high:
        return []
    covered = min(quote.images, int(quote.images * budget.usd / offer.dollars))
    return [
        f"the budget of ${budget.usd} covers about {covered:,} of {quote.images:,} images in the lane {engine.lane}"
    ]
