"""The ablate stage: every cell that has no result yet is run, and the results of all become one table.

Cells go seed by seed, so that whatever is finished compares all arms. Beside the stage's own state lies
`.state/NAME.cells`, which outlives it: there a cell's stages keep what they have so far, and, without `results`, the
results are kept. An arm that is added later therefore costs its own cells alone.
"""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from lens_core.config.base import config_hash
from lens_core.errors import ConfigError, LensError, Stopped
from lens_core.pipeline.runner import outside_of
from lens_core.storage import urls
from lens_train.ablation.cells import Cell, cell_key, run_cell
from lens_train.ablation.results import Results
from lens_train.ablation.rows import ROWS, rows_bytes
from lens_train.ablation.workers import run_in_workers
from lens_train.launch import world_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lens_core.pipeline.context import StageContext
    from lens_core.registry import Registry
    from lens_train.stages.ablate.config import AblateStageConfig

__all__ = ["ABLATION", "fingerprint", "run"]

ABLATION = "ablation.json"


def run(config: AblateStageConfig, context: StageContext) -> dict[str, Any]:
    """Run the cells and gather what they found.

    Raises:
        ConfigError: torchrun started this.
        Stopped: the user asked for it; what is finished is kept, the rest has saved its state.
        LensError: a cell failed; which, and why.
    """
    if world_of(torch.device("cpu")).size > 1:
        raise ConfigError("an ablation trains each cell in one process: run it by `lens run`, and set `devices`")
    kept = context.state_dir.with_name(f"{context.name}.cells")
    results = Results(urls.resolve(config.results, context.base) if config.results else str(kept / "results"))
    cells = _cells(config, context)
    waiting = [cell for cell in cells if not results.has(cell, context.progress)]
    if len(waiting) < len(cells):
        context.progress.note(f"{len(cells) - len(waiting)} of {len(cells)} cells are finished ({results.url})")
    _run(config, context, waiting, results, kept / "running", done=len(cells) - len(waiting))
    shutil.rmtree(kept / "running", ignore_errors=True)
    return _publish(config, context, cells, results)


def fingerprint(config: AblateStageConfig, *, registry: Registry, base: str, seed: int) -> str:
    """A text that changes with what the cells' stages resolve to, and with what these read outside the run."""
    runs = [overlay.stages(registry) for overlay in config.overlays()]
    return config_hash(
        {
            "stages": [[stage.model_dump(mode="json") for stage in stages] for stages in runs],
            "outside": [
                outside_of(stage, registry=registry, base=base, seed=seed)
                for stages in runs
                for seed in config.seeds
                for stage in stages
            ],
        }
    )


def _cells(config: AblateStageConfig, context: StageContext) -> list[Cell]:
    outer = {artifact.name: artifact for artifact in context.inputs}
    arms = {overlay.arm: overlay.stages(context.registry) for overlay in config.overlays()}
    total = len(arms) * len(config.seeds)
    cells: list[Cell] = []
    for seed in config.seeds:
        for arm, stages in arms.items():
            given = {name: outer[name] for stage in stages for name in stage.sources if name in outer}
            cells.append(
                Cell(
                    ablation=context.name,
                    arm=arm,
                    seed=seed,
                    title=f"{arm}, seed {seed} ({len(cells) + 1} of {total})",
                    stages=stages,
                    given=given,
                    key=cell_key(stages, given, seed=seed, base=context.base, registry=context.registry),
                )
            )
    return cells


def _run(
    config: AblateStageConfig,
    context: StageContext,
    cells: Sequence[Cell],
    results: Results,
    folder: Path,
    *,
    done: int,
) -> None:
    """Run the cells that have no result, here or in workers."""
    progress, began, total = context.progress, time.monotonic(), done + len(cells)
    progress.start(total, "cells")
    progress.update(done)
    finished = 0

    def on_done(cell: Cell) -> None:
        nonlocal finished
        finished += 1
        left = len(cells) - finished
        minutes = (time.monotonic() - began) / finished * left / 60
        progress.update(done + finished)
        progress.note(f"{cell.title}: done" + (f"; {left} left, about {minutes:.0f} min" if left else ""))

    if config.devices or config.workers > 1:
        run_in_workers(
            cells,
            devices=config.devices or [None] * config.workers,
            folder=folder,
            results=results,
            base=context.base,
            progress=progress,
            on_done=on_done,
        )
        return
    for cell in cells:
        if context.should_stop():
            raise Stopped(f"stopped before {cell.title}; the same command goes on from here")
        try:
            run_cell(
                cell,
                folder=folder / cell.name,
                results=results,
                base=context.base,
                registry=context.registry,
                progress=progress.part(cell.title),
            )
        except Stopped as stopped:
            raise Stopped(f"{cell.title}: {stopped}") from stopped
        except LensError as error:
            raise LensError(f"{cell.title}: {error}") from error
        on_done(cell)


def _publish(
    config: AblateStageConfig, context: StageContext, cells: Sequence[Cell], results: Results
) -> dict[str, Any]:
    """Write the table, the pictures and what they are of; returns the stage's numbers."""
    output = context.output
    rows = pa.concat_tables([results.rows(cell) for cell in cells])
    output.write_bytes(ROWS, rows_bytes(rows))
    told = []
    for cell in cells:
        pictures = {f"cells/{cell.name}/{path}": data for path, data in results.pictures(cell)}
        for path, data in pictures.items():
            output.write_bytes(path, data)
        told.append({"arm": cell.arm, "seed": cell.seed, "key": cell.key, "pictures": list(pictures)})
    budgets = {overlay.arm: overlay.budget() for overlay in config.overlays()}
    output.write_json(
        ABLATION,
        {
            "format_version": 1,
            "name": context.name,
            "arms": [
                {"name": name, "style": arm.style, "set": arm.set, "equal": budgets[name]}
                for name, arm in config.arms.items()
            ],
            "seeds": config.seeds,
            "equal": config.equal and config.equal.model_dump(exclude_none=True),
            "sources": [
                {"name": made.name, "type": made.type, "hash": made.hash, "stats": made.stats}
                for made in context.inputs
            ],
            "cells": told,
        },
    )
    return {"cells": len(cells), "arms": len(config.arms), "seeds": len(config.seeds), "rows": len(rows)}
