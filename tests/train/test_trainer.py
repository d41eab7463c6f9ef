"""The training loop: it learns, counts, averages, survives a bad step, and repeats itself bit for bit."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from lens_core.diffusion.prediction import to_velocity
from lens_core.diffusion.ragged import RaggedBatch, offsets_of
from lens_core.diffusion.text_encoders.small.encoder import SmallTextEncoder
from lens_core.errors import LensError, Stopped
from lens_train.checkpoint.store import CheckpointStore
from lens_train.loop.budget import Budget
from lens_train.loop.metrics import METRICS
from lens_train.objective.config import LogitNormalTimes, ObjectiveConfig
from lens_train.objective.flow import targets
from lens_train.optim.build import learning_rate_factor
from lens_train.optim.config import OptimizerConfig
from lens_train.planning.config import BatchConfig, SizesConfig
from lens_train.watch.sinks import TENSORBOARD
from train.conftest import training_set


def metrics(trainer):
    return [json.loads(line) for line in (trainer.folder / METRICS).read_text().splitlines()]


def losses(trainer):
    return [line["loss"] for line in metrics(trainer)]


def weights(trainer):
    return [parameter.detach().clone() for parameter in trainer.parameters]


def averages(trainer):
    return list(trainer.ema.averages.values())


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def one_step(trainer, progress):
    """Make a single step, as a signal in its midst would."""
    progress.stop_asked = True
    with pytest.raises(Stopped):
        trainer.run(progress)


def test_it_learns_a_few_images_by_heart(new_trainer, few, progress):
    trainer = new_trainer(
        images=few,
        batch=BatchConfig(samples=8),
        budget=Budget(steps=60),
        optimizer=OptimizerConfig(warmup_steps=5),
        objective=ObjectiveConfig(times=LogitNormalTimes(mean=1.0, std=0.7), caption_dropout=0),
    )
    trainer.run(progress)
    seen = losses(trainer)
    assert len(seen) == 60
    assert np.mean(seen[-10:]) < 0.25 * np.mean(seen[:5])


def test_the_first_loss_and_gradient_are_those_computed_by_hand(new_trainer, data, progress):
    trainer, twin = new_trainer(), new_trainer(state="twin")
    one_step(trainer, progress)
    samples, manifest = twin.plan.pack(0).samples, data.manifest
    pixels = torch.stack(data.source([sample.number for sample in samples]))
    tokens = list(twin.autoencoder.encode(pixels.permute(0, 3, 1, 2) / 127.5 - 1))
    goal = targets(twin.objective, tokens, [(s.epoch, manifest.key(s.number)) for s in samples], twin.seed)
    encoder = twin.captions.encoder
    ids = encoder.tokenize(["" if s.caption is None else manifest.caption_text(s.caption) for s in samples])
    text_offsets = offsets_of([len(one) for one in ids])
    text = encoder(torch.tensor([token for one in ids for token in one]), text_offsets)
    output = twin.transformer.forward_ragged(
        RaggedBatch(
            image=goal.x_NC,
            text=text,
            image_offsets=offsets_of([16] * 4),
            text_offsets=text_offsets,
            grids=torch.tensor([[4, 4]] * 4),
            timestep=goal.timestep_G,
        )
    )
    velocity = to_velocity(twin.prediction, output, goal.x_NC, goal.timestep_G.repeat_interleave(16)[:, None])
    by_sample = (velocity - goal.velocity_NC).square().view(4, -1).mean(-1)
    by_sample.mean().backward()
    gradients = [p.grad for p in twin.parameters if p.grad is not None]
    norm = torch.stack([grad.norm() for grad in gradients]).norm()
    (line,) = metrics(trainer)
    assert line["loss"] == pytest.approx(by_sample.mean().item(), rel=1e-4)
    assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert line["grad_norm"] > trainer.optimizer.clip  # so it was reported before clipping
    quarters = {}
    for loss, t in zip(by_sample.tolist(), goal.timestep_G.tolist(), strict=True):
        quarters.setdefault(f"loss_t{int(4 * t) + 1}", []).append(loss)
    told = {name: value for name, value in line.items() if name.startswith("loss_t")}
    assert told == pytest.approx({name: np.mean(part) for name, part in quarters.items()}, rel=1e-4)


def test_a_long_gradient_is_scaled_down_to_the_clip(new_trainer, progress):
    usual, clipped = new_trainer(), new_trainer(state="clipped", optimizer=OptimizerConfig(clip=1e-12))
    start = weights(usual)
    for trainer in (usual, clipped):
        one_step(trainer, progress)
    assert metrics(clipped)[0]["grad_norm"] == metrics(usual)[0]["grad_norm"]

    def moved(trainer):
        return max((now - old).abs().max().item() for now, old in zip(weights(trainer), start, strict=True))

    # A gradient far below both optimisers' epsilon hardly moves anything.
    assert moved(clipped) < 1e-3 * moved(usual)


def test_counters_are_sums_over_the_batches(new_trainer, progress):
    trainer = new_trainer(objective=ObjectiveConfig(caption_dropout=0.4), budget=Budget(steps=7))
    trainer.run(progress)
    encoder, flops, text_tokens = trainer.captions.encoder, 0, 0
    for step in range(7):
        samples = trainer.plan.pack(step).samples
        texts = ["" if s.caption is None else trainer.manifest.caption_text(s.caption) for s in samples]
        lengths = [len(ids) for ids in encoder.tokenize(texts)]
        text_tokens += sum(lengths)
        flops += trainer.transformer.training_flops([16] * 4, lengths, text_gradient=True)
        flops += encoder.training_flops(lengths)
        assert trainer.plan.pack(step).flops == pytest.approx(
            trainer.transformer.training_flops([16] * 4, lengths, text_gradient=True) + encoder.training_flops(lengths)
        )
    counters = trainer.counters
    assert (counters.step, counters.images, counters.image_tokens) == (7, 28, 28 * 16)
    assert counters.text_tokens == text_tokens
    assert counters.flops == flops
    assert counters.skipped == 0
    last = metrics(trainer)[-1]
    assert (last["flops"], last["images"], last["text_tokens"]) == (flops, 28, text_tokens)
    assert last["images_per_s"] == pytest.approx(28 / counters.seconds)
    assert last["tokens_per_s"] == pytest.approx((28 * 16 + text_tokens) / counters.seconds)


def test_a_flops_budget_ends_nearest_to_it(new_trainer, progress):
    trainer = new_trainer(budget=Budget(flops=3e9))
    trainer.run(progress)
    spent = [line["flops"] for line in metrics(trainer)]
    largest = max(after - before for before, after in zip([0.0, *spent], spent, strict=False))
    assert abs(trainer.counters.flops - 3e9) <= largest / 2
    assert trainer.counters.step > 3


def test_a_budget_of_minutes_stops_in_time(new_trainer, progress):
    trainer = new_trainer(budget=Budget(minutes=0.02))
    trainer.run(progress)
    *_, before, last = metrics(trainer)
    assert before["seconds"] <= 1.2 <= trainer.counters.seconds  # the last step was allowed, and was the last
    # The rate falls by the same clock.
    factor = learning_rate_factor(trainer.optimizer, before["step"], before["seconds"] / 1.2)
    assert last["lr"] == pytest.approx(trainer.optimizer.lr * factor, abs=0.01 * trainer.optimizer.lr)


class SlowStore(CheckpointStore):
    """On a disk that keeps training waiting."""

    def save(self, step, state, meta):
        time.sleep(0.7)
        super().save(step, state, meta)


class SlowLook:
    """A watcher that takes its time."""

    every = 2

    def look(self, step):
        time.sleep(3 if step == 2 else 0)
        return {}

    def judge(self, seen):
        pass


def test_the_clock_counts_saves_and_no_looks(new_trainer, progress):
    trainer = new_trainer(budget=Budget(steps=3), save_every_s=1e-6)
    trainer.store = SlowStore(trainer.folder / "checkpoints", trainer.world)
    trainer.watchers.append(SlowLook())
    trainer.run(progress)
    assert 2 * 0.7 <= trainer.counters.seconds < 2 * 0.7 + 3  # the last save comes after the last step


def test_steps_to_be_kept_are_saved_however_seldom_it_saves(new_trainer, progress):
    trainer = new_trainer()
    trainer.store = CheckpointStore(trainer.folder / "checkpoints", trainer.world, keep_last=1, keep_every=3)
    trainer.run(progress)
    kept = sorted(path.name for path in (trainer.folder / "checkpoints").iterdir())
    assert kept == ["latest", "step-00000003", "step-00000006", "step-00000009"]


@pytest.fixture(scope="module")
def two_sizes(run_stages, lens_registry, tmp_path_factory):
    """Scenes that a lot trains at 64 or at 128 pixels."""
    images = {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 12, "size": 128}}
    captions = {"name": "dense", "type": "caption", "source": "images", "captioner": {"type": "scene-graph"}}
    artifacts = run_stages(tmp_path_factory.mktemp("two-sizes"), [images, captions])
    size = SizesConfig(bases={64: 1, 128: 1})
    return training_set(artifacts["dense"], lens_registry, tmp_path_factory.mktemp("data"), image_size=size)


@pytest.mark.parametrize("packs_per_step", [1, 2])
def test_by_tokens_a_large_sample_counts_for_more(two_sizes, new_trainer, progress, packs_per_step):
    """Whether the samples of a step lie in one pack or in two."""
    batch = BatchConfig(samples=4 // packs_per_step, packs_per_step=packs_per_step)
    trainer, twin = (
        new_trainer(state=state, images=two_sizes, batch=batch, objective=ObjectiveConfig(weight="tokens"))
        for state in ("state", "twin")
    )
    one_step(trainer, progress)
    losses_G, tokens_G = [], []
    loader = twin.loader()
    for _ in range(packs_per_step):
        one = twin.assemble(next(loader))
        losses_G.append(twin.sample_losses(one))
        tokens_G.append(one.image_offsets.diff())
    losses_G, tokens_G = torch.cat(losses_G), torch.cat(tokens_G)
    assert len(set(tokens_G.tolist())) > 1
    loss = (losses_G * tokens_G).sum() / tokens_G.sum()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in twin.parameters if p.grad is not None]).norm()
    (line,) = metrics(trainer)
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert line["loss"] != pytest.approx(losses_G.mean().item(), rel=1e-3)


def test_losses_are_told_by_resolution_and_padding_by_its_share(two_sizes, new_trainer, progress):
    batch = BatchConfig(samples=3, packs_per_step=2, fixed_size=True)
    trainer, twin = (
        replace(new_trainer(state=state, images=two_sizes, batch=batch, fixed_size=padded), sides=[64, 128])
        for state, padded in (("state", True), ("twin", False))
    )
    one_step(trainer, progress)
    by_side, loader = {64: [], 128: []}, twin.loader()
    for loaded in (next(loader), next(loader)):
        for sample, loss in zip(loaded.samples, twin.sample_losses(twin.assemble(loaded)).tolist(), strict=True):
            by_side[sample.height].append(loss)
    assert min(map(len, by_side.values())) > 0
    (line,) = metrics(trainer)
    told = {name: value for name, value in line.items() if re.fullmatch(r"loss_\d+px", name)}
    assert told == pytest.approx({f"loss_{side}px": np.mean(part) for side, part in by_side.items()}, rel=1e-4)
    packs = [twin.plan.pack(index) for index in range(2)]
    tokens = sum(pack.image_tokens + pack.text_tokens for pack in packs)
    assert 0 < line["padding"] == pytest.approx(1 - tokens / (2 * sum(twin.plan.capacity)))


def test_two_fresh_runs_are_bit_equal(new_trainer, progress):
    first, second = new_trainer(), new_trainer(state="again")
    for trainer in (first, second):
        trainer.run(progress)
    assert len(losses(first)) == 10
    assert losses(first) == losses(second)
    assert [line["grad_norm"] for line in metrics(first)] == [line["grad_norm"] for line in metrics(second)]
    assert same(weights(first), weights(second))
    assert same(averages(first), averages(second))


def test_another_seed_is_another_run(new_trainer, progress):
    first, second = new_trainer(budget=Budget(steps=2)), new_trainer(state="other", seed=4, budget=Budget(steps=2))
    for trainer in (first, second):
        trainer.run(progress)
    assert losses(first) != losses(second)


def test_the_average_follows_the_weights(new_trainer, progress):
    trainer = new_trainer(ema_decay=0.3)
    average = weights(trainer)
    for step in range(6):
        one_step(trainer, progress)
        decay = min(0.3, (1 + step) / (10 + step))  # it starts small, so as not to remember the initial weights
        average = [decay * old + (1 - decay) * now for old, now in zip(average, weights(trainer), strict=True)]
    with trainer.ema.swapped():
        for parameter, expected in zip(trainer.parameters, average, strict=True):
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-6)


def test_averaged_weights_are_lent_and_given_back(new_trainer, progress):
    trainer = new_trainer(budget=Budget(steps=4), ema_decay=0.99)
    trainer.run(progress)
    before, average = weights(trainer), [tensor.clone() for tensor in averages(trainer)]
    assert not same(before, average)

    def look_inside():
        with trainer.ema.swapped():
            assert same(weights(trainer), average)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        look_inside()
    assert same(weights(trainer), before)
    assert same(averages(trainer), average)


def test_without_averaging_the_model_is_the_last_one(new_trainer, progress):
    trainer = new_trainer(budget=Budget(steps=3), ema_decay=0.0)
    trainer.run(progress)
    with trainer.ema.swapped():
        averaged = weights(trainer)
    assert same(averaged, weights(trainer))


class Hiccup(SmallTextEncoder):
    """A text encoder whose features are not numbers at its third call, as a passing overflow makes them."""

    calls = 0
    at = (3,)

    def forward(self, ids_T, offsets):
        self.calls += 1
        return [layer * (float("nan") if self.calls in self.at else 1.0) for layer in super().forward(ids_T, offsets)]


class Hiccups(Hiccup):
    at = (3, 5, 6, 8, 9)


def test_a_step_that_is_not_finite_moves_nothing_and_is_counted(new_trainer, progress):
    trainer = new_trainer(encoder_class=Hiccup)
    for _ in range(2):
        one_step(trainer, progress)
    before, average = weights(trainer), [tensor.clone() for tensor in averages(trainer)]
    one_step(trainer, progress)
    assert trainer.counters.skipped == 1
    assert trainer.counters.step == 3
    assert same(weights(trainer), before)
    assert same(averages(trainer), average)
    one_step(trainer, progress)
    assert not same(weights(trainer), before)
    assert (trainer.counters.step, trainer.counters.skipped, trainer.counters.skipped_in_a_row) == (4, 1, 0)
    assert [line["skipped"] for line in metrics(trainer)] == [0, 0, 1, 1]
    assert [loss is None for loss in losses(trainer)] == [False, False, True, False]
    assert all(torch.isfinite(tensor).all() for tensor in averages(trainer))


@pytest.mark.parametrize(("most", "where"), [(1, "step 3"), (2, "2 steps in a row (step 6)")])
def test_how_many_such_steps_end_the_run_is_a_setting(new_trainer, progress, most, where):
    trainer = new_trainer(encoder_class=Hiccups, optimizer=OptimizerConfig(max_skipped=most))
    with pytest.raises(LensError) as caught:
        trainer.run(progress)
    assert str(caught.value) == (
        f"the loss or its gradient was not finite in {where}; lower the learning rate, or raise optimizer.max_skipped"
    )


def test_fewer_such_steps_in_a_row_do_not_end_it(new_trainer, progress):
    trainer = new_trainer(encoder_class=Hiccups, optimizer=OptimizerConfig(max_skipped=3))
    trainer.run(progress)
    assert (trainer.counters.step, trainer.counters.skipped) == (10, 5)


def test_a_budget_that_buys_no_step_is_told(new_trainer, progress):
    with pytest.raises(LensError, match=r"budget\.flops: one step costs .*, so 10 buys none"):
        new_trainer(budget=Budget(flops=10)).run(progress)


def test_ten_such_steps_in_a_row_end_the_run(new_trainer, progress):
    # A rate like this throws the weights out of float32 at once.
    reckless = OptimizerConfig(type="adamw", lr=1e38, warmup_steps=0, decay_fraction=0)
    trainer = new_trainer(optimizer=reckless, budget=Budget(steps=200))
    with pytest.raises(LensError, match="not finite in 10 steps in a row") as caught:
        trainer.run(progress)
    assert "lower the learning rate" in str(caught.value)
    assert trainer.counters.skipped >= 10
    assert trainer.counters.skipped_in_a_row == 10
    assert trainer.counters.step < 30


def test_the_schedule_reaches_the_metrics(new_trainer, progress):
    trainer = new_trainer(optimizer=OptimizerConfig(lr=0.01, warmup_steps=2, decay_fraction=0.5))
    trainer.run(progress)
    expected = [0.005, 0.01, 0.01, 0.01, 0.01, 0.01, 0.008, 0.006, 0.004, 0.002]
    assert [line["lr"] for line in metrics(trainer)] == pytest.approx(expected)


def test_bfloat16_is_close_and_keeps_float32_weights(new_trainer, progress):
    exact, rough = (
        new_trainer(budget=Budget(steps=3)),
        new_trainer(state="bf16", dtype=torch.bfloat16, budget=Budget(steps=3)),
    )
    for trainer in (exact, rough):
        trainer.run(progress)
    assert {parameter.dtype for parameter in rough.parameters} == {torch.float32}
    assert losses(rough) == pytest.approx(losses(exact), rel=0.05)
    assert losses(rough) != losses(exact)


def test_lines_are_written_as_often_as_asked_and_at_the_end(new_trainer, progress):
    trainer = new_trainer(log_every=4)
    trainer.run(progress)
    assert [line["step"] for line in metrics(trainer)] == [1, 4, 8, 10]


def test_the_last_step_of_a_budget_of_flops_is_written_too(new_trainer, progress):
    trainer = new_trainer(log_every=1000, budget=Budget(flops=3e9))
    trainer.run(progress)
    assert [line["step"] for line in metrics(trainer)] == [1, trainer.counters.step]


def test_tensorboard_shows_what_the_metrics_say(new_trainer, progress):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = new_trainer()
    trainer.run(progress)
    board = EventAccumulator(str(trainer.folder / TENSORBOARD)).Reload()
    lines = metrics(trainer)
    names = {name for line in lines for name in line} - {"step"}
    assert {"loss", "grad_norm", "lr", "images_per_s", "tokens_per_s"} <= names
    assert set(board.Tags()["scalars"]) == names
    for name in names:
        shown = {event.step: event.value for event in board.Scalars(name)}
        assert shown == pytest.approx({line["step"]: line[name] for line in lines if name in line}, rel=1e-6)


def test_what_is_shown_while_it_runs(new_trainer, progress):
    trainer = new_trainer(budget=Budget(steps=3))
    trainer.run(progress)
    assert "0/3 steps" in progress.said.getvalue()
    assert Counter(line["skipped"] for line in metrics(trainer)) == {0: 3}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_a_samples_loss_does_not_depend_on_its_neighbours(new_trainer, dtype, tolerance):
    trainer = new_trainer(batch=BatchConfig(samples=6))
    for parameter in trainer.parameters:  # away from the start, where every block is the identity
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    trainer.transformer.to(dtype)
    trainer.captions.encoder.to(dtype)
    loaded = next(trainer.loader())

    def losses(places):
        some = replace(loaded, samples=[loaded.samples[n] for n in places], images=[loaded.images[n] for n in places])
        batch = trainer.assemble(some)
        exact = {name: getattr(batch, name).to(dtype) for name in ("x_NC", "velocity_NC", "timestep_G")}
        return trainer.sample_losses(replace(batch, **exact)).detach()

    together = losses(range(6))
    assert len(set(together.tolist())) == 6
    for places in ([3], [5, 3], [3, 0, 1], [5, 4, 3, 2, 1, 0]):
        torch.testing.assert_close(losses(places), together[list(places)], rtol=tolerance, atol=0)
