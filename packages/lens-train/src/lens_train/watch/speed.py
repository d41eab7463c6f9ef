"""How fast a run is, and where its time goes, since the last line of metrics.

images_per_s, tokens_per_s   over the whole run, as the counters have them
mfu                          the FLOPs that the model needs, over what the devices could do in that time
hfu                          those that were carried out: with padding, and what checkpointing computes again
data_wait                    share of the time in which rank 0 waited for images
encoder_share                share of the time in which it encoded images, and captions by a frozen encoder
padding                      share of the tokens that only fill packs up to their fixed size
memory_gb                    the most that its device held; on a CPU, its process
"""

from __future__ import annotations

import resource
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lens_train.watch.flops import peak_flops, utilisation

if TYPE_CHECKING:
    from lens_train.data.loader import PackLoader
    from lens_train.loop.trainer import Trainer

__all__ = ["Speed"]


class Speed:
    """Differences of a trainer's counters and clocks.

    Args:
        trainer: whose.
        loader: that it takes packs from.
    """

    def __init__(self, trainer: Trainer, loader: PackLoader):
        self._trainer = trainer
        self._loader = loader
        self._peak, self.peak_is_stated = peak_flops(trainer.world.device, trainer.dtype)
        self._counters = replace(trainer.counters)
        self._waited_s = 0.0

    def take(self) -> dict[str, float]:
        """What has happened since the last call."""
        now, before, world = self._trainer.counters, self._counters, self._trainer.world
        seconds = max(now.seconds - before.seconds, 1e-9)
        waited_s = self._loader.waited_s - self._waited_s
        encoded_s = self._trainer.stopwatch.take().get("encode", 0.0)
        tokens = now.image_tokens + now.text_tokens - before.image_tokens - before.text_tokens
        padding = now.padding_tokens - before.padding_tokens
        self._counters, self._waited_s = replace(now), self._loader.waited_s
        return {
            "mfu": utilisation(now.flops - before.flops, seconds, self._peak, world.size),
            "hfu": utilisation(now.executed_flops - before.executed_flops, seconds, self._peak, world.size),
            "data_wait": waited_s / seconds,
            "encoder_share": encoded_s / seconds,
            "padding": padding / max(tokens + padding, 1),
            "memory_gb": _memory_gb(world.device),
        }


def _memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (peak if sys.platform == "darwin" else peak * 1024) / 1e9
