"""The training loop: a step that fits on a screen, repeated within a budget, saved and resumed exactly.

A step takes the plan's next packs, each rank its share, adds up their gradients, and moves the weights once. Which
samples these are, their noise and their times follow from the step's number, so the state is the weights and that
number; a run on another number of ranks goes on with the same samples.

Suffixes: N image tokens of a pack, C channels, G samples.
"""

from __future__ import annotations

import math
import platform
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lens_core import __version__
from lens_core.diffusion.prediction import target_velocity, to_velocity
from lens_core.diffusion.ragged import RaggedBatch
from lens_core.errors import LensError, Stopped
from lens_train.checkpoint.state import TrainingState
from lens_train.data.loader import PackLoader
from lens_train.loop.batch import assemble
from lens_train.loop.metrics import LossTable, MetricsFile
from lens_train.objective.flow import sample_losses
from lens_train.optim.build import Optimizers, learning_rate_factor
from lens_train.optim.ema import Ema
from lens_train.parallel.fixed_size import pad_to
from lens_train.parallel.shard import clip_gradients, forget_gathered, sync_gradients
from lens_train.watch.groups import WeightGroups
from lens_train.watch.profiler import Profiler
from lens_train.watch.sinks import open_sinks
from lens_train.watch.speed import Speed
from lens_train.watch.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lens_core.config.prediction import PredictionConfig
    from lens_core.contracts.diffusion import Autoencoder
    from lens_core.pipeline.progress import Progress
    from lens_train.checkpoint.store import CheckpointStore
    from lens_train.data.images import ImageSource
    from lens_train.data.loader import LoadedPack
    from lens_train.data.text import Captions
    from lens_train.loop.batch import Batch
    from lens_train.loop.budget import Budget
    from lens_train.objective.config import ObjectiveConfig
    from lens_train.objective.terms import Term
    from lens_train.optim.config import OptimizerConfig
    from lens_train.parallel.world import World
    from lens_train.planning.manifest import Manifest
    from lens_train.planning.packs import Plan
    from lens_train.watch.config import WatchConfig
    from lens_train.watch.watcher import Watcher

__all__ = ["Counters", "Trainer"]


@dataclass
class Counters:
    """What has been done so far, over all ranks; part of the saved state."""

    step: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    images: int = 0
    image_tokens: int = 0
    text_tokens: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    bad_samples: int = 0
    unreadable: list[str] = field(default_factory=list)
    executed_flops: float = 0.0
    padding_tokens: int = 0


@dataclass
class Trainer:
    """Trains a denoiser, and its text encoder if that is trainable.

    Args:
        transformer: the denoiser, on its device, sharded if it shall be.
        captions: the text encoder, likewise.
        autoencoder: pixels to tokens.
        manifest: the samples.
        plan: which of them a pack holds.
        source: their images.
        sides: the resolutions among them, for the losses that are told apart.
        packs_per_step: packs of a step, over all ranks.
        workers: processes that read and decode.
        flops: what training on samples of some image and text tokens costs.
        objective: what is learned.
        prediction: what the denoiser's output means.
        optimizer: how parameters are moved.
        budget: how long.
        ema_decay: of the averaged weights that the finished model has.
        dtype: what is computed in; weights stay as they are.
        world: this rank and the others.
        store: where the state is saved.
        trainable_only: leave what is frozen out of the state: a base model under adapters is where it came from.
        folder: where metrics and curves lie.
        watch: what is measured.
        settings: the stage's, for trackers to show and checkpoints to keep.
        seed: of everything random.
        save_every_s: seconds between saves.
        max_bad_samples: how many samples may be unreadable, each counted once.
        fixed_size: pad packs to the plan's capacity.
        recomputed_flops: of what the backward pass computes again of the denoiser; None if that is nothing, or unknown.
        terms: what is minimised besides, sharded like the denoiser.
        watchers: who looks at the averaged weights now and then.
    """

    transformer: Any
    captions: Captions
    autoencoder: Autoencoder
    manifest: Manifest
    plan: Plan
    source: ImageSource
    sides: Sequence[int]
    packs_per_step: int
    workers: int
    flops: Callable[[Sequence[int], Sequence[int]], float]
    objective: ObjectiveConfig
    prediction: PredictionConfig
    optimizer: OptimizerConfig
    budget: Budget
    ema_decay: float
    dtype: torch.dtype
    world: World
    store: CheckpointStore
    folder: Path
    watch: WatchConfig
    seed: int
    save_every_s: float
    max_bad_samples: int
    trainable_only: bool = False
    fixed_size: bool = False
    recomputed_flops: Callable[[Sequence[int], Sequence[int]], float] | None = None
    terms: Sequence[Term] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    watchers: list[Watcher] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        self.modules: dict[str, nn.Module] = {"transformer": self.transformer}
        if self.captions.encoder.trainable:
            self.modules["text_encoder"] = self.captions.encoder
        self.ema = Ema(self.modules, self.ema_decay)  # of the model; what the terms train is thrown away
        self.modules |= {term.name: term.module for term in self.terms}
        self.optimizers = Optimizers(self.optimizer, self.modules.values())
        self.parameters: list[Tensor] = [
            p for module in self.modules.values() for p in module.parameters() if p.requires_grad
        ]
        self.state = TrainingState(self.modules, self.optimizers.parts, self.ema, trainable_only=self.trainable_only)
        self.losses = LossTable(self.sides)
        self.groups = WeightGroups(self.modules)
        self.stopwatch = Stopwatch(self.world.device)

    def run(self, progress: Progress) -> None:
        """Train until the budget is used up; go on from the saved state if there is one.

        Raises:
            Stopped: the user asked for it; the state is saved.
            LensError: the loss stays non-finite, too many samples cannot be read, or a watcher will not have the end.
            StorageError: curves, pictures or the state cannot be written; the state saved before is intact.
        """
        self._resume(progress)
        c, saved_at = self.counters, time.monotonic()
        total, unit, scale = self.budget.amount
        progress.start(total / scale, unit)
        next_flops = self._planned_flops()
        if c.step == 0 and not self._allowed(next_flops):
            raise LensError(f"budget.flops: one step costs {next_flops:.3g}, so {total:.3g} buys none; raise it")
        loader = self.loader()
        speed = Speed(self, loader)
        seen: dict[str, float] | None = None
        with ExitStack() as closing:
            closing.callback(loader.close)
            writers = self._writers(closing)
            profiler = closing.enter_context(Profiler(self.watch.profile, self.folder, self.world))
            began = time.monotonic()
            while self._allowed(next_flops):
                profiler.begin(c.step + 1)
                packs = [next(loader) for _ in range(self._own_packs)]
                with self.world.watching(f"step {c.step + 1}"):
                    record = self.train_step(packs, progress)
                    now = time.monotonic()
                    took, unsaved, stop = self._agree(now - began, now - saved_at, stop=progress.stop_asked)
                began = now  # what is written down and saved until the next step counts as training, a look does not
                profiler.end(c.step)
                next_flops = self._planned_flops()
                c.seconds += took
                progress.update(self._share() * total / scale, **self._shown(record))
                last = not self._allowed(next_flops)
                with self.store.beside():
                    looked_at = time.monotonic()
                    seen = self._look(last=last)
                    began += time.monotonic() - looked_at
                    if seen or last or self._is_logged(c.step):
                        self._log(record | speed.take() | seen, writers)
                if stop or unsaved > self.save_every_s or self.store.keeps(c.step):
                    self._save()  # what the state counts as done is written down by now
                    saved_at = time.monotonic()
                if stop:
                    self.store.wait()
                    raise Stopped(f"stopped at step {c.step}; the same command goes on from here")
            self.store.wait()
            if seen is None:
                seen = self._look(last=True)
            try:
                for watcher in self.watchers:
                    watcher.judge(seen)
            except LensError:
                self._save()  # whoever asks less of the run need not train again
                self.store.wait()
                raise

    def loader(self) -> PackLoader:
        """This rank's packs, from the step that comes next."""
        first = self.counters.step * self.packs_per_step + self.world.rank
        return PackLoader(self.plan, self.source, first=first, stride=self.world.size, workers=self.workers)

    def train_step(self, packs: Sequence[LoadedPack], progress: Progress | None = None) -> dict[str, Any]:
        """One optimiser step; returns what is worth logging, over all ranks.

        Args:
            packs: this rank's share of the step.
            progress: where samples that cannot be read are told.

        Raises:
            LensError: too many of them, or too many steps in a row that are not finite.
        """
        logged = self._is_logged(self.counters.step + 1)
        factor = learning_rate_factor(self.optimizer, self.counters.step, self._share())
        self.optimizers.set_factor(factor)
        batches = [self.assemble(pack) for pack in packs]
        weight, bad = self._sum([sum(float(self._weights(b).sum()) for b in batches), sum(len(p.bad) for p in packs)])
        if bad:
            self._pass_over(self.world.gather([line for pack in packs for line in pack.bad]), progress)
        losses: list[dict[str, Tensor]] = []
        for number, batch in enumerate(batches):
            sync_gradients(self.modules.values(), number == len(batches) - 1)
            named = self.named_losses(batch)
            losses_G = named["loss"]
            for term in self._terms():
                losses_G = losses_G + term.weight * named[f"loss_{term.name}"]
            # Gradients are summed over ranks and packs: the whole step's weight, 0 if nothing could be read, makes them
            # a mean.
            ((losses_G * self._weights(batch)).sum() / max(weight, 1)).backward()
            losses.append({name: loss_G.detach() for name, loss_G in named.items()})
        parts = self.groups.gradient_norms() if logged else {}
        norm = clip_gradients(self.parameters, self.optimizer.clip).item()
        finite = math.isfinite(norm)
        before = self.groups.copy() if logged else {}
        if finite:
            self.optimizers.step()
            self.ema.update(self.counters.step)
        if logged:
            parts |= self.groups.update_ratios(before)
        self.optimizers.zero_grad()
        means, by_name = self._count(batches, losses, weight, finite)
        return {**means, "grad_norm": norm, "lr": self.optimizer.lr * factor, **by_name, **parts}

    def assemble(self, pack: LoadedPack) -> Batch:
        """What a pack is computed on."""
        return assemble(
            pack,
            stopwatch=self.stopwatch,
            manifest=self.manifest,
            autoencoder=self.autoencoder,
            captions=self.captions,
            flops=self.flops,
            objective=self.objective,
            terms=self._terms(),
            seed=self.seed,
            device=self.world.device,
        )

    def _terms(self) -> list[Term]:
        """Those that have a part in this step."""
        return [term for term in self.terms if term.until is None or self.counters.step < term.until]

    def sample_losses(self, batch: Batch) -> Tensor:
        """The loss [G] of every sample of a batch, without terms."""
        return self.named_losses(batch)["loss"]

    def named_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses [G] by their names in the metrics: `loss`, and one for each term that the batch has goals of."""
        device, lengths = self.world.device, batch.image_offsets.diff().tolist()
        terms = [term for term in self.terms if term.name in batch.goals]
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            with self.stopwatch.part("train text" if self.captions.encoder.trainable else "encode"):
                text = self.captions.features(batch.texts, batch.ids, device)
            ragged = RaggedBatch(
                image=batch.x_NC,
                text=text,
                image_offsets=batch.image_offsets,
                text_offsets=batch.text_offsets,
                grids=batch.grids,
                timestep=batch.timestep_G,
            )
            if any(self._room(batch)):
                assert self.plan.capacity is not None
                ragged = pad_to(ragged, self.plan.capacity)
            forward, taps, tokens = self.transformer.forward_ragged, {term.block for term in terms}, len(batch.x_NC)
            output_NC, hidden = forward(ragged, taps=taps) if taps else (forward(ragged), {})
            besides = {
                f"loss_{term.name}": term.losses(hidden[term.block][:tokens], batch.goals[term.name], lengths)
                for term in terms
            }
        output_NC = output_NC[:tokens]
        t_N1 = batch.timestep_G.repeat_interleave(batch.image_offsets.diff().to(device))[:, None]
        velocity_NC = to_velocity(self.prediction, output_NC.to(batch.x_NC.dtype), batch.x_NC, t_N1)
        goal_NC = target_velocity(self.prediction, batch.velocity_NC, t_N1)
        return {"loss": sample_losses(velocity_NC, goal_NC, lengths), **besides}

    def _room(self, batch: Batch) -> tuple[int, int]:
        """Image and text tokens that bring a pack to its fixed size; none for the rare pack that is larger."""
        capacity = self.plan.capacity if self.fixed_size else None
        if capacity is None:
            return 0, 0
        room = capacity[0] - len(batch.x_NC), capacity[1] - int(batch.text_offsets[-1])
        return room if min(room) >= 0 else (0, 0)

    def _extra_flops(self, batch: Batch) -> float:
        """What is carried out beyond what the model needs: for padding, and for what checkpointing computes again."""
        images, texts, extra = batch.image_offsets.diff().tolist(), batch.text_offsets.diff().tolist(), 0.0
        image, text = self._room(batch)
        if image or text:
            # By difference, since what a step costs whatever is in it comes once, as a DoRA's lengths do; and without
            # the text encoder, which is done before anything is padded.
            padded = [*images, image], [*texts, text]
            extra = self.flops(*padded) - self.flops(images, texts)
            if self.captions.encoder.trainable:
                extra -= self.captions.encoder.training_flops([text])
            images, texts = padded
        if self.recomputed_flops:
            extra += self.recomputed_flops(images, texts)
        return extra

    def _weights(self, batch: Batch) -> Tensor:
        """How much each sample counts [G]: its image tokens, or one."""
        lengths_G = batch.image_offsets.diff().to(self.world.device, torch.float32)
        if batch.blank:
            return torch.zeros_like(lengths_G)
        return lengths_G if self.objective.weight == "tokens" else torch.ones_like(lengths_G)

    def _count(
        self, batches: Sequence[Batch], losses: Sequence[dict[str, Tensor]], weight: float, finite: bool
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Add a step to the counters; returns the losses of all ranks, and the first by noise level and resolution."""
        c, names = self.counters, list(losses[0])
        counted = [(batch, one) for batch, one in zip(batches, losses, strict=True) if not batch.blank]
        means = [
            sum(float((one[name] * self._weights(b)).sum()) for b, one in counted) / (weight or math.nan)
            for name in names
        ]
        own = [
            sum(b.flops for b, _ in counted),
            sum(len(b.grids) for b, _ in counted),
            sum(len(b.x_NC) for b, _ in counted),
            sum(int(b.text_offsets[-1]) for b, _ in counted),
            sum(b.flops + self._extra_flops(b) for b, _ in counted),
            sum(sum(self._room(b)) for b, _ in counted),
        ]
        table = self.losses.vector(
            [loss for _, one in counted for loss in one["loss"].tolist()],
            [t for b, _ in counted for t in b.timestep_G.tolist()],
            [side for b, _ in counted for side in b.sides],
        )
        flops, images, image_tokens, text_tokens, executed, padding, *rest = self._sum([*own, *means, *table])
        c.step += 1
        c.flops += flops
        c.images += round(images)
        c.image_tokens += round(image_tokens)
        c.text_tokens += round(text_tokens)
        c.executed_flops += executed
        c.padding_tokens += round(padding)
        c.skipped += not finite
        c.skipped_in_a_row = 0 if finite else c.skipped_in_a_row + 1
        if (bad := c.skipped_in_a_row) >= self.optimizer.max_skipped:
            where = f"{bad} steps in a row (step {c.step})" if bad > 1 else f"step {c.step}"
            raise LensError(
                f"the loss or its gradient was not finite in {where}; "
                "lower the learning rate, or raise optimizer.max_skipped"
            )
        count = len(means)
        return dict(zip(names, rest[:count], strict=True)), self.losses.means(rest[count:])

    def _pass_over(self, told: Sequence[str], progress: Progress | None) -> None:
        """Samples of any rank that could not be read: say so once of each, up to a limit."""
        c = self.counters
        c.bad_samples += len(told)
        new = [line for line in dict.fromkeys(told) if line not in c.unreadable]
        c.unreadable += new
        for line in new:
            if progress:
                progress.warn(f"{line}; it is passed over")
        if len(c.unreadable) > self.max_bad_samples:
            raise LensError(
                f"{len(c.unreadable)} samples cannot be read, more than data.max_bad_samples allows; "
                f"the last: {c.unreadable[-1]}"
            )

    def _sum(self, values: Sequence[float]) -> list[float]:
        if self.world.size == 1:
            return list(values)
        totals: list[float] = self.world.sum_over(torch.tensor(values, dtype=torch.float64)).tolist()
        return totals

    def _agree(self, took: float, unsaved: float, *, stop: bool) -> tuple[float, float, bool]:
        """Rank 0's clocks, and whether anyone was asked to stop: what hangs on them must be the same on all ranks."""
        own = [took, unsaved] if self.world.is_main else [0.0, 0.0]
        took, unsaved, stops = self._sum([*own, float(stop)])
        return took, unsaved, stops > 0

    @property
    def _own_packs(self) -> int:
        return self.packs_per_step // self.world.size

    def _planned_flops(self) -> float:
        """What the next step costs; planning its packs takes time, and no other budget asks."""
        if self.budget.flops is None:
            return 0.0
        first = self.counters.step * self.packs_per_step
        packs = [self.plan.pack(index) for index in range(first, first + self.packs_per_step)]
        return sum(pack.flops + sum(t.training_flops(pack.image_tokens) for t in self._terms()) for pack in packs)

    def _share(self) -> float:
        return self.budget.share(**self._used())

    def _allowed(self, next_flops: float) -> bool:
        return self.budget.allows(**self._used(), next_flops=next_flops)

    def _used(self) -> dict[str, Any]:
        """What budgets are counted in."""
        c = self.counters
        tokens = c.image_tokens + c.text_tokens
        return {"flops": c.flops, "steps": c.step, "samples": c.images, "tokens": tokens, "seconds": c.seconds}

    def _is_logged(self, step: int) -> bool:
        """Whether a step's metrics are written: the first, every so many, and that which ends a budget of steps."""
        looked_at = any(step % watcher.every == 0 for watcher in self.watchers)
        return step == 1 or step % self.watch.log_every == 0 or step == self.budget.steps or looked_at

    def _look(self, *, last: bool) -> dict[str, float]:
        """What the watchers whose turn it is see; all ranks take part, and the run's clocks stand still."""
        step = self.counters.step
        due = [watcher for watcher in self.watchers if last or step % watcher.every == 0]
        if not due:
            return {}
        own, self.stopwatch = self.stopwatch, Stopwatch(self.world.device)
        seen: dict[str, float] = {}
        with self.world.watching(f"the look at step {step}"), self.ema.swapped(), torch.no_grad():
            for watcher in due:
                seen |= watcher.look(step)
            forget_gathered(self.modules.values())
        self.stopwatch = own
        return seen

    def _shown(self, record: dict[str, Any]) -> dict[str, Any]:
        rate = self.counters.images / max(self.counters.seconds, 1e-9)
        return {"loss": record["loss"], "step": self.counters.step, "img/s": rate}

    def _writers(self, closing: ExitStack) -> list[Any]:
        """The file of metrics and the sinks; one rank writes."""
        if not self.world.is_main:
            return []
        step = self.counters.step
        sinks = open_sinks(self.watch, self.folder, step=step, settings=self.settings)
        writers = [*sinks, MetricsFile(self.folder, step=step)]
        for writer in writers:
            closing.callback(writer.close)
        return writers

    def _log(self, record: dict[str, Any], writers: Sequence[Any]) -> None:
        c = self.counters
        line = record | {
            "flops": c.flops,
            "images": c.images,
            "image_tokens": c.image_tokens,
            "text_tokens": c.text_tokens,
            "skipped": c.skipped,
            "bad_samples": c.bad_samples,
            "seconds": round(c.seconds, 3),
            "images_per_s": c.images / max(c.seconds, 1e-9),
            "tokens_per_s": (c.image_tokens + c.text_tokens) / max(c.seconds, 1e-9),
        }
        for writer in writers:
            writer.write(c.step, line)

    def _save(self) -> None:
        meta = {
            "counters": asdict(self.counters),
            "plan": self.plan.fingerprint,
            "ranks": self.world.size,
            "config": self.settings,
            "versions": _versions(),
        }
        self.store.save(self.counters.step, self.state, meta)

    def _resume(self, progress: Progress) -> None:
        meta = self.store.load_latest(self.state)
        if meta is None:
            return
        if meta["plan"] != self.plan.fingerprint:
            raise LensError(
                f"{self.store.folder}: the state saved there is of other data or other batches; "
                "train in another run folder, or remove it"
            )
        self.counters = Counters(**meta["counters"])
        progress.note(f"goes on from step {self.counters.step}")
        now = _versions()
        then = now | meta.get("versions", {})  # a checkpoint of an earlier Lens does not say
        others = [name for name in now if then[name] != now[name]]
        if others:
            saved_by, goes_on = (" and ".join(f"{name} {by[name]}" for name in others) for by in (then, now))
            progress.note(f"saved by {saved_by}, goes on with {goes_on}: bits may differ")


def _versions() -> dict[str, str]:
    """Of what the bits of a step depend on."""
    return {"lens": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
