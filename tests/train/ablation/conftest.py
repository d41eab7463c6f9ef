"""Ablations in this process."""

from __future__ import annotations

import io

import pytest
import yaml

from lens_core.config.pipeline import load_pipeline
from lens_core.pipeline.progress import Progress
from lens_core.pipeline.runner import run_pipeline


@pytest.fixture(scope="session")
def ablate(lens_registry):
    """Run a pipeline in a folder: `ablate(folder, ablation(…))` gives the last artefact and what was said."""

    def run(folder, stages, *, run="run"):
        file = folder / "pipeline.yaml"
        file.write_text(yaml.safe_dump({"run": str(folder / run), "stages": stages}, sort_keys=False))
        said = io.StringIO()
        progress = Progress(stream=said, live=False)
        made = run_pipeline(load_pipeline(str(file), lens_registry), lens_registry, progress=progress)
        return made[stages[-1]["name"]], said.getvalue()

    return run
