"""The plan of a stage, kept beside its run so that one can ask afterwards which samples a step saw.

manifest/     the samples
plan.json     format_version, the batch settings, the costs of a sample, stride, seed, caption_dropout
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lens_core.errors import ArtifactError
from lens_train.checkpoint.writing import writing
from lens_train.planning.build import make_plan
from lens_train.planning.config import BatchConfig
from lens_train.planning.costs import CostModel
from lens_train.planning.manifest import Manifest
from lens_train.planning.samples import SampleSource

if TYPE_CHECKING:
    from pathlib import Path

    from lens_train.planning.packs import Plan

__all__ = ["MANIFEST", "KeptPlan", "keep_plan", "kept_plan"]

MANIFEST = "manifest"
PLAN = "plan.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class KeptPlan:
    """A plan, what it is of, and how many packs make a step."""

    manifest: Manifest
    plan: Plan
    packs_per_step: int


def keep_plan(folder: Path, batch: BatchConfig, source: SampleSource) -> None:
    """Write what a plan follows from, beside its manifest.

    Raises:
        StorageError: it cannot be written.
    """
    told = {
        "format_version": FORMAT_VERSION,
        "batch": batch.model_dump(mode="json"),
        "costs": asdict(source.costs),
        "stride": source.stride,
        "seed": source.seed,
        "caption_dropout": source.caption_dropout,
    }
    temporary = folder / f".{PLAN}.tmp"
    with writing(folder / PLAN):
        temporary.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        temporary.replace(folder / PLAN)


def kept_plan(folder: Path) -> KeptPlan:
    """The plan that a folder keeps.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    path = folder / PLAN
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if told["format_version"] != FORMAT_VERSION:
            raise ArtifactError(f"{path} has format_version {told['format_version']}; this Lens reads {FORMAT_VERSION}")
        batch = BatchConfig.model_validate(told["batch"])
        costs = CostModel(**told["costs"])
        rest = {name: told[name] for name in ("stride", "seed", "caption_dropout")}
    except FileNotFoundError:
        raise ArtifactError(f"{folder} keeps no plan; it is there once a train stage has begun") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ArtifactError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    source = SampleSource(manifest=Manifest(folder / MANIFEST), costs=costs, **rest)
    return KeptPlan(manifest=source.manifest, plan=make_plan(batch, source), packs_per_step=batch.packs_per_step)
