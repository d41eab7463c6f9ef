"""Request files for a program on this machine, answered while Lens is away: the lane `files`.

    <state>/requests/ID.jsonl    what is to be asked, in the form of an OpenAI batch
    <state>/results/ID.jsonl     what was answered, written by `vllm run-batch` or its like

A run writes request files and stops with the command that answers them; the next one reads what was answered, and
writes anew what was not. A file is in the journal before it appears under its name, so that no image is ever in two.
Nothing is billed: a budget in tokens or images counts all the same.
"""

from __future__ import annotations

import os
import shlex
import time
import uuid
from collections import deque
from typing import TYPE_CHECKING

from lens_caption.engine.lanes.batch_files import Limits, close, fill, give_up, read_results
from lens_core.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from lens_caption.engine.book import Book
    from lens_caption.engine.journal import BatchRow
    from lens_caption.engine.prepare import Preparer
    from lens_caption.engine.request import RequestCaptioner
    from lens_caption.engine.settings import BatchSettings
    from lens_caption.profiles import Profile
    from lens_core.contracts import ImageItem

__all__ = ["FilesLane"]

_AT_WORK_S = 60
"""A result file that is not whole, and was written to so lately, is still being written."""


class FilesLane:
    """Writes request files and reads result files.

    Args:
        captioner: makes requests and reads answers.
        book: keeps the accounts.
        settings: how to split.
        profile: the model's limits; None if nothing is known of it.
        folder: where the files lie, on local disk.
    """

    def __init__(
        self, captioner: RequestCaptioner, book: Book, settings: BatchSettings, profile: Profile | None, folder: Path
    ):
        self._captioner = captioner
        self._book = book
        self._limits = Limits.of(settings, profile)
        self._rounds = settings.rounds
        self._requests, self._results = folder.resolve() / "requests", folder.resolve() / "results"
        self._at_work: set[str] = set()

    def collect(self) -> set[str]:
        """Journal what result files hold; returns the images that are decided by that."""
        self._tidy()
        decided: set[str] = set()
        rows = [row for row in self._book.journal.request_files() if (self._results / row.file).exists()]
        asked = self._book.journal.asked() if rows else {}
        for row in rows:
            decided |= self._read(row, self._results / row.file, asked)
        return decided

    def withdraw(self) -> None:
        """The images that wait in request files are to be asked about in another way."""
        rows = self._book.journal.request_files()
        for row in rows:
            give_up(self._book, row.intent)
            (self._requests / row.file).unlink(missing_ok=True)
        if rows:
            self._book.context.progress.note(f"{len(rows)} request files were not answered; they are withdrawn")

    async def write(self, keys: Iterable[str], fetch: Callable[[str], ImageItem], preparer: Preparer) -> None:
        """Write request files for images, as far as the budget goes.

        Raises:
            ConfigError: the requests are not of the kind that such programs answer.
            StorageError: the disk is full, say.
        """
        pending = deque(keys)
        try:
            while pending and not self._book.stopping() and await self._write_one(pending, fetch, preparer):
                pass
        except OSError as error:
            raise StorageError(f"request files cannot be written to {self._requests}: {error.strerror}") from error

    def reminder(self) -> str | None:
        """What the user is to do before the next run, in one line; None if no request file waits."""
        rows = self._book.journal.request_files()
        if not rows:
            return None
        images = self._book.journal.waiting()[1]
        idle = [row.file for row in rows if row.file not in self._at_work]
        if not idle:
            return (
                f"{images} images wait in request files; their answers in {self._results} are still being written: "
                "once they are whole, the same command goes on"
            )
        return (
            f"{images} images wait in {len(rows)} request file{'s'[: len(rows) > 1]}; answer them with "
            f"`{self._command(idle)}`, and the same command goes on from there"
        )

    def _command(self, files: list[str]) -> str:
        asked, said = shlex.quote(str(self._requests)), shlex.quote(str(self._results))
        model = shlex.quote(self._captioner.endpoint.model)
        if len(files) == 1:
            return f"vllm run-batch -i {asked}/{files[0]} -o {said}/{files[0]} --model {model}"
        which = " ".join(f"{asked}/{file}" for file in files) if self._at_work else f"{asked}/*.jsonl"
        return f'for f in {which}; do vllm run-batch -i "$f" -o {said}/"${{f##*/}}" --model {model}; done'

    async def _write_one(self, pending: deque[str], fetch: Callable[[str], ImageItem], preparer: Preparer) -> bool:
        """Write one file; False if nothing more may be written now."""
        book = self._book
        intent = uuid.uuid4().hex
        name = f"{intent[:12]}.jsonl"
        self._requests.mkdir(parents=True, exist_ok=True)
        self._results.mkdir(exist_ok=True)
        part = self._requests / f"{name}.part"
        chunk = await fill(part, pending, fetch, preparer, book, self._limits)
        if chunk.path not in {"", "/chat/completions"}:
            part.unlink()
            raise ConfigError("programs such as `vllm run-batch` answer chat completions only", key="captioner.api")
        if not chunk.rows:
            part.unlink()
            return False
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        book.journal.intend(intent, chunk.rows, file=name)
        part.replace(self._requests / name)
        book.budget.reserve(chunk.reserved, requests=len(chunk.rows))
        return True

    def _read(self, row: BatchRow, file: Path, times: Mapping[str, int]) -> set[str]:
        """Journal a result file's answers; returns the images that are decided now, none if it is left alone."""
        book, where = self._book, f"{file.parent.name}/{file.name}"
        results = read_results(file)
        asked = book.journal.attempts_of(row.intent).keys()
        answers = {key: answer for key, answer in results.answers.items() if key in asked}
        missing, strange = len(asked) - len(answers), len(results.answers) - len(answers)
        if missing and time.time() - file.stat().st_mtime < _AT_WORK_S:
            self._at_work.add(row.file)
            book.context.progress.note(
                f"{where} has {len(answers)} of {len(asked)} answers, and is still being written"
            )
            return set()
        if not answers:
            book.context.progress.warn(f"{where} answers none of the requests in {row.file}; it is left alone")
            return set()
        for count, what in (
            (results.damaged, "lines that are no results"),
            (strange, "answers that nobody asked for"),
            (missing, "requests without an answer, which are written anew"),
        ):
            if count:
                book.context.progress.warn(f"{where}: {count} {what}")
        facts = {"batch": row.file}
        again = close(self._captioner, book, row, answers, asked=times, rounds=self._rounds, lane="files", facts=facts)
        (self._requests / row.file).unlink(missing_ok=True)
        return asked - set(again)

    def _tidy(self) -> None:
        """Finish or forget what a run that was killed had begun."""
        waiting = {row.file: row for row in self._book.journal.request_files()}
        for name, row in waiting.items():
            file, part = self._requests / name, self._requests / f"{name}.part"
            if part.exists():
                part.replace(file)
            elif not file.exists() and not (self._results / name).exists():
                self._book.context.progress.warn(f"the request file {file} is gone; its images are written anew")
                give_up(self._book, row.intent)
        if self._requests.is_dir():
            for file in self._requests.iterdir():
                if file.name not in waiting:
                    file.unlink()
