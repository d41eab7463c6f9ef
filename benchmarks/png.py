"""How long does an image take to become a PNG?

The server's encoder against Pillow, as most servers use it, and OpenCV where it is installed, on three pictures: one
smooth, one with the grain of a photo, and one that is noise.

    python benchmarks/png.py --size 1024x1024 --out docs/reports/png.json

Prints for each the median processor time of a file, which other programs on the machine change little; its ratio to
our own; and the size. Encoders are timed in turn, so that all meet the same machine. Every file is decoded again and
compared with its picture.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import time
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lens_core.diffusion.resolutions import parse_size
from lens_serve.images.png import encode_png

try:
    import cv2
except ImportError:
    cv2 = None

if TYPE_CHECKING:
    from collections.abc import Callable

OURS = "lens"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", default="1024x1024", help="WIDTHxHEIGHT")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args()
    height, width = parse_size(options.size, multiple=1)
    result: dict[str, Any] = {
        "benchmark": "png",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("isal", "numpy", "pillow")},
        "size": options.size,
        "repeats": options.repeats,
        "pictures": {},
    }
    if cv2 is not None:
        result["versions"]["opencv"] = cv2.__version__
    for name, image_HW3 in pictures(height, width).items():
        rows = measure(image_HW3, options.repeats)
        result["pictures"][name] = rows
        print(f"{name}, {options.size}")
        for encoder, row in rows.items():
            print(f"  {encoder:14} {row['ms']:7.1f} ms  x{row['ratio']:5.1f}  {row['bytes'] / 1e6:5.2f} MB")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def pictures(height: int, width: int) -> dict[str, np.ndarray]:
    """Three kinds of content, uint8 [H, W, 3]."""
    y_H1, x_1W = np.arange(height)[:, None], np.arange(width)[None]
    waves = [np.sin(x_1W / 90 + y_H1 / 130), np.cos(y_H1 / 70 + x_1W / 300), np.sin((x_1W + y_H1) / 110)]
    smooth_HW3 = 128 + 100 * np.stack(waves, axis=-1)
    generator = np.random.default_rng(0)
    grain_HW3 = generator.normal(0, 6, (height, width, 3))
    return {
        "smooth": smooth_HW3.astype(np.uint8),
        "grain": np.clip(smooth_HW3 + grain_HW3, 0, 255).astype(np.uint8),
        "noise": generator.integers(0, 256, (height, width, 3), dtype=np.uint8),
    }


def encoders() -> dict[str, Callable[[np.ndarray], bytes]]:
    """Ours first."""
    found: dict[str, Callable[[np.ndarray], bytes]] = {OURS: encode_png}
    for level in (1, 6):
        found[f"pillow {level}"] = lambda image_HW3, level=level: _by_pillow(image_HW3, level)
    if cv2 is not None:
        found["opencv"] = lambda image_HW3: _by_opencv(image_HW3, [])
        found["opencv rle"] = lambda image_HW3: _by_opencv(
            image_HW3, [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
        )
    return found


def measure(image_HW3: np.ndarray, repeats: int) -> dict[str, dict[str, float]]:
    """For each encoder: milliseconds of processor time, the ratio to ours, and bytes."""
    times: dict[str, list[float]] = {name: [] for name in encoders()}
    sizes: dict[str, int] = {}
    for name, encode in encoders().items():
        data = encode(image_HW3)
        with Image.open(io.BytesIO(data)) as decoded:
            assert (np.asarray(decoded) == image_HW3).all(), f"{name} has changed the picture"
        sizes[name] = len(data)
    for _ in range(repeats):
        for name, encode in encoders().items():
            started = time.thread_time()
            encode(image_HW3)
            times[name].append(1e3 * (time.thread_time() - started))
    ours = statistics.median(times[OURS])
    return {
        name: {
            "ms": statistics.median(times[name]),
            "ratio": statistics.median(times[name]) / ours,
            "bytes": sizes[name],
        }
        for name in times
    }


def _by_pillow(image_HW3: np.ndarray, level: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_HW3).save(stream, "PNG", compress_level=level)
    return stream.getvalue()


def _by_opencv(image_HW3: np.ndarray, parameters: list[int]) -> bytes:
    _, data = cv2.imencode(".png", image_HW3[..., ::-1], parameters)
    return data.tobytes()


if __name__ == "__main__":
    main()
