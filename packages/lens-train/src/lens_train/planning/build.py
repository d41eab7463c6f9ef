"""From settings to a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_train.planning.buckets import BucketPlan
from lens_train.planning.ragged import RaggedPlan

if TYPE_CHECKING:
    from lens_train.planning.config import BatchConfig
    from lens_train.planning.packs import Plan
    from lens_train.planning.samples import SampleSource

__all__ = ["make_plan"]


def make_plan(config: BatchConfig, source: SampleSource) -> Plan:
    """The plan that the settings ask for."""
    if config.buckets is not None:
        return BucketPlan(source, config.buckets)
    return RaggedPlan(source, samples=config.samples, tokens=config.tokens, flops=config.flops)
