"""Training by many processes: `torchrun --nproc-per-node 8 -m lens_train recipe.yaml`.

Rank 0 runs the pipeline as `lens run` does, and is the only one to write artefacts. The other ranks wait until it comes
to a stage that all of them train in, are told which, and take part. All must see the same run folder.
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lens_core.cli.main import app
from lens_core.config.pipeline import load_pipeline
from lens_core.diffusion.device import pick_device
from lens_core.errors import ConfigError
from lens_core.pipeline.context import StageContext
from lens_core.pipeline.progress import Progress
from lens_core.registry import load_registry
from lens_core.storage import urls
from lens_core.storage.artifacts import OutputFolder, load_artifact
from lens_train.parallel.world import PATIENCE, World
from lens_train.stages.train.config import TrainStageConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from lens_core.config.pipeline import Pipeline
    from lens_core.registry import Registry

__all__ = ["announce", "launch", "world_of"]

_world: World | None = None
_calls = 0


def launch(file: str, overrides: Sequence[str]) -> None:
    """Run a pipeline with all the processes that torchrun started; this is one of them.

    Args:
        file: the pipeline.
        overrides: as given to `lens run --set`.

    Raises:
        LensError: whatever a stage has to say.
    """
    global _world
    registry = load_registry()
    pipeline = load_pipeline(file, registry, overrides)
    stages = [stage for stage in pipeline.stages if isinstance(stage, TrainStageConfig)]
    devices = sorted({stage.device for stage in stages})
    if len(devices) > 1:
        raise ConfigError(
            f"torchrun's processes meet on one device, and the train stages name {' and '.join(devices)}", key="device"
        )
    waits = [stage.parallel.timeout_s for stage in stages]
    _world = World.join(pick_device(next(iter(devices), "auto")), max(waits, default=600))
    try:
        if _world.is_main:
            options = [part for override in overrides for part in ("--set", override)]
            app(["run", file, *options], standalone_mode=False)
            _call(_world, None)
        else:
            _follow(_world, pipeline, registry)
    finally:
        _world.leave()


def world_of(device: torch.device) -> World:
    """The processes that train together: those that `launch` met, or this one alone."""
    return _world or World(device=device)


def announce(world: World, context: StageContext) -> None:
    """Rank 0 calls the others to a stage."""
    if world.size > 1 and world.is_main:
        _call(world, {"stage": context.name, "state_dir": str(context.state_dir.absolute())})


def _call(world: World, told: dict[str, str] | None) -> None:
    global _calls
    if world.store is not None:
        world.store.set(f"call/{_calls}", json.dumps(told))
        _calls += 1


def _follow(world: World, pipeline: Pipeline, registry: Registry) -> None:
    """Take part in every stage that rank 0 calls to, until it says that there is none left."""
    stages = {stage.name: stage for stage in pipeline.stages}
    assert world.store is not None
    for number in range(len(stages) + 1):
        world.store.wait([f"call/{number}"], PATIENCE)
        told = json.loads(world.store.get(f"call/{number}"))
        if told is None:
            return
        config, state_dir = stages[told["stage"]], Path(told["state_dir"])
        run_url, unused = pipeline.config.run, state_dir / f"rank-{world.rank}"
        with Path(os.devnull).open("w") as nowhere:
            progress = Progress(stream=nowhere, live=False)
            context = StageContext(
                name=config.name,
                inputs=tuple(load_artifact(urls.join(run_url, source)) for source in config.sources),
                output=OutputFolder(str(unused), unused),
                state_dir=state_dir,
                run_url=run_url,
                base=pipeline.base,
                seed=pipeline.config.seed,
                registry=registry,
                progress=progress,
            )
            with _stopping_on_signal(progress):
                registry.spec("stages", config.type).load_target()(config, context)


@contextmanager
def _stopping_on_signal(progress: Progress) -> Iterator[None]:
    """A signal asks the stage to stop; between stages, where a rank only waits, it ends the process as ever."""

    def ask(number: int, frame: object) -> None:
        progress.stop_asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
