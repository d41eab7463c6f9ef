"""The one place where fsspec is called: paths and URLs are read, listed and written here.

A URL without a scheme is a path on this machine. Writes are atomic: on a file system a temporary name in the same
folder and then a rename, on an object store one PUT per file.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import posixpath
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.core import url_to_fs

from lens_core.errors import MissingExtraError, StorageError
from lens_core.specs import pip_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import BinaryIO

__all__ = [
    "PROBE",
    "create_exclusive",
    "exists",
    "is_local",
    "join",
    "keeps_apart",
    "local_path",
    "ls",
    "mkdirs",
    "open_read",
    "put_file",
    "read_at_most",
    "read_bytes",
    "read_ranges",
    "read_text",
    "remove",
    "resolve",
    "told",
    "version",
    "walk",
    "write_bytes",
]

_EXTRAS = {"s3": "lens-core[s3]", "s3a": "lens-core[s3]"}
_EXCLUSIVE = {"s3", "s3a"}
"""Whose libraries hand "only if it is absent" to the server. Others look first and then write, which is no guard."""

_VERSIONS = ("ETag", "mtime", "LastModified", "etag", "last_modified", "blob_id", "last_commit")
"""Where stores say which version of a file is there; one that says several is asked in this order."""

PROBE = ".exclusive-"
"""How the names of files begin by which `keeps_apart` tries a store out; a process that is killed leaves one behind."""


class _NotExclusiveError(StorageError):
    """The store has no way to create a file only if it is absent."""


def is_local(url: str) -> bool:
    """Whether `url` is a path on this machine."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    """The path behind a local URL; `~` is the home folder, as it is for fsspec.

    Raises:
        StorageError: the URL is not local.
    """
    if not is_local(url):
        raise StorageError(f"{url} is not on this machine's file system")
    # `Path.expanduser` raises for `~nobody` and for a file called `~backup.png`.
    return Path(os.path.expanduser(url.removeprefix("file://")))  # noqa: PTH111


def join(url: str, *parts: str) -> str:
    """`url` and further path parts, with single slashes."""
    head = url.rstrip("/")
    return "/".join([head, *(part.strip("/") for part in parts if part.strip("/"))]) or "/"


def resolve(url: str, base: str) -> str:
    """A relative path as seen from the folder `base`; absolute paths and URLs stay as they are."""
    if "://" in url or local_path(url).is_absolute():
        return url
    if is_local(base):
        return os.path.normpath(local_path(base) / url)
    scheme, path = base.split("://", 1)
    return f"{scheme}://{posixpath.normpath(posixpath.join(path, url))}"


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    fs, path = _fs(url)
    with told(url, "look at"):
        fs.invalidate_cache()
        return bool(fs.exists(path))


def read_bytes(url: str) -> bytes:
    """The whole content of a file.

    Raises:
        StorageError: it is absent or cannot be read.
    """
    fs, path = _fs(url)
    with told(url, "read"):
        return bytes(fs.cat_file(path))


def read_at_most(url: str, most: int) -> bytes:
    """The whole content of a file that may come from anybody: a regular one, of no more than `most` bytes.

    Raises:
        StorageError: it is absent, larger, no regular file (a device never ends), or cannot be read.
    """
    if is_local(url) and exists(url) and not local_path(url).is_file():
        raise StorageError(f"{url} is no regular file")
    data = bytearray()
    with told(url, "read"), open_read(url) as stream:
        # A stream over HTTP gives what has arrived, which may be less than what is asked for.
        while len(data) <= most and (block := stream.read(min(most + 1 - len(data), 1 << 20))):
            data += block
    if len(data) > most:
        raise StorageError(f"{url} has more than {most:,} bytes")
    return bytes(data)


def read_text(url: str) -> str:
    """The whole content of a UTF-8 file."""
    try:
        return read_bytes(url).decode()
    except UnicodeDecodeError as error:
        raise StorageError(f"{url} is not UTF-8 text") from error


def open_read(url: str) -> BinaryIO:
    """A seekable binary stream; the caller closes it."""
    fs, path = _fs(url)
    with told(url, "read"):
        return fs.open(path, "rb")  # type: ignore[no-any-return]


def read_ranges(ranges: Sequence[tuple[str, int, int]]) -> list[bytes | StorageError]:
    """Parts of files, (URL, first byte, size) each; a store is asked for all of them at once.

    What cannot be read is an error in its place; a part that goes beyond the end of its file comes back shorter.
    """
    if not ranges:
        return []
    if all(is_local(url) for url, _, _ in ranges):
        return _read_ranges_here(ranges)
    fs, _ = _fs(ranges[0][0])
    paths = [_fs(url)[1] for url, _, _ in ranges]
    starts, ends = [start for _, start, _ in ranges], [start + size for _, start, size in ranges]
    with told(ranges[0][0], "read"):
        parts = fs.cat_ranges(paths, starts, ends, on_error="return")
    return [
        StorageError(f"cannot read {url}: {_reason(part)}") if isinstance(part, Exception) else bytes(part)
        for (url, _, _), part in zip(ranges, parts, strict=True)
    ]


def _read_ranges_here(ranges: Sequence[tuple[str, int, int]]) -> list[bytes | StorageError]:
    """Opens a file once for all its ranges; fsspec opens it for each, which costs more than small ranges do."""
    parts: dict[int, bytes | StorageError] = {}
    in_order = sorted(range(len(ranges)), key=ranges.__getitem__)
    for url, group in itertools.groupby(in_order, lambda number: ranges[number][0]):
        numbers = list(group)
        try:
            with local_path(url).open("rb") as file:
                for number in numbers:
                    _, start, size = ranges[number]
                    file.seek(start)
                    parts[number] = file.read(size)
        except OSError as error:
            parts.update(dict.fromkeys(numbers, StorageError(f"cannot read {url}: {_reason(error)}")))
    return [parts[number] for number in range(len(ranges))]


def write_bytes(url: str, data: bytes) -> None:
    """Write a file in one step: readers see the old content or the new, never a part."""
    if is_local(url):
        path = local_path(url)
        temporary = _beside(path)
        with told(url, "write"):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        return
    fs, path_text = _fs(url)
    with told(url, "write"):
        fs.pipe_file(path_text, data)


def put_file(url: str, source: Path) -> None:
    """Move a finished local file to `url` (a rename on a file system, an upload elsewhere)."""
    if is_local(url):
        target = local_path(url)
        with told(url, "write"):
            target.parent.mkdir(parents=True, exist_ok=True)
            # A manifest vouches for it, and outlives a power cut.
            with source.open("rb") as file:
                os.fsync(file.fileno())
            try:
                source.replace(target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                _move_across(source, target)
        return
    fs, path = _fs(url)
    with told(url, "write"):
        fs.put_file(str(source), path)
        source.unlink()


def _move_across(source: Path, target: Path) -> None:
    """Move a file to another file system, such as a mount that machines share: copied beside, then renamed."""
    temporary = _beside(target)
    try:
        with source.open("rb") as reading, temporary.open("xb") as writing:
            shutil.copyfileobj(reading, writing)
            writing.flush()
            os.fsync(writing.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    source.unlink()


def create_exclusive(url: str, data: bytes) -> bool:
    """Write a file only if it does not exist yet, in one step; False if somebody else's is there.

    Raises:
        StorageError: the store cannot do that, so it cannot keep two writers apart.
    """
    if is_local(url):
        return _create_exclusive_here(url, data)
    fs, path = _fs(url)
    if url.split("://")[0] not in _EXCLUSIVE:
        raise _NotExclusiveError(f"{url}: this store cannot create a file exclusively")
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        # A request whose answer was lost is sent again by the library, and then meets its own file.
        return read_bytes(url) == data
    except (NotImplementedError, TypeError, ValueError) as error:
        raise _NotExclusiveError(f"{url}: this store cannot create a file exclusively ({error})") from error
    except OSError as error:
        raise StorageError(f"cannot write {url}: {_reason(error)}") from error
    return True


def keeps_apart(folder: str) -> bool:
    """Whether a store lets only one of two writers create a file of one name; it is tried out in that folder.

    Stores that speak S3 and do not know `If-None-Match` take both without a word.
    """
    url = join(folder, f"{PROBE}{uuid.uuid4().hex[:8]}")
    try:
        return create_exclusive(url, b"one") and not create_exclusive(url, b"two")
    except _NotExclusiveError:
        return False
    finally:
        remove(url)


def _create_exclusive_here(url: str, data: bytes) -> bool:
    """A link, unlike `open("x")`, shows the file only when it is whole; and it holds on NFS too."""
    path = local_path(url)
    temporary = _beside(path)
    with told(url, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            path.hardlink_to(temporary)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}:
                raise _NotExclusiveError(f"{url}: this file system cannot create a file exclusively") from error
            raise
        finally:
            temporary.unlink(missing_ok=True)
    return True


def mkdirs(url: str) -> None:
    """Make a folder; object stores need none."""
    if is_local(url):
        with told(url, "write"):
            local_path(url).mkdir(parents=True, exist_ok=True)


def remove(url: str, *, recursive: bool = False) -> None:
    """Remove a file, or with `recursive` a folder; absent is fine."""
    fs, path = _fs(url)
    with told(url, "remove"), contextlib.suppress(FileNotFoundError):
        fs.rm(path, recursive=recursive)


def ls(url: str) -> list[str]:
    """Names (not paths) of what lies directly below a folder, sorted; empty if the folder is absent."""
    fs, path = _fs(url)
    with told(url, "list"):
        fs.invalidate_cache()
        try:
            entries = fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted({entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries} - {""})


def walk(url: str) -> Iterator[str]:
    """Paths of all files below a folder, relative to it, sorted.

    Raises:
        StorageError: the folder is absent or cannot be listed.
    """
    fs, path = _fs(url)
    with told(url, "list"):
        fs.invalidate_cache()
        if not fs.exists(path):
            raise StorageError(f"{url} does not exist")
        if not fs.isdir(path):
            raise StorageError(f"{url} is not a folder")
        if is_local(url):
            next(Path(path).iterdir(), None)  # `os.walk` swallows "permission denied"
        found = _walk_here(path) if is_local(url) else fs.find(path)
    prefix = path.rstrip("/") + "/"
    yield from sorted(entry.removeprefix(prefix) for entry in found)


def _walk_here(top: str) -> list[str]:
    """Links to folders are followed, which fsspec does not do: each folder once, under its own name if it has one."""
    seen: set[tuple[int, int]] = set()
    found, starts = [], [top]
    for start in starts:
        for folder, below, files in os.walk(start):
            status = os.stat(folder)  # noqa: PTH116 (a Path for each folder of a million)
            if (status.st_dev, status.st_ino) in seen:
                below.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            found += [f"{folder}/{file}" for file in files]
            paths = [f"{folder}/{name}" for name in sorted(below)]
            starts += [path for path in paths if os.path.islink(path)]  # noqa: PTH114
    return found


def version(url: str) -> str:
    """A cheap text that changes when a file does: its size, and its time, entity tag or hash."""
    fs, path = _fs(url)
    with told(url, "look at"):
        info = fs.info(path)
    return f"{info.get('size')} {next((info[name] for name in _VERSIONS if info.get(name)), '')}"


def _beside(path: Path) -> Path:
    """A temporary name in the same folder."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _fs(url: str) -> tuple[Any, str]:
    try:
        fs, path = url_to_fs(url)
    except ImportError as error:
        scheme = url.split("://")[0]
        extra = _EXTRAS.get(scheme)
        hint = f"; install it with: {pip_line(extra)}" if extra else f" ({error})"
        raise MissingExtraError(f"{scheme}:// URLs need a library that is not installed{hint}") from error
    except ValueError as error:
        raise StorageError(f"{url}: {error}") from error
    return fs, str(path)


@contextlib.contextmanager
def told(url: str, verb: str) -> Iterator[None]:
    """What goes wrong with a file, in one line: "cannot read s3://bucket/x: it does not exist".

    Raises:
        StorageError: the store, the file system, or a library between said no.
    """
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a name that no store or file system can hold
        raise StorageError(f"cannot {verb} {url}: {_reason(error)}") from error
    except Exception as error:
        # s3fs and its kin let some errors of their client libraries through untranslated.
        if type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp")):
            raise StorageError(f"cannot {verb} {url}: {_reason(error)}") from error
        raise


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(f"{type(error).__name__}: {error}".split())
