"""Trains on a disk that gets full on the way; what was said and what came of it is printed as JSON.

unshare -rm sh -c 'mount -t tmpfs -o size=8m tmpfs FOLDER && python full_disk.py FOLDER'
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from lens_core.config.pipeline import load_pipeline
from lens_core.errors import LensError, Stopped
from lens_core.pipeline.progress import Progress
from lens_core.pipeline.runner import run_pipeline
from lens_core.registry import load_registry
from lens_train.checkpoint.store import CheckpointStore
from lens_train.stages.train.stage import run
from train.checkpoint.full_disk import fill
from train.contexts import context_in

STEPS = 24
TRAIN = {
    "name": "model",
    "type": "train",
    "source": "dense",
    "model": {"type": "lens", "preset": "nano", "num_layers": 1, "num_attention_heads": 1},
    "text_encoder": {"type": "small", "width": 32, "layers": 1, "heads": 1, "vocab_size": 300},
    "budget": {"steps": STEPS},
    "batch": {"samples": 4},
    "threads": 1,
    "checkpoints": {"every_s": 1e9},
}
CLOCKS = {"seconds", "images_per_s", "tokens_per_s", "mfu", "hfu", "data_wait", "encoder_share", "memory_gb"}


class Watched(Progress):
    """Acts once the run has come to a step."""

    def __init__(self, step, act):
        super().__init__(stream=io.StringIO(), live=False)
        self._step, self._act = step, act
        self._trains = False

    def start(self, total, unit):
        super().start(total, unit)
        self._trains = unit == "steps"

    def update(self, done, **metrics):
        super().update(done, **metrics)
        if self._trains and done == self._step:
            self._act(self)


def stop(progress):
    progress.stop_asked = True


def go_on(progress):
    """Nothing happens."""


class Place:
    """A folder to train in."""

    def __init__(self, folder, captions, registry, watch):
        self.folder, self.captions, self.registry = folder, captions, registry
        self.config = registry.parse("stages", TRAIN | {"watch": {"log_every": 1, **watch}})
        self.state = folder / "state" / "model"
        self.state.mkdir(parents=True)

    def train(self, step=0, act=go_on):
        """Run the stage; what it ended with."""
        progress = Watched(step, act)
        context = context_in(self.folder, self.registry, [self.captions], state=self.state, progress=progress)
        try:
            run(self.config, context)
        except LensError as error:
            return error
        return None

    def latest(self):
        """The checkpoint that the run would go on from."""
        return CheckpointStore(self.state / "checkpoints", None).latest().name

    def made(self):
        """The curves without what a clock says, and the weights' digests."""
        model = self.folder / "model"
        lines = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
        weights = {
            str(file.relative_to(model)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(model.rglob("*.safetensors"))
        }
        return [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines], weights


def main(disk):
    registry = load_registry()
    with TemporaryDirectory() as elsewhere:
        stages = [
            {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 8}},
            {"name": "dense", "type": "caption", "source": "images", "captioner": {"type": "scene-graph"}},
        ]
        file = Path(elsewhere, "pipeline.yaml")
        file.write_text(json.dumps({"run": f"{elsewhere}/run", "stages": stages}))
        quiet = Progress(stream=io.StringIO(), live=False)
        captions = run_pipeline(load_pipeline(str(file), registry), registry, progress=quiet)["dense"]
        undisturbed = Place(Path(elsewhere, "undisturbed"), captions, registry, {})
        assert undisturbed.train() is None
        found = {}
        for name, watch, step, room in (
            ("curves", {"tensorboard": False}, 8, 0),
            ("tensorboard", {}, 8, 0),
            ("model", {"tensorboard": False}, STEPS, 32_768),
        ):
            place = Place(disk / name, captions, registry, watch)
            assert isinstance(place.train(4, stop), Stopped)
            before = place.latest()
            told = place.train(step, lambda _, room=room: fill(disk / "filler", room))
            after = place.latest()
            (disk / "filler").unlink()
            end = place.train()
            found[name] = {
                "kind": type(told).__name__,
                "told": str(told),
                "latest": [before, after],
                "end": end and str(end),
                "same": place.made() == undisturbed.made(),
            }
            shutil.rmtree(place.folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
