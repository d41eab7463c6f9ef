"""What a train stage takes on so many GPUs, from its config alone, with the denoiser on the meta device.

What it takes of a GPU's memory is said in `memory.py`. Its time:

    seconds = FLOPs of a step / (MFU · peak · GPUs)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lens_core.diffusion.flops import denoiser_flops
from lens_core.errors import ConfigError
from lens_core.storage import urls
from lens_train.estimate.memory import activation_bytes, reached_parameters, state_bytes
from lens_train.methods.adapters import add_adapters
from lens_train.methods.config import LoraMethod
from lens_train.planning.buckets import closest
from lens_train.stages.train.config import TrainStageConfig
from lens_train.watch.flops import count_flops

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lens_core.config.pipeline import Pipeline
    from lens_core.registry import Registry

__all__ = ["GpuRow", "StagePlan", "plan_stages"]

_AUTOENCODERS = {"flux2": (128, 16), "autoencoder-kl": (64, 16)}
"""Channels and stride of those that cannot be built without their weights."""


@dataclass(frozen=True, kw_only=True)
class GpuRow:
    """A number of GPUs. `problem` is empty, or says why the steps cannot be split among them."""

    gpus: int
    state_bytes: float
    activation_bytes: float
    seconds: float
    gpu_hours: float
    days: float
    problem: str


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """A train stage: sizes, what a step is in the mean, and a row for each number of GPUs."""

    stage: str
    parameters: int
    trained: int
    images: float
    image_tokens: float
    text_tokens: float
    flops: float
    steps: float
    rows: list[GpuRow]
    notes: list[str]


def plan_stages(
    pipeline: Pipeline,
    registry: Registry,
    *,
    ranks: Sequence[int],
    peak: float,
    mfu: float,
    text_tokens: int,
    side: int,
) -> list[StagePlan]:
    """Plan every train stage of a pipeline.

    Args:
        pipeline: the checked recipe.
        registry: the installed components.
        ranks: numbers of GPUs.
        peak: FLOP/s of one.
        mfu: share of it that the model's FLOPs reach.
        text_tokens: of a caption, in the mean.
        side: of images that keep their own size, in the mean.

    Raises:
        ConfigError: a stage trains another model than Lens's own.
    """
    plans: list[StagePlan] = []
    made: dict[str, tuple[dict[str, Any], int]] = {}
    for config in pipeline.stages:
        if not isinstance(config, TrainStageConfig):
            continue
        notes = ["encoders are part of the MFU, and their weights come on top of the memory"]
        earlier = next((made[name] for name in config.sources if name in made), None)
        fields, stride = earlier or _architecture(config, pipeline, registry, notes)
        made[config.name] = fields, stride
        plans.append(_plan(config, fields, stride, notes, ranks, peak * mfu, text_tokens, side))
    return plans


def _plan(
    config: TrainStageConfig,
    fields: dict[str, Any],
    stride: int,
    notes: list[str],
    ranks: Sequence[int],
    speed: float,
    text: int,
    side: int,
) -> StagePlan:
    from lens_core.diffusion import LensTransformer2DModel  # noqa: PLC0415 (found on first use)

    with torch.device("meta"):
        model: Any = LensTransformer2DModel(**fields)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    flops_of: Callable[[Sequence[int], Sequence[int]], float] = partial(denoiser_flops, fields)
    if isinstance(config.method, LoraMethod):
        add_adapters(model, config.method, seed=0)
        flops_of = count_flops(model)
    shares = _sizes(config, side, notes)
    notes.append(f"{text} tokens a caption")
    tokens = {base: (base // stride) ** 2 for base in shares}
    costs = {base: flops_of([n], [text]) for base, n in tokens.items()}
    mean_tokens = sum(share * (tokens[base] + text) for base, share in shares.items())
    mean_flops = sum(share * costs[base] for base, share in shares.items())
    batch = config.batch
    if batch.buckets:
        batches = {base: batch.buckets[closest(batch.buckets, base * base)] for base in shares}
        per_pack = 1 / sum(share / batches[base] for base, share in shares.items())
    elif batch.samples:
        per_pack = float(batch.samples)
    else:
        per_pack = batch.tokens / mean_tokens if batch.tokens else (batch.flops or 0) / mean_flops
    images = per_pack * batch.packs_per_step
    step_flops = images * mean_flops
    budget = config.budget
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    reached = reached_parameters(model)

    def row(gpus: int) -> GpuRow:
        seconds = step_flops / (speed * gpus)
        of_a_step = {
            "flops": step_flops,
            "steps": 1.0,
            "samples": images,
            "tokens": images * mean_tokens,
            "minutes": seconds / 60,
        }
        steps = budget.amount[0] / of_a_step[budget.kind]
        fits = batch.packs_per_step % gpus == 0
        return GpuRow(
            gpus=gpus,
            state_bytes=state_bytes(config, model, reached, gpus).total,
            activation_bytes=activation_bytes(config.parallel, fields, per_pack * mean_tokens),
            seconds=seconds,
            gpu_hours=steps * seconds * gpus / 3600,
            days=steps * seconds / 86400,
            problem="" if fits else f"{batch.packs_per_step} packs a step cannot be split among {gpus}",
        )

    rows = [row(gpus) for gpus in ranks]
    return StagePlan(
        stage=config.name,
        parameters=parameters,
        trained=trained,
        images=images,
        image_tokens=images * (mean_tokens - text),
        text_tokens=images * text,
        flops=step_flops,
        steps=rows[0].days * 86400 / rows[0].seconds,
        rows=rows,
        notes=notes,
    )


def _sizes(config: TrainStageConfig, side: int, notes: list[str]) -> dict[int, float]:
    """Sides of squares, which sizes of other ratios have about the area of, and the share of images of each."""
    size = config.image_size
    if size is None:
        notes.append(f"images of {side} x {side}")
        return {side: 1.0}
    if isinstance(size, int):
        return {size: 1.0}
    if isinstance(size, tuple):
        return {round((size[0] * size[1]) ** 0.5): 1.0}
    total = sum(size.bases.values())
    notes.append("images that reach every base")
    return {base: weight / total for base, weight in size.bases.items()}


def _architecture(
    config: TrainStageConfig, pipeline: Pipeline, registry: Registry, notes: list[str]
) -> tuple[dict[str, Any], int]:
    """The denoiser's fields and the pixels of a token's side."""
    if config.start:
        url = urls.resolve(config.start, pipeline.base)
        own = Path(url, "transformer", "config.json")
        if urls.is_local(url) and own.is_file():
            fields = {k: v for k, v in json.loads(own.read_text()).items() if not k.startswith("_")}
            lens = Path(url, "lens.json")
            settings = json.loads(lens.read_text())["autoencoder"] if lens.is_file() else {"type": "flux2"}
            return fields, _grid(registry.parse("autoencoders", settings), registry)[1]
        notes.append(f"{config.start} is not here: a model of the released architecture")
        return _released(), 16
    if config.model.type != "lens":
        raise ConfigError(
            f"lens plan knows the model 'lens' only, not {config.model.type!r}", key=f"stages.{config.name}.model"
        )
    channels, stride = _grid(config.autoencoder, registry)
    width, layers = _features(config.text_encoder, notes)
    fields = {key: value for key, value in config.model.architecture().items()}  # type: ignore[attr-defined]
    return {
        **fields,
        "in_channels": channels,
        "out_channels": channels // fields["patch_size"] ** 2,
        "enc_hidden_dim": width,
        "selected_layer_index": list(range(layers)),
    }, stride


def _released() -> dict[str, Any]:
    from lens_core.diffusion import LensTransformer2DModel  # noqa: PLC0415 (found on first use)

    with torch.device("meta"):
        return dict(LensTransformer2DModel(num_layers=1).config) | {"num_layers": 48}


def _grid(config: Any, registry: Registry) -> tuple[int, int]:
    if config.type in _AUTOENCODERS:
        return _AUTOENCODERS[config.type]
    built = registry.build("autoencoders", config)
    return built.channels, built.stride


def _features(config: Any, notes: list[str]) -> tuple[int, int]:
    if config.type == "small":
        return config.width, 1
    if config.type != "gpt-oss":
        notes.append(f"features of width 2880 from {config.type}")
    return 2880, len(getattr(config, "layers", (0,)))
