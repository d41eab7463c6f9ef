"""`lens run` on numbered images, in processes of their own, against the fake server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from lens_caption.engine.journal import Journal
from lens_caption.testing.openai_server import number_in_text, numbered_jpeg
from states import state_of


class Run:
    """A folder with numbered photos and a pipeline that captions them.

    Args:
        folder: to work in.
        count: photos, which bear the numbers from 0.
        size: of the photos, in pixels.
    """

    def __init__(self, folder, count, size=(96, 96)):
        self.folder, self.count = folder, count
        photos = folder / "photos"
        photos.mkdir()
        for number in range(count):
            (photos / f"{number:06d}.jpg").write_bytes(numbered_jpeg(number, *size))

    def write(self, server, captioner=None, *, ingest=None, stage=None, **engine):
        """The pipeline's file."""
        stages = [
            {"name": "images", "type": "ingest", "source": {"type": "image-folder", "url": "photos"}, **(ingest or {})},
            {
                "name": "words",
                "type": "caption",
                "source": "images",
                "captioner": {
                    "type": "openai",
                    "model": "gpt-4.1",
                    "base_url": server if isinstance(server, str) else server.url,
                    "max_side": 96,
                    "max_output_tokens": 120,
                    "concurrency": 8,
                    "max_wait_s": 0.05,
                    **(captioner or {}),
                },
                "engine": {"workers": 0, **engine},
                **(stage or {}),
            },
        ]
        (self.folder / "pipeline.yaml").write_text(yaml.safe_dump({"run": "run", "stages": stages}))

    def start(self, server, captioner=None, *, file_bytes=None, **options):
        """`lens run`, whose settings may change between runs; files may grow to `file_bytes`."""
        self.write(server, captioner, **options)
        limited = ["prlimit", f"--fsize={file_bytes}"] if file_bytes else []
        with (self.folder / "said.txt").open("w") as said:
            return subprocess.Popen(
                [*limited, Path(sys.executable).with_name("lens"), "run", "pipeline.yaml"],
                cwd=self.folder,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stderr=said,
            )

    def run(self, server, captioner=None, **options):
        """`lens run` to its end: exit code and the lines that it said."""
        code = self.start(server, captioner, **options).wait(timeout=600)
        return code, (self.folder / "said.txt").read_text().splitlines()

    @property
    def journal_file(self):
        return state_of(self.folder / "run", "words") / "journal.sqlite"

    def journalled(self):
        """Status by image key in the journal of a stage that is under way."""
        if not self.journal_file.exists():
            return {}
        journal = Journal(self.journal_file)
        try:
            return journal.statuses()
        finally:
            journal.close()

    def rows(self):
        return pq.read_table(self.folder / "run" / "words" / "captions.parquet").to_pylist()

    def stats(self):
        return json.loads((self.folder / "run" / "words" / "manifest.json").read_text())["stats"]

    def assert_captions_are_right(self, failed=0):
        """Every image has its own caption: the number that it bears."""
        rows = self.rows()
        assert len(rows) == self.count
        assert [number_in_text(row["text"]) for row in rows if row["status"] == "ok"] == [
            number for number, row in enumerate(rows) if row["status"] == "ok"
        ]
        assert sum(row["status"] != "ok" for row in rows) == failed


def settle(server):
    """Wait until requests of a process that is gone have been billed or forgotten."""
    before = None
    while before != (before := (len(server.ledger), server.in_flight)) or server.in_flight:
        time.sleep(0.2)


def wait_for(condition, process, timeout_s=120):
    """Wait until it holds; False if the process ended before that."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return True
