"""Workers on a Ray cluster: an actor for each, which Ray starts again elsewhere when its node dies.

They do what workers on any machines do (`worker.py`), and meet in the run folder; Ray starts them, watches them, and
carries the word to stop. Settings travel with them, secrets do not: each node has its own in its environment.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported home; Ray reads it when it is imported

import ray  # noqa: TID253 (this module is imported where a pipeline names Ray)
import ray.exceptions  # noqa: TID253

from lens_caption.scale.plan import Plan
from lens_caption.scale.takeover import take_over
from lens_caption.scale.worker import work
from lens_core.errors import LensError, Stopped
from lens_core.pipeline.context import StageContext
from lens_core.pipeline.progress import Progress
from lens_core.registry import load_registry
from lens_core.storage import urls
from lens_core.storage.artifacts import OutputFolder, load_artifact
from lens_core.storage.leases import local_cache, own_folder
from lens_core.storage.shards import ShardReader

if TYPE_CHECKING:
    from lens_caption.scale.config import RayExecutor
    from lens_caption.stages.caption.config import CaptionStageConfig

__all__ = ["run"]

_LOOK_S = 1.0
_GRACE_S = 150.0
"""For workers to stop in: a request may be under way for two minutes."""

_RESTARTS = 20
"""Of one worker, when its process or its node dies: more than that is no accident."""


@dataclass(frozen=True, kw_only=True)
class _End:
    """How a worker ended: "done", "stopped" or "failed", and its one line."""

    how: str
    line: str = ""


def run(config: CaptionStageConfig, context: StageContext) -> None:
    """Have the stage's parts captioned on the cluster; when it returns, all are published.

    Raises:
        Stopped: the user asked for it, or the budget is used up.
        LensError: there is no such cluster, or a worker has something to say.
    """
    executor = config.executor
    assert executor.type == "ray"
    ours = not ray.is_initialized()
    if ours:
        _join(executor)
    try:
        plan = Plan(config, context)
        (images,) = context.inputs
        with contextlib.closing(ShardReader(images)) as reader:
            take_over(context, plan, reader)
        _watch(_start(config, context, plan), plan, context)
    finally:
        if ours:
            ray.shutdown()


def _join(executor: RayExecutor) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=executor.address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = executor.address or os.environ.get("RAY_ADDRESS") or "on this machine"
        reason = " ".join(str(error).split())[:300]
        raise LensError(
            f"no Ray cluster can be joined {where}: {reason} (one that asks for a token wants RAY_AUTH_MODE=token)"
        ) from error
    finally:
        # Ray would end the process at once; the run wants to save and stop.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _start(config: CaptionStageConfig, context: StageContext, plan: Plan) -> dict[Any, Any]:
    """The workers, by what they will return."""
    executor = config.executor
    assert executor.type == "ray"
    wanted = {"CPU": executor.cpus, "GPU": executor.gpus}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    fit = sum(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes)
    if not fit:
        raise LensError(
            f"no node of the Ray cluster has what a worker wants: {executor.cpus:g} CPUs and {executor.gpus:g} GPUs"
        )
    (images,) = context.inputs
    place = {"images": _everywhere(images.url), "run_url": _everywhere(context.run_url)}
    actor: Any = ray.remote(_Worker).options(
        num_cpus=executor.cpus,
        num_gpus=executor.gpus,
        max_restarts=_RESTARTS,
        max_task_retries=-1,
        max_concurrency=2,
        scheduling_strategy="SPREAD",
    )
    workers: list[Any] = [actor.remote() for _ in range(executor.workers or fit)]
    facts = {"name": context.name, "base": context.base, "seed": context.seed, "key": plan.key, **place}
    return {worker.work.remote(config, facts): worker for worker in workers}


def _watch(workers: dict[Any, Any], plan: Plan, context: StageContext) -> None:
    """Wait until a worker says that nothing is left, or all have stopped."""
    (images,) = context.inputs
    reader = ShardReader(images)
    parts = plan.parts(reader)
    reader.close()
    context.progress.start(len(reader), "images")
    first: _End | None = None
    asked: float | None = None
    shown = 0.0
    # A worker for which the cluster never had room hears nothing; what it does not do, nobody waits for.
    while workers and (asked is None or time.monotonic() - asked < _GRACE_S):
        ready, _ = ray.wait(list(workers), timeout=_LOOK_S)
        for end in (_end_of(ref) for ref in ready):
            if end.how == "done":
                return
            first = first or end
        for ref in ready:
            del workers[ref]
        if context.should_stop() or (first and first.how == "failed"):
            asked = asked or time.monotonic()
            for worker in workers.values():
                worker.stop.remote()
        if time.monotonic() - shown > 5 * _LOOK_S:
            shown = time.monotonic()
            published = plan.published()
            context.progress.update(sum(len(part) for part in parts if part.name in published))
    if first and first.how == "failed":
        raise LensError(first.line)
    raise Stopped(first.line if first else "stopped; the same command goes on from here")


def _end_of(ref: Any) -> _End:
    try:
        end: _End = ray.get(ref)
    except ray.exceptions.RayActorError as error:
        return _End(how="failed", line=f"a worker died {_RESTARTS} times: {' '.join(str(error).split())[:300]}")
    return end


def _everywhere(url: str) -> str:
    """A worker has another working directory."""
    return str(urls.local_path(url).resolve()) if urls.is_local(url) else url


class _Worker:
    """What runs on a node."""

    def __init__(self) -> None:
        self._progress = Progress(stream=Path(os.devnull).open("w"), live=False)  # noqa: SIM115 (as long as it lives)

    def stop(self) -> None:
        """Ask it to save and stop."""
        self._progress.stop_asked = True

    def work(self, config: CaptionStageConfig, facts: dict[str, Any]) -> _End:
        """Do a share of the stage."""
        run_url, name = facts["run_url"], facts["name"]
        try:
            with own_folder(local_cache(run_url) / "ray" / name / facts["key"]) as folder:
                context = StageContext(
                    name=name,
                    inputs=(load_artifact(facts["images"]),),
                    output=OutputFolder(urls.join(run_url, name), Path(tempfile.gettempdir())),
                    state_dir=folder,
                    run_url=run_url,
                    base=facts["base"],
                    seed=facts["seed"],
                    registry=load_registry(),
                    progress=self._progress,
                )
                work(config, context)
        except Stopped as stopped:
            return _End(how="stopped", line=str(stopped))
        except LensError as error:
            return _End(how="failed", line=f"{error} (on {socket.gethostname()})")
        return _End(how="done")
