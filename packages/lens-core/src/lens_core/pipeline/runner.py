"""Run a pipeline: stages in order, skipping what is done, resuming what was cut off.

A stage is done when its folder has a manifest whose `key` equals the key of now: a hash of its resolved config, its
parents' hashes, the seed, and the fingerprint of anything it reads from outside. Otherwise the runner says what
differs, removes the manifest first (a half-made artefact must never look finished), runs the stage and writes the new
manifest last. Killing the process at any moment therefore leaves either the old state or none of that stage.

What a stage needs to go on lies in a folder of its key, so that settings can be changed and taken back: captions that
are paid for and batches under way are found again. All such folders go once the stage is done.

A stage may run stages of its own by `run_stages`, in a folder of its own: the same keys, manifests and states.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import platform
import shutil
import signal
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lens_core import __version__
from lens_core.config.base import config_hash
from lens_core.errors import ArtifactError, Stopped, StorageError
from lens_core.pipeline.context import StageContext
from lens_core.pipeline.lock import locked, shared
from lens_core.pipeline.progress import EventLog, Progress
from lens_core.pipeline.run_folder import EVENTS, STATE, describe_run, open_run_folder, refuse_foreign
from lens_core.specs import StageSpec, load_dotted
from lens_core.storage import urls
from lens_core.storage.artifacts import FORMAT_VERSION, MANIFEST, Artifact, OutputFolder, load_artifact, manifest_hash
from lens_core.storage.leases import local_cache, own_folder, worker_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lens_core.config.pipeline import Pipeline
    from lens_core.config.stage import StageConfig
    from lens_core.registry import Registry
    from lens_core.storage.leases import Leases

__all__ = ["outside_of", "run_pipeline", "run_stages", "state_root_of"]


@dataclass(frozen=True, kw_only=True)
class _Key:
    """What decides whether a stage is done; compared part by part to say why it is not."""

    config: dict[str, Any]
    parents: dict[str, str]
    seed: int
    outside: str

    def digest(self) -> str:
        return config_hash(asdict(self))

    def difference(self, manifest: dict[str, Any]) -> str:
        """Why an artefact with this manifest is not what the pipeline asks for now."""
        old_config = manifest["config"]
        changed = _changed("", old_config, self.config)
        if changed:
            return f"{', '.join(changed[:3])} changed" + (f" (and {len(changed) - 3} more)" if len(changed) > 3 else "")
        old_parents = {parent["name"]: parent["hash"] for parent in manifest["parents"]}
        stale = [name for name, digest in self.parents.items() if old_parents.get(name) != digest]
        if stale:
            return f"its input {', '.join(map(repr, stale))} changed"
        if manifest.get("seed") != self.seed:
            return "the seed changed"
        return "its source changed"


def run_pipeline(pipeline: Pipeline, registry: Registry, *, progress: Progress | None = None) -> dict[str, Artifact]:
    """Run every stage that is not done yet.

    Args:
        pipeline: a checked pipeline.
        registry: where components come from.
        progress: where people read; by default standard error.

    Returns:
        the artefacts by stage name.

    Raises:
        RunFolderError: the run folder is in use, foreign, or cannot be written.
        Stopped: a signal asked for it; the state is saved.
        LensError: whatever a stage has to say.
    """
    run_url = pipeline.config.run
    open_run_folder(run_url)
    with contextlib.ExitStack() as stack:
        lease_s = max((stage.lease_s for stage in pipeline.stages if stage.lease_s is not None), default=None)
        peers = None
        if lease_s is None:
            stack.enter_context(locked(run_url))
            state_root = state_root_of(run_url)
        else:
            state_root = stack.enter_context(own_folder(local_cache(run_url)))
            peers = stack.enter_context(shared(run_url, worker=worker_of(state_root), lease_s=lease_s))
        refuse_foreign(pipeline, run_url)
        urls.mkdirs(str(state_root))
        describe_run(pipeline, run_url, peers)
        # A bucket cannot be appended to: there the events are uploaded when the run ends.
        events_file = (urls.local_path(run_url) if urls.is_local(run_url) else state_root) / EVENTS
        events = EventLog(events_file)
        progress = progress or Progress()
        progress.events = events
        try:
            with _signals(progress):
                return run_stages(
                    pipeline.stages,
                    run_url=run_url,
                    state_root=state_root,
                    base=pipeline.base,
                    seed=pipeline.config.seed,
                    registry=registry,
                    progress=progress,
                    peers=peers,
                )
        except KeyboardInterrupt:
            raise Stopped("interrupted; the same command goes on from what was saved") from None
        finally:
            events.close()
            if not urls.is_local(run_url):
                try:
                    urls.write_bytes(urls.join(run_url, EVENTS), urls.read_bytes(str(events_file)))
                except StorageError as error:  # it must not take the place of what ended the run
                    progress.events = EventLog(None)
                    progress.warn(f"the run's events stay in {events_file}: {error}")


def run_stages(
    stages: Sequence[StageConfig],
    *,
    run_url: str,
    state_root: Path,
    base: str,
    seed: int,
    registry: Registry,
    progress: Progress,
    given: Mapping[str, Artifact] | None = None,
    peers: Leases | None = None,
) -> dict[str, Artifact]:
    """Run those of some stages that are not done yet, in order; the caller sees to it that nobody else does.

    Args:
        stages: checked, each naming as its sources earlier ones, or artefacts in `given`.
        run_url: where their artefacts go.
        state_root: a local folder for their private state.
        base: the folder that relative paths in their configs are relative to.
        seed: of everything random.
        registry: where components come from.
        progress: tells the user how far they are.
        given: artefacts by the names under which stages may take them.
        peers: the machines that share the work.

    Returns:
        the artefacts by stage name, in order.

    Raises:
        Stopped: the user asked for it; the state is saved.
        LensError: whatever a stage has to say.
    """
    made: dict[str, Artifact] = {}
    for number, config in enumerate(stages, start=1):
        inputs = tuple({**(given or {}), **made}[name] for name in config.sources)
        key = _Key(
            config=config.keyed(),
            parents={artifact.name: artifact.hash for artifact in inputs},
            seed=seed,
            outside=outside_of(config, registry=registry, base=base, seed=seed),
        )
        context = StageContext(
            name=config.name,
            inputs=inputs,
            output=OutputFolder(urls.join(run_url, config.name), state_root / "scratch"),
            state_dir=state_root / f"{config.name}.{key.digest()[:16]}",
            run_url=run_url,
            base=base,
            seed=seed,
            registry=registry,
            progress=progress,
        )
        made[config.name] = _run_stage(config, context, key, peers, label=f"[{number}/{len(stages)}] {config.name}")
        if progress.stop_asked and number < len(stages):
            raise Stopped(f"stopped after {config.name}; the same command goes on from here")
    return made


def outside_of(config: StageConfig, *, registry: Registry, base: str, seed: int) -> str:
    """The fingerprint of what a stage reads from outside its run; empty for one that reads nothing there."""
    spec = registry.spec("stages", config.type)
    assert isinstance(spec, StageSpec)
    if not spec.fingerprint:
        return ""
    fingerprint = load_dotted(spec.fingerprint, asked_by=spec.name, extra=spec.extra)
    return str(fingerprint(config, registry=registry, base=base, seed=seed))


def state_root_of(run_url: str) -> Path:
    """Where one machine alone keeps private state: beside a local run, else in the user's cache folder."""
    return urls.local_path(run_url) / STATE if urls.is_local(run_url) else local_cache(run_url)


def _run_stage(config: StageConfig, context: StageContext, key: _Key, peers: Leases | None, *, label: str) -> Artifact:
    spec = context.registry.spec("stages", config.type)
    assert isinstance(spec, StageSpec)
    progress, url = context.progress, context.output.url
    done, reason = _look(url, key)
    if done:
        progress.heading(f"{label}: done already", stage=config.name, status="skipped")
        _forget(context)
        return done
    run = spec.load_target()
    begun = _states(context.state_dir.parent, config.name)
    others = [folder for folder in begun if folder != context.state_dir and any(folder.iterdir())]
    why = f" (again: {reason})" if reason else ""
    if others and not context.state_dir.exists():
        why = " (begun anew: its settings or sources changed; what was begun before is kept until it is done)"
    progress.heading(f"{label}: {spec.summary}{why}", stage=config.name)

    context.state_dir.mkdir(parents=True, exist_ok=True)
    progress.open(config.name)
    started = time.monotonic()
    event = "stage-failed"
    try:
        artifact = _await_turn(config, spec, context, key, peers) if peers else None
        if artifact is None:
            urls.remove(urls.join(url, MANIFEST))
            urls.remove(url, recursive=True)
            urls.mkdirs(url)
            stats = run(config, context)
            if peers and not peers.claim(config.name):
                raise Stopped(f"another machine took {config.name} over, as it heard nothing of this one")
            artifact = _finish(config, spec, key, context, stats, time.monotonic() - started)
            urls.remove(context.work_url, recursive=True)
        event = "stage-done"
    finally:
        progress.close(event)
        shutil.rmtree(context.output.scratch, ignore_errors=True)
    _forget(context)
    progress.heading(f"  done in {time.monotonic() - started:.1f} s", stage=config.name, status="done")
    return artifact


def _await_turn(
    config: StageConfig, spec: StageSpec, context: StageContext, key: _Key, peers: Leases
) -> Artifact | None:
    """Wait until the stage is ours to make (None), or a peer has made it; meanwhile help, if it can be helped."""
    url, waiting = context.output.url, False
    while not peers.claim(config.name):
        if not waiting:
            context.progress.note(f"another machine is at work on {config.name}")
            waiting = True
        if config.lease_s is not None and spec.assist:
            load_dotted(spec.assist, asked_by=spec.name, extra=spec.extra)(config, context)
        done, _ = _look(url, key)
        if done:
            return done
        if context.should_stop():
            raise Stopped("stopped; the same command goes on from here")
        peers.pause()
    return _look(url, key)[0]


def _finish(
    config: StageConfig, spec: StageSpec, key: _Key, context: StageContext, stats: dict[str, Any], seconds: float
) -> Artifact:
    """Write the manifest: from this moment the artefact exists."""
    output, inputs = context.output, context.inputs
    files = sorted(output.files.values(), key=lambda entry: entry.path)
    plugin = context.registry["stages"][config.type].plugin
    manifest = {
        "format_version": FORMAT_VERSION,
        "type": spec.makes,
        "name": config.name,
        "hash": manifest_hash(spec.makes, files, config_hash(key.config), list(key.parents.values())),
        "key": key.digest(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "seed": key.seed,
        "config": config.model_dump(mode="json"),
        "parents": [
            {"name": parent.name, "type": parent.type, "hash": parent.hash, "url": _seen_from(context.run_url, parent)}
            for parent in inputs
        ],
        "stats": stats,
        "files": [asdict(entry) for entry in files],
        "versions": {
            "lens": __version__,
            "python": platform.python_version(),
            plugin.distribution: plugin.version,
        },
    }
    urls.write_bytes(
        urls.join(output.url, MANIFEST), (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()
    )
    return Artifact(output.url, manifest)


def _seen_from(run_url: str, parent: Artifact) -> str:
    """Where a stage's parent lies: beside it, so that the run folder can be moved, or in another run's folder."""
    if parent.url == urls.join(run_url, parent.name):
        return f"../{parent.name}"
    return str(urls.local_path(parent.url).absolute()) if urls.is_local(parent.url) else parent.url


def _look(url: str, key: _Key) -> tuple[Artifact | None, str]:
    """The finished artefact if it is what the pipeline asks for; otherwise why it is not ("" if there is none)."""
    if not urls.exists(urls.join(url, MANIFEST)):
        return None, "it was cut off" if urls.exists(url) else ""
    try:
        artifact = load_artifact(url)
    except ArtifactError as error:
        return None, str(error)
    if artifact.manifest.get("key") != key.digest():
        return None, key.difference(dict(artifact.manifest))
    missing = [entry.path for entry in artifact.files if not urls.exists(artifact.url_of(entry.path))]
    if missing:
        return None, f"{missing[0]} is gone"
    return artifact, ""


def _changed(prefix: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        missing = object()  # what only `old` has is no part of the key
        return [
            text
            for name, value in new.items()
            for text in _changed(f"{prefix}.{name}" if prefix else name, old.get(name, missing), value)
        ]
    return [] if old == new else [prefix]


def _states(root: Path, name: str) -> list[Path]:
    """What a stage was begun with and has not done: a folder for each key."""
    return list(root.glob(f"{name}.{'[0-9a-f]' * 16}"))


def _forget(context: StageContext) -> None:
    """A stage that is done keeps no state: not that of other settings, nor what one machine had before several."""
    for root in {context.state_dir.parent, state_root_of(context.run_url)}:
        for folder in _states(root, context.name):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _signals(progress: Progress) -> Iterator[None]:
    """SIGINT or SIGTERM asks the stage to save and stop; Ctrl-C once more interrupts it.

    What comes within a second is the same request: torchrun passes on what a scheduler sends to all processes as well.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked_at = math.inf

    def ask(number: int, frame: object) -> None:
        nonlocal asked_at
        now = time.monotonic()
        if number == signal.SIGINT and now - asked_at > 1:
            raise KeyboardInterrupt
        asked_at = min(asked_at, now)
        progress.stop_asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
