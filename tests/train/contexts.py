"""What a stage is given outside a pipeline."""

from __future__ import annotations

import io

from lens_core.pipeline.context import StageContext
from lens_core.pipeline.progress import Progress
from lens_core.storage.artifacts import OutputFolder


def context_in(folder, registry, inputs, *, name="model", state=None, progress=None):
    """A context with all that it needs in one folder; the state's own one is made, if none is given."""
    state = state or folder / "state"
    state.mkdir(parents=True, exist_ok=True)
    return StageContext(
        name=name,
        inputs=tuple(inputs),
        output=OutputFolder(str(folder / name), folder / "scratch"),
        state_dir=state,
        run_url=str(folder),
        base=str(folder),
        seed=3,
        registry=registry,
        progress=progress or Progress(stream=io.StringIO(), live=False),
    )
