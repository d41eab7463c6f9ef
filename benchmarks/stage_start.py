"""What does a train stage need before its first step?

Writes an index of images and captions of 500 bytes, as stages do, makes a training manifest of them, and opens it
again, as the other ranks do it and a run that goes on. Anonymous memory is watched meanwhile.

    python benchmarks/stage_start.py --images 1000000 --out docs/reports/stage_start.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import tempfile
import time
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from packing import apart

from lens_core.storage.captions import CAPTIONS
from lens_core.storage.shards import INDEX
from lens_core.storage.tables import PART_ROWS
from lens_train.data.pictures import images_of
from lens_train.data.training_set import open_training_set
from lens_train.parallel.world import World


def main() -> None:
    """Print what both starts need, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="for the files; a temporary folder if none is given")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 1),
        "images": options.images,
    }
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_tables(Path(folder), options.images)
        report |= apart([_first_start, _next_start], Path(folder))
    for name, value in report.items():
        print(f"{name:40} {value:,.1f}" if isinstance(value, float) else f"{name:40} {value}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def write_tables(folder: Path, count: int) -> None:
    """An index of so many images, and a caption of each."""
    lots = random.Random(5)
    with ExitStack() as opened:
        tables: dict[str, pq.ParquetWriter] = {}
        for first in range(0, count, PART_ROWS):
            keys = [lots.randbytes(32).hex() for _ in range(first, min(first + PART_ROWS, count))]
            place = {"shard": f"shard-{first:09}.tar", "offset": 512, "size": 90_000, "width": 640, "height": 480}
            said = {"layer": "dense", "status": "ok"}
            texts = [{"key": key, "text": f"{key} {'caption' * 63}"[:500], **said} for key in keys]
            for name, rows in ((INDEX, [{"key": key, **place} for key in keys]), (CAPTIONS, texts)):
                table = pa.Table.from_pylist(rows)
                if name not in tables:
                    tables[name] = opened.enter_context(pq.ParquetWriter(folder / name, table.schema))
                tables[name].write_table(table)


class _Folder:
    """Images and captions in one folder without a manifest, as a training set reads them."""

    def __init__(self, folder: Path):
        self.url = str(folder)

    def open(self, path: str) -> BinaryIO:
        return Path(self.url, path).open("rb")

    def url_of(self, path: str) -> str:
        return str(Path(self.url, path))

    def parent(self, type_: str) -> _Folder:
        return self


def _first_start(folder: Path) -> dict[str, float]:
    captions: Any = _Folder(folder)
    started = time.perf_counter()
    opened = open_training_set(
        folder / "plan" / "manifest",
        images_of(captions, image_size=256, stride=16, seed=5),
        captions,
        memory_bytes=0,
        tokenize=lambda texts: [[0] * 80] * len(texts),
        on_image=lambda done, total: None,
        world=World(device=torch.device("cpu")),
    )
    assert opened.left_out == 0
    return {"first start: seconds": time.perf_counter() - started}


def _next_start(folder: Path) -> dict[str, float]:
    return {"next start: seconds": _first_start(folder)["first start: seconds"]}


if __name__ == "__main__":
    main()
