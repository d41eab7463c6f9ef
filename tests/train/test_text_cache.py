"""Features of captions that are kept are those that the encoder makes, in whatever packs they come."""

from __future__ import annotations

import pytest
import torch

from lens_core.diffusion.text_encoders.small.encoder import SmallTextEncoder
from lens_train.data.text import Captions
from lens_train.methods.adapters import freeze

TEXTS = ["a red circle", "", "two blue squares", "a dog"]
PACKS = [[0, 1], [1, 2, 2], [2, 0], [3, 3], [3, 0, 1]]
DEVICE = torch.device("cpu")


@pytest.fixture
def encoder(lens_registry):
    encoder = SmallTextEncoder.fit(lens_registry.parse("text_encoders", "small"), TEXTS, seed=3)
    freeze(encoder)
    return encoder


@pytest.mark.parametrize("room_for", [1, 2, 4])
def test_features_are_the_same_with_a_cache_and_without(encoder, room_for):
    plain = Captions(encoder, cache_bytes=0)
    largest = max(plain.features([text], plain.ids([text]), DEVICE)[0].nbytes for text in TEXTS)
    plain, kept = (Captions(encoder, cache_bytes=room) for room in (0, room_for * largest))
    for pack in PACKS:
        texts = [TEXTS[number] for number in pack]
        found, expected = (one.features(texts, one.ids(texts), DEVICE) for one in (kept, plain))
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other)
    once = sum(len(ids) for ids in plain.ids(TEXTS))
    assert plain.encoded_tokens > kept.encoded_tokens >= once
    assert room_for < 4 or kept.encoded_tokens == once
