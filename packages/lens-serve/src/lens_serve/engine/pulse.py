"""The engine's signs of life: what begins now, and how long it should take.

The API process ends an engine that is silent for much longer than it said.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lens_serve.engine.memory import device_bytes, resident_bytes
from lens_serve.engine.messages import Heartbeat

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set

    import torch

    from lens_serve.engine.cost import Branch, CostModel
    from lens_serve.engine.jobs import Job
    from lens_serve.engine.messages import Costs
    from lens_serve.engine.wire import Channel

__all__ = ["Pulse"]

COSTS_S = 0.5
"""Between two reports of what calls cost."""


class Pulse:
    """Sends heartbeats.

    Args:
        channel: to the API process.
        costs: of each model's calls, which they report.
        jobs: all of the engine's, by id.
        begun: those that took a step.
        device: whose memory they report.
        knee_tokens: that fill the device, of each model.
    """

    def __init__(
        self,
        channel: Channel,
        costs: Mapping[str, CostModel],
        jobs: Mapping[str, Job],
        begun: Set[str],
        device: torch.device,
        knee_tokens: Mapping[str, int],
    ):
        self._knee_tokens = knee_tokens
        self._channel, self._costs, self._device = channel, costs, device
        self._jobs, self._begun = jobs, begun
        self._ticks = 0
        self._sequences = self._tokens = 0
        self._occupancy = self._tick_s = self._predicted_s = 0.0
        self._told: dict[str, Costs] = {}
        self._told_at = 0.0

    def ticked(self, model: str, sequences: Sequence[Branch], seconds: float, predicted_s: float) -> None:
        """A tick is over: the next heartbeat tells of it."""
        self._ticks += 1
        self._sequences, self._tokens = len(sequences), sum(sequence.tokens for sequence in sequences)
        self._occupancy = self._tokens / self._knee_tokens[model]
        self._tick_s, self._predicted_s = seconds, predicted_s

    def beat(self, doing: str, expected_s: float) -> None:
        """Say what begins now."""
        running = len(self._begun)
        self._channel.send(
            Heartbeat(
                doing=doing,
                expected_s=expected_s,
                tick=self._ticks,
                running=running,
                waiting=len(self._jobs) - running,
                sequences=self._sequences,
                tokens=self._tokens,
                occupancy=self._occupancy,
                tick_s=self._tick_s,
                predicted_s=self._predicted_s,
                costs=self._news(),
                rss_bytes=resident_bytes(),
                device_bytes=device_bytes(self._device),
            )
        )

    def _news(self) -> dict[str, Costs] | None:
        """Costs, if they have changed and were not told lately."""
        now = time.monotonic()
        if now - self._told_at < COSTS_S:
            return None
        costs = {name: cost.costs() for name, cost in self._costs.items()}
        if costs == self._told:
            return None
        self._told, self._told_at = costs, now
        return costs
