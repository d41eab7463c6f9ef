"""How the figures look: ink on white (legible on a dark page, too), colours that the colour-blind can tell apart."""

from __future__ import annotations

import io
import math
import textwrap
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from matplotlib.axes import Axes

__all__ = [
    "INK",
    "LINE",
    "SOFT",
    "WIDTH",
    "colours_of",
    "compact",
    "from_zero",
    "name_ends",
    "new_figure",
    "plain",
    "png",
    "cut",
    "style",
    "subtitle",
]

WIDTH = 7.0
"""Inches. Pages show a figure about 700 pixels wide, so that 9 points become 12 pixels."""

INK, SOFT, LINE = "#24292f", "#5c656e", "#d9dee3"
# Okabe and Ito's (Color Universal Design), without the yellow, which is too light for lines.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#6b4e16", "#5c656e")
_DPI = 200


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, in their order; after eight they come again."""
    distinct = list(dict.fromkeys(names))
    return {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(distinct)}


@contextmanager
def style() -> Iterator[None]:
    """Within it, figures are made and saved; names of arms and skills are texts, and no formulas."""
    settings: Any = {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "axes.labelcolor": SOFT,
        "axes.titlecolor": INK,
        "axes.edgecolor": LINE,
        "text.color": INK,
        "text.parse_math": False,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "lines.solid_capstyle": "round",
    }
    with mpl.rc_context(settings):
        yield


def new_figure(height: float) -> Figure:
    """An empty figure, `height` inches high."""
    return Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")


def plain(axes: Axes, *, grid: Literal["x", "y"] = "y") -> None:
    """No box; light lines along one direction."""
    for side, spine in axes.spines.items():
        spine.set_visible(side == ("bottom" if grid == "y" else "left"))
    axes.tick_params(which="both", length=0)
    axes.grid(axis=grid, color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)


def from_zero(axes: Axes) -> None:
    """No shares below zero, which there is room for where all are near it."""
    axes.set_ylim(bottom=max(0, axes.get_ylim()[0]))


def name_ends(axes: Axes, ends: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> None:
    """Names beside the ends of curves, moved apart where they would overlap.

    Args:
        axes: finished but for the names.
        ends: by name, where its curve ends.
        colours: by name.
    """
    low, high = axes.get_ylim()
    gap, free = 0.075 * (high - low), -math.inf
    for name, (x, y) in sorted(ends.items(), key=lambda item: item[1][1]):
        free = max(y, free + gap)
        axes.annotate(
            cut(name, 14),
            (x, free),
            (4, 0),
            textcoords="offset points",
            color=colours[name],
            va="center",
            fontsize=8.5,
        )


def subtitle(axes: Axes, told: str) -> None:
    """Below the title, in as many lines as it takes beside the other panels of a row."""
    spec = axes.get_subplotspec()
    lines = textwrap.wrap(told, 126 // (spec.get_gridspec().ncols if spec else 1))
    axes.set_title(axes.get_title(loc="left") + "\n" * len(lines), loc="left", linespacing=1.25)
    axes.annotate(
        "\n".join(lines), (0, 1), (0, 6), "axes fraction", textcoords="offset points", fontsize=7.5, color=SOFT
    )


def png(figure: Figure, *, palette: bool = True) -> bytes:
    """The picture; the same figure gives the same bytes.

    Args:
        figure: to draw.
        palette: whether 256 colours are enough, as they are for charts: a third of the size, in a repository.
    """
    stream, small = io.BytesIO(), io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    if not palette:
        return stream.getvalue()
    Image.open(stream).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def cut(text: str, letters: int = 24) -> str:
    """A text that leaves room for the figure."""
    return text if len(text) <= letters else text[: letters - 1] + "…"


def compact(number: float) -> str:
    """A large number in few letters: 1.2M, 640k, 22T."""
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
