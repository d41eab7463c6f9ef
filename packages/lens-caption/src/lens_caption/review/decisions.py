"""What a reviewer decided, one JSON line each, appended at once: the file is the truth, and survives any kill.

    {"time": 1764060000.1, "key": "…", "layer": "dense", "action": "edit", "text": "…", "caption_sha256": "…",
     "reviewer": "kim"}

The last line about an image and layer counts; `undo` takes the decision back. `caption_sha256` is of the caption that
the reviewer saw, so that a decision is never applied to a caption that was made anew since.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, get_args

from lens_core.errors import ArtifactError, ConfigError, StorageError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

__all__ = ["Action", "Decision", "DecisionLog", "caption_sha256", "read_decisions"]

Action = Literal["accept", "edit", "reject", "undo"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a person said of one caption."""

    time: float
    key: str
    layer: str
    action: Action
    text: str
    caption_sha256: str
    reviewer: str = ""


def caption_sha256(text: str) -> str:
    """sha256 (hex) of a caption."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_decisions(path: Path) -> dict[tuple[str, str], Decision]:
    """The decisions that count, by image and layer; none if there is no file.

    A last line without its end is what a kill leaves of a write that nobody was told about, and is ignored.

    Raises:
        ArtifactError: a line is damaged; the message has its number.
        StorageError: the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StorageError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    decisions: dict[tuple[str, str], Decision] = {}
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            decision = _parsed(json.loads(line))
        except (ValueError, TypeError) as error:
            raise ArtifactError(f"{path}:{number} is no decision of a review ({error})") from error
        if decision.action == "undo":
            decisions.pop((decision.key, decision.layer), None)
        else:
            decisions[decision.key, decision.layer] = decision
    return decisions


class DecisionLog:
    """The file of one review, open for appending; one process at a time, any number of threads.

    Args:
        path: the file; it is made if it is not there.
        reviewer: who decides.

    Raises:
        ConfigError: another process has the file open for a review.
        ArtifactError: a line is damaged.
    """

    def __init__(self, path: Path, reviewer: str = ""):
        self.path = path
        self._reviewer = reviewer
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = path.open("ab")
        except OSError as error:
            raise StorageError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise ConfigError(
                f"another review writes to {path}; end it, or name another file with --decisions"
            ) from error
        try:
            self.decisions = read_decisions(path)
            self._cut_torn_line()
        except BaseException:
            self._file.close()
            raise

    def decide(self, *, key: str, layer: str, action: Action, text: str, seen: str) -> Decision:
        """Keep a decision; when this returns it is on the disk.

        Args:
            key: the image.
            layer: the layer.
            action: what was decided.
            text: the new caption, for `edit`.
            seen: the caption as the reviewer saw it.
        """
        decision = Decision(
            time=round(time.time(), 3),
            key=key,
            layer=layer,
            action=action,
            text=text if action == "edit" else "",
            caption_sha256=caption_sha256(seen),
            reviewer=self._reviewer,
        )
        line = json.dumps(asdict(decision), ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            if action == "undo":
                self.decisions.pop((key, layer), None)
            else:
                self.decisions[key, layer] = decision
        return decision

    def close(self) -> None:
        """Close the file and let others write."""
        self._file.close()

    def _cut_torn_line(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)


def _parsed(value: object) -> Decision:
    if not isinstance(value, dict):
        raise TypeError("it is not an object")
    decision = Decision(**value)
    texts = (decision.key, decision.layer, decision.text, decision.caption_sha256, decision.reviewer)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a text is something else")
    if decision.action not in get_args(Action):
        raise ValueError(f"unknown action {decision.action!r}")
    return decision
