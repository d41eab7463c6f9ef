"""The distance stage: models draw captions of images that they should not know; two distances tell how like they are.

The images are scaled and cut to the size that the model draws. Whether a model was trained on them is read from its
lineage, and said.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_core.diffusion.device import pick_device, pick_dtype
from lens_core.diffusion.model_folder import load_model_folder
from lens_core.diffusion.text_to_image import Request, generate
from lens_core.errors import ArtifactError, ConfigError, ImageError, LensError
from lens_core.images import decode, fit
from lens_core.storage import urls
from lens_core.storage.captions import read_texts
from lens_core.storage.shards import ShardReader
from lens_train.evaluation.distances import frechet_distance, kernel_distance
from lens_train.evaluation.features import PIXELS, features_by
from lens_train.evaluation.measure import SCORES
from lens_train.stages.evaluate.stage import own_style

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from lens_core.diffusion.loaded_model import LoadedModel
    from lens_core.pipeline.context import StageContext
    from lens_core.storage.artifacts import Artifact
    from lens_train.evaluation.features import FeaturesOf
    from lens_train.stages.distance.config import DistanceStageConfig

__all__ = ["LEAST", "run"]

LEAST = 8
"""Pictures without which there is no distance."""

_AT_ONCE = 64

Images = dict[str, np.ndarray]
"""Features of images, by their keys."""


def run(config: DistanceStageConfig, context: StageContext) -> dict[str, Any]:
    """Draw, compare, and leave `scores.json`.

    Raises:
        LensError: there is no model or not one set of captions, too few images, or no such features.
    """
    models = [artifact for artifact in context.inputs if artifact.type == "model"]
    sets = [artifact for artifact in context.inputs if artifact.type == "captions"]
    if not models or len(sets) != 1:
        found = f"there are {len(models)} models and {len(sets)} stages of captions"
        raise ConfigError(f"it needs models, and one stage whose captions they draw; {found}", key="source")
    device, dtype = pick_device(config.device), pick_dtype(config.dtype)
    features = config.features if config.features == PIXELS else urls.resolve(config.features, context.base)
    features_of = features_by(features, device=str(device), asked_by=config.name)
    captions = _captions(sets[0], config.layer)
    keys = sorted(captions)[: config.images]  # keys are hashes: their order is a lot
    context.progress.start(len(models) * len(keys), "pictures")
    real: dict[tuple[int, int], Images] = {}
    distances: list[dict[str, Any]] = []
    seen: dict[str, int | None] = {}
    for number, artifact in enumerate(models):
        before = number * len(keys)
        model = load_model_folder(artifact.url, registry=context.registry, dtype=dtype).to(device)
        if model.image_size not in real:
            real[model.image_size] = _images(sets[0], keys, model.image_size, features_of)
        images = real[model.image_size]
        if len(images) < LEAST:
            message = f"{len(images)} captioned images can be decoded; a distance takes at least {LEAST}"
            raise LensError(f"{sets[0].url}: {message}")
        seen[artifact.name] = _trained_on(artifact, images)
        if seen[artifact.name]:
            context.progress.warn(
                f"{artifact.name} was trained on {seen[artifact.name]} of these {len(images)} images: its distance "
                "tells nothing of images that it does not know"
            )
        prompts = {key: captions[key] for key in images}
        drawn = _drawn(
            model,
            prompts,
            features_of,
            config,
            on_picture=lambda done, before=before: context.progress.update(before + done),  # type: ignore[misc]
        )
        there, made = np.stack(list(images.values())), np.stack(drawn)
        for name, distance in (
            ("kid", kernel_distance(there, made, seed=config.seed)),
            ("frechet", frechet_distance(there, made)),
        ):
            distances.append({"model": artifact.name, "distance": name, **asdict(distance), "n": len(images)})
    left_out = len(keys) - min(map(len, real.values()))
    if left_out:
        context.progress.note(f"{left_out} of {len(keys)} images cannot be decoded, and are left out")
    context.output.write_json(
        SCORES,
        {
            "format_version": 1,
            "interval": "95 %, from subsets of the pictures",
            "training_seeds": 1,
            "skills": [],
            "styles": [],
            "models": [{"name": artifact.name, "own_style": own_style(artifact)} for artifact in models],
            "cells": [],
            "means": [],
            "features": config.features,
            "seen": seen,
            "distances": distances,
        },
    )
    return {"pictures": sum(entry["n"] for entry in distances) // 2, "models": len(models), "left_out": left_out}


def _captions(artifact: Artifact, layer: str | None) -> dict[str, str]:
    """The first caption of each image, by its key."""
    captions: dict[str, str] = {}
    for key, text in read_texts(artifact, layers=[layer] if layer else None):
        captions.setdefault(key, text)
    if not captions:
        raise LensError(f"{artifact.url}: no image has a caption")
    return captions


def _images(captions: Artifact, keys: Iterable[str], size: tuple[int, int], features_of: FeaturesOf) -> Images:
    """The captioned images at this (height, width); what cannot be decoded is left out."""
    reader = ShardReader(captions.parent("images"))
    features: Images = {}
    try:
        for key in keys:
            if not reader.has(key):
                raise ArtifactError(f"{captions.url} has a caption of {key[:12]}, which is not among its images")
            try:
                pixels = decode(reader.by_key(key).data)
            except ImageError:
                continue
            features[key] = features_of(fit(pixels, *size))
    finally:
        reader.close()
    return features


def _drawn(
    model: LoadedModel,
    prompts: Mapping[str, str],
    features_of: FeaturesOf,
    config: DistanceStageConfig,
    *,
    on_picture: Callable[[int], None],
) -> list[np.ndarray]:
    """Features of the model's pictures, in the order of the prompts."""
    sampler = model.chosen_sampler(config.sampler, config.steps)
    height, width = model.image_size
    requests = [
        Request(prompt=prompt, height=height, width=width, seed=config.seed, index=number)
        for number, prompt in enumerate(prompts.values())
    ]
    features: list[np.ndarray] = []
    for first in range(0, len(requests), _AT_ONCE):
        images = generate(model, requests[first : first + _AT_ONCE], sampler=sampler, guidance=config.guidance)
        features += [features_of(image) for image in images]
        on_picture(len(features))
    return features


def _trained_on(model: Artifact, keys: Iterable[str]) -> int | None:
    """How many of the images the model was trained on; None if its lineage does not say."""
    try:
        images = model.parent("images")
    except ArtifactError:
        return None
    reader = ShardReader(images)
    reader.close()
    return sum(reader.has(key) for key in keys)
