"""What the contract cannot know: that the captions are right."""

import hashlib
import io

import pytest
from PIL import Image

from lens_acme.captioner import Palette
from lens_acme.configs import PaletteConfig
from lens_core.contracts import ImageItem


def item(size, colour):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    data = stream.getvalue()
    return ImageItem(key=hashlib.sha256(data).hexdigest(), data=data)


@pytest.mark.parametrize(
    ("size", "colour", "text"),
    [
        ((40, 20), "red", "a wide picture in red"),
        ((20, 40), "white", "a tall picture in white"),
        ((30, 30), (40, 80, 200), "a square picture in blue"),
    ],
)
def test_shape_and_colour(size, colour, text):
    (outcome,) = Palette(PaletteConfig()).caption([item(size, colour)])
    assert outcome.text == text


def test_the_larger_colour_comes_first_and_the_limit_holds():
    image = Image.new("RGB", (40, 40), "white")
    image.paste((0, 0, 0), (0, 0, 40, 12))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    both, one = (
        Palette(PaletteConfig(colours=limit)).caption([ImageItem(key="0" * 64, data=stream.getvalue())])[0].text
        for limit in (2, 1)
    )
    assert both == "a square picture in white and black"
    assert one == "a square picture in white"
