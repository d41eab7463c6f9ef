"""Who does a caption stage's work. None of it changes a caption."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lens_core.config.base import Config

__all__ = ["Executor", "LeasesExecutor", "ProcessExecutor", "RayExecutor"]


class ProcessExecutor(Config):
    """This process alone, with its pool of processes."""

    type: Literal["process"] = "process"


class _Shared(Config):
    part: int = Field(1000, gt=0, description="Images that a worker takes at a time, and at most does twice.")
    lease_s: float = Field(60, ge=1, le=3600, description="A worker that is silent for so many seconds counts as dead.")


class LeasesExecutor(_Shared):
    """Every machine on which the same command runs; they meet in the run folder."""

    type: Literal["leases"] = "leases"


class RayExecutor(_Shared):
    """Workers on a Ray cluster whose nodes all see the run folder."""

    type: Literal["ray"] = "ray"
    address: str | None = Field(
        None, min_length=1, description="The cluster; null takes RAY_ADDRESS, else starts one on this machine."
    )
    workers: int | None = Field(None, gt=0, description="null takes one for each node.")
    cpus: float = Field(1, ge=0, description="Logical CPUs that Ray sets aside for a worker.")
    gpus: float = Field(0, ge=0, description="GPUs for a worker, where the captioner is a local model.")


def _by_name(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


Executor = Annotated[
    Annotated[ProcessExecutor | LeasesExecutor | RayExecutor, Field(discriminator="type")], BeforeValidator(_by_name)
]
