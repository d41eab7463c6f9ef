"""Where did this come from? Lineage of an artefact, of a file inside one, or of a PNG with a receipt."""

from __future__ import annotations

import contextlib
import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any

from lens_core.errors import ArtifactError, LensError
from lens_core.storage import urls
from lens_core.storage.artifacts import MANIFEST, Artifact, load_artifact

__all__ = ["RECEIPT_KEYWORD", "Lineage", "read_receipt", "trace"]

RECEIPT_KEYWORD = "lens"
"""Keyword of the PNG text chunk that holds an image's receipt, a JSON object."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_RECEIPT_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """An artefact and its ancestors, nearest first, each with its distance; and the receipt of the image asked of."""

    artifacts: tuple[tuple[int, Artifact], ...]
    receipt: dict[str, Any] | None = None
    note: str = ""


def trace(url: str) -> Lineage:
    """Find what `url` is and follow its parents.

    Args:
        url: an artefact's folder, a file in one, a model folder, or a PNG made by Lens.

    Raises:
        ArtifactError: it is none of these, or its lineage is broken.
        StorageError: it cannot be read.
    """
    receipt = read_receipt(urls.read_bytes(url)) if url.lower().endswith(".png") and urls.exists(url) else None
    home = _home_of_picture(url, receipt) if receipt else _home(url)
    if home is None and receipt:
        model = receipt.get("model")
        note = (
            f"the model {str(model)[:12]} that made it is not where the receipt says"
            if model
            else "the model that made it came from elsewhere: nothing is known of its making"
        )
        return Lineage(artifacts=(), receipt=receipt, note=note)
    if home is None:
        if not urls.exists(url):
            raise ArtifactError(f"{url} does not exist")
        raise ArtifactError(
            f"{url} is no artefact of Lens, lies in none, and is no PNG with a receipt (for JPEG and WebP: lens verify)"
        )
    found: list[tuple[int, Artifact]] = []
    note = ""
    generation = [home]
    distance = 0
    while generation:
        parents: list[Artifact] = []
        for artifact in generation:
            if all(artifact.hash != seen.hash for _, seen in found):
                found.append((distance, artifact))
                try:
                    parents += artifact.parents
                except LensError as error:
                    note = f"the lineage breaks off: {error}"
        generation = parents
        distance += 1
    return Lineage(artifacts=tuple(found), receipt=receipt, note=note)


def read_receipt(png: bytes) -> dict[str, Any] | None:
    """The receipt in a PNG's text chunks, or None; damaged or oversized chunks count as none."""
    if not png.startswith(_PNG_SIGNATURE):
        return None
    position = len(_PNG_SIGNATURE)
    while position + 8 <= len(png):
        (length,) = struct.unpack_from(">I", png, position)
        kind = png[position + 4 : position + 8]
        body = png[position + 8 : position + 8 + length]
        position += 12 + length
        if kind in {b"tEXt", b"iTXt"} and body.startswith(RECEIPT_KEYWORD.encode() + b"\0"):
            return _parse_receipt(kind, body[len(RECEIPT_KEYWORD) + 1 :])
    return None


def _parse_receipt(kind: bytes, body: bytes) -> dict[str, Any] | None:
    try:
        if kind == b"iTXt":
            compressed = body[:1] == b"\1"
            text = body[2:].split(b"\0", 2)[2]
            body = zlib.decompressobj().decompress(text, _MAX_RECEIPT_BYTES + 1) if compressed else text
        receipt = json.loads(body.decode()) if len(body) <= _MAX_RECEIPT_BYTES else None
    except (ValueError, IndexError, RecursionError, zlib.error):
        return None
    return receipt if isinstance(receipt, dict) else None


def _home_of_picture(url: str, receipt: dict[str, Any]) -> Artifact | None:
    """The artefact that a picture lies in, or else its model. A stranger's manifest or a forged receipt is no error."""
    with contextlib.suppress(LensError):
        home = _home(url)
        if home:
            return home
    with contextlib.suppress(LensError):
        return _artifact_of_receipt(url, receipt)
    return None


def _home(url: str) -> Artifact | None:
    """The artefact whose folder is `url` or lies above it."""
    folder = url.rstrip("/") or "/"
    for _ in range(8):
        if urls.exists(urls.join(folder, MANIFEST)):
            return load_artifact(folder)
        parent = folder.rpartition("/")[0]
        if not parent or parent.endswith(":/") or parent == folder:
            parent = "." if "/" not in folder and folder != "." else ""
        if not parent:
            return None
        folder = parent
    return None


def _artifact_of_receipt(url: str, receipt: dict[str, Any]) -> Artifact | None:
    folder = receipt.get("model_folder")
    # Anybody can write a receipt: it must not send us to a store that the picture itself does not come from.
    if not isinstance(folder, str) or not (urls.is_local(folder) or _store(folder) == _store(url)):
        return None
    if not urls.exists(urls.join(folder, MANIFEST)):
        return None
    artifact = load_artifact(folder)
    return artifact if artifact.hash == receipt.get("model") else None


def _store(url: str) -> str:
    scheme, _, rest = url.rpartition("://")
    return f"{scheme}://{rest.partition('/')[0]}" if scheme else ""
