"""Small manifests, and plans of them."""

from __future__ import annotations

import hashlib
import random

import pytest

from lens_train.planning.costs import CostModel
from lens_train.planning.manifest_writer import ManifestWriter
from lens_train.planning.samples import SampleSource
from lens_train.planning.sizes import size_table

COSTS = CostModel(per_sample=1e6, a=1e5, b=5e4, c=20.0)
MIXED = [size for base in (512, 768, 1024) for size in size_table(base, 16)]


def key_of_number(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def write_manifest(folder, rows):
    """A manifest of (height, width, [(text, tokens), …]) rows."""
    with ManifestWriter(folder) as writer:
        for number, (height, width, captions) in enumerate(rows):
            writer.add(
                key=key_of_number(number),
                shard=number % 3,
                offset=512 * number,
                size=100 + number,
                height=height,
                width=width,
                captions=captions,
            )
        return writer.close(["a.tar", "b.tar", "c.tar"])


def mixed_rows(count, captions=1, seed=0):
    lots = random.Random(seed)
    return [
        (*lots.choice(MIXED), [(f"{number} {layer}", lots.randint(20, 300)) for layer in range(captions)])
        for number in range(count)
    ]


def source_of(manifest, **changes):
    settings = {"costs": COSTS, "stride": 16, "seed": 7, "caption_dropout": 0.1} | changes
    return SampleSource(manifest=manifest, **settings)


@pytest.fixture(scope="session")
def mixed(tmp_path_factory):
    """The manifest of 3,001 samples of 27 sizes, with a caption of 20 to 300 tokens each."""
    return write_manifest(tmp_path_factory.mktemp("mixed") / "manifest", mixed_rows(3001))


@pytest.fixture(scope="session")
def layered(tmp_path_factory):
    """The manifest of 2,000 samples with three captions each."""
    return write_manifest(tmp_path_factory.mktemp("layered") / "manifest", mixed_rows(2000, captions=3))
