"""From captions to what a plan is made over: a manifest of the samples, and a source of their images.

The manifest is written once, by rank 0, into the stage's private folder. Whoever comes later, the other ranks and a run
that goes on, opens it, and reads no captions. Small sets are decoded at every start and kept in memory;
images that cannot be decoded are then left out before anything is planned. Of larger sets that shows only while
training, where such samples are passed over. Where latents were made beforehand, their sizes and places stand in for
those of the images. Images held out for validation have a manifest of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from lens_train.data.captioned import find_captioned
from lens_train.data.hold_out import held_out
from lens_train.data.images import MemoryImages, Stored, StoredImages, StoredLatents
from lens_train.planning.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lens_core.storage.artifacts import Artifact
    from lens_train.data.captioned import OnImage, Tokenize
    from lens_train.data.images import ImageSource
    from lens_train.data.pictures import Pictures
    from lens_train.parallel.world import World
    from lens_train.watch.config import ValidationConfig


__all__ = ["TrainingSet", "open_training_set"]


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """What is trained on.

    Args:
        manifest: the samples.
        source: their images.
        left_out: images without a caption, and such as cannot be decoded if that is known.
        undecodable: the keys of these, where the manifest was written.
        held_out: what is not trained on but validated with, if anything is.
    """

    manifest: Manifest
    source: ImageSource
    left_out: int = 0
    undecodable: Sequence[str] = ()
    held_out: TrainingSet | None = None


def open_training_set(
    folder: Path,
    pictures: Pictures,
    captions: Artifact,
    *,
    layers: list[str] | None = None,
    memory_bytes: float,
    tokenize: Tokenize,
    on_image: OnImage,
    world: World,
    validation: ValidationConfig | None = None,
    seed: int = 0,
) -> TrainingSet:
    """Open the manifest of a stage, or build it first.

    Args:
        folder: where the manifest lies, or will.
        pictures: the images.
        captions: of them.
        layers: of captions; None means all.
        memory_bytes: decoded images are kept if they fit into this.
        tokenize: counts the captions' tokens.
        on_image: called with (images done, images in all) while they are decoded, or else written down; none are done
            while captions are read.
        world: rank 0 builds, and the others wait for it.
        validation: what is held out.
        seed: the run's, for the lot of who that is.

    Raises:
        LensError: nothing has a caption, nothing can be decoded, or nothing is left to train on.
    """
    apart = folder.with_name(f"{folder.name}-held-out")
    in_all = len(pictures)
    kept: MemoryImages | None = None
    undecodable: list[str] = []

    def build() -> None:
        nonlocal kept, undecodable
        if folder.exists():
            return
        found = find_captioned(pictures, captions, layers, folder.parent, on_part=partial(on_image, 0, in_all))
        if pictures.latents is None and found.decoded_bytes <= memory_bytes:
            kept = MemoryImages.decode(found.stored(pictures), on_image)
            undecodable = found.drop(kept)
        held_N = held_out(found.words_N, validation, seed) if validation else None
        found.write(folder, apart, held_N, tokenize, on_image=on_image if kept is None else None)

    world.after_main("the manifest", build)
    manifests = [Manifest(place) for place in ([folder, apart] if validation else [folder])]
    if kept is None and pictures.latents is None and sum(map(_decoded_bytes, manifests)) <= memory_bytes:
        kept = MemoryImages.decode([one for manifest in manifests for one in _stored(manifest, pictures)], on_image)
    world.meet("the images in memory")
    trained, *held = [TrainingSet(manifest=one, source=_source(one, pictures, kept)) for one in manifests]
    left_out = in_all - sum(map(len, manifests))
    return replace(trained, left_out=left_out, undecodable=undecodable, held_out=held[0] if held else None)


def _stored(manifest: Manifest, pictures: Pictures) -> list[Stored]:
    urls = pictures.urls(manifest.shards)
    columns = [manifest.samples[name].tolist() for name in ("shard", "offset", "size", "height", "width")]
    return [
        Stored(manifest.key(number), urls[shard], *place)
        for number, (shard, *place) in enumerate(zip(*columns, strict=True))
    ]


def _source(manifest: Manifest, pictures: Pictures, kept: MemoryImages | None) -> ImageSource:
    urls = pictures.urls(manifest.shards)
    if pictures.latents:
        channels, dtype = pictures.latents
        return StoredLatents(manifest, urls, channels=channels, dtype=dtype)
    return kept.of(manifest) if kept else StoredImages(manifest, urls)


def _decoded_bytes(manifest: Manifest) -> int:
    return sum(height * width * 3 * count for height, width, count in manifest.sizes)
