"""Sheets: a row for each skill that has pictures, framed by the verdict, of a size that can be looked at."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from lens_train.evaluation.sheet import Sheet

GREEN, RED, WHITE = (40, 160, 80), (210, 50, 50), (255, 255, 255)


def pixels(sheet):
    return np.asarray(Image.open(io.BytesIO(sheet.png())))


def colours(image, height, width):
    """The frame's colour of each cell."""
    rows, columns = image.shape[0] // height, image.shape[1] // width
    return [[tuple(image[r * height, c * width].tolist()) for c in range(columns)] for r in range(rows)]


def test_a_picture_stands_in_the_row_of_each_of_its_skills():
    sheet = Sheet(["a", "b", "never"])
    picture = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
    sheet.add(picture, [("a", True), ("b", True), ("b", False)])
    sheet.add(picture, [("b", True)])
    image = pixels(sheet)
    assert image.shape == (2 * 18, 8 * 16, 3)
    assert colours(image, 18, 16) == [[GREEN, *[WHITE] * 7], [RED, GREEN, *[WHITE] * 6]]
    assert np.array_equal(image[3:15:2, 3:13:2], picture)


def test_eight_pictures_a_row():
    sheet = Sheet(["a"])
    for number in range(12):
        sheet.add(np.zeros((4, 4, 3), np.uint8), [("a", number % 2 == 0)])
    assert colours(pixels(sheet), 14, 14) == [[GREEN, RED] * 4]


def test_large_pictures_are_scaled_down():
    sheet = Sheet(["a"])
    sheet.add(np.full((600, 1200, 3), 9, np.uint8), [("a", True)])
    sheet.add(np.full((1200, 600, 3), 9, np.uint8), [("a", True)])
    image = pixels(sheet)
    assert image.shape == (262, 8 * 262, 3)
    assert (image[3:131, 3:259] == 9).all()
    assert (image[3:259, 265:393] == 9).all()
