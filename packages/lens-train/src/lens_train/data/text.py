"""Captions to features: tokenised once, and encoded once where the encoder is frozen and the features still at hand.

Suffixes: T tokens of all captions, E width.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lens_core.diffusion.ragged import offsets_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Captions"]

_TEXTS = 200_000
"""How many captions' ids are kept."""


class Captions:
    """Tokenises and encodes captions.

    Args:
        encoder: the text encoder; how prompts of similar length share a run is its own affair.
        cache_bytes: how much may be kept of a frozen encoder's features, on the encoder's device; the features used
            longest ago go first.
    """

    def __init__(self, encoder: Any, *, cache_bytes: int):
        self.encoder = encoder
        self.cache_bytes = cache_bytes
        self._ids: OrderedDict[str, list[int]] = OrderedDict()
        self._features: OrderedDict[str, list[Tensor]] = OrderedDict()
        self._held = 0
        self.encoded_tokens = 0
        """How many tokens went through the encoder so far."""

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        new = [text for text in dict.fromkeys(texts) if text not in self._ids]
        for text, ids in zip(new, self.encoder.tokenize(new) if new else [], strict=True):
            self._ids[text] = ids
        found = [self._ids[text] for text in texts]
        while len(self._ids) > _TEXTS:
            self._ids.popitem(last=False)
        return found

    def features(self, texts: Sequence[str], ids: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
        """One tensor [T, E] for each layer of the encoder, with gradient if the encoder is trained."""
        if self.encoder.trainable or not self.cache_bytes:
            return self._encode(ids, device)
        new = [n for n, text in enumerate(texts) if text not in self._features and texts.index(text) == n]
        fresh: dict[str, list[Tensor]] = {}
        if new:
            made = self._encode([ids[n] for n in new], device)
            pieces = zip(*(layer.split([len(ids[n]) for n in new]) for layer in made), strict=True)
            fresh = {texts[n]: list(piece) for n, piece in zip(new, pieces, strict=True)}
        found = [fresh.get(text) or self._known(text) for text in texts]
        for text, layers in fresh.items():
            self._keep(text, layers)
        return [torch.cat(layer) for layer in zip(*found, strict=True)]

    def _encode(self, ids: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
        flat_T = torch.tensor([token for one in ids for token in one], dtype=torch.long, device=device)
        self.encoded_tokens += len(flat_T)
        made: list[Tensor] = self.encoder(flat_T, offsets_of([len(one) for one in ids]))
        return made

    def _known(self, text: str) -> list[Tensor]:
        self._features.move_to_end(text)
        return self._features[text]

    def _keep(self, text: str, layers: list[Tensor]) -> None:
        # A piece of a larger tensor would keep all of that alive.
        own = [layer.clone() for layer in layers]
        self._features[text] = own
        self._held += sum(layer.nbytes for layer in own)
        while self._held > self.cache_bytes:
            _, oldest = self._features.popitem(last=False)
            self._held -= sum(layer.nbytes for layer in oldest)
