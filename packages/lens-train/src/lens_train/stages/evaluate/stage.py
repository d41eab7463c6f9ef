"""The evaluate stage: every model answers every task in every prompt style; each cell of the table gets an interval.

A model's *own* style is the one of the captions it was trained on, read from its lineage.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from lens_core.diffusion.device import pick_device, pick_dtype
from lens_core.diffusion.model_folder import load_model_folder
from lens_train.evaluation.measure import ANSWERS, SCORES, Examinee, measure, num_pictures
from lens_train.evaluation.rewriting import rewrite, texts_of

if TYPE_CHECKING:
    from lens_core.config.base import ComponentConfig
    from lens_core.contracts import Evaluator
    from lens_core.diffusion.loaded_model import LoadedModel
    from lens_core.pipeline.context import StageContext
    from lens_core.storage.artifacts import Artifact
    from lens_train.evaluation.rewriting import Rewriting
    from lens_train.stages.evaluate.config import EvaluateStageConfig

__all__ = ["ANSWERS", "SCORES", "own_style", "run"]


def run(config: EvaluateStageConfig, context: StageContext) -> dict[str, Any]:
    """Ask, draw, judge, count."""
    evaluator = context.registry.build("evaluators", config.evaluator)
    device, dtype = pick_device(config.device), pick_dtype(config.dtype)

    def load(artifact: Artifact) -> LoadedModel:
        return load_model_folder(artifact.url, registry=context.registry, dtype=dtype).to(device)

    rewriting = _rewriting(config.rewriter, config.seed, evaluator, context) if config.rewriter else None
    pictures = len(context.inputs) * num_pictures(evaluator.tasks())
    context.progress.start(pictures, "pictures judged")
    measure(
        [
            Examinee(name=artifact.name, load=partial(load, artifact), own_style=own_style(artifact))
            for artifact in context.inputs
        ],
        evaluator,
        context.output,
        seed=config.seed,
        steps=config.steps,
        sampler=config.sampler,
        guidance=config.guidance,
        rewriting=rewriting,
        on_picture=context.progress.update,
    )
    return {"pictures": pictures, "models": len(context.inputs)}


def _rewriting(by: ComponentConfig, seed: int, evaluator: Evaluator, context: StageContext) -> Rewriting:
    texts = texts_of(evaluator.tasks())
    context.progress.start(len(texts), "prompts rewritten")

    def on_text(done: int) -> None:
        context.progress.update(done)
        context.stop_if_asked()

    return rewrite(texts, by, context.registry, seed=seed, on_text=on_text)


def own_style(model: Artifact) -> str | None:
    """The style of the captions a model was trained on, if its captioner has one."""
    captioner = model.parent("captions").config.get("captioner", {})
    style = captioner.get("style")
    return style if isinstance(style, str) else None
