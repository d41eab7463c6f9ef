"""Pictures side by side: a row a prompt, a column an arm."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from lens_train.ablation.figures.look import WIDTH, cut, png, style

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lens_train.ablation.measurements import Picture

__all__ = ["pictures_figure"]

_LINE = 0.15  # inches, of a line of text
_GAP = 0.06
_SIDE = 2.2  # of a picture, at most


def pictures_figure(pictures: Mapping[str, Sequence[Picture]], count: int) -> bytes | None:
    """The first prompts that all arms drew; None where there is none.

    Args:
        pictures: by arm.
        count: prompts at most.
    """
    drawn = {arm: {picture.prompt: picture.png for picture in reversed(found)} for arm, found in pictures.items()}
    first = next(iter(pictures.values()), [])
    prompts = list(dict.fromkeys(picture.prompt for picture in first))
    prompts = [prompt for prompt in prompts if all(prompt in known for known in drawn.values())][:count]
    if not prompts:
        return None
    side = min(_SIDE, (WIDTH - _GAP) / len(drawn) - _GAP)
    width = side * len(drawn) + _GAP * (len(drawn) + 1)
    told = [textwrap.wrap(prompt, round(15 * width), max_lines=3, placeholder=" …") for prompt in prompts]
    height = 1.5 * _LINE + sum(len(lines) * _LINE + side + 3 * _GAP for lines in told)
    with style():
        figure = Figure(figsize=(width, height), facecolor="white")
        left, top = [_GAP + number * (side + _GAP) for number in range(len(drawn))], height - 1.2 * _LINE
        for x, arm in zip(left, drawn, strict=True):
            figure.text(
                (x + side / 2) / width,
                top / height,
                cut(arm, round(12 * side)),
                ha="center",
                va="bottom",
                fontweight="bold",
            )
        for prompt, lines in zip(prompts, told, strict=True):
            top -= _GAP
            figure.text(_GAP / width, top / height, "\n".join(lines), va="top", fontsize=8)
            top -= len(lines) * _LINE + _GAP + side
            for x, known in zip(left, drawn.values(), strict=True):
                axes = figure.add_axes((x / width, top / height, side / width, side / height))
                axes.imshow(_pixels(known[prompt]), interpolation="auto")
                axes.axis("off")
            top -= _GAP
        return png(figure, palette=False)


def _pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))
