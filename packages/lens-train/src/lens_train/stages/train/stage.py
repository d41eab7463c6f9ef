"""The train stage: captioned images to a model folder."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from lens_core.diffusion.device import pick_device
from lens_core.errors import ConfigError, LensError, Stopped
from lens_core.storage import artifacts, urls
from lens_core.storage.captions import read_texts
from lens_train.checkpoint.store import CheckpointStore
from lens_train.checkpoint.writing import writing
from lens_train.data.autoencoder_identity import identity
from lens_train.data.images import MemoryImages
from lens_train.data.pictures import images_of, latents_of
from lens_train.data.text import Captions
from lens_train.data.training_set import open_training_set
from lens_train.export.model_card import model_card
from lens_train.launch import announce, world_of
from lens_train.loop.metrics import METRICS, resolution
from lens_train.loop.trainer import Trainer
from lens_train.methods.config import LoraMethod
from lens_train.parallel.shard import compute_dtype
from lens_train.planning.build import make_plan
from lens_train.planning.costs import CostModel
from lens_train.planning.kept import MANIFEST, keep_plan
from lens_train.planning.packs import packs_of
from lens_train.planning.samples import SampleSource
from lens_train.stages.train.parts import build_parts
from lens_train.stages.train.terms import build_terms
from lens_train.watch.drawing import Drawer
from lens_train.watch.evaluation import Evaluation
from lens_train.watch.profiler import TRACES
from lens_train.watch.samples import SAMPLES, Samples
from lens_train.watch.sinks import TENSORBOARD
from lens_train.watch.validation import Validation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from lens_core.pipeline.context import StageContext
    from lens_core.storage.artifacts import Artifact
    from lens_train.data.training_set import TrainingSet
    from lens_train.parallel.world import World
    from lens_train.planning.manifest import Manifest
    from lens_train.stages.train.config import TrainStageConfig
    from lens_train.stages.train.parts import Parts
    from lens_train.watch.watcher import Watcher

__all__ = ["build_trainer", "run"]

_STOPPED = "stopped while images were read; the same command reads them again"


def run(config: TrainStageConfig, context: StageContext) -> dict[str, Any]:
    """Train within the budget and leave a model folder, the metrics and TensorBoard's files.

    Under torchrun every rank calls this, and rank 0 alone writes the artefact.

    Raises:
        LensError: there is nothing to train on, or training diverges.
        Stopped: the user asked for it; the state is saved.
    """
    trainer, parts = build_trainer(config, context)
    parents = _parents(context, parts.start)
    trainer.run(context.progress)
    image_size = _usual_size(trainer.manifest)
    folder = context.output.local_dir("model")
    shutil.rmtree(folder)
    stats = _stats(trainer, parts.image_size or image_size)
    with trainer.store.beside(), writing(folder):
        with trainer.ema.swapped():
            parts.save(folder, config, trainer.world, image_size=image_size, parents=parents)
        if trainer.world.is_main:
            grids = sorted((context.state_dir / SAMPLES).glob("*.png"))
            card = model_card(
                context.name,
                stats=stats,
                parents=parents,
                licence=config.licence,
                start=parts.start,
                adapter=config.method.kind if isinstance(config.method, LoraMethod) else None,
                grid=f"{SAMPLES}/{grids[-1].name}" if grids else None,
            )
            _fill(folder, card, context)
            trainer.store.hand_over(context.state_dir.with_name(f"{context.name}.checkpoints"))
    return stats


def _parents(context: StageContext, start: str | None) -> list[dict[str, str]]:
    """What the model is made from: the stage's inputs, and the model in `start` if Lens made it."""
    made_from = list(context.inputs)
    if start and start not in {made.url for made in made_from} and urls.exists(urls.join(start, artifacts.MANIFEST)):
        made_from.append(artifacts.load_artifact(start))
    return [{"name": made.name, "type": made.type, "hash": made.hash} for made in made_from]


def _fill(folder: Path, card: str, context: StageContext) -> None:
    """Put what the run left beside its model into the folder, and hand it in."""
    (folder / "README.md").write_text(card, encoding="utf-8")
    # Copied, not moved: a run killed before its manifest is written goes on from the state, which needs them whole.
    shutil.copy(context.state_dir / METRICS, folder)
    for name in (TENSORBOARD, SAMPLES, TRACES):
        if (context.state_dir / name).exists():
            shutil.copytree(context.state_dir / name, folder / name)
    context.output.add_folder("", folder)


def _stats(trainer: Trainer, image_size: tuple[int, int]) -> dict[str, Any]:
    """What the manifest says of the training."""
    counters = asdict(trainer.counters)
    del counters["skipped_in_a_row"], counters["unreadable"]
    return {
        **counters,
        "steps": counters.pop("step"),
        "training_flops": counters.pop("flops"),
        "parameters": sum(average.numel() for average in trainer.ema.averages.values()),
        "image_size": list(image_size),
        "training_images": len(trainer.manifest),
        "device": str(trainer.world.device),
        "ranks": trainer.world.size,
    }


def build_trainer(config: TrainStageConfig, context: StageContext) -> tuple[Trainer, Parts]:
    """Everything that `run` trains with: the model's parts, the data, the plan, and the loop over them.

    Raises:
        LensError: there is nothing to train on, or parts do not fit each other.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    world = world_of(pick_device(config.device))
    announce(world, context)
    packs_of(0, world.rank, world.size, config.batch.packs_per_step)  # said before anything is loaded
    inputs = _by_type(config, context)
    start = config.start and urls.resolve(config.start, context.base)
    if "model" in inputs:
        start = inputs["model"].url
    texts = (text for _, text in read_texts(inputs["captions"], layers=config.layers))
    parts = build_parts(config, context, texts, start)
    terms = build_terms(config, context, parts, world, latents="latents" in inputs)
    kept = _kept_folder(context, world)
    data = _training_set(kept / MANIFEST, inputs, parts, config, context, world)
    parts.place(config, world, seed=context.seed)
    source = SampleSource(
        manifest=data.manifest,
        costs=CostModel.fit(lambda n, m: parts.flops([n], [m])),
        stride=parts.autoencoder.stride,
        seed=context.seed,
        caption_dropout=config.objective.caption_dropout,
    )
    if world.is_main:
        keep_plan(kept, config.batch, source)
    trainer = Trainer(
        transformer=parts.transformer,
        captions=Captions(parts.text_encoder, cache_bytes=int(config.data.text_cache_gb * 1e9)),
        autoencoder=parts.autoencoder,
        manifest=data.manifest,
        plan=make_plan(config.batch, source),
        source=data.source,
        sides=sorted({resolution(height, width) for height, width, _ in data.manifest.sizes}),
        flops=parts.flops,
        packs_per_step=config.batch.packs_per_step,
        workers=0 if isinstance(data.source, MemoryImages) else config.data.workers,
        objective=config.objective,
        prediction=parts.prediction,
        optimizer=config.optimizer,
        budget=config.budget,
        ema_decay=config.ema,
        dtype=compute_dtype(config.parallel, world.device),
        world=world,
        store=CheckpointStore(
            context.state_dir / "checkpoints",
            world,
            keep_last=config.checkpoints.keep_last,
            keep_every=config.checkpoints.keep_every,
        ),
        folder=context.state_dir,
        watch=config.watch,
        settings=config.model_dump(mode="json"),
        seed=context.seed,
        save_every_s=config.checkpoints.every_s,
        max_bad_samples=config.data.max_bad_samples,
        trainable_only=isinstance(config.method, LoraMethod),
        fixed_size=config.batch.fixed_size,
        recomputed_flops=parts.recomputed_flops,
        terms=terms,
    )
    trainer.watchers += _watchers(trainer, parts, data, config, context)
    return trainer, parts


def _training_set(
    folder: Path,
    inputs: Mapping[str, Artifact],
    parts: Parts,
    config: TrainStageConfig,
    context: StageContext,
    world: World,
) -> TrainingSet:
    """What is trained on; who watches is told what is left out.

    Raises:
        Stopped: the user asked for it.
    """
    captions = inputs["captions"]
    pictures = (
        latents_of(inputs["latents"], autoencoder=identity(parts.autoencoder))
        if "latents" in inputs
        else images_of(captions, image_size=config.image_size, stride=parts.autoencoder.stride, seed=context.seed)
    )
    context.progress.start(None, "images read")

    def on_image(done: int, total: int) -> None:
        context.progress.update(done)
        if context.should_stop():
            raise Stopped(_STOPPED)

    try:
        data = open_training_set(
            folder,
            pictures,
            captions,
            layers=config.layers,
            memory_bytes=config.data.memory_gb * 1e9,
            tokenize=parts.text_encoder.tokenize,
            on_image=on_image,
            world=world,
            validation=config.watch.validation,
            seed=context.seed,
        )
    except LensError as error:
        if context.should_stop():  # and this rank heard of another's stop first
            raise Stopped(_STOPPED) from error
        raise
    for key in data.undecodable:
        context.progress.warn(f"image {key} cannot be decoded; it is left out")
    if data.left_out:
        in_all = data.left_out + len(data.manifest) + (len(data.held_out.manifest) if data.held_out else 0)
        context.progress.note(
            f"{data.left_out} of {in_all} images are left out: they have no caption, or cannot be decoded"
        )
    return data


def _watchers(
    trainer: Trainer, parts: Parts, data: TrainingSet, config: TrainStageConfig, context: StageContext
) -> Iterator[Watcher]:
    """Who looks at the model on the way."""
    watch, registry = config.watch, context.registry
    if watch.validation and data.held_out:
        yield Validation(trainer, data.held_out, watch.validation)
    draw = Drawer(parts, trainer.world, dtype=trainer.dtype, image_size=_usual_size(data.manifest), registry=registry)
    if watch.samples:
        yield Samples(draw, watch.samples, trainer.folder, seed=trainer.seed)
    if watch.evaluate:
        yield Evaluation(draw, registry.build("evaluators", watch.evaluate.evaluator), watch.evaluate)


def _usual_size(manifest: Manifest) -> tuple[int, int]:
    """The (height, width) that most images are trained at."""
    height, width, _ = max(manifest.sizes, key=lambda size: size[2])
    return height, width


def _kept_folder(context: StageContext, world: World) -> Path:
    """Where manifest and plan lie: beside the states, which go once the stage is done.

    It is empty for a new beginning, and for settings that were left and are taken up again: others made theirs since.
    """
    folder = context.state_dir.with_name(f"{context.name}.plan")
    if world.is_main:
        begun, owner = context.state_dir / "begun", folder / "state"
        if not begun.exists() or not owner.is_file() or owner.read_text(encoding="utf-8") != context.state_dir.name:
            shutil.rmtree(folder, ignore_errors=True)
            begun.touch()
            folder.mkdir()
            owner.write_text(context.state_dir.name, encoding="utf-8")
    world.barrier("the plan's folder")
    return folder


def _by_type(config: TrainStageConfig, context: StageContext) -> dict[str, Artifact]:
    """The inputs by what they are.

    Raises:
        ConfigError: there are no captions, two of a kind, or a size for what has one already.
    """
    inputs: dict[str, Artifact] = {}
    for artifact in context.inputs:
        if artifact.type in inputs:
            raise ConfigError(
                f"{artifact.name!r} and {inputs[artifact.type].name!r} are both {artifact.type}", key="source"
            )
        inputs[artifact.type] = artifact
    if "captions" not in inputs:
        raise ConfigError("it needs a stage whose captions are trained on", key="source")
    if "latents" in inputs and config.image_size is not None:
        raise ConfigError("latents have the sizes that they were made at: say it to `encode`", key="image_size")
    return inputs
