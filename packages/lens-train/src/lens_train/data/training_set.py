"""From captions to what a plan is made over: a manifest of the samples, and a source of their images.

The manifest is written once, into the stage's private folder, and a run that goes on finds it there. Small sets are
decoded at the start and kept in memory; images that cannot be decoded are then left out before anything is planned. Of
larger sets that shows only while training, where such samples are passed over. Where latents were made beforehand,
their sizes and places stand in for those of the images. Images held out for validation have a manifest of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import torch

from lens_core.errors import ConfigError, LensError
from lens_core.storage.captions import read_texts
from lens_core.storage.latents import read_latents
from lens_core.storage.shards import ShardReader
from lens_train.data.hold_out import held_out
from lens_train.data.images import MemoryImages, StoredImages, StoredLatents
from lens_train.data.sizing import size_rule
from lens_train.planning.manifest import Manifest
from lens_train.planning.manifest_writer import ManifestWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from lens_core.storage.artifacts import Artifact
    from lens_train.data.config import ImageSize
    from lens_train.data.images import ImageSource
    from lens_train.parallel.world import World
    from lens_train.watch.config import ValidationConfig

    Tokenize = Callable[[Sequence[str]], list[list[int]]]

__all__ = ["TrainingSet", "captions_by_key", "latents_of", "open_training_set", "pictures_of"]

_TEXTS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """What is trained on.

    Args:
        manifest: the samples.
        source: their images.
        left_out: images without a caption, and such as cannot be decoded if that is known.
        held_out: what is not trained on but validated with, if anything is.
    """

    manifest: Manifest
    source: ImageSource
    left_out: int = 0
    held_out: TrainingSet | None = None


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Where an image, or its latents, lies; height and width are those that it is trained at."""

    key: str
    shard: str
    offset: int
    size: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The captioned images of a run.

    Args:
        stored: where each lies.
        urls: of the shards, by name.
        in_all: how many images there are, with or without captions.
        latents: if it is their tokens that are stored, the channels and the dtype of these.
    """

    stored: list[Stored]
    urls: dict[str, str]
    in_all: int
    latents: tuple[int, torch.dtype] | None = None


def captions_by_key(artifact: Artifact, layers: list[str] | None) -> dict[str, list[str]]:
    """The captions of each image, in the order of the layers; images without one are not in it.

    Raises:
        LensError: no image has a caption.
    """
    by_key: dict[str, list[str]] = {}
    for key, text in read_texts(artifact, layers=layers):
        by_key.setdefault(key, []).append(text)
    if not by_key:
        raise LensError(f"{artifact.url}: no image has a caption to train on")
    return by_key


def pictures_of(
    captions: Artifact, by_key: dict[str, list[str]], *, image_size: ImageSize | None, stride: int, seed: int
) -> Pictures:
    """The captioned images, found through the lineage of their captions.

    Args:
        captions: the artefact.
        by_key: what `captions_by_key` found in it.
        image_size: what images are scaled and cropped to; None keeps the size that all of them share.
        stride: the autoencoder's.
        seed: the run's.

    Raises:
        LensError: there are none, or their sizes do not fit the autoencoder.
    """
    images = captions.parent("images")
    reader = ShardReader(images)
    reader.close()
    c = reader.columns
    numbers = [number for number, key in enumerate(c["key"]) if key in by_key]
    if not numbers:
        raise LensError(f"{captions.url}: no image has a caption to train on")
    if image_size is None and len({(c["height"][number], c["width"][number]) for number in numbers}) > 1:
        raise LensError("the images have different sizes; say what to train on, for example image_size: 64")
    size_of = size_rule(image_size, stride=stride, seed=seed)
    targets = {number: size_of(c["height"][number], c["width"][number], c["key"][number]) for number in numbers}
    return Pictures(
        stored=[
            Stored(
                key=c["key"][number],
                shard=c["shard"][number],
                offset=c["offset"][number],
                size=c["size"][number],
                height=height,
                width=width,
            )
            for number, (height, width) in targets.items()
        ],
        urls={shard: images.url_of(shard) for shard in sorted(set(c["shard"]))},
        in_all=len(reader),
    )


def latents_of(latents: Artifact, by_key: dict[str, list[str]], *, autoencoder: str) -> Pictures:
    """The captioned images as the stage `encode` left them.

    Args:
        latents: its artefact.
        by_key: the captions.
        autoencoder: the identity of the one that the model shall have.

    Raises:
        ConfigError: they were made by another.
        LensError: none of them has a caption.
    """
    made_by = latents.stats.get("autoencoder")
    if made_by != autoencoder:
        raise ConfigError(
            f"the latents of {latents.name!r} were made by another autoencoder ({str(made_by)[:12]}) than this model "
            f"has ({autoencoder[:12]}): give both stages the same one",
            key="autoencoder",
        )
    rows = read_latents(latents)
    captioned = [row for row in rows if row.key in by_key]
    if not captioned:
        raise LensError(f"{latents.url}: none of the encoded images has a caption")
    return Pictures(
        stored=[
            Stored(key=r.key, shard=r.shard, offset=r.offset, size=r.size, height=r.height, width=r.width)
            for r in captioned
        ],
        urls={shard: latents.url_of(shard) for shard in sorted({row.shard for row in captioned})},
        in_all=len(rows),
        latents=(rows[0].channels, getattr(torch, rows[0].dtype)),
    )


def open_training_set(
    folder: Path,
    pictures: Pictures,
    by_key: dict[str, list[str]],
    *,
    memory_bytes: float,
    tokenize: Tokenize,
    on_image: Callable[[int, int], None],
    world: World,
    validation: ValidationConfig | None = None,
    seed: int = 0,
) -> TrainingSet:
    """Open the manifest of a stage, or build it first.

    Args:
        folder: where the manifest lies, or will.
        pictures: the images.
        by_key: their captions.
        memory_bytes: decoded images are kept if they fit into this.
        tokenize: counts the captions' tokens.
        on_image: called with (images done, images in all) while they are decoded.
        world: rank 0 builds, and the others wait for it.
        validation: what is held out.
        seed: the run's, for the lot of who that is.

    Raises:
        LensError: nothing can be decoded, or nothing is left to train on.
    """
    stored, shards = pictures.stored, list(pictures.urls)
    kept: MemoryImages | None = None
    if not pictures.latents and sum(one.height * one.width * 3 for one in stored) <= memory_bytes:
        kept = MemoryImages.decode(stored, pictures.urls, on_image)
        stored = [one for one in stored if kept.has(one.key)]
        if not stored:
            raise LensError("none of the captioned images can be decoded")
    apart = held_out([one.key for one in stored], validation, seed) if validation else set()
    parts = {folder: [one for one in stored if one.key not in apart]}
    if apart:
        parts[folder.with_name(f"{folder.name}-held-out")] = [one for one in stored if one.key in apart]
    for place, members in parts.items():
        if world.is_main and not place.exists():
            _write(place, members, shards, by_key, tokenize)
    world.barrier("the manifest")
    trained, *held = [_opened(Manifest(place), pictures, kept) for place in parts]
    left_out = pictures.in_all - sum(len(one.manifest) for one in (trained, *held))
    return replace(trained, left_out=left_out, held_out=held[0] if held else None)


def _opened(manifest: Manifest, pictures: Pictures, kept: MemoryImages | None) -> TrainingSet:
    urls = list(pictures.urls.values())
    source: ImageSource
    if pictures.latents:
        channels, dtype = pictures.latents
        source = StoredLatents(manifest, urls, channels=channels, dtype=dtype)
    else:
        source = kept.of(manifest) if kept else StoredImages(manifest, urls)
    return TrainingSet(manifest=manifest, source=source)


def _write(
    folder: Path, stored: Sequence[Stored], shards: Sequence[str], by_key: dict[str, list[str]], tokenize: Tokenize
) -> None:
    place = {name: number for number, name in enumerate(shards)}
    counts = _token_counts((text for one in stored for text in by_key[one.key]), tokenize)
    writer = ManifestWriter(folder)
    for one in stored:
        writer.add(
            key=one.key,
            shard=place[one.shard],
            offset=one.offset,
            size=one.size,
            height=one.height,
            width=one.width,
            captions=[(text, next(counts)) for text in by_key[one.key]],
        )
    writer.close(shards)


def _token_counts(texts: Iterator[str], tokenize: Tokenize) -> Iterator[int]:
    while some := list(islice(texts, _TEXTS_AT_ONCE)):
        yield from (len(ids) for ids in tokenize(some))
