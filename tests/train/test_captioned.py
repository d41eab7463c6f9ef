"""Captioned images: what is loaded, what is left out, and batches as a pure function of the step."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from lens_core.errors import ArtifactError, LensError
from lens_core.images import decode
from lens_core.storage.captions import CaptionRow, write_captions
from lens_core.storage.shards import ImageRow, ShardWriter, image_key
from lens_train.data.captioned import CaptionedImages, load_captioned


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


def load(artifact, *, layers=None, size=None, stride=8, seed=5):
    return load_captioned(
        artifact, layers=layers, size=size, stride=stride, seed=seed, on_image=lambda done, total: None
    )


def in_memory(count, *, captions=1, seed=5):
    """Images without content, for questions about order."""
    return CaptionedImages(
        pixels=np.zeros((count, 8, 8, 3), dtype=np.uint8),
        keys=[f"key-{number}" for number in range(count)],
        captions=[[f"{number}/{layer}" for layer in range(captions)] for number in range(count)],
        skipped=0,
        seed=seed,
    )


def positions(images, batch_size, steps):
    return [sample for step in range(steps) for sample in images.batch(step, batch_size)]


def test_pixels_captions_and_keys_belong_together(captioned):
    pictures = [png(shade) for shade in (0, 50, 100, 150)]
    images = load(captioned(pictures, {"dense": ["a", "b", "c", "d"]}))
    assert images.size == (16, 16)
    assert images.skipped == 0
    assert images.keys == [image_key(data) for data in pictures]
    for data, pixels, texts, expected in zip(pictures, images.pixels, images.captions, "abcd", strict=True):
        assert np.array_equal(pixels, decode(data))
        assert texts == [expected]
    for sample in positions(images, 3, 5):
        assert sample.key == images.keys[sample.number]
        assert sample.caption in images.captions[sample.number]


@pytest.mark.parametrize("batch_size", [1, 4, 7, 25])
def test_every_image_once_an_epoch(batch_size):
    images = in_memory(10)
    samples = positions(images, batch_size, -(-40 // batch_size))[:40]
    for epoch in range(4):
        turn = samples[10 * epoch : 10 * epoch + 10]
        assert sorted(sample.number for sample in turn) == list(range(10))
        assert {sample.epoch for sample in turn} == {epoch}


def test_a_batch_is_a_pure_function_of_its_step():
    in_order = [in_memory(10).batch(step, 4) for step in range(30)]
    images = in_memory(10)
    for step in (29, 0, 17, 17, 3, 28, 1):
        assert images.batch(step, 4) == in_order[step]


def test_the_batch_size_does_not_change_the_order():
    assert positions(in_memory(10, captions=2), 4, 10) == positions(in_memory(10, captions=2), 8, 5)


def test_epochs_and_seeds_differ():
    def order(epoch, **options):
        return [sample.number for sample in in_memory(50, **options).batch(epoch, 50)]

    orders = [tuple(order(epoch)) for epoch in range(6)] + [tuple(order(0, seed=6))]
    assert len(set(orders)) == 7
    assert order(0) != list(range(50))


def test_the_order_is_fair():
    """Every image comes first about as often as any other."""
    first = Counter(in_memory(6).batch(step, 6)[0].number for step in range(1200))
    assert scipy.stats.chisquare([first[number] for number in range(6)]).pvalue > 1e-4


def test_among_several_captions_the_lot_decides_once_an_epoch():
    images = in_memory(40, captions=2)
    chosen = {}
    for batch_size in (1, 7, 40):
        for sample in positions(images, batch_size, 2000 // batch_size):
            assert sample.caption in images.captions[sample.number]
            # Whatever the batch, the same image in the same epoch has the same caption.
            assert chosen.setdefault((sample.epoch, sample.key), sample.caption) == sample.caption
    second = sum(caption.endswith("/1") for caption in chosen.values())
    assert scipy.stats.binomtest(second, len(chosen), 0.5).pvalue > 1e-4
    per_image = {key: {caption for (_, other), caption in chosen.items() if other == key} for key in images.keys}
    assert all(len(captions) == 2 for captions in per_image.values())


def test_layers_are_trained_on_together_or_by_name(captioned):
    artifact = captioned([png(1), png(2)], {"brief": ["b1", "b2"], "dense": ["d1", None]})
    assert load(artifact).captions == [["b1", "d1"], ["b2"]]
    assert load(artifact, layers=["dense"]).captions == [["d1"]]
    assert load(artifact, layers=["dense"]).skipped == 1
    with pytest.raises(ArtifactError, match="has no caption layer 'long'"):
        load(artifact, layers=["long"])


def test_images_without_a_caption_are_left_out_and_counted(captioned):
    pictures = [png(shade) for shade in range(5)]
    images = load(captioned(pictures, {"dense": ["a", "refusal", None, "transport", "e"]}))
    assert images.skipped == 3
    assert images.keys == [image_key(pictures[0]), image_key(pictures[4])]
    assert images.captions == [["a"], ["e"]]
    assert np.array_equal(images.pixels[1], decode(pictures[4]))


def test_an_image_that_cannot_be_decoded_is_left_out(captioned):
    pictures = [png(1), b"not an image", png(2)[:-30], png(3)]
    images = load(captioned(pictures, {"dense": ["a", "b", "c", "d"]}))
    assert images.skipped == 2
    assert images.keys == [image_key(pictures[0]), image_key(pictures[3])]
    assert images.captions == [["a"], ["d"]]
    assert len(images.pixels) == 2
    assert np.array_equal(images.pixels[1], decode(pictures[3]))


def test_training_says_how_many_are_left_out(captioned, run_stage, lens_registry, progress):
    artifact = captioned([png(1), b"not an image", png(2), png(3)], {"dense": ["a", "b", None, "d"]})
    train = {"name": "model", "type": "train", "source": "layers", "budget": {"steps": 1}, "batch_size": 2}
    _, stats = run_stage(lens_registry, lens_registry.parse("stages", train), [artifact], progress)
    said = "2 of 4 images are left out: they have no caption, or cannot be decoded"
    assert said in progress.said.getvalue()
    assert stats["training_images"] == 2


def test_none_that_can_be_decoded_is_an_error(captioned):
    with pytest.raises(LensError, match="none of the captioned images can be decoded"):
        load(captioned([b"not an image"], {"dense": ["a"]}))


@pytest.mark.parametrize("texts", [[None, None], ["refusal", "transport"]])
def test_no_captions_at_all(captioned, texts):
    artifact = captioned([png(1), png(2)], {"dense": texts})
    with pytest.raises(LensError, match=r"layers: no image has a caption to train on$"):
        load(artifact)


def test_sizes_that_differ_need_a_size(captioned):
    pictures = [png(1, (16, 24)), png(2, (32, 16))]
    artifact = captioned(pictures, {"dense": ["a", "b"]})
    with pytest.raises(LensError) as caught:
        load(artifact)
    (line,) = str(caught.value).splitlines()
    assert line == "the images have different sizes; say what to train on, for example image_size: 64"
    images = load(artifact, size=(8, 16))
    assert images.pixels.shape == (2, 8, 16, 3)
    assert images.size == (8, 16)


def test_only_captioned_images_must_share_a_size(captioned):
    artifact = captioned([png(1, (16, 24)), png(2, (32, 16))], {"dense": ["a", None]})
    assert load(artifact).size == (24, 16)


def test_a_size_must_fit_the_autoencoder(captioned):
    artifact = captioned([png(1, (20, 16))], {"dense": ["a"]})
    with pytest.raises(LensError, match=r"image_size: 20x16 is not a multiple of 8, the autoencoder's stride"):
        load(artifact)
    with pytest.raises(LensError, match=r"image_size: 16x12 is not a multiple of 8"):
        load(artifact, size=(12, 16))
    assert load(artifact, stride=4).size == (16, 20)


def test_too_many_pixels_are_refused_before_they_are_decoded(captioned):
    artifact = captioned([png(shade) for shade in range(11)], {"dense": ["a"] * 11})
    with pytest.raises(LensError, match=r"11 images of 16384x16384 take more than 8 GiB; use a smaller image_size"):
        load(artifact, size=(16384, 16384))


def test_progress_is_told_while_it_decodes(captioned):
    artifact = captioned(
        [png(shade % 256, (8, 8 + 8 * (shade // 256))) for shade in range(512)], {"dense": ["a"] * 512}
    )
    told = []
    load_captioned(
        artifact, layers=None, size=(8, 8), stride=8, seed=0, on_image=lambda done, total: told.append((done, total))
    )
    assert told == [(256, 512), (512, 512)]
