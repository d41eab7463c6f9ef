"""Validation: what is held out is never trained on, and its loss is the one computed by hand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lens_core.diffusion.counter_noise import noise
from lens_core.diffusion.prediction import to_velocity
from lens_core.diffusion.ragged import RaggedBatch, offsets_of
from lens_core.errors import ConfigError, LensError
from lens_core.storage import urls
from lens_train.data.hold_out import held_out
from lens_train.loop.budget import Budget
from lens_train.loop.metrics import METRICS
from lens_train.watch.config import ValidationConfig
from lens_train.watch.validation import Validation
from train.conftest import training_set

CONFIG = ValidationConfig(share=0.25, every=2, times=3)


def keys(data):
    return [data.manifest.key(number) for number in range(len(data.manifest))]


@pytest.fixture(scope="module")
def split(scenes, lens_registry, tmp_path_factory):
    return training_set(scenes["dense"], lens_registry, tmp_path_factory.mktemp("split"), validation=CONFIG)


def words(count):
    """The first eight bytes of some keys."""
    digests = [hashlib.sha256(str(number).encode()).digest() for number in range(count)]
    return np.array([int.from_bytes(digest[:8], "big") for digest in digests], dtype=np.uint64)


def test_the_share_is_kept_and_those_held_out_stay_so_as_a_set_grows():
    plenty = ValidationConfig(share=0.1, max_samples=9000)
    few, more = (held_out(words(count), plenty, 3) for count in (5000, 20_000))
    assert more.sum() == pytest.approx(2000, rel=0.1)
    assert (few == more[:5000]).all()
    assert (held_out(words(5000)[::-1], plenty, 3) == few[::-1]).all()
    assert (held_out(words(5000), plenty, 4) != few).any()
    capped = held_out(words(5000), ValidationConfig(share=0.1, max_samples=50), 3)
    assert capped.sum() == 50
    assert few[capped].all()


def test_a_share_that_leaves_nothing_on_one_side():
    config, counts = ValidationConfig(share=0.5), set()
    for seed in range(10):
        try:
            held_out(words(1), config, seed)
        except ConfigError as error:
            (line,) = str(error).splitlines()
            assert line.startswith("watch.validation.share: 0.5 of 1 images holds out ")
            counts.add(line.partition("holds out ")[2].partition(";")[0])
    assert counts == {"0", "1"}  # a single image can only be on the wrong side


def test_what_is_held_out_is_not_trained_on(split, data):
    own, apart = keys(split), keys(split.held_out)
    assert apart
    assert not set(own) & set(apart)
    assert sorted(own + apart) == sorted(keys(data))
    assert split.left_out == 0
    for part in (split, split.held_out):
        for number, image in enumerate(part.source(range(len(part.manifest)))):
            assert torch.equal(image, data.source([keys(data).index(part.manifest.key(number))])[0])


def by_hand(trainer, held):
    """The loss of every image at every time, one at a time."""
    table = []
    for number, image in enumerate(held.source(range(len(held.manifest)))):
        (clean,) = trainer.autoencoder.encode(image.permute(2, 0, 1)[None] / 127.5 - 1)
        (ids,) = trainer.captions.encoder.tokenize([held.manifest.caption_text(held.manifest.captions_of(number)[0])])
        own = []
        for i, t in enumerate((1 / 6, 3 / 6, 5 / 6)):
            eps = noise(trainer.seed, ("validation", held.manifest.key(number), i), clean.shape)
            x = (1 - t) * clean + t * eps
            output = trainer.transformer.forward_ragged(
                RaggedBatch(
                    image=x,
                    text=trainer.captions.encoder(torch.tensor(ids), offsets_of([len(ids)])),
                    image_offsets=offsets_of([16]),
                    text_offsets=offsets_of([len(ids)]),
                    grids=torch.tensor([[4, 4]]),
                    timestep=torch.tensor([t]),
                )
            )
            velocity = to_velocity(trainer.prediction, output, x, torch.full((16, 1), t))
            own.append((velocity - (eps - clean)).square().mean().item())
        table.append(own)
    return torch.tensor(table).mean(0)


def test_the_losses_are_those_computed_by_hand_with_averaged_weights(new_trainer, split, progress):
    trainer = new_trainer(images=split, budget=Budget(steps=5), log_every=100)
    trainer.watchers.append(Validation(trainer, split.held_out, CONFIG))
    trainer.run(progress)
    lines = [json.loads(line) for line in (trainer.folder / METRICS).read_text().splitlines()]
    seen = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    assert list(seen) == [2, 4, 5]  # every two steps, and at the end
    assert all("loss" in line and "mfu" in line for line in lines)
    with trainer.ema.swapped(), torch.no_grad():
        expected = by_hand(trainer, split.held_out)
    assert [lines[-1][f"val_loss_t{i}"] for i in (1, 2, 3)] == pytest.approx(expected.tolist(), rel=1e-4)
    assert seen[5] == pytest.approx(expected.mean().item(), rel=1e-4)
    with torch.no_grad():
        assert by_hand(trainer, split.held_out).mean().item() != pytest.approx(seen[5], rel=1e-3)


def test_watching_changes_nothing_of_the_training(new_trainer, split, progress):
    watched, plain = (new_trainer(images=split, state=state, budget=Budget(steps=4)) for state in ("watched", "plain"))
    watched.watchers.append(Validation(watched, split.held_out, CONFIG))
    for trainer in (watched, plain):
        trainer.run(progress)
    for one, other in zip(watched.parameters, plain.parameters, strict=True):
        assert torch.equal(one, other)


def test_a_limit_fails_the_run_at_its_end(new_trainer, split, progress):
    trainer = new_trainer(images=split, budget=Budget(steps=3))
    trainer.watchers.append(Validation(trainer, split.held_out, CONFIG.model_copy(update={"limit": 1e-3})))
    with pytest.raises(LensError) as caught:
        trainer.run(progress)
    assert trainer.counters.step == 3
    (line,) = str(caught.value).splitlines()
    assert line.endswith("at the end, more than watch.validation.limit, 0.001")


def test_a_run_that_was_refused_is_finished_with_another_limit_and_not_trained_again(new_trainer, split, progress):
    strict, relaxed = (new_trainer(images=split, budget=Budget(steps=3)) for _ in range(2))
    for trainer, limit in ((strict, 1e-3), (relaxed, 1e3)):
        trainer.watchers.append(Validation(trainer, split.held_out, CONFIG.model_copy(update={"limit": limit})))
    with pytest.raises(LensError):
        strict.run(progress)
    relaxed.run(progress)
    assert "goes on from step 3" in progress.said.getvalue()
    for one, other in zip(strict.parameters, relaxed.parameters, strict=True):
        assert torch.equal(one, other)


def test_images_that_cannot_be_read_do_not_count(new_trainer, scenes, lens_registry, tmp_path):
    read = training_set(scenes["dense"], lens_registry, tmp_path / "whole", memory_bytes=0, validation=CONFIG)
    manifest, whole = read.held_out.manifest, new_trainer(images=read)
    shard = Path(urls.local_path(read.held_out.source._shards[0]))
    before = shard.read_bytes()
    images = read.held_out.source(range(len(manifest)))
    with torch.no_grad():
        validation = Validation(whole, read.held_out, CONFIG)
        table = torch.stack([validation.losses(n, image) for n, image in enumerate(images)])
    try:
        damaged = bytearray(before)
        first = int(manifest.offset[0])
        damaged[first : first + 8] = b"damaged!"
        shard.write_bytes(damaged)
        seen = Validation(whole, read.held_out, CONFIG).look(1)
        shard.write_bytes(b"")
        with pytest.raises(LensError, match=rf"^not one of the {len(manifest)} images held out for validation can be"):
            Validation(whole, read.held_out, CONFIG).look(1)
    finally:
        shard.write_bytes(before)
    assert seen["val_loss"] == pytest.approx(table[1:].mean().item(), rel=1e-5)
