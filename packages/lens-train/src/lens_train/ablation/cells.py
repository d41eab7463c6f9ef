"""The cells of an ablation: an arm with a seed is a small pipeline, run in a folder of its own.

A cell's key is a hash of what its result follows from: what is asked of its stages, the seed, the content of the
artefacts that it takes from outside, and what its stages read outside the run. Same key, same result, on any machine.

Results are to outlive the code: only settings that somebody wrote down are part of the key, and none of those that made
the artefacts, so that an option which a later version adds does not call hours of work into question. A default that a
later version changes is therefore not noticed.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lens_core.config.base import config_hash
from lens_core.pipeline.run_folder import STATE
from lens_core.pipeline.runner import outside_of, run_stages
from lens_core.storage.artifacts import load_artifact
from lens_train.ablation.rows import rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lens_core.config.stage import StageConfig
    from lens_core.pipeline.progress import Progress
    from lens_core.registry import Registry
    from lens_core.storage.artifacts import Artifact
    from lens_train.ablation.results import Results

__all__ = ["Cell", "cell_key", "run_cell"]

_FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Cell:
    """An arm with a seed.

    Args:
        ablation: name of the stage.
        arm: name of the arm.
        seed: of everything random in its stages.
        title: what people read, such as "dense, seed 1 (5 of 12)".
        stages: in order.
        given: the artefacts from outside that they take.
        key: see `cell_key`.
    """

    ablation: str
    arm: str
    seed: int
    title: str
    stages: Sequence[StageConfig]
    given: Mapping[str, Artifact]
    key: str

    @property
    def name(self) -> str:
        """Of its files and folders."""
        return f"{self.arm}-{self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Plain data, from which another process makes the cell again."""
        return {
            **{name: getattr(self, name) for name in ("ablation", "arm", "seed", "title", "key")},
            "stages": [stage.model_dump(mode="json") for stage in self.stages],
            "given": {name: artifact.url for name, artifact in self.given.items()},
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any], registry: Registry) -> Cell:
        """The cell that `to_json` wrote down."""
        stages: list[Any] = [registry.parse("stages", block) for block in told["stages"]]
        given = {name: load_artifact(url) for name, url in told["given"].items()}
        return cls(**{**told, "stages": stages, "given": given})


def cell_key(
    stages: Sequence[StageConfig], given: Mapping[str, Artifact], *, seed: int, base: str, registry: Registry
) -> str:
    """The hash of what a cell's result follows from."""
    return config_hash(
        {
            "format_version": _FORMAT_VERSION,
            "stages": [stage.model_dump(mode="json", exclude_unset=True) for stage in stages],
            "seed": seed,
            "given": {name: _content(artifact) for name, artifact in sorted(given.items())},
            "outside": [outside_of(stage, registry=registry, base=base, seed=seed) for stage in stages],
        }
    )


def _content(artifact: Artifact) -> str:
    """The hash of an artefact's files, and of those of all that it was made from."""
    files = {entry.path: entry.sha256 for entry in artifact.files}
    return config_hash({"files": files, "parents": [_content(parent) for parent in artifact.parents]})


def run_cell(cell: Cell, *, folder: Path, results: Results, base: str, registry: Registry, progress: Progress) -> None:
    """Run a cell's stages, go on with them if they were cut off, and keep what they found.

    Args:
        cell: to run.
        folder: of its artefacts and their state; gone once the result is kept.
        results: keeps the result.
        base: the folder that relative paths in the stages' configs are relative to.
        registry: where components come from.
        progress: a part of the ablation's.

    Raises:
        Stopped: the user asked for it; the state is saved.
        LensError: whatever a stage has to say.
    """
    artifacts = run_stages(
        cell.stages,
        run_url=str(folder),
        state_root=folder / STATE,
        base=base,
        seed=cell.seed,
        registry=registry,
        progress=progress,
        given=cell.given,
    )
    found = rows_of(artifacts.values(), ablation=cell.ablation, arm=cell.arm, seed=cell.seed, key=cell.key)
    results.keep(cell, found, artifacts.values())
    shutil.rmtree(folder)
