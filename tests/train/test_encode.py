"""The stage encode: the autoencoder's tokens, training as on pixels, and little lost to a kill."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lens_core.errors import ArtifactError, ConfigError, LensError
from lens_core.images import decode, fit
from lens_core.pipeline.progress import Progress
from lens_core.storage import urls
from lens_core.storage.artifacts import load_artifact
from lens_core.storage.captions import CaptionRow, write_captions
from lens_core.storage.latents import LATENTS, read_latents
from lens_core.storage.shards import ImageRow, ShardReader, ShardWriter, image_key
from lens_train.data.autoencoder_identity import identity
from lens_train.loop.metrics import METRICS
from states import state_of

LENS_TINY = Path(__file__).parents[1] / "goldens" / "lens-tiny"
FLUX2 = {"type": "flux2", "path": str(LENS_TINY)}
PIXELS = {"type": "pixels"}
SCENES = [
    {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 24}},
    {"name": "dense", "type": "caption", "source": "images", "captioner": {"type": "scene-graph", "style": "dense"}},
]


def encode(name="latents", **options):
    return {"name": name, "type": "encode", "source": "images", "batch_size": 5, "dtype": "float32", **options}


def train(name, source, **options):
    return {
        "name": name,
        "type": "train",
        "source": source,
        "model": {"type": "lens", "preset": "nano", "num_layers": 1},
        "budget": {"steps": 4},
        "batch": {"samples": 6},
        "watch": {"log_every": 1},
        "threads": 1,
        **options,
    }


def png(shade, size=(16, 16)):
    stream = io.BytesIO()
    Image.new("RGB", size, (shade, 255 - shade, 7)).save(stream, "PNG")
    return stream.getvalue()


def images_of(publish, pictures):
    """Publish images by name; what is no image passes for one of 16x16."""

    def fill(output):
        writer = ShardWriter(output)
        for name, data in pictures.items():
            width, height = Image.open(io.BytesIO(data)).size if data.startswith(b"\x89PNG") else (16, 16)
            writer.add(ImageRow(key=image_key(data), name=name, data=data, width=width, height=height, format="png"))
        writer.close()

    return publish("images", "images", fill)


def tensors(latents):
    """Of each key its stored tensor, read at the place that the index names."""
    rows = list(read_latents(latents))
    data = urls.read_ranges([(latents.url_of(row.shard), row.offset, row.size) for row in rows])
    return {
        row.key: torch.frombuffer(bytearray(one), dtype=getattr(torch, row.dtype)).view(row.tokens, row.channels)
        for row, one in zip(rows, data, strict=True)
    }


def encoded_here(images, autoencoder, size):
    """The same by itself: one image at a time, without stage or batch."""
    expected = {}
    for row in ShardReader(images):
        pixels_HW3 = torch.from_numpy(fit(decode(row.data), size, size).copy())
        with torch.no_grad():
            expected[row.key] = autoencoder.encode(pixels_HW3.permute(2, 0, 1)[None].float() / 127.5 - 1)[0]
    return expected


@pytest.fixture(scope="module")
def made(run_stages, tmp_path_factory):
    stages = [
        *SCENES,
        encode("latents"),
        encode("half", dtype="bfloat16"),
        encode("flux2", autoencoder=FLUX2),
    ]
    return run_stages(tmp_path_factory.mktemp("encode"), stages)


@pytest.fixture
def autoencoder(lens_registry):
    return lambda config: lens_registry.build("autoencoders", lens_registry.parse("autoencoders", config))


@pytest.mark.parametrize(("name", "config"), [("latents", PIXELS), ("flux2", FLUX2)])
def test_tokens_are_those_of_the_autoencoder(made, autoencoder, name, config):
    found, expected = tensors(made[name]), encoded_here(made["images"], autoencoder(config), 32)
    assert list(found) == list(expected)  # in the order of the images
    for key, tokens in expected.items():
        torch.testing.assert_close(found[key], tokens, rtol=1e-4, atol=1e-4)
    assert made[name].stats["autoencoder"] == identity(autoencoder(config))


def test_in_half_the_bytes(made):
    whole, half = tensors(made["latents"]), tensors(made["half"])
    assert {tokens.dtype for tokens in half.values()} == {torch.bfloat16}
    assert all(torch.equal(half[key], whole[key].bfloat16()) for key in whole)


def losses(folder):
    return [json.loads(line)["loss"] for line in urls.read_text(urls.join(str(folder), METRICS)).splitlines()]


@pytest.mark.parametrize("config", [PIXELS, FLUX2], ids=["pixels", "flux2"])
def test_training_on_them_is_training_on_pixels(run_stages, tmp_path, config):
    options = {"autoencoder": config, "image_size": 32}
    stages = [
        *SCENES,
        encode(**options),
        train("from-pixels", "dense", **options),
        train("from-latents", ["dense", "latents"], autoencoder=config),
    ]
    artifacts = run_stages(tmp_path, stages)
    expected = losses(artifacts["from-pixels"].url)
    assert len(set(expected)) == 4
    assert losses(artifacts["from-latents"].url) == pytest.approx(expected, rel=1e-6)


def test_with_several_sizes_too(publish, run_stage, lens_registry):
    """Images of one size are encoded together; that must not change which of them a step takes."""
    sizes = [(96, 96), (64, 128), (128, 64), (100, 90), (70, 140)] * 2
    images = images_of(publish, {f"{n}.png": png(25 * n, size) for n, size in enumerate(sizes)})
    keys = ShardReader(images).columns["key"]
    rows = [CaptionRow(key=key, layer="dense", text="word " * (n + 1)) for n, key in enumerate(keys)]
    captions = publish("captions", "dense", lambda output: write_captions(output, rows), parents=[images])
    size = {"image_size": {"bases": {64: 1}}}
    folder, stats = run_stage(lens_registry, lens_registry.parse("stages", encode(batch_size=2, **size)), [images])
    latents = publish("latents", "latents", lambda output: copy_into(output, folder), parents=[images], stats=stats)
    assert len({(row.height, row.width) for row in read_latents(latents)}) > 1
    on_pixels, _ = run_stage(lens_registry, lens_registry.parse("stages", train("a", "dense", **size)), [captions])
    config = lens_registry.parse("stages", train("b", ["dense", "latents"]))
    on_latents, _ = run_stage(lens_registry, config, [captions, latents])
    assert losses(on_latents) == pytest.approx(losses(on_pixels), rel=1e-6)


def copy_into(output, folder):
    for file in folder.iterdir():
        output.write_bytes(file.name, file.read_bytes())


def test_those_of_another_autoencoder_are_refused(made, run_stage, lens_registry):
    config = lens_registry.parse("stages", train("model", ["dense", "flux2"]))
    with pytest.raises(ConfigError) as caught:
        run_stage(lens_registry, config, [made["dense"], made["flux2"]])
    (line,) = str(caught.value).splitlines()
    assert "autoencoder: the latents of 'flux2' were made by another autoencoder (" in line
    assert line.endswith(
        "than this model has (" + made["latents"].stats["autoencoder"][:12] + "): give both stages the same one"
    )


def test_one_is_known_by_its_weights_not_by_its_place(autoencoder, tmp_path):
    shutil.copytree(LENS_TINY / "vae", tmp_path / "vae")
    moved = autoencoder({**FLUX2, "path": str(tmp_path)})
    assert identity(moved) == identity(autoencoder(FLUX2))
    assert identity(autoencoder({**FLUX2, "tile": 8})) == identity(moved)  # which is for decoding
    with torch.no_grad():
        next(moved.parameters()).flatten()[0] += 1e-3
    assert identity(moved) != identity(autoencoder(FLUX2))


# --- kills and damage ----------------------------------------------------------------------------------------------

KILLED = """\
run: run
stages:
  - {name: images, type: ingest, source: {type: scenes, count: 300}}
  - {name: latents, type: encode, source: images, batch_size: 4, dtype: float32, shard_mb: 0.2}
"""


def start(folder):
    (folder / "pipeline.yaml").write_text(KILLED)
    command = [str(Path(sys.executable).with_name("lens")), "run", "pipeline.yaml"]
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )


def finish(folder):
    process = start(folder)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said[-3000:]
    return load_artifact(str(folder / "run" / "latents"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_interrupted_it_goes_on_after_the_last_full_shard(undisturbed, tmp_path, how):
    process = start(tmp_path)

    def shards():
        return list((state_of(tmp_path / "run", "latents") / "latents").glob("*.safetensors"))

    deadline = time.monotonic() + 120
    while len(shards()) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(how)
    process.communicate()
    kept = {file.name: file.stat().st_mtime_ns for file in shards()}
    assert len(kept) >= 2
    assert not (tmp_path / "run" / "latents" / "manifest.json").exists()
    latents = finish(tmp_path)
    for name, written in kept.items():
        file = tmp_path / "run" / "latents" / name
        assert file.stat().st_mtime_ns == written, "it was encoded again"
    assert latents.files == undisturbed.files  # names, sizes and sha256


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-40], lambda data: b"", lambda data: data[:60] + b"!" + data[61:]]
)
def test_a_damaged_index_is_one_line(made, tmp_path, damage):
    folder = shutil.copytree(urls.local_path(made["latents"].url), tmp_path / "latents")
    (folder / LATENTS).write_bytes(damage((folder / LATENTS).read_bytes()))
    with pytest.raises(ArtifactError, match=r"latents\.parquet is damaged") as caught:
        list(read_latents(load_artifact(str(folder))))
    assert len(str(caught.value).splitlines()) == 1


def test_an_index_without_a_column_or_without_a_file(made, tmp_path):
    folder = shutil.copytree(urls.local_path(made["latents"].url), tmp_path / "latents")
    pq.write_table(pq.read_table(folder / LATENTS).drop_columns(["offset"]), folder / LATENTS)
    with pytest.raises(ArtifactError, match=r"latents\.parquet is damaged: .*offset"):
        list(read_latents(load_artifact(str(folder))))
    (folder / LATENTS).unlink()
    with pytest.raises(ArtifactError, match=r"latents\.parquet"):
        list(read_latents(load_artifact(str(folder))))


def test_a_shard_of_tokens_that_is_cut_off_is_told_while_training(made, run_stage, lens_registry, tmp_path):
    folder = shutil.copytree(urls.local_path(made["latents"].url), tmp_path / "latents")
    shard = next(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-4000])
    config = lens_registry.parse("stages", train("model", ["dense", "latents"], data={"max_bad_samples": 0}))
    with pytest.raises(LensError, match="cannot be read: the shard ends within it") as caught:
        run_stage(lens_registry, config, [made["dense"], load_artifact(str(folder))])
    assert len(str(caught.value).splitlines()) == 1


def test_bad_images_are_named_and_left_out(publish, run_stage, lens_registry, progress):
    images = images_of(
        publish, {"good.png": png(1), "bad.png": b"no image", "short.png": png(2)[:-30], "c.png": png(3)}
    )
    folder, stats = run_stage(lens_registry, lens_registry.parse("stages", encode()), [images], progress)
    assert (stats["latents"], stats["failed"]) == (2, 2)
    said = progress.said.getvalue()
    assert "left out bad.png: " in said
    assert "left out short.png: " in said
    assert sorted(pq.read_table(folder / LATENTS)["key"].to_pylist()) == sorted(map(image_key, (png(1), png(3))))


def test_none_that_can_be_decoded(publish, run_stage, lens_registry):
    images = images_of(publish, {"a.png": b"no image", "b.png": b""})
    with pytest.raises(LensError, match="latents: not one of 2 images could be decoded"):
        run_stage(lens_registry, lens_registry.parse("stages", encode()), [images])


def test_a_size_that_does_not_fit(made, run_stage, lens_registry):
    with pytest.raises(ConfigError, match=r"image_size: 20x20 is not a multiple of 8, the autoencoder's stride"):
        run_stage(lens_registry, lens_registry.parse("stages", encode(image_size=20)), [made["images"]])


def test_from_and_into_a_bucket(bucket, lens_registry, tmp_path, made, monkeypatch):
    """The whole run lies in a bucket: images, latents, model."""
    import yaml

    from lens_core.config.pipeline import load_pipeline
    from lens_core.pipeline.runner import run_pipeline

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stages = [*SCENES, encode(), train("model", ["dense", "latents"], budget={"steps": 1})]
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"run": bucket, "seed": 3, "stages": stages}))
    quiet = Progress(stream=io.StringIO(), live=False)
    artifacts = run_pipeline(load_pipeline(str(file), lens_registry), lens_registry, progress=quiet)
    assert artifacts["latents"].url.startswith("s3://")
    here, there = tensors(made["latents"]), tensors(artifacts["latents"])
    assert here.keys() == there.keys()
    assert all(torch.equal(here[key], there[key]) for key in here)
    assert len(losses(artifacts["model"].url)) == 1
