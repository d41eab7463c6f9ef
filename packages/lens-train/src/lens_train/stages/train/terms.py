"""The terms of the objective, ready to be trained with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lens_core.diffusion import LensTransformer2DModel
from lens_core.errors import ConfigError
from lens_core.storage import urls
from lens_train.objective.repa import PatchFeatures, Repa
from lens_train.parallel.shard import compute_dtype, shard

if TYPE_CHECKING:
    from lens_core.pipeline.context import StageContext
    from lens_train.objective.terms import Term
    from lens_train.parallel.world import World
    from lens_train.stages.train.config import TrainStageConfig
    from lens_train.stages.train.parts import Parts

__all__ = ["build_terms"]


def build_terms(
    config: TrainStageConfig, context: StageContext, parts: Parts, world: World, *, latents: bool
) -> list[Term]:
    """The terms with a weight, on their device and sharded.

    Args:
        config: of the stage.
        context: its surroundings.
        parts: of the model, not yet placed.
        world: who trains.
        latents: whether the images come as tokens that were made beforehand.

    Raises:
        ConfigError: there are no pixels to look at, or no such block.
        ArtifactError: the vision model cannot be loaded, or has no patches.
    """
    terms: list[Term] = []
    for number, term in enumerate(config.objective.terms):
        key = f"objective.terms.{number}"
        if not term.weight:
            continue
        if latents:
            raise ConfigError("repa looks at pixels, and the latents in `source` are none; leave one out", key=key)
        transformer = parts.transformer
        if not isinstance(transformer, LensTransformer2DModel):
            raise ConfigError(f"repa reads the blocks of the model 'lens', not of {parts.model.type!r}", key=key)
        blocks = len(transformer.transformer_blocks)
        if term.block > blocks:
            raise ConfigError(f"there is no block {term.block}; the model has {blocks}", key=f"{key}.block")
        folder = Path(urls.resolve(term.path, context.base))
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {str(folder)!r}; give one on this machine", key=f"{key}.path")
        dtype = compute_dtype(config.parallel, world.device)
        features = PatchFeatures(folder, stride=parts.autoencoder.stride, device=world.device, dtype=dtype)
        hidden = transformer.img_in.out_features
        built = Repa(term, features, hidden=hidden, seed=context.seed)
        shard(built.module.to(world.device), world, config.parallel)
        terms.append(built)
    return terms
