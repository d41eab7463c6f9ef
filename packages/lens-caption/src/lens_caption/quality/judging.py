"""The judge at work in a stage: the layer's captions are put to it through the engine, within its budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_caption.captioners.openai.config import OpenAIConfig
from lens_caption.captioners.questions import QuestionCaptioner
from lens_caption.engine.journal import Journal
from lens_caption.engine.run import caption_all
from lens_caption.engine.settings import EngineSettings
from lens_caption.prompts import load_recipe
from lens_caption.quality.judge import judge_captions
from lens_core.contracts import CaptionOutcome, ImageItem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lens_caption.quality.config import JudgeConfig
    from lens_caption.quality.judge import JudgeReport, Question
    from lens_caption.quality.pool import CaptionPool
    from lens_core.pipeline.context import StageContext

__all__ = ["run_judge"]

_OPTIONS = (
    "model",
    "base_url",
    "api_key_env",
    "max_side",
    "jpeg_quality",
    "max_output_tokens",
    "timeout_s",
    "max_attempts",
    "max_wait_s",
    "concurrency",
    "profiles",
)


def run_judge(
    pool: CaptionPool, image_of: Callable[[str], bytes], config: JudgeConfig, context: StageContext
) -> tuple[JudgeReport, dict[str, Any]]:
    """Judge a layer; every answer is journalled in the stage's state, so that none is bought twice.

    Args:
        pool: its captions.
        image_of: the bytes of an image by its key.
        config: of the judge.
        context: for the state, progress and interruption.

    Returns:
        what the judge found, and what it cost.

    Raises:
        Stopped: the user asked for it, or the budget is used up; the same command goes on from there.
        LensError: the endpoint refuses everything.
    """
    recipe = load_recipe(config.recipe)
    settings = EngineSettings(budget=config.budget, rpm=config.rpm, tpm=config.tpm, workers=0)
    asked: dict[str, Question] = {}
    captioner = QuestionCaptioner(
        OpenAIConfig(**{name: getattr(config, name) for name in _OPTIONS}), recipe, lambda id_: asked[id_].inputs
    )
    journal = Journal(Path(context.state_dir) / "judge.sqlite")

    def fetch(id_: str) -> ImageItem:
        return ImageItem(key=id_, data=image_of(asked[id_].key))

    def ask(questions: Sequence[Question]) -> dict[str, CaptionOutcome]:
        asked.clear()
        asked.update({question.id: question for question in questions})
        context.progress.start(len(asked), "captions for the judge")
        caption_all(list(asked), fetch, captioner, journal, context, settings=settings)
        outcomes = {id_: journal.get(id_) for id_ in asked}
        return {id_: outcome for id_, outcome in outcomes.items() if outcome is not None}

    try:
        report = judge_captions(pool, ask, recipe, config)
        spent = journal.spent().usd
        return report, {**({"usd": str(spent)} if spent else {})}
    finally:
        captioner.close()
        journal.close()
