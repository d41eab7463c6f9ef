"""Where images are kept when answers give their URLs: a folder or bucket that the operator chose.

Names are ours, never a client's: the day, and a random number that nobody guesses. What has no name is not found, so
that a public bucket without listing shows an image to those only who were given its URL.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from lens_core.errors import ConfigError, LensError, StorageError
from lens_core.storage import urls
from lens_serve.listening import is_private
from lens_serve.threads import Threads

if TYPE_CHECKING:
    from lens_serve.config import ListenSettings, OutputSettings
    from lens_serve.images.encoders import ImageFormat

__all__ = ["Store", "StoreError", "new_name"]

TIMEOUT_S = 60.0
"""For a file to be written."""

_AT_ONCE = 16


class StoreError(LensError):
    """An image could not be stored. What the reason says of our disks is in its cause, for the log alone."""


class Store:
    """Writes images; readers see whole files or none.

    Args:
        url: a folder, or an fsspec URL.
        public_url: what stands for `url` in what clients are told; by default `url` itself.

    Raises:
        StorageError: the folder cannot be made.
    """

    def __init__(self, url: str, public_url: str | None = None):
        self._url = url
        if public_url is None:
            public_url = urls.local_path(url).resolve().as_uri() if urls.is_local(url) else url
        self._public_url = public_url
        self._threads = Threads("store", most=_AT_ONCE, timeout_s=TIMEOUT_S)
        urls.mkdirs(url)

    @classmethod
    def of(cls, settings: OutputSettings, listen: ListenSettings) -> Store | None:
        """The configured store, if any.

        Args:
            settings: what the operator chose.
            listen: who may ask.

        Raises:
            ConfigError: clients on other machines would be told where the store is.
            StorageError: the folder cannot be made.
        """
        if settings.store is None:
            return None
        if settings.public_url is None and not is_private(listen):
            raise ConfigError(
                "clients elsewhere would be told the store's own place: say by which URL they reach what is stored",
                key="output.public_url",
            )
        return cls(settings.store, settings.public_url)

    async def put(self, name: str, data: bytes) -> str:
        """Write a file; returns its URL.

        Args:
            name: from `new_name`.
            data: the file.

        Raises:
            StoreError: the disk is full, the bucket does not answer in time, ….
        """
        try:
            await self._threads.run(lambda: urls.write_bytes(urls.join(self._url, name), data))
        except (StorageError, TimeoutError) as error:
            raise StoreError("the image was drawn, but could not be stored") from error
        return urls.join(self._public_url, name)


def new_name(format: ImageFormat) -> str:
    """A name for an image, such as `2026/11/26/0f3c….webp`; no two are alike."""
    return f"{datetime.now(UTC):%Y/%m/%d}/{uuid.uuid4().hex}.{format}"
