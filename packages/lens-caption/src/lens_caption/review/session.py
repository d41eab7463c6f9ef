"""What a review is about: some captions of a layer with their images, and what was decided of them so far."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal

from lens_caption.layers import StoredImages, caption_batches
from lens_caption.report.samples import Best, Sample, draw, repeated_share
from lens_caption.review.decisions import caption_sha256
from lens_core.errors import ConfigError, ImageError
from lens_core.images import decode, to_jpeg

if TYPE_CHECKING:
    from lens_caption.review.decisions import Action, Decision, DecisionLog
    from lens_core.storage.artifacts import Artifact

__all__ = ["MAX_TEXT", "Pick", "Session", "pick_samples"]

Pick = Literal["random", "repetitive", "shortest", "longest", "failed", "stored"]
MAX_TEXT = 20_000
_SHOWN_SIDE = 1400
_SHOWN_FACTS = ("served_model", "asked_model", "captioner", "prompt", "input_tokens", "output_tokens")


def pick_samples(captions: Artifact, layer: str, *, pick: Pick, count: int, seed: int) -> list[Sample]:
    """Which captions are reviewed, in which order; the same every time, so that a review can go on.

    Raises:
        ConfigError: there is nothing of that kind.
    """
    best = Best(count)
    passed = 0
    for batch in caption_batches(captions):
        for values in zip(*batch.values(), strict=True):
            row = dict(zip(batch, values, strict=True))
            if row["layer"] != layer or (row["status"] != "ok") != (pick == "failed"):
                continue
            passed += 1
            lot = draw(row["key"], seed)
            score = _score(pick, row, lot, passed)
            if best.wants(score, lot):
                best.add(score, lot, Sample.of(row, cut=False))
    if not passed:
        what = "failures" if pick == "failed" else "captions"
        raise ConfigError(f"{captions.url} has no {what} in the layer {layer!r} to review")
    return best.ranked()


def _score(pick: Pick, row: dict[str, Any], lot: int, number: int) -> float:
    if pick == "repetitive":
        return repeated_share(row["text"])
    if pick == "stored":
        return -number
    if pick in {"shortest", "longest"}:
        words: int = row["words"]
        return words if pick == "longest" else -words
    return lot


class Session:
    """The captions under review. Methods may be called from several threads.

    Args:
        samples: what is reviewed.
        layer: the layer.
        images: where the pictures are.
        log: where decisions go.
    """

    def __init__(self, samples: list[Sample], layer: str, images: Artifact, log: DecisionLog):
        self.layer = layer
        self.log = log
        self._samples = samples
        self._images = StoredImages(images)
        self._rows = self._images.find(sample.key for sample in samples)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._samples)

    def overview(self) -> dict[str, Any]:
        """The state of everything: what was decided of each caption, in order."""
        states = [self._decision(sample) for sample in self._samples]
        return {"layer": self.layer, "states": [state.action if state else "" for state in states]}

    def item(self, number: int) -> dict[str, Any]:
        """One caption; `IndexError` if there is no such number."""
        sample = self._sample(number)
        decision = self._decision(sample)
        row = self._rows.get(sample.key, {})
        return {
            "number": number,
            "key": sample.key,
            "name": row.get("name", ""),
            "size": f"{row['width']} × {row['height']}" if row else "",
            "text": sample.text,
            "status": sample.status,
            "detail": sample.detail,
            "facts": {name: str(sample.provenance[name]) for name in _SHOWN_FACTS if name in sample.provenance},
            "action": decision.action if decision else "",
            "edited": decision.text if decision else "",
        }

    def picture(self, number: int) -> bytes:
        """The image as a JPEG that browsers show.

        Raises:
            IndexError: there is no such number.
            ImageError: it cannot be decoded, or is not in the set.
        """
        row = self._rows.get(self._sample(number).key)
        if row is None:
            raise ImageError("the image is not in the set")
        with self._lock:
            data = self._images.read(row).data
        # Decoded and encoded here: the browser is never given a stranger's bytes, nor a format that it does not know.
        return to_jpeg(decode(data), max_side=_SHOWN_SIDE, quality=94)

    def decide(self, number: int, action: Action, text: str) -> None:
        """Keep what was decided; `IndexError` if there is no such number."""
        sample = self._sample(number)
        self.log.decide(key=sample.key, layer=self.layer, action=action, text=text, seen=sample.text)

    def _decision(self, sample: Sample) -> Decision | None:
        """What was decided of the caption, if it still reads as it did then."""
        found = self.log.decisions.get((sample.key, self.layer))
        return found if found and found.caption_sha256 == caption_sha256(sample.text) else None

    def _sample(self, number: int) -> Sample:
        if not 0 <= number < len(self._samples):
            raise IndexError(number)
        return self._samples[number]
