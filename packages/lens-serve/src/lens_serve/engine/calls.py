"""Calls of a model: announced by a heartbeat, timed, and blamed on the guilty if they fail."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from lens_core.diffusion.drawing import Pack
from lens_serve.engine.calibration import synchronize
from lens_serve.engine.trouble import together

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from lens_serve.engine.cost import CostModel
    from lens_serve.engine.jobs import Job
    from lens_serve.engine.pulse import Pulse

__all__ = ["Calls", "Outcome"]

FIRST_S = 30.0
"""To read a LoRA, and the library for it; or for a first call, which reads weights and makes kernels."""


class Outcome(NamedTuple):
    """Of a call: who failed and how, and how long it took."""

    failed: dict[Job, Exception]
    seconds: float


class Calls:
    """Calls models for jobs, and learns what that costs.

    Args:
        pulse: that announces them.
        costs: of each model's calls.
        device: of the models.
        warm: the models' plain calls were made before.
    """

    def __init__(self, pulse: Pulse, costs: Mapping[str, CostModel], device: torch.device, *, warm: bool):
        self._pulse, self._costs, self._device = pulse, costs, device
        self._made: set[tuple[str, str, str | None]] = set()
        if warm:
            self._made.update((doing, model, None) for doing in ("encode", "denoise", "decode") for model in costs)
        self._packs: list[tuple[list[tuple[Job, bool]], Pack]] = []

    def encode(self, jobs: list[Job]) -> Outcome:
        """Prompts to features."""
        cost, model = self._costs[jobs[0].draw.model], jobs[0].model
        guessed = sum(branch.text_tokens for job in jobs for branch in job.guessed_sequences)
        tokens = 0

        def work(some: Sequence[Job]) -> None:
            nonlocal tokens
            tokens = model.encode(some)

        # Texts of no characters may have tokens all the same.
        outcome = self._call("encode", cost.encode_s(max(1, guessed)), jobs, work)
        if not outcome.failed:
            cost.observe_encode(tokens, outcome.seconds)
        return outcome

    def begin(self, job: Job) -> Outcome:
        """Noise, and what the picture starts from: that takes about as long to encode as to decode."""
        if job.request.start is None:
            return self._call("encode", 0.0, [job], lambda _: job.begin())
        expected_s = self._costs[job.draw.model].decode_s(job.pixels)
        return self._call("encode", expected_s, [job], lambda _: job.begin(), kind="start")

    def step(self, jobs: list[Job]) -> Outcome:
        """A tick: one step of each. Some of a pack that fails half-way may have taken theirs."""
        draw, model, cost = jobs[0].draw, jobs[0].model, self._costs[jobs[0].draw.model]
        try:
            if not model.has_read(draw.lora):
                self._pulse.beat("lora", FIRST_S)
            model.use(draw.lora, draw.lora_scale)
        except Exception as error:
            return Outcome(dict.fromkeys(jobs, error), 0.0)
        taken = {job: job.drawing.taken for job in jobs}
        sequences = [sequence for job in jobs for sequence in job.entry.next_sequences]
        predicted_s = cost.tick_s(sequences)

        def work(some: Sequence[Job]) -> None:
            if waiting := [job for job in some if job.drawing.taken == taken[job]]:
                self._packed(waiting).step()

        outcome = self._call("denoise", predicted_s, jobs, work, kind=draw.lora)
        self._pulse.ticked(draw.model, sequences, outcome.seconds, predicted_s)
        if not outcome.failed:
            cost.observe_tick(sequences, outcome.seconds)
        return outcome

    def decode(self, job: Job) -> Outcome:
        """Tokens to pixels."""
        cost = self._costs[job.draw.model]

        def work(_: Sequence[Job]) -> None:
            job.picture_HW3 = job.model.decode(job)

        outcome = self._call("decode", cost.decode_s(job.pixels), [job], work)
        if not outcome.failed:
            cost.observe_decode(job.pixels, outcome.seconds)
        return outcome

    def part(self) -> None:
        """Let go of the jobs that took the last step together: they may be gone before the next."""
        self._packs = []

    def _packed(self, jobs: list[Job]) -> Pack:
        """Jobs that share a call; what a pack has prepared is kept while they stay together.

        Two are kept: with a fast job among them, a company takes its steps with and without second branches by turns.
        """
        company = [(job, job.drawing.guided) for job in jobs]
        for known, pack in self._packs:
            if known == company:
                return pack
        pack = Pack(jobs[0].model.loaded, [job.drawing for job in jobs])
        self._packs = [(company, pack), *self._packs[:1]]
        return pack

    def _call(
        self,
        doing: str,
        expected_s: float,
        jobs: list[Job],
        work: Callable[[Sequence[Job]], None],
        *,
        kind: str | None = None,
    ) -> Outcome:
        made = doing, jobs[0].draw.model, kind

        def call(some: Sequence[Job]) -> None:
            self._pulse.beat(doing, expected_s if made in self._made else max(expected_s, FIRST_S))
            work(some)
            synchronize(self._device)
            self._made.add(made)

        began = time.monotonic()
        failed = together(jobs, call)
        seconds = time.monotonic() - began
        for job in jobs:
            job.seconds[doing] += seconds
        return Outcome(failed, seconds)
