"""The training set: what is in it, what is left out, and where its images come from."""

from __future__ import annotations

import io
import itertools
import json
import multiprocessing
import shutil
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lens_core.errors import ArtifactError, LensError, Stopped
from lens_core.images import decode
from lens_core.storage.captions import CAPTIONS, CaptionRow, write_captions
from lens_core.storage.shards import ImageRow, ShardWriter, image_key
from lens_train.data.loader import PackLoader
from lens_train.data.pictures import images_of
from lens_train.data.training_set import open_training_set
from lens_train.loop.metrics import METRICS
from lens_train.parallel.world import World
from lens_train.planning.build import make_plan
from lens_train.planning.config import BatchConfig, SizesConfig
from lens_train.planning.costs import CostModel
from lens_train.planning.samples import SampleSource
from lens_train.watch.config import ValidationConfig


def png(shade, size=(16, 16)):
    stream = io.BytesIO()
    Image.new("RGB", size, (shade, 255 - shade, 7)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def captioned(publish):
    """Publish images and captions: `captioned([png, …], {"layer": [text or status, …]})`."""

    def make(pictures, layers, size=(16, 16)):
        keys = [image_key(data) for data in pictures]

        def images(output):
            writer = ShardWriter(output)
            for number, data in enumerate(pictures):
                width, height = Image.open(io.BytesIO(data)).size if data.startswith(b"\x89PNG") else size
                writer.add(
                    ImageRow(
                        key=keys[number], name=f"{number}.png", data=data, width=width, height=height, format="png"
                    )
                )
            writer.close()

        def captions(output):
            rows = []
            for layer, texts in layers.items():
                for key, text in zip(keys, texts, strict=True):
                    if text in {"refusal", "transport"}:
                        rows.append(CaptionRow(key=key, layer=layer, text="", status=text, detail="no"))
                    elif text is not None:
                        rows.append(CaptionRow(key=key, layer=layer, text=text))
            write_captions(output, rows)

        return publish("captions", "layers", captions, parents=[publish("images", "images", images)])

    return make


def in_bytes(texts):
    return [list(text.encode()) for text in texts]


@pytest.fixture
def load(tmp_path):
    """Open a training set; the tokens of a caption are its characters."""
    opened = itertools.count()

    def make(artifact, *, folder=None, image_size=None, stride=8, on_image=lambda done, total: None, **options):
        options = {"layers": None, "memory_bytes": 1e9, "tokenize": in_bytes} | options
        return open_training_set(
            folder or tmp_path / f"manifest-{next(opened)}",
            images_of(artifact, image_size=image_size, stride=stride, seed=5),
            artifact,
            on_image=on_image,
            world=World(device=torch.device("cpu")),
            **options,
        )

    return make


def captions(data):
    manifest = data.manifest
    return [[manifest.caption_text(row) for row in manifest.captions_of(number)] for number in range(len(manifest))]


def keys(data):
    return [data.manifest.key(number) for number in range(len(data.manifest))]


@pytest.mark.parametrize("memory_bytes", [1e9, 0])
def test_pixels_captions_and_keys_belong_together(captioned, load, memory_bytes):
    pictures = [png(shade) for shade in (0, 50, 100, 150)]
    data = load(captioned(pictures, {"dense": ["a", "bb", "ccc", "dddd"]}), memory_bytes=memory_bytes)
    assert data.left_out == 0
    assert data.manifest.sizes == [(16, 16, 4)]
    assert keys(data) == [image_key(one) for one in pictures]
    assert captions(data) == [["a"], ["bb"], ["ccc"], ["dddd"]]
    assert data.manifest.caption_tokens.tolist() == [1, 2, 3, 4]
    for one, pixels in zip([pictures[2], pictures[0]], data.source([2, 0]), strict=True):
        assert np.array_equal(pixels.numpy(), decode(one))


def test_layers_are_trained_on_together_or_by_name(captioned, load):
    artifact = captioned([png(1), png(2)], {"brief": ["b1", "b2"], "dense": ["d1", None]})
    assert captions(load(artifact)) == [["b1", "d1"], ["b2"]]
    assert captions(load(artifact, layers=["dense"])) == [["d1"]]
    assert load(artifact, layers=["dense"]).left_out == 1
    with pytest.raises(ArtifactError, match="has no caption layer 'long'"):
        load(artifact, layers=["long"])


def test_a_build_that_was_killed_between_its_two_manifests_is_done_again(captioned, load, tmp_path):
    artifact = captioned([png(shade) for shade in range(20)], {"dense": list("abcdefghijklmnopqrst")})
    options = {"folder": tmp_path / "manifest", "validation": ValidationConfig(share=0.3)}
    first = load(artifact, **options)
    shutil.rmtree(tmp_path / "manifest")  # which is written last
    again = load(artifact, **options)
    assert (keys(again), keys(again.held_out)) == (keys(first), keys(first.held_out))
    assert len(keys(first)) + len(keys(first.held_out)) == 20


@pytest.mark.parametrize("memory_bytes", [1e9, 0])
def test_who_goes_on_reads_no_captions(captioned, load, tmp_path, memory_bytes):
    pictures = [png(1), b"not an image", png(2), png(3)]
    artifact = captioned(pictures, {"brief": ["b1", "b2", "b3", None], "dense": ["d1", "d2", None, None]})
    first = load(artifact, folder=tmp_path / "manifest", memory_bytes=memory_bytes)
    Path(artifact.url_of(CAPTIONS)).unlink()
    again = load(artifact, folder=tmp_path / "manifest", memory_bytes=memory_bytes)
    assert captions(again) == captions(first) == [["b1", "d1"], *([["b2", "d2"]] if not memory_bytes else []), ["b3"]]
    assert again.left_out == first.left_out == 2 - (not memory_bytes)
    assert list(first.undecodable) == ([image_key(b"not an image")] if memory_bytes else [])
    for one, other in zip(first.source(range(len(keys(first)))), again.source(range(len(keys(first)))), strict=True):
        assert one == other if isinstance(one, str) else torch.equal(one, other)


def test_captions_of_other_images_are_none_of_these(captioned, load, publish):
    artifact = captioned([png(1)], {"dense": [None]})
    rows = [CaptionRow(key=image_key(png(2)), layer="dense", text="a"), CaptionRow(key="?", layer="dense", text="b")]
    strange = publish("captions", "strange", lambda output: write_captions(output, rows), parents=artifact.parents)
    with pytest.raises(LensError, match=r"images: none of its images has a caption in .*strange$"):
        load(strange)


def test_images_without_a_caption_are_left_out_and_counted(captioned, load):
    pictures = [png(shade) for shade in range(5)]
    data = load(captioned(pictures, {"dense": ["a", "refusal", None, "transport", "e"]}))
    assert data.left_out == 3
    assert keys(data) == [image_key(pictures[0]), image_key(pictures[4])]
    assert captions(data) == [["a"], ["e"]]
    assert np.array_equal(data.source([1])[0].numpy(), decode(pictures[4]))


def test_an_image_that_cannot_be_decoded_is_left_out(captioned, load):
    pictures = [png(1), b"not an image", png(2)[:-30], png(3)]
    data = load(captioned(pictures, {"dense": ["a", "b", "c", "d"]}))
    assert data.left_out == 2
    assert keys(data) == [image_key(pictures[0]), image_key(pictures[3])]
    assert captions(data) == [["a"], ["d"]]


def test_read_from_shards_a_bad_image_is_told_by_name_and_the_rest_is_there(captioned, load):
    pictures = [png(1), b"not an image", png(3)]
    data = load(captioned(pictures, {"dense": ["a", "b", "c"]}), memory_bytes=0)
    first, bad, last = data.source([0, 1, 2])
    assert np.array_equal(first.numpy(), decode(pictures[0]))
    assert np.array_equal(last.numpy(), decode(pictures[2]))
    assert bad.startswith(data.source._shards[0])
    assert f"image {image_key(pictures[1])} cannot be read: " in bad
    assert len(bad.splitlines()) == 1


def test_a_manifest_made_without_looking_goes_with_images_in_memory(captioned, load):
    """As where a run goes on with more `memory_gb` than it began with."""
    artifact = captioned([png(1), b"not an image", png(3)], {"dense": ["a", "b", "c"]})
    looked, blind = load(artifact), load(artifact, memory_bytes=0)
    first, bad, last = looked.source.of(blind.manifest)([0, 1, 2])
    assert bad == f"image {image_key(b'not an image')} cannot be decoded"
    for one, other in zip((first, last), looked.source([0, 1]), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("size", [0, 700])
def test_a_shard_that_is_cut_off_is_told(captioned, load, size):
    pictures = [png(1), png(2)]
    data = load(captioned(pictures, {"dense": ["a", "b"]}), memory_bytes=0)
    shard = Path(data.source._shards[0])
    shard.write_bytes(shard.read_bytes()[:size])
    told = data.source([0, 1])
    assert "cannot be read: the shard ends within it" in told[1]
    shard.unlink()
    assert all("cannot be read: " in line and "does not exist" in line for line in data.source([0, 1]))


def test_workers_read_the_same_as_this_process(captioned, load):
    pictures = [png(shade) for shade in range(10)]
    data = load(captioned(pictures, {"dense": list("abcdefghij")}), memory_bytes=0)
    source = SampleSource(
        manifest=data.manifest,
        costs=CostModel(per_sample=1, a=1, b=1, c=0),
        stride=8,
        seed=5,
        caption_dropout=0.2,
    )
    plan = make_plan(BatchConfig(samples=3), source)

    def some(first, stride, workers):
        loader = PackLoader(plan, data.source, first=first, stride=stride, workers=workers)
        return [next(loader) for _ in range(6)]

    alone = some(0, 1, 0)
    assert [loaded.pack.index for loaded in alone] == list(range(6))
    for workers in (1, 2):
        for one, other in zip(alone, some(0, 1, workers), strict=True):
            assert one.pack == other.pack
            assert all(torch.equal(a, b) for a, b in zip(one.images, other.images, strict=True))
    ranks = [some(rank, 2, 0)[:3] for rank in (0, 1)]
    assert [loaded.pack.index for pair in zip(*ranks, strict=True) for loaded in pair] == list(range(6))


@pytest.fixture
def processes_begin_anew():
    """As where they are not forked: on macOS, and from Python 3.14 on."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize("size", [{"samples": 2}, {"plan": "buckets", "buckets": {64: 2}}])
def test_workers_may_be_processes_that_begin_anew(captioned, load, processes_begin_anew, size):
    data = load(captioned([png(shade) for shade in range(6)], {"dense": list("abcdef")}), memory_bytes=0)
    costs = CostModel(per_sample=1, a=1, b=1, c=0)
    source = SampleSource(manifest=data.manifest, costs=costs, stride=8, seed=5, caption_dropout=0.2)
    plan = make_plan(BatchConfig(**size), source)
    plan.pack(0)
    assert len(ForkingPickler.dumps((plan, data.source))) < 5000  # no columns, no windows
    here, there = (PackLoader(plan, data.source, first=0, stride=1, workers=workers) for workers in (0, 1))
    for _ in range(4):
        one, other = next(here), next(there)
        assert one.pack == other.pack
        assert all(torch.equal(a, b) for a, b in zip(one.images, other.images, strict=True))
    there.close()


def test_workers_that_begin_anew_end_in_the_middle_of_a_pack(captioned, load, processes_begin_anew, capfd):
    data = load(captioned([png(shade) for shade in range(4)], {"dense": list("abcd")}), memory_bytes=0)
    source = SampleSource(
        manifest=data.manifest, costs=CostModel(per_sample=1, a=1, b=1, c=0), stride=8, seed=5, caption_dropout=0
    )
    large = partial(map, partial(torch.ones, 20_000_000))  # up to 240 MB an image, so that a worker is copying one
    loader = PackLoader(make_plan(BatchConfig(samples=2), source), large, first=0, stride=1, workers=1)
    next(loader)
    loader.close()
    assert [worker.exitcode for worker in loader._packs._workers] == [0]
    assert capfd.readouterr().err == ""


def test_training_says_how_many_are_left_out(captioned, run_stage, lens_registry, progress):
    artifact = captioned([png(1), b"not an image", png(2), png(3)], {"dense": ["a", "b", None, "d"]})
    train = {"name": "model", "type": "train", "source": "layers", "budget": {"steps": 1}, "batch": {"samples": 2}}
    _, stats = run_stage(lens_registry, lens_registry.parse("stages", train), [artifact], progress)
    said = "2 of 4 images are left out: they have no caption, or cannot be decoded"
    assert said in progress.said.getvalue()
    assert f"image {image_key(b'not an image')} cannot be decoded; it is left out" in progress.said.getvalue()
    assert stats["training_images"] == 2


@pytest.mark.parametrize("memory_bytes", [1e9, 0])
@pytest.mark.parametrize("when", [0, 2])  # captions are read, or all images
def test_a_stop_while_images_are_read_leaves_nothing_half_written(captioned, load, tmp_path, memory_bytes, when):
    def stop(done, total):
        if done == when:
            raise Stopped("enough")

    artifact = captioned([png(1), png(2)], {"dense": ["a", "b"]})
    options = {"folder": tmp_path / "plan" / "manifest", "memory_bytes": memory_bytes}
    with pytest.raises(Stopped):
        load(artifact, on_image=stop, **options)
    assert list((tmp_path / "plan").iterdir()) == []
    assert captions(load(artifact, **options)) == [["a"], ["b"]]


def test_a_stage_can_be_stopped_while_images_are_read(captioned, run_stage, lens_registry, progress):
    artifact = captioned([png(1), png(2)], {"dense": ["a", "b"]})
    train = {"name": "model", "type": "train", "source": "layers", "budget": {"steps": 1}, "batch": {"samples": 2}}
    progress.stop_asked = True
    with pytest.raises(Stopped, match="stopped while images were read; the same command reads them again"):
        run_stage(lens_registry, lens_registry.parse("stages", train), [artifact], progress)


def test_a_layer_that_is_not_there_is_told_by_what_needs_it_first(captioned, run_stage, lens_registry, progress):
    """The vocabulary of a fresh text encoder, which is learned in another library."""
    artifact = captioned([png(1), png(2)], {"dense": ["a", "b"]})
    train = {"name": "model", "type": "train", "source": "layers", "layers": ["brief"], "budget": {"steps": 1}}
    with pytest.raises(ArtifactError, match="has no caption layer 'brief'"):
        run_stage(lens_registry, lens_registry.parse("stages", train), [artifact], progress)


def streaming(allowed):
    return {
        "name": "model",
        "type": "train",
        "source": "layers",
        "budget": {"steps": 4},
        "batch": {"samples": 2},
        "data": {"memory_gb": 0, "max_bad_samples": allowed},
    }


def test_while_training_bad_samples_are_passed_over_and_counted(captioned, run_stage, lens_registry, progress):
    artifact = captioned([png(1), b"not an image", png(2), png(3)], {"dense": list("abcd")})
    folder, stats = run_stage(lens_registry, lens_registry.parse("stages", streaming(1)), [artifact], progress)
    assert stats["bad_samples"] == 2  # four packs of two are two epochs of four
    assert stats["images"] == 6
    assert progress.said.getvalue().count(f"image {image_key(b'not an image')} cannot be read") == 1
    assert json.loads((folder / METRICS).read_text().splitlines()[-1])["bad_samples"] == 2


def test_too_many_bad_samples_end_the_run(captioned, run_stage, lens_registry, progress):
    artifact = captioned([png(1), b"not an image", b"nor this", png(3)], {"dense": list("abcd")})
    config = lens_registry.parse("stages", streaming(1))
    with pytest.raises(
        LensError, match=r"2 samples cannot be read, more than data\.max_bad_samples allows; the last: "
    ):
        run_stage(lens_registry, config, [artifact], progress)


def test_none_that_can_be_decoded_is_an_error(captioned, load):
    with pytest.raises(LensError, match="none of the captioned images can be decoded"):
        load(captioned([b"not an image"], {"dense": ["a"]}))


@pytest.mark.parametrize("texts", [[None, None], ["refusal", "transport"]])
def test_no_captions_at_all(captioned, load, texts):
    artifact = captioned([png(1), png(2)], {"dense": texts})
    with pytest.raises(LensError, match=r"layers: no image has a caption to train on$"):
        load(artifact)


def test_sizes_that_differ_need_a_size(captioned, load):
    pictures = [png(1, (16, 24)), png(2, (32, 16))]
    artifact = captioned(pictures, {"dense": ["a", "b"]})
    with pytest.raises(LensError) as caught:
        load(artifact)
    (line,) = str(caught.value).splitlines()
    assert line == "the images have different sizes; say what to train on, for example image_size: 64"
    assert load(artifact, image_size=(8, 16)).manifest.sizes == [(8, 16, 2)]
    assert [tuple(image.shape) for image in load(artifact, image_size=8).source([0, 1])] == [(8, 8, 3)] * 2


def test_each_image_gets_the_nearest_of_several_sizes(captioned, load):
    pictures = [png(1, (128, 128)), png(2, (64, 128)), png(3, (300, 200))]
    artifact = captioned(pictures, {"dense": ["a", "b", "c"]})
    data = load(artifact, image_size=SizesConfig(bases={64: 1}))
    sizes = [(data.manifest.height[n], data.manifest.width[n]) for n in range(3)]
    assert sizes[0] == (64, 64)
    assert sizes[1][0] > 64 > sizes[1][1]
    assert sizes[2][0] < 64 < sizes[2][1]
    assert [tuple(image.shape[:2]) for image in data.source([0, 1, 2])] == sizes


def test_only_captioned_images_must_share_a_size(captioned, load):
    artifact = captioned([png(1, (16, 24)), png(2, (32, 16))], {"dense": ["a", None]})
    assert load(artifact).manifest.sizes == [(24, 16, 1)]


def test_a_size_must_fit_the_autoencoder(captioned, load):
    artifact = captioned([png(1, (20, 16))], {"dense": ["a"]})
    with pytest.raises(LensError, match=r"image_size: 20x16 is not a multiple of 8, the autoencoder's stride"):
        load(artifact)
    with pytest.raises(LensError, match=r"image_size: 16x12 is not a multiple of 8"):
        load(artifact, image_size=(12, 16))
    assert load(artifact, stride=4).manifest.sizes == [(16, 20, 1)]


def test_progress_is_told_while_it_decodes(captioned, load):
    artifact = captioned(
        [png(shade % 256, (8, 8 + 8 * (shade // 256))) for shade in range(512)], {"dense": ["a"] * 512}
    )
    told = []
    load(artifact, image_size=8, on_image=lambda done, total: told.append((done, total)))
    assert told == [(0, 512), (256, 512), (512, 512)]
    told.clear()
    load(artifact, image_size=8, memory_bytes=0, on_image=lambda done, total: told.append((done, total)))
    assert told == [(0, 512), (512, 512)]
