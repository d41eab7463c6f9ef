"""All gates over a caption layer: new rows with a status and reasons; the old layer stays as it is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lens_caption.quality.config import LANGUAGES
from lens_caption.quality.gates import failures, shared_sentences
from lens_caption.quality.looks import look_of
from lens_caption.quality.text import normal
from lens_core.config.base import config_hash
from lens_core.errors import ConfigError, ImageError
from lens_core.images import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lens_caption.quality.config import GatesConfig, RepeatedCaptionGate
    from lens_core.storage.captions import CaptionRow

__all__ = ["Checked", "Finding", "check_rows", "repeated_captions"]

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


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What became of a layer.

    Args:
        rows: one for each row that was given, in order; a rejected one has no text.
        findings: every failure, of rejected and flagged captions.
        shared: sentences that many images share, by layer, with the number of images.
    """

    rows: list[CaptionRow]
    findings: list[Finding]
    shared: dict[str, dict[str, int]] = field(default_factory=dict)


def check_rows(
    rows: Sequence[CaptionRow],
    gates: GatesConfig,
    *,
    layers: Sequence[str] | None = None,
    languages: Mapping[str, Sequence[str]] | None = None,
    image_of: Callable[[str], bytes] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Checked:
    """Put every caption through the gates.

    Args:
        rows: of one or several layers; those without a caption pass through unchanged.
        gates: which gates, with their thresholds.
        layers: only these are checked, the others pass through unchanged; None means all.
        languages: of single layers, where they are not those of the language gate.
        image_of: the bytes of an image by its key, for captions that repeat; None leaves that gate out.
        progress: told now and then how many rows are done.

    Raises:
        ConfigError: the language that a layer was asked for in is not known to the language gate.
    """
    languages = languages or {}
    findings: list[list[tuple[str, str]]] = []
    for number, row in enumerate(rows):
        wanted = row.status == "ok" and (layers is None or row.layer in layers)
        findings.append(failures(row.text, _in_language(gates, row, languages)) if wanted else [])
        if number % 1000 == 999:
            progress(number + 1)
    shared: dict[str, dict[str, int]] = {}
    numbers: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        if row.status == "ok" and (layers is None or row.layer in layers):
            numbers.setdefault(row.layer, []).append(number)
    for layer, places in numbers.items():
        texts = [rows[number].text for number in places]
        if gates.shared_sentence.action != "skip":
            found = shared_sentences(texts, gates.shared_sentence)
            shared[layer] = {sentence: len(members) for sentence, members in found.items()}
            for sentence, members in found.items():
                for member in members:
                    reason = f"{len(members)} captions say {_excerpt(sentence, 80)!r}"
                    findings[places[member]].append(("shared_sentence", reason))
        if gates.repeated_caption.action != "skip" and image_of:
            keys = [rows[number].key for number in places]
            for member, reason in repeated_captions(keys, texts, image_of, gates.repeated_caption).items():
                findings[places[member]].append(("repeated_caption", reason))
    progress(len(rows))
    digest = config_hash(gates)[:16]
    checked = [
        _checked(row, found, gates, digest) if layers is None or row.layer in layers else row
        for row, found in zip(rows, findings, strict=True)
    ]
    return Checked(
        rows=checked,
        findings=[
            Finding(
                key=row.key,
                layer=row.layer,
                gate=gate,
                action=getattr(gates, gate).action,
                reason=reason,
                excerpt=_excerpt(row.text, _EXCERPT),
            )
            for row, found in zip(rows, findings, strict=True)
            for gate, reason in found
        ],
        shared=shared,
    )


def repeated_captions(
    keys: Sequence[str], texts: Sequence[str], image_of: Callable[[str], bytes], gate: RepeatedCaptionGate
) -> dict[int, str]:
    """Captions that are given to images which look different, by number; only images whose captions repeat are opened.

    Which of the images the caption belongs to, if any, nobody can tell: all of them fail.
    """
    groups: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        wording = normal(text)
        if wording.count(" ") + 1 >= gate.min_words:
            groups.setdefault(wording, []).append(number)
    found = {}
    for members in groups.values():
        if len({keys[number] for number in members}) < 2:
            continue
        looks = []
        for number in members[:_MAX_LOOKS]:
            try:
                looks.append(look_of(decode(image_of(keys[number]))))
            except ImageError:
                continue  # it has a caption, so that it could be decoded once: not what is asked here
        if any(looks[0].differs(other, min_bits=gate.min_bits) for other in looks[1:]):
            for number in members:
                found[number] = f"{len(members)} images have this caption, and they look different"
    return found


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


def _checked(row: CaptionRow, found: list[tuple[str, str]], gates: GatesConfig, digest: str) -> CaptionRow:
    if row.status != "ok":
        return row
    provenance: dict[str, Any] = {**row.provenance, "gates": digest}
    rejecting = [(gate, reason) for gate, reason in found if getattr(gates, gate).action == "reject"]
    flags = list(dict.fromkeys(gate for gate, _ in found if getattr(gates, gate).action == "flag"))
    if flags:
        provenance["flags"] = ",".join(flags)
    if not rejecting:
        return replace(row, provenance=provenance)
    gate, reason = rejecting[0]
    status = "refusal" if gate == "refusal" else "rejected"
    return replace(row, text="", status=status, detail=f"{gate}: {reason}", provenance=provenance)


def _excerpt(text: str, size: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= size else text[: size - 1] + "…"
