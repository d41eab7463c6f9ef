"""Settings that no model depends on may change in the middle of a training, and at its end."""

from __future__ import annotations

import io

import pytest
import yaml

from lens_core.config.pipeline import load_pipeline
from lens_core.errors import LensError, Stopped
from lens_core.pipeline.progress import Progress
from lens_core.pipeline.runner import run_pipeline

STAGES = [
    {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 24}},
    {"name": "dense", "type": "caption", "source": "images", "captioner": {"type": "scene-graph", "style": "dense"}},
    {
        "name": "model",
        "type": "train",
        "source": "dense",
        "model": {"type": "lens", "preset": "nano", "num_layers": 1},
        "budget": {"steps": 6},
        "batch": {"samples": 4},
        "watch": {"validation": {"share": 0.2, "every": 100, "times": 1, "limit": 1e-6}},
    },
]


@pytest.fixture
def run(tmp_path, lens_registry):
    """Run the pipeline with some settings changed; what it says."""

    def with_settings(*changes, stop_at=None):
        file = tmp_path / "pipeline.yaml"
        file.write_text(yaml.safe_dump({"run": str(tmp_path / "run"), "stages": STAGES}))
        pipeline = load_pipeline(str(file), lens_registry, [f"stages.model.{change}" for change in changes])
        said = io.StringIO()
        progress = StopsAt(stop_at, stream=said, live=False)
        try:
            run_pipeline(pipeline, lens_registry, progress=progress)
        except (LensError, Stopped) as error:
            said.write(str(error))
        return said.getvalue()

    return with_settings


class StopsAt(Progress):
    """Asks the stage to stop, as Ctrl-C would, in the step before."""

    def __init__(self, step, **options):
        super().__init__(**options)
        self.step = step

    def update(self, done, **metrics):
        super().update(done, **metrics)
        if self.step and metrics.get("step") == self.step - 1:
            self.stop_asked = True


def test_training_goes_on_and_is_finished_with_other_settings(run, tmp_path):
    assert "stopped at step 2" in run(stop_at=2)
    said = run("threads=1", "data.workers=1", "data.memory_gb=0", "checkpoints.every_s=5", stop_at=4)
    assert "goes on from step 2" in said
    assert "stopped at step 4" in said
    said = run("parallel.activation_checkpointing=full", "parallel.timeout_s=1200", "watch.log_every=1")
    assert "goes on from step 4" in said
    assert "more than watch.validation.limit" in said
    said = run("watch.validation.limit=1000", "device=cpu")
    assert "goes on from step 6" in said
    assert "model: done already" in run("data.workers=2", "watch.tensorboard=false")
    resolved = yaml.safe_load((tmp_path / "run" / "resolved.yaml").read_text())["stages"][2]
    assert (resolved["data"]["workers"], resolved["watch"]["tensorboard"]) == (2, False)
    assert "(again: optimizer.lr changed)" in run("optimizer.lr=0.001", "watch.validation.limit=1000", "threads=1")
