"""The samples of a manifest in the order of their cost: by size (smaller areas first), then by length of text.

A counting sort in two passes over the files. It holds a piece of them and the counts, never a column, and writes
through a memory map, so that 10⁸ samples need no more memory than 10⁵.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lens_train.planning.layout import CAPTION, NUMBER, SAMPLE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["write_ranking"]

PIECE = 1 << 17
TEXT_STEP = 8
TEXT_BINS = 128
"""Texts are ranked in steps of 8 tokens, up to 1,024."""


def write_ranking(samples: Path, captions: Path, ranking: Path, sizes: list[tuple[int, int]]) -> None:
    """Write the sample numbers in the order of their cost.

    Args:
        samples: the file of samples.
        captions: the file of captions.
        ranking: the file to write.
        sizes: every (height, width) that occurs, in the order of their cost.
    """
    counts = np.zeros(len(sizes) * TEXT_BINS, dtype=np.int64)
    for bins in _bins(samples, captions, sizes):
        counts += np.bincount(bins, minlength=len(counts))
    places = np.cumsum(counts) - counts
    out = np.memmap(ranking, dtype=NUMBER, mode="w+", shape=(int(counts.sum()),))
    done = 0
    for bins in _bins(samples, captions, sizes):
        order = np.argsort(bins, kind="stable")
        found, first, many = np.unique(bins[order], return_index=True, return_counts=True)
        out[np.repeat(places[found] - first, many) + np.arange(len(bins))] = done + order
        places[found] += many
        done += len(bins)
    out.flush()


def _bins(samples: Path, captions: Path, sizes: list[tuple[int, int]]) -> Iterator[NDArray[np.int64]]:
    codes = np.array([height << 16 | width for height, width in sizes])
    by_code = np.argsort(codes)
    with samples.open("rb") as sample_file, captions.open("rb") as caption_file:
        while len(piece := np.fromfile(sample_file, dtype=SAMPLE, count=PIECE)):
            many = piece["captions"].astype(np.int64)
            tokens = np.fromfile(caption_file, dtype=CAPTION, count=int(many.sum()))["tokens"]
            sums = np.concatenate([[0], np.cumsum(tokens, dtype=np.int64)])
            ends = np.cumsum(many)
            mean = (sums[ends] - sums[ends - many]) // np.maximum(many, 1)
            code = piece["height"].astype(np.int64) << 16 | piece["width"]
            size = by_code[np.searchsorted(codes, code, sorter=by_code)]
            yield size * TEXT_BINS + np.minimum(mean // TEXT_STEP, TEXT_BINS - 1)
