"""The first pictures of each skill on one sheet, a row a skill, framed green where right and red where wrong."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lens_core.images import fit

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Sheet"]

_COLUMNS = 8
_FRAME = 3
_SMALL, _SIDE = 128, 256
_RIGHT, _WRONG = (40, 160, 80), (210, 50, 50)


class Sheet:
    """Takes pictures as they come, and keeps what it shows.

    Args:
        skills: the rows.
    """

    def __init__(self, skills: Sequence[str]):
        self._rows: dict[str, list[np.ndarray]] = {skill: [] for skill in skills}

    def add(self, image_HW3: np.ndarray, given: Sequence[tuple[str, bool]]) -> None:
        """Show a picture in the row of every skill that it was judged by, right if all its verdicts there are."""
        for skill in dict.fromkeys(skill for skill, _ in given):
            if len(self._rows[skill]) < _COLUMNS:
                right = all(verdict for other, verdict in given if other == skill)
                self._rows[skill].append(_framed(_sized(image_HW3), _RIGHT if right else _WRONG))

    def png(self) -> bytes:
        """The sheet, white where a skill has no more pictures; skills without any are left out."""
        rows = [cells for cells in self._rows.values() if cells]
        height, width = (max(cell.shape[axis] for cells in rows for cell in cells) for axis in (0, 1))
        sheet = np.full((len(rows) * height, _COLUMNS * width, 3), 255, dtype=np.uint8)
        for row, cells in enumerate(rows):
            for column, cell in enumerate(cells):
                top, left = row * height, column * width
                sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
        stream = io.BytesIO()
        Image.fromarray(sheet).save(stream, "PNG")
        return stream.getvalue()


def _sized(image_HW3: np.ndarray) -> np.ndarray:
    """Twice as large if small, so that pixels show, and scaled down if large."""
    height, width = image_HW3.shape[:2]
    if max(height, width) <= _SMALL:
        return image_HW3.repeat(2, axis=0).repeat(2, axis=1)
    scale = _SIDE / max(height, width)
    return fit(image_HW3, max(1, round(height * scale)), max(1, round(width * scale)))


def _framed(image_HW3: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    height, width = image_HW3.shape[:2]
    framed = np.empty((height + 2 * _FRAME, width + 2 * _FRAME, 3), dtype=np.uint8)
    framed[:] = np.array(colour, dtype=np.uint8)
    framed[_FRAME:-_FRAME, _FRAME:-_FRAME] = image_HW3
    return framed
