"""Where models come from: a folder here, a folder in an object store, or a repository on the Hugging Face hub."""

from __future__ import annotations

import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lens_core.errors import ArtifactError, LensError
from lens_core.storage import urls

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["local_model"]

_PARTS = ("transformer", "text_encoder", "tokenizer", "vae", "scheduler")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@contextmanager
def local_model(url: str) -> Iterator[Path]:
    """A model's folder on this machine; what had to be copied from an object store is removed at the end.

    Args:
        url: a folder, an fsspec URL, or owner/name on the hub, whose download is kept in the hub's own cache.

    Raises:
        ArtifactError: there is nothing; messages of what is done with the folder name `url`, not the copy.
    """
    if urls.is_local(url):
        folder = urls.local_path(url)
        if not folder.exists() and _HUB_ID.fullmatch(url):
            folder = _from_hub(url)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="lens-model-") as copy:
        for name in _names(url):
            target = Path(copy, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            there = urls.join(url, name)
            with urls.told(there, "copy"), urls.open_read(there) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 2**24)
        try:
            yield Path(copy)
        except LensError as error:
            raise type(error)(str(error).replace(copy, url.rstrip("/"))) from error


def _names(url: str) -> list[str]:
    """What belongs to a model, of all that lies in its folder.

    Raises:
        ArtifactError: a file's name, which in an object store may be any text, would lead out of the copy.
    """
    if not urls.exists(url):
        return []
    names = [name for name in urls.walk(url) if name.endswith(".json") or name.split("/")[0] in _PARTS]
    for name in names:
        if not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise ArtifactError(f"{url} holds a file named {name!r}, which is no path below a folder; remove it")
    return names


def _from_hub(name: str) -> Path:
    # Imported here: most models are folders, and the client of the hub is slow to import.
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    wanted = [
        "*.json",
        *(f"{part}/*.{ending}" for part in _PARTS for ending in ("json", "safetensors", "txt", "jinja")),
    ]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split()).split(". ")[0]
        raise ArtifactError(f"{name} is no folder here, and cannot be had from the hub: {reason}") from error
