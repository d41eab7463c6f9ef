"""What a stage is given besides its config. The list of fields is fixed: this is no place for a stage's own things."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lens_core.errors import Stopped
from lens_core.storage import urls

if TYPE_CHECKING:
    from pathlib import Path

    from lens_core.pipeline.progress import Progress
    from lens_core.registry import Registry
    from lens_core.storage.artifacts import Artifact, OutputFolder

__all__ = ["StageContext"]


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """A stage's surroundings.

    Args:
        name: the stage's name in the pipeline.
        inputs: the artefacts that `source` names, in that order.
        output: where the stage writes its artefact; the runner adds the manifest.
        state_dir: a private local folder that survives a kill, for journals and training state; other settings have
            another one. The runner removes it once the artefact is finished.
        run_url: the run folder.
        base: the folder that relative paths in the config are relative to.
        seed: the pipeline's seed.
        registry: where components come from.
        progress: tells the user how far the stage is.
    """

    name: str
    inputs: tuple[Artifact, ...]
    output: OutputFolder
    state_dir: Path
    run_url: str
    base: str
    seed: int
    registry: Registry
    progress: Progress

    @property
    def work_url(self) -> str:
        """A folder that the machines which share the stage have in common; gone once the artefact is finished."""
        return urls.join(self.run_url, f".work-{self.name}")

    def should_stop(self) -> bool:
        """Whether the user, or a signal, asked the run to stop: a long stage then saves its state, raises `Stopped`."""
        return self.progress.stop_asked

    def stop_if_asked(self) -> None:
        """End a stage that has no state to save, if the run is to stop.

        Raises:
            Stopped: it is.
        """
        if self.should_stop():
            raise Stopped(f"stopped in the middle of {self.name}; the same command begins that stage again")
