"""The family of errors that Lens raises on purpose.

    LensError                   somebody else's mistake: one line on the terminal, exit code 2
    ├── ConfigError             a pipeline file, an override, or a component's options
    ├── PluginError             a plugin that is broken, clashes, or misspells a hook
    ├── UnknownComponentError   a name that no installed plugin offers
    ├── MissingExtraError       a library that an optional extra brings
    ├── ArtifactError           an artefact that is absent, damaged, or of the wrong type
    ├── StorageError            a file or bucket that cannot be read or written
    ├── RunFolderError          a run folder that is in use, foreign, or unwritable
    ├── ImageError              bytes that are no usable image; the message is the reason
    └── Stopped                 the run was asked to stop and saved its state: exit code 3

Anything else that escapes is a bug of ours and shows its traceback (exit code 1). A message says what
happened, where, and what to do, in one line.
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "ConfigError",
    "ImageError",
    "LensError",
    "MissingExtraError",
    "PluginError",
    "RunFolderError",
    "Stopped",
    "StorageError",
    "UnknownComponentError",
]


class LensError(Exception):
    """A mistake outside Lens, told in one line; the command line exits with code 2."""

    exit_code = 2


class ConfigError(LensError):
    """A wrong setting; knows the file, line and key where the reader should look."""

    def __init__(self, message: str, *, file: str | None = None, line: int | None = None, key: str | None = None):
        self.detail = message
        self.file = file
        self.line = line
        self.key = key
        where = f"{file}:{line}" if file and line else file
        super().__init__(": ".join(part for part in (where, key, message) if part))


class PluginError(LensError):
    """A plugin that cannot be loaded, shares a name with another, or implements a hook that does not exist."""


class UnknownComponentError(LensError):
    """A component name that no installed plugin offers."""


class MissingExtraError(LensError):
    """A library is missing; the message carries the pip line that brings it."""


class ArtifactError(LensError):
    """An artefact is absent, damaged, or of another type than the one asked for."""


class StorageError(LensError):
    """A file, folder or bucket cannot be read or written."""


class RunFolderError(LensError):
    """A run folder is in use, belongs to another pipeline, or cannot be written."""


class ImageError(LensError):
    """Bytes that are not a usable image; the message is the reason, fit to be shown beside the file's name."""


class Stopped(LensError):
    """The run was asked to stop (signal, budget) and saved its state; the same command resumes it."""

    exit_code = 3
