"""What do the filters cost per image, and do they agree with formulas written down directly?

Textures with the spectrum of photographs, as JPEG files of a given size. Each filter's cost is that of its check alone,
on pixels that are decoded and, where it uses it, scaled already; decoding and scaling, which all share, have rows of
their own. OpenCV's formulas stand beside ours if it is installed; direct NumPy or SciPy ones always.

    python benchmarks/filters.py --images 40 --side 1024 --out runs/benchmarks/filters.json
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import platform
import statistics as stdlib_statistics
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lens_core.filters import statistics
from lens_core.filters.near_duplicates.index import NearIndex, mark
from lens_core.images import SMALL_SIDE, decode, header, scale_to

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def main() -> None:
    """Measure, print, and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--index", type=int, default=100_000, help="images in the near-duplicates' index")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    files = [_jpeg(_texture(seed, options.side)) for seed in range(options.images)]
    pixels = [decode(data) for data in files]
    small = [scale_to(image, SMALL_SIDE) for image in pixels]
    cost = {
        "header": _cost(header, files),
        "decode": _cost(decode, files),
        f"scale to {SMALL_SIDE}": _cost(lambda image: scale_to(image, SMALL_SIDE), pixels),
        "clarity": _cost(statistics.clarity, small),
        "entropy": _cost(statistics.entropy, small),
        "luminance": _cost(statistics.luminance, small),
        "near-duplicates: mark": _cost(mark, small),
        f"near-duplicates: search in {options.index:,}": _search_cost(options.index, [mark(image) for image in small]),
    }
    agreement = {name: _worst(ours, direct, small) for name, ours, direct in _pairs()}
    print(f"{options.images} JPEG files of {options.side}x{options.side}, median per image on one core")
    for name, seconds in cost.items():
        print(f"  {name:42} {seconds * 1e3:8.3f} ms")
    print("largest relative difference")
    for name, difference in agreement.items():
        print(f"  {name:42} {difference:8.1e}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        report = {
            "date": date.today().isoformat(),
            "machine": platform.processor() or platform.machine(),
            "images": options.images,
            "side": options.side,
            "milliseconds": {name: seconds * 1e3 for name, seconds in cost.items()},
            "largest_relative_difference": agreement,
        }
        options.out.write_text(json.dumps(report, indent=2) + "\n")


def _pairs() -> list[tuple[str, Callable[..., float], Callable[..., float]]]:
    """Ours, and the same written down directly."""
    ndimage, stats = importlib.import_module("scipy.ndimage"), importlib.import_module("scipy.stats")
    pairs: list[tuple[str, Callable[..., float], Callable[..., float]]] = [
        (
            "clarity: scipy.ndimage.laplace",
            statistics.clarity,
            lambda image: float(ndimage.laplace(statistics.grey(image).astype(float), mode="nearest").var()),
        ),
        (
            "entropy: scipy.stats.entropy",
            statistics.entropy,
            lambda image: float(stats.entropy(np.bincount(statistics.grey(image).ravel()), base=2)),
        ),
        ("luminance: mean of maxima", statistics.luminance, lambda image: float((image.max(axis=2) / 255).mean())),
    ]
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        print("OpenCV is not installed: its formulas are left out")
        return pairs

    def laplacian(image: np.ndarray) -> float:
        grey = np.pad(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 1, mode="edge")
        return float(cv2.Laplacian(grey, cv2.CV_64F, ksize=1)[1:-1, 1:-1].var())

    def value(image: np.ndarray) -> float:
        return float(cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 2].mean() / 255)

    return [*pairs, ("clarity: cv2", statistics.clarity, laplacian), ("luminance: cv2", statistics.luminance, value)]


def _worst(ours: Callable[..., float], direct: Callable[..., float], images: Sequence[np.ndarray]) -> float:
    return max(abs(ours(image) / direct(image) - 1) for image in images)


def _cost(function: Callable[[Any], Any], items: Sequence[Any]) -> float:
    """Median seconds per call, after one to warm up."""
    function(items[0])
    times = []
    for item in items:
        started = time.perf_counter()
        function(item)
        times.append(time.perf_counter() - started)
    return stdlib_statistics.median(times)


def _search_cost(count: int, asked: Sequence[bytes]) -> float:
    index = NearIndex(11)
    rng = np.random.default_rng(0)
    for number in range(count):
        index.add(rng.bytes(len(asked[0])), str(number))
    return _cost(index.nearest, asked)


def _texture(seed: int, side: int) -> np.ndarray:
    """Noise whose amplitude falls with frequency as in photographs: uint8 [side, side, 3]."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(3, side, side))) / frequency**1.2, s=(side, side))
    return np.clip(np.moveaxis(noise / noise.std() * 45 + 120, 0, 2), 0, 255).astype(np.uint8)


def _jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=92)
    return stream.getvalue()


if __name__ == "__main__":
    main()
