"""Artefacts: what a stage leaves behind. A folder of files, and a manifest that is written last.

No manifest, no artefact: a folder without one is the rest of a run that was killed, and is made anew. The manifest
lists every file with its size and sha256, the config that made it and the artefacts it was made from, so that any
file can be traced (`lens trace`). The hash of an artefact covers content, not the clock: the same inputs and config
give the same hash.

    runs/quickstart/images/manifest.json
    {"format_version": 1, "type": "images", "name": "images", "hash": "…",
     "files": [{"path": "shard-00000.tar", "bytes": 123, "sha256": "…"}],
     "parents": [{"name": "…", "type": "…", "hash": "…", "url": "../…"}], "config": {…}, "stats": {…}, …}
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lens_core.errors import ArtifactError, StorageError
from lens_core.storage import urls

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import BinaryIO

__all__ = ["FORMAT_VERSION", "MANIFEST", "Artifact", "FileEntry", "OutputFolder", "load_artifact", "manifest_hash"]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of an artefact; `path` is relative to the artefact's folder."""

    path: str
    bytes: int
    sha256: str


@dataclass
class OutputFolder:
    """Where a stage writes. Every file goes through here, so that the manifest knows its size and hash.

    Args:
        url: the artefact's folder.
        scratch: a local folder for files under construction.
    """

    url: str
    scratch: Path
    files: dict[str, FileEntry] = field(default_factory=dict)

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a file in one step."""
        urls.write_bytes(urls.join(self.url, path), data)
        self._record(path, len(data), hashlib.sha256(data).hexdigest())

    def write_text(self, path: str, text: str) -> None:
        """Write a UTF-8 file in one step."""
        self.write_bytes(path, text.encode())

    def write_json(self, path: str, value: Any) -> None:
        """Write a JSON file in one step."""
        self.write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def add_file(self, path: str, local_file: Path) -> None:
        """Move a finished local file in (a rename on one file system, an upload to a bucket)."""
        with local_file.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = local_file.stat().st_size
        urls.put_file(urls.join(self.url, path), local_file)
        self._record(path, size, digest)

    def add_folder(self, path: str, local_folder: Path) -> None:
        """Move in every file below a local folder."""
        for file in sorted(found for found in local_folder.rglob("*") if found.is_file()):
            self.add_file(f"{path}/{file.relative_to(local_folder).as_posix()}".lstrip("/"), file)

    def local_dir(self, name: str) -> Path:
        """An empty local folder for files under construction, on the output's file system where there is one."""
        folder = self.scratch / name
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder

    def _record(self, path: str, size: int, digest: str) -> None:
        self.files[path] = FileEntry(path=path, bytes=size, sha256=digest)


@dataclass(frozen=True)
class Artifact:
    """A finished artefact: its folder and its manifest."""

    url: str
    manifest: Mapping[str, Any]

    @property
    def type(self) -> str:
        """Such as "images", "captions", "model"."""
        return str(self.manifest["type"])

    @property
    def name(self) -> str:
        """The stage that made it."""
        return str(self.manifest["name"])

    @property
    def hash(self) -> str:
        """sha256 (hex) over files, type, config and parents."""
        return str(self.manifest["hash"])

    @property
    def stats(self) -> Mapping[str, Any]:
        """What the stage returned."""
        return self.manifest["stats"]  # type: ignore[no-any-return]

    @property
    def config(self) -> Mapping[str, Any]:
        """The stage's resolved config."""
        return self.manifest["config"]  # type: ignore[no-any-return]

    @property
    def files(self) -> list[FileEntry]:
        """The files, in the order of their paths."""
        return [FileEntry(**entry) for entry in self.manifest["files"]]

    @property
    def parents(self) -> list[Artifact]:
        """The artefacts this one was made from.

        Raises:
            ArtifactError: a parent is gone or has been made anew since.
        """
        found = []
        for parent in self.manifest["parents"]:
            artifact = load_artifact(urls.resolve(parent["url"], self.url))
            if artifact.hash != parent["hash"]:
                raise ArtifactError(
                    f"{self.url} was made from {parent['name']} {parent['hash'][:12]}, but {artifact.url} now holds "
                    f"{artifact.hash[:12]}; run the pipeline again"
                )
            found.append(artifact)
        return found

    def parent(self, type_: str) -> Artifact:
        """The nearest ancestor of a type, this artefact included.

        Raises:
            ArtifactError: there is none.
        """
        generation = [self]
        while generation:
            for artifact in generation:
                if artifact.type == type_:
                    return artifact
            generation = [parent for artifact in generation for parent in artifact.parents]
        raise ArtifactError(f"{self.url} ({self.type}) descends from no artefact of type {type_!r}")

    def url_of(self, path: str) -> str:
        """URL of a file of the artefact."""
        return urls.join(self.url, path)

    def read_bytes(self, path: str) -> bytes:
        """Content of a file of the artefact."""
        return urls.read_bytes(self.url_of(path))

    def read_json(self, path: str) -> Any:
        """Content of a JSON file of the artefact."""
        return _parse_json(self.read_bytes(path), self.url_of(path))

    def open(self, path: str) -> BinaryIO:
        """A seekable stream over a file of the artefact."""
        return urls.open_read(self.url_of(path))


def load_artifact(url: str) -> Artifact:
    """Open the artefact in a folder.

    Raises:
        ArtifactError: no manifest, a damaged one, or one of a newer format.
    """
    where = urls.join(url, MANIFEST)
    try:
        data = urls.read_bytes(where)
    except StorageError as error:
        raise ArtifactError(f"{url} holds no finished artefact (no {MANIFEST})") from error
    manifest = _parse_json(data, where)
    wanted = {"format_version", "type", "name", "hash", "files", "parents", "config", "stats"}
    missing = wanted - manifest.keys() if isinstance(manifest, dict) else wanted
    if missing:
        raise ArtifactError(f"{where} is no manifest of Lens: it lacks {', '.join(sorted(missing))}")
    if manifest["format_version"] != FORMAT_VERSION:
        raise ArtifactError(
            f"{where} has format version {manifest['format_version']}; this Lens reads version {FORMAT_VERSION}"
        )
    return Artifact(url, manifest)


def manifest_hash(type_: str, files: list[FileEntry], config_hash: str, parents: list[str]) -> str:
    """The hash of an artefact: its type, its files' paths and contents, its config and its parents' hashes."""
    content = {
        "type": type_,
        "files": [[entry.path, entry.bytes, entry.sha256] for entry in files],
        "config": config_hash,
        "parents": parents,
    }
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _parse_json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise ArtifactError(f"{where} is not valid JSON: {error}") from error
