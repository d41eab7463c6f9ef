"""All gates over caption layers: new rows with a status and reasons; the old layers stay as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lens_caption.quality.config import LANGUAGES
from lens_caption.quality.gates import countable_sentences, failures
from lens_caption.quality.looks import look_of
from lens_caption.quality.repeats import Repeats, digest_of
from lens_caption.quality.text import normal
from lens_core.config.base import config_hash
from lens_core.errors import ConfigError, ImageError
from lens_core.images import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from lens_caption.quality.config import GatesConfig, RepeatedCaptionGate
    from lens_caption.quality.looks import Look
    from lens_core.storage.captions import CaptionRow

__all__ = ["Check", "Finding", "flagged"]

_EXCERPT = 160
_MAX_LOOKS = 64


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A caption that fails a gate, or a sentence of which the judge says that it is wrong."""

    key: str
    layer: str
    gate: str
    action: str
    reason: str
    excerpt: str


class Check:
    """Puts every caption through the gates, in two passes over the rows: what captions share shows only in the first.

        for row, findings in Check(lambda: caption_rows(artifact), gates, scratch):
            ...    # one for each row that was read, in order; a rejected one has no text

    Args:
        rows: reads them from the beginning; rows without a caption pass through unchanged.
        gates: which gates, with their thresholds.
        scratch: an empty local folder.
        layers: only these are checked, the others pass through unchanged; None means all.
        languages: of single layers, where they are not those of the language gate.
        image_of: the bytes of an image by its key, for captions that repeat; None leaves that gate out.

    Raises:
        ConfigError: the language that a layer was asked for in is not known to the language gate.
    """

    def __init__(
        self,
        rows: Callable[[], Iterable[CaptionRow]],
        gates: GatesConfig,
        scratch: Path,
        *,
        layers: Sequence[str] | None = None,
        languages: Mapping[str, Sequence[str]] | None = None,
        image_of: Callable[[str], bytes] | None = None,
    ):
        self._rows, self._gates, self._scratch = rows, gates, scratch
        self._layers, self._languages, self._image_of = layers, languages or {}, image_of
        self._sentences: dict[tuple[str, int], int] = {}
        self._wordings: dict[tuple[str, int], str] = {}
        self._captions: dict[tuple[str, int], int] = {}

    def __iter__(self) -> Iterator[tuple[CaptionRow, list[Finding]]]:
        self._look_for_repeats()
        digest = config_hash(self._gates)[:16]
        for row in self._rows():
            if not self._is_checked(row):
                yield row, []
                continue
            found = [*failures(row.text, _in_language(self._gates, row, self._languages)), *self._repeats_in(row)]
            yield _checked(row, found, self._gates, digest), [self._finding(row, *failure) for failure in found]

    @property
    def shared(self) -> dict[str, dict[str, int]]:
        """Once all rows have been read: sentences by layer, and how many images share each, the most shared first."""
        shared: dict[str, dict[str, int]] = {}
        for (layer, digest), number in sorted(self._sentences.items(), key=lambda item: -item[1]):
            shared.setdefault(layer, {})[self._wordings[layer, digest]] = number
        return shared

    def _is_checked(self, row: CaptionRow) -> bool:
        return row.status == "ok" and (self._layers is None or row.layer in self._layers)

    def _look_for_repeats(self) -> None:
        repeats = Repeats(self._scratch / "repeats.sqlite", self._gates)
        try:
            for row in self._rows():
                if self._is_checked(row):
                    repeats.add(row.key, row.layer, row.text)
            self._sentences = repeats.shared_sentences()
            if self._image_of:
                for layer, digest, keys in repeats.repeated_captions():
                    number = _differing(keys, self._image_of, self._gates.repeated_caption)
                    if number:
                        self._captions[layer, digest] = number
        finally:
            repeats.close()

    def _repeats_in(self, row: CaptionRow) -> Iterator[tuple[str, str]]:
        if self._sentences:
            for wording, sentence in countable_sentences(row.text, self._gates.shared_sentence).items():
                place = row.layer, digest_of(wording)
                if number := self._sentences.get(place):
                    shown = _excerpt(self._wordings.setdefault(place, sentence), 80)
                    yield "shared_sentence", f"{number} captions say {shown!r}"
        if self._captions and (number := self._captions.get((row.layer, digest_of(normal(row.text))))):
            yield "repeated_caption", f"{number} images have this caption, and they look different"

    def _finding(self, row: CaptionRow, gate: str, reason: str) -> Finding:
        action = getattr(self._gates, gate).action
        excerpt = _excerpt(row.text, _EXCERPT)
        return Finding(key=row.key, layer=row.layer, gate=gate, action=action, reason=reason, excerpt=excerpt)


def _differing(keys: Iterator[str], image_of: Callable[[str], bytes], gate: RepeatedCaptionGate) -> int:
    """How many images have one caption, if some of them look different; else 0.

    Which of them the caption belongs to, if any, nobody can tell: all of them fail.
    """
    first: Look | None = None
    number, differ = 0, False
    for number, key in enumerate(keys, start=1):
        if differ or number > _MAX_LOOKS:
            continue
        try:
            look = look_of(decode(image_of(key)))
        except ImageError:
            continue  # it has a caption, so that it could be decoded once: not what is asked here
        first = first or look
        differ = first.differs(look, min_bits=gate.min_bits)
    return number if differ else 0


def _in_language(gates: GatesConfig, row: CaptionRow, languages: Mapping[str, Sequence[str]]) -> GatesConfig:
    """The gates with the language that a row's layer was asked for in."""
    asked = row.provenance.get("asked_language")
    wanted = languages.get(row.layer) or (None if asked is None else [str(asked)])
    if wanted is None or tuple(wanted) == gates.language.languages:
        return gates
    if gates.language.detector == "words" and set(wanted) - set(LANGUAGES):
        raise ConfigError(
            f"the language gate's detector 'words' does not know {sorted(set(wanted) - set(LANGUAGES))[0]!r}, the "
            f"language of the layer {row.layer!r}; take 'py3langid', or turn the gate off",
            key="gates.language",
        )
    language = gates.language.model_copy(update={"languages": tuple(wanted)})
    return gates.model_copy(update={"language": language})


def flagged(provenance: Mapping[str, Any], flags: Iterable[str]) -> dict[str, Any]:
    """A provenance with more among its `flags`, each of which stands there once."""
    before = str(provenance.get("flags", "")).split(",")
    joined = ",".join(flag for flag in dict.fromkeys([*before, *flags]) if flag)
    return {**provenance, "flags": joined} if joined else dict(provenance)


def _checked(row: CaptionRow, found: list[tuple[str, str]], gates: GatesConfig, digest: str) -> CaptionRow:
    rejecting = [(gate, reason) for gate, reason in found if getattr(gates, gate).action == "reject"]
    flags = [gate for gate, _ in found if getattr(gates, gate).action == "flag"]
    provenance = flagged({**row.provenance, "gates": digest}, flags)
    if not rejecting:
        return replace(row, provenance=provenance)
    gate, reason = rejecting[0]
    status = "refusal" if gate == "refusal" else "rejected"
    return replace(row, text="", status=status, detail=f"{gate}: {reason}", provenance=provenance)


def _excerpt(text: str, size: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= size else text[: size - 1] + "…"
