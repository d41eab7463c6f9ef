"""The training loop: one step that fits on a screen, repeated within a budget, saved and resumed exactly.

Suffixes: B images, N image tokens of a batch, T text tokens, C channels, H and W pixels.
"""

from __future__ import annotations

import json
import math
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from lens_core.diffusion.prediction import target_velocity, to_velocity
from lens_core.diffusion.ragged import RaggedBatch, offsets_of
from lens_core.errors import LensError, Stopped
from lens_train.loop.state import load_state, save_state
from lens_train.objective.flow import quartile, sample_losses, targets
from lens_train.optim.build import Optimizers, learning_rate_factor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lens_core.contracts.diffusion import Autoencoder
    from lens_core.pipeline.progress import Progress
    from lens_train.data.captioned import CaptionedImages
    from lens_train.loop.budget import Budget
    from lens_train.objective.config import ObjectiveConfig
    from lens_train.optim.config import OptimizerConfig

__all__ = ["Counters", "Trainer"]

MAX_SKIPPED_IN_A_ROW = 10
STATE = "training.safetensors"
METRICS = "metrics.jsonl"
TENSORBOARD = "tb"


@dataclass
class Counters:
    """What has been done so far; part of the saved state."""

    step: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    images: int = 0
    image_tokens: int = 0
    text_tokens: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0


@dataclass
class Trainer:
    """Trains a denoiser, and its text encoder if that is trainable.

    Args:
        transformer: the denoiser.
        text_encoder: prompts to features.
        autoencoder: pixels to tokens.
        data: the captioned images.
        objective: what is learned.
        optimizer: how parameters are moved.
        budget: how long.
        batch_size: samples a step.
        ema_decay: of the averaged weights that the finished model has.
        bf16: compute in bfloat16 where that is safe; weights stay float32.
        device: where.
        seed: of everything random.
        state_dir: where the state, the metrics and TensorBoard's files lie.
        save_every_s: seconds between saves.
        log_every: steps between lines of metrics.
    """

    transformer: Any
    text_encoder: Any
    autoencoder: Autoencoder
    data: CaptionedImages
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    budget: Budget
    batch_size: int
    ema_decay: float
    bf16: bool
    device: torch.device
    seed: int
    state_dir: Path
    save_every_s: float
    log_every: int
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        self.modules: dict[str, nn.Module] = {"transformer": self.transformer}
        if self.text_encoder.trainable:
            self.modules["text_encoder"] = self.text_encoder
        self.optimizers = Optimizers(self.optimizer, self.modules.values())
        self.parameters: list[Tensor] = [
            p for module in self.modules.values() for p in module.parameters() if p.requires_grad
        ]
        self.ema = [parameter.detach().clone() for parameter in self.parameters]
        texts = ["", *dict.fromkeys(text for own in self.data.captions for text in own)]
        self.token_ids = dict(zip(texts, self.text_encoder.tokenize(texts), strict=True))

    def run(self, progress: Progress) -> None:
        """Train until the budget is used up; go on from the saved state if there is one.

        Raises:
            Stopped: the user asked for it; the state is saved.
            LensError: the loss stays non-finite.
        """
        self._resume(progress)
        saved_at = time.monotonic()
        total = self.budget.flops or self.budget.steps or self.budget.minutes
        unit = "TFLOP" if self.budget.flops else "steps" if self.budget.steps else "min"
        scale = 1e12 if self.budget.flops else 1
        progress.start(total / scale if total else None, unit)
        with (
            (self.state_dir / METRICS).open("a", encoding="utf-8") as metrics,
            SummaryWriter(str(self.state_dir / TENSORBOARD), purge_step=self.counters.step + 1) as board,
        ):
            batch = self.next_batch()
            if self.counters.step == 0 and not self._allowed(batch.flops):
                raise LensError(f"budget.flops: one step costs {batch.flops:.3g}, so {total:.3g} buys none; raise it")
            while self._allowed(batch.flops):
                started = time.monotonic()
                record = self.train_step(batch)
                batch = self.next_batch()
                self.counters.seconds += time.monotonic() - started
                used = self._share() * total / scale if total else 0
                progress.update(used, **self._shown(record))
                is_last = not self._allowed(batch.flops)
                if self.counters.step % self.log_every == 0 or self.counters.step == 1 or is_last:
                    self._log(record, metrics, board)
                if progress.stop_asked or time.monotonic() - saved_at > self.save_every_s:
                    # The state comes last: what it counts as done is then on disk.
                    metrics.flush()
                    board.flush()
                    self._save()
                    saved_at = time.monotonic()
                if progress.stop_asked:
                    raise Stopped(f"stopped at step {self.counters.step}; the same command goes on from here")

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averaged weights into the modules for a while."""
        before = [parameter.detach().clone() for parameter in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.ema)
            try:
                yield
            finally:
                torch._foreach_copy_(self.parameters, before)

    def train_step(self, batch: Batch) -> dict[str, Any]:
        """One optimiser step; returns what is worth logging."""
        factor = learning_rate_factor(self.optimizer, self.counters.step, self._share())
        self.optimizers.set_factor(factor)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            text = self.text_encoder(batch.ids_T, batch.text_offsets)
            output_NC = self.transformer.forward_ragged(
                RaggedBatch(
                    image=batch.x_NC,
                    text=text,
                    image_offsets=batch.image_offsets,
                    text_offsets=batch.text_offsets,
                    grids=batch.grids,
                    timestep=batch.timestep_G,
                )
            )
        t_N1 = batch.timestep_G.repeat_interleave(batch.image_offsets.diff().to(self.device))[:, None]
        velocity_NC = to_velocity(self.objective.prediction, output_NC.float(), batch.x_NC, t_N1)
        goal_NC = target_velocity(self.objective.prediction, batch.velocity_NC, t_N1)
        losses_G = sample_losses(velocity_NC, goal_NC, batch.image_offsets.diff().tolist())
        loss = losses_G.mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.optimizer.clip)
        finite = bool(torch.isfinite(loss) & torch.isfinite(norm))
        if finite:
            self.optimizers.step()
            # Early on the average would mostly remember the initial weights, so its decay starts small.
            decay = min(self.ema_decay, (1 + self.counters.step) / (10 + self.counters.step))
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters], 1 - decay)
        self.optimizers.zero_grad()
        self._count(batch, finite)
        return {
            "loss": loss.item(),
            "grad_norm": norm.item(),
            "lr": self.optimizer.lr * factor,
            "losses": losses_G.detach().tolist(),
            "times": batch.timestep_G.tolist(),
        }

    def _count(self, batch: Batch, finite: bool) -> None:
        c = self.counters
        c.step += 1
        c.flops += batch.flops
        c.images += self.batch_size
        c.image_tokens += len(batch.x_NC)
        c.text_tokens += len(batch.ids_T)
        c.skipped += not finite
        c.skipped_in_a_row = 0 if finite else c.skipped_in_a_row + 1
        if c.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise LensError(
                f"the loss or its gradient was not finite in {MAX_SKIPPED_IN_A_ROW} steps in a row (step {c.step}); "
                "lower the learning rate"
            )

    def next_batch(self) -> Batch:
        """The batch of the step that comes next; the same one however often it is asked for."""
        samples = self.data.batch(self.counters.step, self.batch_size)
        pixels_BHWC = torch.from_numpy(self.data.pixels[[sample.number for sample in samples]])
        pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2).to(self.device, torch.float32) / 127.5 - 1
        with torch.no_grad():
            tokens = list(self.autoencoder.encode(pixels_BCHW))
        goal = targets(self.objective, tokens, samples, self.seed)
        ids = [self.token_ids[caption] for caption in goal.captions]
        image_lengths, text_lengths = [len(one) for one in tokens], [len(one) for one in ids]
        stride = self.autoencoder.stride
        grid = (self.data.size[0] // stride, self.data.size[1] // stride)
        trains_text = self.text_encoder.trainable
        flops = self.transformer.training_flops(image_lengths, text_lengths, text_gradient=trains_text)
        return Batch(
            x_NC=goal.x_NC,
            velocity_NC=goal.velocity_NC,
            timestep_G=goal.timestep_G,
            ids_T=torch.tensor([token for one in ids for token in one], dtype=torch.long, device=self.device),
            image_offsets=offsets_of(image_lengths),
            text_offsets=offsets_of(text_lengths),
            grids=torch.tensor([grid] * len(samples)),
            flops=flops + self.text_encoder.training_flops(text_lengths),
        )

    def _share(self) -> float:
        c = self.counters
        return self.budget.share(flops=c.flops, steps=c.step, seconds=c.seconds)

    def _allowed(self, next_flops: float) -> bool:
        c = self.counters
        return self.budget.allows(flops=c.flops, steps=c.step, seconds=c.seconds, next_flops=next_flops)

    def _shown(self, record: dict[str, Any]) -> dict[str, Any]:
        rate = self.counters.images / max(self.counters.seconds, 1e-9)
        return {"loss": record["loss"], "step": self.counters.step, "img/s": rate}

    def _log(self, record: dict[str, Any], metrics: Any, board: SummaryWriter) -> None:
        c = self.counters
        by_quartile: dict[str, float] = {}
        for number in range(4):
            part = [loss for loss, t in zip(record["losses"], record["times"], strict=True) if quartile(t) == number]
            if part:
                by_quartile[f"loss_t{number + 1}"] = sum(part) / len(part)
        line = {
            "step": c.step,
            "loss": record["loss"],
            "grad_norm": record["grad_norm"],
            "lr": record["lr"],
            **by_quartile,
            "flops": c.flops,
            "images": c.images,
            "text_tokens": c.text_tokens,
            "skipped": c.skipped,
            "seconds": round(c.seconds, 3),
            "images_per_s": c.images / max(c.seconds, 1e-9),
            "tokens_per_s": (c.image_tokens + c.text_tokens) / max(c.seconds, 1e-9),
        }
        # JSON has no NaN: a step that was skipped has no loss.
        line = {name: value if math.isfinite(value) else None for name, value in line.items()}
        metrics.write(json.dumps(line) + "\n")
        for name in ("loss", "grad_norm", "lr", "images_per_s", "tokens_per_s", *by_quartile):
            if line[name] is not None:
                board.add_scalar(name, line[name], c.step)

    def _save(self) -> None:
        save_state(
            self.state_dir / STATE,
            modules=self.modules,
            optimizers=self.optimizers.parts,
            ema=self.ema,
            counters=asdict(self.counters),
        )

    def _resume(self, progress: Progress) -> None:
        metrics = self.state_dir / METRICS
        if not (self.state_dir / STATE).exists():
            metrics.unlink(missing_ok=True)
            return
        counters = load_state(
            self.state_dir / STATE, modules=self.modules, optimizers=self.optimizers.parts, ema=self.ema
        )
        self.counters = Counters(**counters)
        # Lines of steps that were made after the last save are about to be written again.
        lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= self.counters.step]
        temporary = metrics.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(metrics)
        progress.note(f"goes on from step {self.counters.step}")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a step is trained on: a ragged batch before its text is encoded, the target, and what the step costs."""

    x_NC: Tensor
    velocity_NC: Tensor
    timestep_G: Tensor
    ids_T: Tensor
    image_offsets: Tensor
    text_offsets: Tensor
    grids: Tensor
    flops: float
