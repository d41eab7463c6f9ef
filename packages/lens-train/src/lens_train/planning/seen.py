"""Which samples did a step see? A plan knows, without a log."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from lens_train.planning.packs import packs_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lens_train.planning.manifest import Manifest
    from lens_train.planning.packs import Plan

__all__ = ["SeenSample", "seen", "seen_lines"]


@dataclass(frozen=True, kw_only=True)
class SeenSample:
    """A sample that a step is trained on; `caption` is None where it was dropped, or there is none."""

    step: int
    rank: int
    pack: int
    key: str
    epoch: int
    height: int
    width: int
    image_tokens: int
    text_tokens: int
    caption: str | None


def seen(manifest: Manifest, plan: Plan, step: int, *, packs_per_step: int, world: int = 1) -> Iterator[SeenSample]:
    """The samples of a step, counted from 0, rank by rank in the order in which they are worked on.

    Args:
        manifest: what the plan is of.
        plan: the run's plan.
        step: optimiser step.
        packs_per_step: of the run.
        world: how many ranks share the packs; it decides who saw a sample, not whether it was seen.

    Raises:
        ConfigError: so many ranks cannot share the packs evenly.
    """
    for rank in range(world):
        for index in packs_of(step, rank, world, packs_per_step):
            for sample in plan.pack(index).samples:
                yield SeenSample(
                    step=step,
                    rank=rank,
                    pack=index,
                    key=manifest.key(sample.number),
                    epoch=sample.epoch,
                    height=sample.height,
                    width=sample.width,
                    image_tokens=sample.image_tokens,
                    text_tokens=sample.text_tokens,
                    caption=None if sample.caption is None else manifest.caption_text(sample.caption),
                )


def seen_lines(samples: Iterator[SeenSample], *, as_json: bool) -> Iterator[str]:
    """A line per sample: JSON, or words for a terminal."""
    for sample in samples:
        if as_json:
            yield json.dumps(asdict(sample), ensure_ascii=False)
        else:
            text = "(no caption)" if sample.caption is None else " ".join(sample.caption.split())
            yield (
                f"pack {sample.pack} rank {sample.rank}  {sample.key[:12]}  {sample.width}x{sample.height}  "
                f"{sample.text_tokens} tokens  {text}"
            )
