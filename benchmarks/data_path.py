"""How many images per second does the loader give, beside the WebDataset library on the same shards?

Writes shards of JPEGs, or of latents, and reads them in random order by `PackLoader` over `StoredImages` or
`StoredLatents`, and by WebDataset as its documentation has it: shuffled shards, a buffer that is shuffled again,
batches made by the workers. Both decode by the same functions: `lens_core.images.decode` and `fit`, or what turns the
bytes of latents into a tensor.

    python benchmarks/data_path.py --sizes 64:64 512:256 --latents 256 1024 --out docs/reports/data-path.json

Rounds go in turn. The third number is decoding alone, in one process and from memory: no loader on one process is
faster. Times are medians; where others disturb, look at the fastest rounds.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import tempfile
import time
from datetime import date
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader

from lens_core.images import decode, fit
from lens_core.storage.artifacts import OutputFolder
from lens_core.storage.shards import ImageRow, ShardReader, ShardWriter, image_key
from lens_train.data.images import StoredImages, StoredLatents
from lens_train.data.loader import PackLoader
from lens_train.planning.costs import CostModel
from lens_train.planning.manifest_writer import ManifestWriter
from lens_train.planning.ragged import RaggedPlan
from lens_train.planning.samples import SampleSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lens_train.planning.manifest import Manifest

SIDES = ("lens", "webdataset")
STRIDE, CHANNELS = 16, 128
SHARDS = 8
"""About; WebDataset needs one per worker at least."""


class Photos:
    """JPEGs that are decoded, and fitted to the size they are trained at.

    Args:
        stored: side of the images in the shards, in pixels.
        side: that they are fitted to.
    """

    format, extension = "jpeg", "jpg"

    def __init__(self, stored: int, side: int):
        self.stored, self.side = stored, side
        self.name = f"{stored} px fitted to {side}"

    def data(self, number: int) -> bytes:
        """A JPEG of about a photo's size for its pixels: smooth shapes, and grain."""
        lots = np.random.default_rng(number)
        rough = Image.fromarray(lots.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = rough.resize((self.stored, self.stored), Image.Resampling.BICUBIC)
        grain = lots.normal(0, 6, (self.stored, self.stored, 1))
        stream = io.BytesIO()
        Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
        return stream.getvalue()

    def decode(self, data: bytes) -> torch.Tensor:
        """uint8 [H, W, 3]."""
        return torch.from_numpy(np.array(fit(decode(data), self.side, self.side)))

    def source(self, manifest: Manifest, shards: list[str]) -> StoredImages:
        """As the trainer reads them."""
        return StoredImages(manifest, shards)


class Latents:
    """What an autoencoder like FLUX.2's made of images: tokens of 16x16 pixels in 128 channels of bfloat16.

    Args:
        side: of the images, in pixels.
    """

    format, extension = "latent", "latent"

    def __init__(self, side: int):
        self.stored = self.side = side
        self.tokens = (side // STRIDE) ** 2
        self.name = f"latents of {side} px"

    def data(self, number: int) -> bytes:
        """[n, C] as bytes."""
        return np.random.default_rng(number).bytes(self.tokens * CHANNELS * 2)

    def decode(self, data: bytes) -> torch.Tensor:
        """bfloat16 [n, C]."""
        return torch.frombuffer(bytearray(data), dtype=torch.bfloat16).view(-1, CHANNELS)

    def source(self, manifest: Manifest, shards: list[str]) -> StoredLatents:
        """As the trainer reads them."""
        return StoredLatents(manifest, shards, channels=CHANNELS, dtype=torch.bfloat16)


class Bench:
    """Shards, and both ways to read them.

    Args:
        folder: for files.
        kind: what is in the shards.
        count: how many.
        batch: samples of a pack.
    """

    def __init__(self, folder: Path, *, kind: Photos | Latents, count: int, batch: int):
        self.kind, self.batch = kind, batch
        output = OutputFolder(str(folder / "images"), folder / "scratch")
        shape = {"width": kind.stored, "height": kind.stored, "format": kind.format}
        with ShardWriter(output, max_bytes=len(kind.data(0)) * count // SHARDS) as writer:
            for number in range(count):
                data = kind.data(number)
                writer.add(ImageRow(key=image_key(data), name=f"{number}", data=data, **shape))
        self.shards = sorted(str(path) for path in (folder / "images").glob("*.tar"))
        self.manifest = self._manifest(folder)
        source = SampleSource(
            manifest=self.manifest,
            costs=CostModel(a=1, b=1, c=0, per_sample=0),
            stride=STRIDE,
            seed=0,
            caption_dropout=0.1,
        )
        self.plan = RaggedPlan(source, samples=batch)

    def read(self, side: str, workers: int) -> float:
        """Images per second over one epoch, from the first pack on: starting workers is not counted."""
        packs = self._lens(workers) if side == "lens" else self._webdataset(workers)
        next(packs)
        started, images = time.perf_counter(), 0
        for pack in packs:
            images += len(pack)
        return images / (time.perf_counter() - started)

    def decode_alone(self) -> float:
        """Images per second of the decode function on bytes in memory."""
        some = list(islice(self._bytes(), 200))
        started = time.perf_counter()
        for data in some:
            self.kind.decode(data)
        return len(some) / (time.perf_counter() - started)

    def _bytes(self) -> Iterator[bytes]:
        for record in self.manifest.samples:
            with open(self.shards[int(record["shard"])], "rb") as file:  # noqa: PTH123
                file.seek(int(record["offset"]))
                yield file.read(int(record["size"]))

    def _lens(self, workers: int) -> Iterator[Any]:
        source = self.kind.source(self.manifest, self.shards)
        loader = PackLoader(self.plan, source, first=0, stride=1, workers=workers)
        return (next(loader).images for _ in range(self.plan.packs_per_epoch))

    def _webdataset(self, workers: int) -> Iterator[Any]:
        dataset = (
            wds.WebDataset(self.shards, shardshuffle=len(self.shards), seed=0)
            .shuffle(1000)
            .to_tuple(self.kind.extension)
            .map_tuple(self.kind.decode)
            .batched(self.batch)
        )
        loader = DataLoader(dataset, batch_size=None, num_workers=workers, prefetch_factor=2 if workers else None)
        return (images for (images,) in loader)

    def _manifest(self, folder: Path) -> Manifest:
        reader = ShardReader(_Local(folder / "images"))  # type: ignore[arg-type]
        names = [Path(shard).name for shard in self.shards]
        columns = (reader.columns[name] for name in ("key", "shard", "offset", "size"))
        with ManifestWriter(folder / "manifest") as writer:
            for key, shard, offset, size in zip(*columns, strict=True):
                place = {"shard": names.index(shard), "offset": offset, "size": size}
                writer.add(key=key, **place, height=self.kind.side, width=self.kind.side, captions=[("", 0)])
            return writer.close(names)


class _Local:
    """A folder without a manifest, as `ShardReader` reads it."""

    def __init__(self, folder: Path):
        self._folder = folder

    def open(self, name: str) -> BinaryIO:
        return (self._folder / name).open("rb")


def measure(bench: Bench, workers: int, rounds: int) -> dict[str, Any]:
    """Time epochs of both in turn, so that both meet the same machine."""
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(rounds):
        for side in SIDES if number % 2 else reversed(SIDES):
            rates[side].append(bench.read(side, workers))
    median = {side: statistics.median(rates[side]) for side in SIDES}
    return {
        "workers": workers,
        "ratio": median["lens"] / median["webdataset"],
        "ratio_of_fastest": max(rates["lens"]) / max(rates["webdataset"]),
        "images_per_s": median,
        "decode_alone": bench.decode_alone(),
        "rounds": rates,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--sizes", nargs="*", default=["512:256"], help="sides of stored images, and what they are fitted to"
    )
    parser.add_argument("--latents", type=int, nargs="*", default=[], help="sides of the images that latents are of")
    parser.add_argument("--count", type=int, default=2000, help="images")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "benchmark": "data_path",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 1),
        "webdataset": wds.__version__,
        "runs": [],
    }
    photos = [Photos(*map(int, sizes.split(":"))) for sizes in options.sizes]
    for kind in [*photos, *map(Latents, options.latents)]:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), kind=kind, count=options.count, batch=options.batch)
            for workers in options.workers:
                row = {"what": kind.name} | measure(bench, workers, options.rounds)
                result["runs"].append(row)
                rates = row["images_per_s"]
                print(
                    f"{kind.name}, {workers} workers: {rates['lens']:.0f} images/s, WebDataset "
                    f"{rates['webdataset']:.0f}: {row['ratio']:.2f}x ({row['ratio_of_fastest']:.2f}x by the fastest "
                    f"rounds); decoding alone, in one process: {row['decode_alone']:.0f}",
                    flush=True,
                )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
