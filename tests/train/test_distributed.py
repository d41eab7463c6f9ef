"""Two processes train as one does, and a run that is killed goes on, on as many ranks as there are then."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lens_core.storage.artifacts import load_artifact
from lens_core.storage.shards import ShardReader
from states import state_of

PIPELINE = """\
run: run
seed: 3
stages:
  - {name: images, type: ingest, source: {type: scenes, count: 24}}
  - {name: dense, type: caption, source: images, captioner: {type: scene-graph, style: dense}}
  - name: model
    type: train
    source: dense
    model: {type: lens, preset: nano, num_layers: 2}
    budget: {steps: 12}
    batch: {samples: 4, packs_per_step: 2}
    threads: 1
    checkpoints: {every_s: 0.000001}
    watch: {log_every: 1}
"""
CLOCKS = ("seconds", "_per_s", "mfu", "hfu", "data_wait", "encoder_share", "memory_gb")


def start(folder, ranks, *options, restarts=0, text=PIPELINE):
    """The pipeline, by one process or by torchrun with several, in a session of its own."""
    (folder / "pipeline.yaml").write_text(text)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    launcher += ["--max-restarts", str(restarts)]
    command = ["lens_train", "pipeline.yaml", *options]
    return subprocess.Popen(
        [*launcher, "-m", *command] if ranks > 1 else [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(folder, ranks, *options):
    process = start(folder, ranks, *options)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    return said


def curves(folder):
    """The metrics, without what a clock says."""
    lines = [json.loads(line) for line in (folder / "run" / "model" / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith(CLOCKS)} for line in lines]


def weights(folder):
    model = folder / "run" / "model"
    return {str(file.relative_to(model)): file.read_bytes() for file in sorted(model.rglob("*.safetensors"))}


def wait_for_checkpoint(folder, process, step):
    """Until there is one of at least that step; which it is."""
    deadline = time.monotonic() + 240
    reached = 0
    while reached < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
        pointer = state_of(folder / "run", "model") / "checkpoints" / "latest"
        reached = int(pointer.read_text().removeprefix("step-")) if pointer.exists() else 0
    return reached


def kill_after(folder, ranks, step):
    """SIGKILL for the launcher and all ranks, once a checkpoint of at least that step is there."""
    process = start(folder, ranks)
    reached = wait_for_checkpoint(folder, process, step)
    os.killpg(process.pid, signal.SIGKILL)
    said, _ = process.communicate()
    assert step <= reached < 12, said[-3000:]


def worker(launcher, rank):
    """The process of a rank."""
    for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"torchrun has no rank {rank}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Undisturbed runs on one rank and on two."""
    folders = {}
    for ranks in (1, 2):
        folders[ranks] = tmp_path_factory.mktemp(f"ranks-{ranks}")
        finish(folders[ranks], ranks)
    return folders


def assert_close(first, second):
    assert len(first) == len(second) == 12
    for one, other in zip(first, second, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        # Norms of parts that are near zero round more coarsely than the loss.
        assert one == pytest.approx(other, rel=1e-3)


def test_two_ranks_train_on_the_same_samples_as_one(runs):
    assert_close(curves(runs[2]), curves(runs[1]))
    manifest = json.loads((runs[2] / "run" / "model" / "manifest.json").read_text())
    assert manifest["stats"]["ranks"] == 2
    assert (runs[2] / "run" / "model" / "model_index.json").exists()


def test_two_ranks_killed_and_started_again_are_bit_equal(runs, tmp_path):
    kill_after(tmp_path, 2, 5)
    assert "goes on from step" in finish(tmp_path, 2)
    assert curves(tmp_path) == curves(runs[2])
    assert weights(tmp_path) == weights(runs[2])


def test_two_ranks_killed_go_on_as_one(runs, tmp_path):
    kill_after(tmp_path, 2, 5)
    assert "goes on from step" in finish(tmp_path, 1)
    assert_close(curves(tmp_path), curves(runs[1]))


def test_ranks_with_images_of_other_sizes_weigh_by_tokens_as_one(tmp_path):
    sizes = ("stages.images.source.size=128", "stages.model.image_size={bases: {64: 1, 128: 1}}")
    settings = (*sizes, "stages.model.objective.weight=tokens", "stages.model.budget.steps=3")
    for ranks in (1, 2):
        (tmp_path / str(ranks)).mkdir()
        finish(tmp_path / str(ranks), ranks, *(part for one in settings for part in ("--set", one)))
    one, two = (curves(tmp_path / str(ranks)) for ranks in (1, 2))
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-5)
    assert [line["grad_norm"] for line in two] == pytest.approx([line["grad_norm"] for line in one], rel=1e-4)
    assert one[0]["image_tokens"] not in {8 * 64, 8 * 256}


def test_an_unreadable_image_in_a_pack_of_its_own_is_passed_over_by_all_ranks(runs, tmp_path):
    """Sharded weights want all ranks in every pass, also the one that has nothing to compute on."""
    for ranks in (1, 2):
        for stage in ("images", "dense"):
            shutil.copytree(runs[1] / "run" / stage, tmp_path / str(ranks) / "run" / stage)
        shutil.copy(runs[1] / "run" / "run.json", tmp_path / str(ranks) / "run")
        images = tmp_path / str(ranks) / "run" / "images"
        columns = ShardReader(load_artifact(str(images))).columns
        with (images / columns["shard"][7]).open("r+b") as shard:
            shard.seek(columns["offset"][7])
            shard.write(b"damaged!")
        streamed = ("--set", "stages.model.batch.samples=1", "--set", "stages.model.data.memory_gb=0")
        said = finish(tmp_path / str(ranks), ranks, *streamed)
        assert said.count(f"image {columns['key'][7]} cannot be read: ") == 1
        assert curves(tmp_path / str(ranks))[-1]["bad_samples"] == 1
        stats = load_artifact(str(tmp_path / str(ranks) / "run" / "model")).stats
        assert (stats["bad_samples"], stats["images"], stats["steps"]) == (1, 23, 12)
    assert_close(curves(tmp_path / "2"), curves(tmp_path / "1"))


@pytest.mark.parametrize("lost", [0, 1])
def test_torchrun_starts_again_after_losing_a_rank(runs, tmp_path, lost):
    process = start(tmp_path, 2, restarts=1)
    assert 4 <= wait_for_checkpoint(tmp_path, process, 4) < 12
    os.kill(worker(process, lost), signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    assert f"rank {lost} of 2 did not come, and rank {1 - lost} gave up" in said
    assert "goes on from step" in said
    assert curves(tmp_path) == curves(runs[2])
    assert weights(tmp_path) == weights(runs[2])


@pytest.mark.parametrize("to_all", [False, True], ids=["alone", "and-to-all-ranks"])
def test_a_signal_to_torchrun_saves_and_ends(runs, tmp_path, to_all):
    """Schedulers signal every process, and torchrun passes its signal on."""
    process = start(tmp_path, 2)
    assert 4 <= wait_for_checkpoint(tmp_path, process, 4) < 12
    ranks = [worker(process, rank) for rank in (0, 1)] if to_all else []
    for number in (*ranks, process.pid):
        os.kill(number, signal.SIGTERM)
    said, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    lines = {line for line in said.splitlines() if line.startswith("lens: ")}
    pointer = state_of(tmp_path / "run", "model") / "checkpoints" / "latest"
    step = int(pointer.read_text().removeprefix("step-"))
    assert lines == {f"lens: stopped at step {step}; the same command goes on from here"}
    assert f"goes on from step {step}" in finish(tmp_path, 2)
    assert curves(tmp_path) == curves(runs[2])
    assert weights(tmp_path) == weights(runs[2])


def test_ranks_whose_stages_name_two_devices(tmp_path):
    text = PIPELINE + "    device: cpu\n" + PIPELINE[PIPELINE.index("  - name: model") :].replace("model\n", "other\n")
    process = start(tmp_path, 2, text=text)
    said, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    lines = {line for line in said.splitlines() if line.startswith("lens: ")}
    assert lines == {"lens: device: torchrun's processes meet on one device, and the train stages name auto and cpu"}


def test_ranks_that_cannot_share_the_packs(tmp_path):
    process = start(tmp_path, 2, "--set", "stages.model.batch.packs_per_step=3")
    said, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    lines = {line for line in said.splitlines() if line.startswith("lens: ")}
    assert lines == {
        "lens: packs_per_step: 2 ranks cannot share 3 packs per step evenly; "
        "set packs_per_step to a multiple of 2, such as 4"
    }
    assert "lens_train/stages" not in said  # torchrun ends with a traceback of its own; ours shows none


def test_the_model_of_two_ranks_draws(runs, tmp_path):
    command = ["lens", "generate", "a red circle", "--model", str(runs[2] / "run" / "model"), "-o", "a.png"]
    command[0] = str(Path(sys.executable).with_name("lens"))
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (tmp_path / "a.png").exists()
