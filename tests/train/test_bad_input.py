"""Training on what is damaged, missing or of another run: one clear line each, and nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from lens_core.errors import ArtifactError, LensError, StorageError
from lens_core.pipeline import runner
from lens_core.pipeline.run_folder import STATE
from lens_core.storage import urls
from lens_core.storage.artifacts import load_artifact
from lens_core.storage.captions import CAPTIONS, CaptionRow, write_captions
from lens_core.storage.shards import ShardReader
from lens_train.loop.metrics import METRICS
from lens_train.optim.config import OptimizerConfig
from lens_train.planning.config import BatchConfig

TRAIN = {
    "name": "model",
    "type": "train",
    "source": "dense",
    "model": {"type": "lens", "preset": "nano", "num_layers": 1},
    "budget": {"steps": 3},
    "batch": {"samples": 4},
    "threads": 1,
}


@pytest.fixture
def copied(scenes, tmp_path):
    """The images and captions of 24 scenes, free to be damaged: the run folder, and the captions' artefact."""
    run = shutil.copytree(Path(urls.local_path(scenes["dense"].url)).parent, tmp_path / "run")
    return run, load_artifact(str(run / "dense"))


@pytest.fixture
def refused(lens_registry, tmp_path, progress):
    """Train, and be refused; returns what is said. Nothing is left in the model's folder, nor under construction."""

    def train(inputs, error=LensError, **options):
        run = tmp_path / "refused"
        with pytest.raises(error) as caught:
            runner.run_stages(
                [lens_registry.parse("stages", TRAIN | options)],
                run_url=str(run),
                state_root=run / STATE,
                base=str(tmp_path),
                seed=3,
                registry=lens_registry,
                progress=progress,
                given={artifact.name: artifact for artifact in inputs},
            )
        assert list((run / "model").iterdir()) == []
        half_written = [path for path in run.rglob("*") if path.suffix in {".tmp", ".partial"}]
        assert [*half_written, *run.rglob("scratch")] == []
        (line,) = str(caught.value).splitlines()
        return line

    return train


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not a table at all"])
def test_a_table_of_captions_that_is_none(copied, refused, content):
    run, captions = copied
    (run / "dense" / CAPTIONS).write_bytes(content)
    assert f"{run / 'dense' / CAPTIONS} is damaged: " in refused([captions], ArtifactError)


def test_captions_that_are_gone(copied, refused):
    run, captions = copied
    (run / "dense" / CAPTIONS).unlink()
    line = refused([captions], ArtifactError)
    assert str(run / "dense" / CAPTIONS) in line


def test_images_that_are_gone(copied, refused):
    run, captions = copied
    shutil.rmtree(run / "images")
    assert str(run / "images") in refused([captions])


@pytest.mark.parametrize("size", [0, 3000])
def test_a_shard_that_is_cut_off_names_itself(copied, refused, size):
    """Read into memory, a shard without its end is no bad image to be left out in silence."""
    run, captions = copied
    shard = next((run / "images").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:size])
    line = refused([captions], StorageError)
    assert line.startswith(f"{shard}: the shard ends within image ")


def test_a_shard_without_bytes_while_it_is_streamed(copied, refused):
    run, captions = copied
    shard = next((run / "images").glob("*.tar"))
    shard.write_bytes(b"")
    line = refused([captions], data={"memory_gb": 0, "max_bad_samples": 7})
    assert line.startswith(
        f"8 samples cannot be read, more than data.max_bad_samples allows; the last: {shard}: image "
    )


@pytest.mark.parametrize("weight", ["samples", "tokens"])
def test_steps_without_a_sample_count_for_nothing(copied, run_stage, lens_registry, weight):
    run, captions = copied
    shard = next((run / "images").glob("*.tar"))
    shard.write_bytes(b"")
    options = {"data": {"memory_gb": 0}, "objective": {"weight": weight}, "watch": {"log_every": 1}}
    folder, stats = run_stage(lens_registry, lens_registry.parse("stages", TRAIN | options), [captions])
    assert (stats["bad_samples"], stats["images"], stats["training_flops"], stats["skipped"]) == (12, 0, 0, 0)
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    assert [line["loss"] for line in lines] == [None, None, None]
    assert [line["grad_norm"] for line in lines] == [0, 0, 0]


@pytest.mark.parametrize("memory_gb", [1, 0])
def test_codecs_may_be_mixed(run_stages, run_stage, lens_registry, publish, tmp_path, memory_gb):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, kind in enumerate(("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF") * 2):
        Image.new("RGB", (32, 32), (20 * number, 9, 99)).save(folder / f"{number}.{kind.lower()}", kind)
    Image.new("L", (32, 32), 40).save(folder / "grey.png")
    Image.new("RGBA", (32, 32), (1, 2, 3, 40)).save(folder / "clear.png")
    Image.new("CMYK", (32, 32), (1, 2, 3, 4)).save(folder / "ink.jpeg")
    source = {"type": "image-folder", "url": str(folder)}
    images = run_stages(tmp_path, [{"name": "images", "type": "ingest", "source": source}])["images"]
    rows = [CaptionRow(key=key, layer="dense", text="a plain square") for key in ShardReader(images).columns["key"]]
    captions = publish("captions", "dense", lambda output: write_captions(output, rows), parents=[images])
    options = {"batch": {"samples": 15}, "data": {"memory_gb": memory_gb, "max_bad_samples": 0}}
    _, stats = run_stage(lens_registry, lens_registry.parse("stages", TRAIN | options), [captions])
    assert stats["images"] == 3 * 15


def test_a_state_of_another_optimiser(new_trainer, progress):
    new_trainer(save_every_s=1e-6).run(progress)
    other = new_trainer(optimizer=OptimizerConfig(type="adamw"))
    with pytest.raises(ArtifactError) as caught:
        other.run(progress)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{other.store.folder}/step-00000010 is of another model or optimiser: ")
    assert line.endswith("train in another run folder")


def test_a_state_of_other_batches(new_trainer, progress):
    new_trainer(save_every_s=1e-6).run(progress)
    other = new_trainer(batch=BatchConfig(samples=3))
    before = (other.folder / METRICS).read_bytes()
    with pytest.raises(LensError) as caught:
        other.run(progress)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{other.store.folder}: the state saved there is of other data or other batches; ")
    assert (other.folder / METRICS).read_bytes() == before
