"""A pilot: a few images, drawn at random, captioned through the very captioner of the run."""

from __future__ import annotations

import time
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from lens_caption.captioners.openai.picture import sent_jpeg, sent_size
from lens_caption.profiles import Usage
from lens_caption.profiles.calibrate import Observation
from lens_caption.quote.estimate import Pilot
from lens_core.contracts import CaptionOutcome, ImageItem
from lens_core.errors import ImageError
from lens_core.images import header
from lens_core.storage.shards import image_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_caption.profiles import Profile
    from lens_core.contracts import ImageRecord
    from lens_core.registry import Registry

__all__ = ["run_pilot"]


def run_pilot(records: Sequence[ImageRecord], config: Any, registry: Registry, profile: Profile) -> Pilot:
    """Caption the records and measure. The captions are thrown away: a pilot is no part of the run.

    Args:
        records: what to caption.
        config: the captioner's config, as in the pipeline.
        registry: where the captioner comes from.
        profile: of the model; its price must be known before anything is bought.

    Raises:
        UnknownPriceError: nobody knows what the pilot would cost.
        LensError: the endpoint refuses everything.
    """
    price = profile.price("standard")
    items = [
        ImageItem(key=image_key(data), data=data, metadata=record.metadata)
        for record in records
        for data in (record.read(),)
    ]
    captioner = registry.build("captioners", config)
    started = time.monotonic()
    try:
        outcomes: list[CaptionOutcome] = captioner.caption(items)
    finally:
        captioner.close()
    seconds = time.monotonic() - started
    answers = []
    dollars = Decimal(0)
    for item, outcome in zip(items, outcomes, strict=True):
        facts = outcome.provenance
        if "input_tokens" in facts and "output_tokens" in facts:
            info = header(item.data)
            width, height = sent_size(info.width, info.height, config.max_side)
            used = Usage(input_tokens=int(facts["input_tokens"]), output_tokens=int(facts["output_tokens"]))
            answers.append(
                Observation(
                    width=width, height=height, input_tokens=used.input_tokens, output_tokens=used.output_tokens
                )
            )
            dollars += price.cost(used)
    return Pilot(
        answers=tuple(answers),
        statuses=Counter(outcome.status for outcome in outcomes),
        jpeg_bytes_per_pixel=_bytes_per_pixel(items, config),
        seconds=seconds,
        dollars=dollars,
    )


def _bytes_per_pixel(items: Sequence[ImageItem], config: Any) -> float:
    sizes, pixels = 0, 0
    for item in items:
        try:
            jpeg = sent_jpeg(item.data, max_side=config.max_side, quality=config.jpeg_quality)
        except ImageError:
            continue
        info = header(jpeg)
        sizes, pixels = sizes + len(jpeg), pixels + info.width * info.height
    return sizes / pixels if pixels else 0.0
