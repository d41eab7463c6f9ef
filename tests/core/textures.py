"""Pictures for the filters' tests: coloured noise with the spectrum of photographs, and what is done to copies."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from lens_core.images import Candidate, decode, scale_to

SIDE = 256


def texture(seed, side=SIDE):
    """Noise whose amplitude falls with frequency as in photographs: uint8 [side, side, 3]."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    shape = (3, side, side // 2 + 1)
    spectrum = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    noise = np.fft.irfft2(spectrum / frequency ** rng.uniform(0.8, 1.8), s=(side, side))
    noise += noise.mean(0)
    noise = (noise - noise.mean()) / noise.std() * rng.uniform(20, 60) + rng.uniform(90, 160)
    return np.clip(np.moveaxis(noise, 0, 2), 0, 255).astype(np.uint8)


def encoded(pixels, format_="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format_, **options)
    return stream.getvalue()


def candidate(pixels, name="x.png"):
    """A candidate of these very pixels."""
    return Candidate(name, encoded(pixels, compress_level=1))


def crop(pixels, top, bottom, left, right):
    height, width = pixels.shape[:2]
    return np.ascontiguousarray(
        pixels[
            round(height * top) : height - round(height * bottom), round(width * left) : width - round(width * right)
        ]
    )


COPIES = {
    "jpeg 90": lambda pixels: decode(encoded(pixels, "JPEG", quality=90)),
    "jpeg 30": lambda pixels: decode(encoded(pixels, "JPEG", quality=30)),
    "webp": lambda pixels: decode(encoded(pixels, "WEBP", quality=60)),
    "half": lambda pixels: scale_to(pixels, SIDE // 2),
    "1.7 times": lambda pixels: scale_to(pixels, int(SIDE * 1.7)),
    "cropped 2 % around": lambda pixels: crop(pixels, 0.01, 0.01, 0.01, 0.01),
    "cropped 2 % at the corner": lambda pixels: crop(pixels, 0.02, 0, 0, 0.02),
    "cropped 2 % below": lambda pixels: crop(pixels, 0, 0.02, 0, 0),
    "cropped and compressed": lambda pixels: decode(encoded(crop(pixels, 0, 0.02, 0.02, 0), "JPEG", quality=50)),
}
"""What people do to images: re-encode, resize, crop."""
