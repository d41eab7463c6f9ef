"""A reviewed layer as an artefact of its own, for who has captions but no pipeline."""

from __future__ import annotations

import datetime
import json
import os
import platform
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lens_caption.review.layer import reviewed_rows
from lens_core import __version__
from lens_core.config.base import config_hash
from lens_core.errors import ArtifactError, ConfigError
from lens_core.storage import urls
from lens_core.storage.artifacts import FORMAT_VERSION, MANIFEST, OutputFolder, load_artifact, manifest_hash
from lens_core.storage.captions import write_captions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lens_caption.review.decisions import Decision
    from lens_core.storage.artifacts import Artifact

__all__ = ["publish_layer", "refuse_other_folder"]

_TYPE = "caption-review"


def publish_layer(
    url: str,
    captions: Artifact,
    decisions: Mapping[tuple[str, str], Decision],
    *,
    reviewed: str,
    layer: str,
    undecided: Literal["keep", "drop"],
) -> dict[str, int]:
    """Write the artefact, in place of an earlier one of the same review; gives the counts.

    Raises:
        ConfigError: the folder holds something else.
    """
    refuse_other_folder(url)
    urls.remove(urls.join(url, MANIFEST))
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        output = OutputFolder(url, Path(scratch))
        rows = reviewed_rows(captions, decisions, reviewed=reviewed, layer=layer, undecided=undecided, counts=counts)
        write_captions(output, rows)
    stats = {name: counts[name] for name in ("accept", "edit", "reject", "undecided", "stale")}
    config = {"type": _TYPE, "reviewed": reviewed, "layer": layer, "undecided": undecided}
    files = sorted(output.files.values(), key=lambda entry: entry.path)
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "type": "captions",
        "name": layer,
        "hash": manifest_hash("captions", files, config_hash(config), [captions.hash]),
        "key": "",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "seed": 0,
        "config": config,
        "parents": [
            {"name": captions.name, "type": captions.type, "hash": captions.hash, "url": _seen_from(url, captions.url)}
        ],
        "stats": stats,
        "files": [asdict(entry) for entry in files],
        "versions": {"lens": __version__, "python": platform.python_version()},
    }
    urls.write_bytes(urls.join(url, MANIFEST), (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())
    return stats


def refuse_other_folder(url: str) -> None:
    """Stop before a folder of somebody else's is overwritten.

    Raises:
        ConfigError: it is neither empty nor an earlier layer of a review.
    """
    if not urls.ls(url):
        return
    try:
        ours = load_artifact(url).config.get("type") == _TYPE and not load_artifact(url).manifest["key"]
    except ArtifactError:
        ours = False
    if not ours:
        raise ConfigError(f"{url} is not empty and no layer of a review; publish into another folder")


def _seen_from(folder: str, url: str) -> str:
    """A URL as `urls.resolve` wants it: relative where both are on this machine, so that they can move together."""
    if urls.is_local(folder) and urls.is_local(url):
        return os.path.relpath(urls.local_path(url).resolve(), urls.local_path(folder).resolve())
    return url
