"""The folder of a run: whose it is, and what it says of itself."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from lens_core import __version__
from lens_core.errors import RunFolderError, StorageError
from lens_core.pipeline.lock import LOCK, PEERS
from lens_core.storage import urls
from lens_core.storage.artifacts import FORMAT_VERSION

if TYPE_CHECKING:
    from lens_core.config.pipeline import Pipeline
    from lens_core.storage.leases import Leases

__all__ = ["EVENTS", "RESOLVED", "RUN_FILE", "STATE", "describe_run", "open_run_folder", "refuse_foreign"]

RUN_FILE = "run.json"
EVENTS = "events.jsonl"
RESOLVED = "resolved.yaml"
STATE = ".state"


def open_run_folder(run_url: str) -> None:
    """Make it, if it is not there.

    Raises:
        RunFolderError: it cannot be made or written.
    """
    try:
        urls.mkdirs(run_url)
    except StorageError as error:
        raise RunFolderError(f"the run folder {run_url} cannot be made: {error}") from error
    if urls.is_local(run_url) and not os.access(urls.local_path(run_url), os.W_OK):
        raise RunFolderError(f"the run folder {run_url} cannot be written: permission denied")


def refuse_foreign(pipeline: Pipeline, run_url: str) -> None:
    """Refuse a folder that another pipeline made, or that is no run folder at all.

    Raises:
        RunFolderError: it is one.
    """
    url = urls.join(run_url, RUN_FILE)
    # Listed first, then asked for: a peer that begins just now writes `run.json`, under another name and then its own,
    # before anything else, so what it has written by the listing has `run.json` beside it by the question.
    ours = {LOCK, PEERS, STATE}
    left = [name for name in urls.ls(run_url) if not name.startswith(urls.PROBE) and not name.endswith(".tmp")]
    strangers = [name for name in left if name not in ours]
    if not urls.exists(url):
        if strangers:
            raise RunFolderError(
                f"{run_url} is not empty and no run folder of Lens (it holds {strangers[0]!r}); choose another 'run:'"
            )
        return
    try:
        made_by = json.loads(urls.read_text(url))
        old = dict(made_by["stages"])
        old_file = str(made_by["pipeline"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{url} is damaged; remove the folder or choose another 'run:'") from error
    new = {stage.name: stage.type for stage in pipeline.stages}
    other_types = [name for name in new if name in old and old[name] != new[name]]
    if other_types or not old.keys() & new.keys():
        what = (
            f"there {other_types[0]!r} is of type {old[other_types[0]]}"
            if other_types
            else "no stage has the same name"
        )
        raise RunFolderError(
            f"{run_url} was made by another pipeline, {old_file} ({what}); choose another 'run:' or remove the folder"
        )


def describe_run(pipeline: Pipeline, run_url: str, peers: Leases | None) -> None:
    """Write down which pipeline the folder is of, and its settings in full.

    Args:
        pipeline: which.
        run_url: the folder.
        peers: other machines that run the same, if it may be shared.

    Raises:
        RunFolderError: a peer that is at work has other settings.
    """
    described = {
        "format_version": FORMAT_VERSION,
        "pipeline": Path(pipeline.file).name,
        "stages": {stage.name: stage.type for stage in pipeline.stages},
        "lens": __version__,
    }
    resolved = yaml.safe_dump(pipeline.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    if peers:
        _refuse_other_settings(run_url, resolved, peers)
    urls.write_bytes(urls.join(run_url, RUN_FILE), (json.dumps(described, indent=2) + "\n").encode())
    urls.write_bytes(urls.join(run_url, RESOLVED), resolved.encode())


def _refuse_other_settings(run_url: str, resolved: str, peers: Leases) -> None:
    """Peers that want different things would undo each other's work; one that is dead wants nothing."""
    url = urls.join(run_url, RESOLVED)
    since = time.monotonic()
    while urls.exists(url) and urls.read_text(url) != resolved and peers.workers() > 1:
        if time.monotonic() - since > peers.ttl_s + 2 * peers.beat_s:
            raise RunFolderError(
                f"another machine runs this pipeline in {run_url} with other settings ({url}); "
                "give both the same file, or wait until that one is done"
            )
        peers.pause()
