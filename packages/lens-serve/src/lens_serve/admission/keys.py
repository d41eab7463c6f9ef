"""API keys: who asks, and what they may.

A key is `lens-` and 256 random bits. It is shown once; the file keeps its SHA-256, which is safe for what cannot be
guessed. The file is small JSON, written under a temporary name and renamed; a server notices that, so that a revoked
key is refused from the next request on.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import AwareDatetime, Field, ValidationError

from lens_core.config.base import Config, first_mistake
from lens_core.errors import ConfigError
from lens_core.storage import urls

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["ANONYMOUS", "Key", "KeyRecord", "KeyRefusedError", "Keyring", "add", "read", "revoke"]

logger = logging.getLogger(__name__)

Scope = Literal["images", "metrics", "admin"]
"""What keys may be for: drawing; reading the metrics; everything, other keys' jobs included."""

_FORM = re.compile(r"lens-[a-z2-7]{52}")


@dataclass(frozen=True, kw_only=True)
class Key:
    """Whose a request is, and what it may.

    Args:
        id: what logs and metrics say.
        name: what its owner calls it.
        scopes: what it is for; see `Scope`.
        weight: its part of the device when several wait, relative to the other keys'.
        max_concurrent: requests at once; None: any number.
        images_per_day: None: any number.
        seconds_per_day: of the device, as predicted.
    """

    id: str
    name: str
    scopes: frozenset[str]
    weight: float = 1.0
    max_concurrent: int | None = None
    images_per_day: int | None = None
    seconds_per_day: float | None = None

    def may(self, scope: str) -> bool:
        """Whether the key is good for something."""
        return scope in self.scopes or "admin" in self.scopes


ANONYMOUS = Key(id="anonymous", name="anonymous", scopes=frozenset({"images"}))
"""Whoever asks a server that has no keys."""


class KeyRecord(Config):
    """A key as it is stored: everything but the key."""

    id: str = Field(pattern=r"^[a-z0-9]{1,32}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    name: str = Field(min_length=1, max_length=100)
    scopes: tuple[Scope, ...] = Field(("images",), min_length=1)
    weight: float = Field(1.0, ge=0.001, le=1000, allow_inf_nan=False)
    max_concurrent: int | None = Field(None, gt=0)
    images_per_day: int | None = Field(None, gt=0)
    seconds_per_day: float | None = Field(None, gt=0, allow_inf_nan=False)
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None

    def key(self) -> Key:
        """The key that a request with it comes by."""
        limits = {name: getattr(self, name) for name in ("max_concurrent", "images_per_day", "seconds_per_day")}
        return Key(id=self.id, name=self.name, scopes=frozenset(self.scopes), weight=self.weight, **limits)


class _File(Config):
    format_version: Literal[1] = 1
    keys: tuple[KeyRecord, ...] = ()


class KeyRefusedError(Exception):
    """A key is not accepted; the message is for its sender."""


class Keyring:
    """The keys of a file, read again whenever the file has changed.

    A file that was damaged or removed while the server runs changes nothing: the keys that were read last stay.
    """

    def __init__(self, path: Path):
        self._path = path
        self._seen = _state(path)
        self._records = read(path)

    @classmethod
    def load(cls, path: str | Path) -> Keyring:
        """Read a file of keys.

        Raises:
            ConfigError: it is absent or damaged.
        """
        return cls(urls.local_path(str(path)))

    def find(self, text: str) -> Key:
        """The key that somebody sent.

        Every record is compared, in constant time, whichever it is.

        Raises:
            KeyRefusedError: it is unknown, was revoked, or has expired.
        """
        self._look_again()
        if not _FORM.fullmatch(text):
            raise KeyRefusedError("The API key is not valid: keys of this server begin with 'lens-'.")
        sha256 = _sha256(text)
        found = [record for record in self._records if hmac.compare_digest(record.sha256, sha256)]
        if not found:
            raise KeyRefusedError("The API key is not known.")
        for record in found:
            if record.revoked is not None:
                raise KeyRefusedError("The API key was revoked.")
            if record.expires is not None and record.expires <= datetime.now(UTC):
                raise KeyRefusedError("The API key has expired.")
        return found[0].key()

    def _look_again(self) -> None:
        if (state := _state(self._path)) == self._seen:
            return
        self._seen = state
        try:
            self._records = read(self._path)
        except ConfigError as error:
            logger.error("%s; the keys that were read before stay in force", error)


def read(path: str | Path) -> tuple[KeyRecord, ...]:
    """All keys of a file, those that are not good any more included.

    Raises:
        ConfigError: it is absent or damaged.
    """
    path = Path(path)
    try:
        return _File.model_validate_json(path.read_bytes()).keys
    except FileNotFoundError:
        message = "there is no such file of API keys; `lens serve keys add NAME` makes one"
        raise ConfigError(message, file=str(path)) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {(error.strerror or '').lower()}", file=str(path)) from error
    except ValidationError as error:
        key, mistake = first_mistake(error)
        message = f"this is no file of API keys: {mistake}; restore it from a copy"
        raise ConfigError(message, file=str(path), key=key) from None


def add(
    path: str | Path,
    name: str,
    *,
    scopes: Sequence[str] = ("images",),
    weight: float = 1.0,
    max_concurrent: int | None = None,
    images_per_day: int | None = None,
    seconds_per_day: float | None = None,
    expires_days: float | None = None,
) -> tuple[str, KeyRecord]:
    """Make a key and store it; a file that is not there is made.

    Returns:
        The key itself, which nothing keeps, and what is stored of it.

    Raises:
        ConfigError: the file is damaged or cannot be written, or a limit makes no sense.
    """
    path = Path(path)
    text = "lens-" + base64.b32encode(secrets.token_bytes(32)).decode().rstrip("=").lower()
    now = datetime.now(UTC).replace(microsecond=0)
    asked = {
        "id": base64.b32encode(secrets.token_bytes(5)).decode().lower(),
        "sha256": _sha256(text),
        "name": name,
        "scopes": tuple(scopes),
        "weight": weight,
        "max_concurrent": max_concurrent,
        "images_per_day": images_per_day,
        "seconds_per_day": seconds_per_day,
        "created": now,
        "expires": None if expires_days is None else now + timedelta(days=expires_days),
    }
    try:
        record = KeyRecord.model_validate(asked)
    except ValidationError as error:
        key, mistake = first_mistake(error)
        raise ConfigError(mistake, key=str(key).partition(".")[0]) from None
    with _alone(path):
        _write(path, (*(read(path) if path.exists() else ()), record))
    return text, record


def revoke(path: str | Path, id: str) -> KeyRecord:
    """Let a key open nothing any more. It stays in the file, so that the log's key ids keep their names.

    Raises:
        ConfigError: the file is absent or damaged, or has no such key.
    """
    path = Path(path)
    with _alone(path):
        records = {record.id: record for record in read(path)}
        if id not in records:
            raise ConfigError(f"there is no key {id!r}; `lens serve keys list` shows them", file=str(path))
        if records[id].revoked is None:
            records[id] = records[id].model_copy(update={"revoked": datetime.now(UTC).replace(microsecond=0)})
            _write(path, tuple(records.values()))
        return records[id]


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two commands at once would forget what one of them did. The folder is locked, since the file is replaced."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"cannot be written: {(error.strerror or '').lower()}", file=str(path)) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(path: Path, records: tuple[KeyRecord, ...]) -> None:
    content = _File(keys=records).model_dump(mode="json")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"cannot be written: {(error.strerror or '').lower()}", file=str(path)) from error


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is replaced or written to; None without a file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
