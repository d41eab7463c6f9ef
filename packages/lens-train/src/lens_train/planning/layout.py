"""How a manifest lies on disk: a folder of files of fixed records, all little-endian.

    samples.bin    a record per sample: its key (32 bytes), where its bytes lie, its size, its captions
    captions.bin   a record per caption: where its text lies, and how many tokens it has
    texts.bin      the captions' texts, UTF-8, one after the other
    ranking.bin    the sample numbers in the order of their cost
    manifest.json  written last: counts, sizes, names of the shards, sha256 of every file

All that planning asks of a sample lies in one record of 64 bytes: a page of the file, not five.
"""

from __future__ import annotations

import struct

import numpy as np

__all__ = ["CAPTION", "CAPTIONS", "FORMAT_VERSION", "HEAD", "NUMBER", "PACK_CAPTION", "PACK_SAMPLE", "RANKING"]
__all__ += ["SAMPLE", "SAMPLES", "TEXTS"]

FORMAT_VERSION = 1
HEAD = "manifest.json"
SAMPLES, CAPTIONS, TEXTS, RANKING = "samples.bin", "captions.bin", "texts.bin", "ranking.bin"

SAMPLE = np.dtype(
    [
        ("key", "<u8", (4,)),
        ("offset", "<i8"),
        ("caption_start", "<i8"),
        ("shard", "<u4"),
        ("size", "<u4"),
        ("height", "<u2"),
        ("width", "<u2"),
        ("captions", "<u4"),
    ]
)
PACK_SAMPLE = struct.Struct("<32sqqIIHHI").pack
CAPTION = np.dtype([("start", "<i8"), ("size", "<u4"), ("tokens", "<u4")])
PACK_CAPTION = struct.Struct("<qII").pack
NUMBER = np.dtype("<u4")
