"""A run that is killed and started again is the run that was never killed, bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from lens_core.errors import Stopped
from lens_train.loop.metrics import METRICS
from lens_train.watch.sinks import TENSORBOARD
from states import state_of
from train.contexts import context_in

STEPS = 40
PIPELINE = """\
run: {run}
seed: 3
stages:
  - {{name: images, type: ingest, source: {{type: scenes, count: 24}}}}
  - {{name: dense, type: caption, source: images, captioner: {{type: scene-graph, style: dense}}}}
  - name: model
    type: train
    source: dense
    model: {{type: lens, preset: nano, num_layers: 1}}
    budget: {{steps: {steps}}}
    batch: {{samples: 4}}
    threads: 1
    checkpoints: {{every_s: 0.000001}}
    watch: {{log_every: 1}}
"""
CLOCKS = {"seconds", "images_per_s", "tokens_per_s", "mfu", "hfu", "data_wait", "encoder_share", "memory_gb"}


def start(folder, *options):
    """`lens run` in a process of its own."""
    (folder / "pipeline.yaml").write_text(PIPELINE.format(run="run", steps=STEPS))
    return subprocess.Popen(
        [Path(sys.executable).with_name("lens"), "run", "pipeline.yaml", *options],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder):
    process = start(folder)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said[-3000:]
    return said


def steps_so_far(folder):
    """The last step in the metrics of a stage that is under way."""
    file = state_of(folder / "run", "model") / METRICS
    lines = [line for line in file.read_text().splitlines(True) if line.endswith("\n")] if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def wait_for_step(folder, process, step):
    deadline = time.monotonic() + 120
    while steps_so_far(folder) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, "it ended before it could be stopped"


def curves(file):
    """The metrics without what a clock says."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


def digests(folder):
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*.safetensors"))
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The model folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(folder)
    return folder / "run" / "model"


def assert_as_if_undisturbed(folder, undisturbed):
    model = folder / "run" / "model"
    assert [line["step"] for line in curves(model / METRICS)] == list(range(1, STEPS + 1))
    assert curves(model / METRICS) == curves(undisturbed / METRICS)
    assert len(digests(model)) == 2
    assert digests(model) == digests(undisturbed)
    assert not state_of(folder / "run", "model").exists()


def test_killed_at_random_moments(undisturbed, tmp_path):
    rng = random.Random(7)
    kills = []
    for wanted in (4, 12, 22):
        process = start(tmp_path)
        wait_for_step(tmp_path, process, wanted)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            kills.append(steps_so_far(tmp_path))
    assert len(kills) >= 2
    assert all(0 < step < STEPS for step in kills)
    said = finish(tmp_path)
    assert "goes on from step" in said
    assert_as_if_undisturbed(tmp_path, undisturbed)


def test_a_signal_saves_and_the_next_run_goes_on(undisturbed, tmp_path):
    process = start(tmp_path)
    wait_for_step(tmp_path, process, 10)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3
    assert said.splitlines()[-1].startswith("lens: stopped at step ")
    assert said.splitlines()[-1].endswith("the same command goes on from here")
    assert not (tmp_path / "run" / "model" / "manifest.json").exists()
    # As a kill in the midst of the next save and of the next line would leave it.
    state = state_of(tmp_path / "run", "model")
    (latest,) = (state / "checkpoints").glob("step-*")
    half = state / "checkpoints" / ".step-00009999.tmp"
    half.mkdir()
    whole = (latest / "rank-00000.safetensors").read_bytes()
    (half / "rank-00000.safetensors").write_bytes(whole[: len(whole) // 2])
    with (state / METRICS).open("a") as file:
        file.write('{"step": 9999, "lo')
    said = finish(tmp_path)
    assert "goes on from step" in said
    assert_as_if_undisturbed(tmp_path, undisturbed)


def test_settings_that_are_taken_back_go_on_with_their_own_plan(undisturbed, tmp_path):
    for step, options in ((8, ()), (3, ("--set", "seed=4"))):
        process = start(tmp_path, *options)
        before = state_of(tmp_path / "run", "model")
        while options and state_of(tmp_path / "run", "model") == before and process.poll() is None:
            time.sleep(0.005)
        wait_for_step(tmp_path, process, step)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 3
    assert "goes on from step" in finish(tmp_path)
    assert_as_if_undisturbed(tmp_path, undisturbed)


def run_to_the_end(new_trainer, progress, state, **options):
    trainer = new_trainer(state=state, **options)
    trainer.run(progress)
    return trainer


def in_single_steps(new_trainer, progress, state, **options):
    """A new trainer for every step, as if the run were stopped after each."""
    for _ in range(10):
        trainer = new_trainer(state=state, **options)
        progress.stop_asked = True
        with pytest.raises(Stopped):
            trainer.run(progress)
        progress.stop_asked = False
    return run_to_the_end(new_trainer, progress, state, **options)


def assert_same_run(first, second):
    tensors = [[*trainer.parameters, *trainer.ema.averages.values()] for trainer in (first, second)]
    for a, b in zip(*tensors, strict=True):
        assert torch.equal(a, b)
    assert curves(first.folder / METRICS) == curves(second.folder / METRICS)


@pytest.mark.parametrize("log_every", [1, 4])
def test_stopped_after_every_step_it_is_the_same_run(new_trainer, progress, log_every):
    """The last start finds the budget used up: the run was stopped after its last step, before the model was kept."""
    through = run_to_the_end(new_trainer, progress, "through", log_every=log_every)
    stopped = in_single_steps(new_trainer, progress, "stopped", log_every=log_every)
    assert stopped.counters.step == 10
    assert_same_run(through, stopped)


def test_adamw_alone_is_resumed_as_well(new_trainer, progress):
    from lens_train.optim.config import OptimizerConfig

    options = {"optimizer": OptimizerConfig(type="adamw", weight_decay=0.1)}
    through = run_to_the_end(new_trainer, progress, "through", **options)
    assert_same_run(through, in_single_steps(new_trainer, progress, "stopped", **options))


def test_time_spent_before_counts(new_trainer, progress):
    stopped = in_single_steps(new_trainer, progress, "stopped")
    lines = [json.loads(line) for line in (stopped.folder / METRICS).read_text().splitlines()]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert seconds[-1] > seconds[0]


def test_steps_after_the_last_save_are_made_again(new_trainer, progress):
    through = run_to_the_end(new_trainer, progress, "through")
    trainer = new_trainer(state="killed")
    progress.stop_asked = True
    with pytest.raises(Stopped):
        trainer.run(progress)
    progress.stop_asked = False
    # Ten more lines, and no save after them: then the machine goes off.
    run_to_the_end(new_trainer, progress, "killed")
    assert_same_run(through, run_to_the_end(new_trainer, progress, "killed"))


def one_more_step(new_trainer, progress, **options):
    """Start, make a step, and stop; what was said, and the file that describes the state now."""
    progress.stop_asked = True
    trainer = new_trainer(**options)
    before = len(progress.said.getvalue())
    with pytest.raises(Stopped):
        trainer.run(progress)
    return " ".join(progress.said.getvalue()[before:].split()), trainer.store.latest() / "state.json"


def test_a_checkpoint_says_what_wrote_it(new_trainer, progress):
    settings = {"optimizer": {"lr": 0.1}, "start": None}
    _, file = one_more_step(new_trainer, progress, settings=settings)
    meta = json.loads(file.read_text())["meta"]
    assert meta["config"] == settings
    python = platform.python_version()
    assert meta["versions"] == {"lens": version("lens-core"), "torch": torch.__version__, "python": python}
    said, _ = one_more_step(new_trainer, progress)
    assert "goes on from step 1" in said
    assert "saved by" not in said


def test_other_versions_than_those_it_was_saved_by_are_told(new_trainer, progress):
    said = []
    for versions in ({"torch": "2.0.0"}, {"torch": "2.0.0", "python": "3.0.1"}, None):
        _, file = one_more_step(new_trainer, progress)
        state = json.loads(file.read_text())
        if versions:
            state["meta"]["versions"] |= versions
        else:  # as Lens wrote it before it knew of them
            del state["meta"]["versions"], state["meta"]["config"]
        file.write_text(json.dumps(state))
        said.append(one_more_step(new_trainer, progress)[0])
    torch_now, python_now = f"torch {torch.__version__}", f"python {platform.python_version()}"
    assert f"saved by torch 2.0.0, goes on with {torch_now}: bits may differ" in said[0]
    both = f"saved by torch 2.0.0 and python 3.0.1, goes on with {torch_now} and {python_now}: bits may differ"
    assert both in said[1]
    assert "goes on from step 5" in said[2]
    assert "saved by" not in said[2]


def test_curves_on_tensorboard_have_every_step_once(new_trainer, progress):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stopped = in_single_steps(new_trainer, progress, "stopped")
    board = EventAccumulator(str(stopped.folder / TENSORBOARD)).Reload()
    assert [event.step for event in board.Scalars("loss")] == list(range(1, 11))


def test_a_fresh_start_forgets_the_metrics_of_one_that_never_saved(new_trainer, progress):
    first = run_to_the_end(new_trainer, progress, "state")  # it saves nothing: the interval is long
    second = run_to_the_end(new_trainer, progress, "state")
    assert first.store.latest() is None
    assert [line["step"] for line in curves(second.folder / METRICS)] == list(range(1, 11))


def test_killed_between_the_model_and_its_manifest(scenes, lens_registry, tmp_path, progress):
    """The stage is done but the runner did not get to say so: the next run empties the folder and asks again."""
    from lens_train.stages.train.stage import run

    config = lens_registry.parse(
        "stages",
        {
            "name": "model",
            "type": "train",
            "source": "dense",
            "model": {"type": "lens", "preset": "nano", "num_layers": 1},
            "budget": {"steps": 12},
            "batch": {"samples": 4},
            "checkpoints": {"every_s": 1e-6},
            "watch": {"log_every": 6},
        },
    )
    made = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        inputs, state = [scenes["dense"]], tmp_path / "state"
        run(config, context_in(folder, lens_registry, inputs, state=state, progress=progress))
        made.append(folder / "model")
    first, second = made
    assert [line["step"] for line in curves(first / METRICS)] == [1, 6, 12]
    assert curves(second / METRICS) == curves(first / METRICS)
    assert digests(second) == digests(first)
    assert list((second / TENSORBOARD).iterdir())
