"""The page: one HTML file that loads nothing, and trusts none of the texts it shows.

Captions, file names and what services say are somebody's words: the template escapes everything, and the content
security policy allows inlined pictures and this page's own style sheet (by its hash) and nothing else. There is no
script on the page at all.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2

from lens_caption.layers import StoredImages
from lens_caption.quality.gates import failures
from lens_caption.report.summary import GATES
from lens_core.errors import ImageError
from lens_core.images import decode, to_jpeg

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lens_caption.report.config import CaptionReportStageConfig
    from lens_caption.report.summary import LayerFacts
    from lens_core.storage.artifacts import Artifact

__all__ = ["render_page"]

_SHARDS_SHOWN = 25
_KINDS = {
    "worst": ("Most repetitive", "Captions with the largest share of phrases that occur in them before."),
    "failed": ("Without a caption", "Drawn at random from those that failed."),
    "shortest": ("Shortest", ""),
    "longest": ("Longest", ""),
    "random": ("At random", "Every caption had the same chance to stand here."),
}
_CHART = (720, 170)


def render_page(
    config: CaptionReportStageConfig, summary: dict[str, Any], layers: dict[str, LayerFacts], images: Artifact
) -> str:
    """The report as one HTML file.

    Args:
        config: title, and size of the pictures.
        summary: the numbers.
        layers: what was gathered, with the rows to show.
        images: where their pictures are.
    """
    style = (resources.files(__package__) / "templates" / "report.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lens_caption.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["share"] = _share
    environment.filters["dollars"] = _dollars
    galleries = {name: _gallery(facts) for name, facts in layers.items()}
    shown = {card["key"] for groups in galleries.values() for group in groups for card in group["cards"]}
    return environment.get_template("report.html.j2").render(
        title=config.title,
        style=style,
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        summary=summary,
        charts={name: _chart(numbers["words"]) for name, numbers in summary["layers"].items()},
        shards={name: _shards(numbers["shards"]) for name, numbers in summary["layers"].items()},
        galleries=galleries,
        pictures=_pictures(images, shown, config.thumbnail),
        images=images,
    )


def _gallery(facts: LayerFacts) -> list[dict[str, Any]]:
    groups = []
    for kind, (title, about) in _KINDS.items():
        samples = facts.best[kind].ranked()
        cards = [
            {
                "key": sample.key,
                "text": sample.text,
                "status": sample.status,
                "detail": sample.detail,
                "note": sample.note,
                "gates": [reason for _, reason in failures(sample.text, GATES)] if sample.text else [],
                "model": sample.provenance.get("served_model") or sample.provenance.get("captioner") or "",
            }
            for sample in samples
        ]
        if cards:
            groups.append({"kind": kind, "title": title, "about": about, "cards": cards})
    return groups


def _pictures(images: Artifact, keys: Iterable[str], side: int) -> dict[str, dict[str, Any]]:
    """By key: what the image is called, its size, and a thumbnail, or why there is none."""
    found: dict[str, dict[str, Any]] = {}
    with StoredImages(images) as stored:
        rows = stored.find(keys)
        # In the order in which they lie in the shards.
        for key, row in sorted(rows.items(), key=lambda item: (item[1]["shard"], item[1]["offset"])):
            facts = {"name": row["name"], "width": row["width"], "height": row["height"], "url": "", "reason": ""}
            try:
                picture = to_jpeg(decode(stored.read(row).data), max_side=side, quality=80)
                facts["url"] = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
            except ImageError as error:
                facts["reason"] = str(error)
            found[key] = facts
    return found


def _chart(lengths: dict[str, Any]) -> dict[str, Any] | None:
    """A histogram as rectangles in a box of 720 × 170, with three marks below."""
    if not lengths["captions"]:
        return None
    width, height = _CHART
    bins, step = lengths["bins"], width / len(lengths["bins"])
    top = max(bins)
    bars = [
        {
            "x": round(number * step, 2),
            "width": round(max(step - 1.5, 0.5), 2),
            "y": round(height - max(height * value / top, 1), 2),
            "height": round(max(height * value / top, 1), 2),
            "label": f"{_bin_label(lengths, number)} words: {value:,} captions",
        }
        for number, value in enumerate(bins)
        if value
    ]
    every = next(every for every in (1, 2, 5, 10, 20) if len(bins) / every <= 10)
    ticks = [
        {"x": round(number * step, 2), "label": f"{number * lengths['bin_width']:,}"}
        for number in range(0, len(bins), every)
    ]
    middle = min(lengths["p50"] / lengths["bin_width"] * step, width)
    return {"bars": bars, "ticks": ticks, "median": round(middle, 2), "width": width, "height": height}


def _bin_label(lengths: dict[str, Any], number: int) -> str:
    width = lengths["bin_width"]
    first, last = number * width, (number + 1) * width - 1
    if number == len(lengths["bins"]) - 1 and lengths["last_bin_is_open"]:
        return f"{first:,} and more"
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def _shards(shards: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The dearest shards in full, and how many more there are."""
    ranked = sorted(shards.items(), key=lambda item: (-float(item[1]["cost_usd"]), -item[1]["input_tokens"], item[0]))
    return {"rows": dict(ranked[:_SHARDS_SHOWN]), "more": max(0, len(ranked) - _SHARDS_SHOWN)}


def _share(part: int, whole: int) -> str:
    """Per cent with as many digits as tell something from nothing."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "<0.1 %"
    return f"{percent:.0f} %" if percent in {0, 100} or 10 <= percent <= 99 else f"{percent:.1f} %"


def _dollars(text: str) -> str:
    """Dollars with cents, and more digits for less than a cent."""
    amount = float(text)
    if amount and abs(amount) < 0.01:
        return f"${amount:.6f}".rstrip("0")
    return f"${amount:,.2f}"
