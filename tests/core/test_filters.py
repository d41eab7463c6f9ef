"""The built-in filters: what they keep, and the words in which they drop."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from pydantic import ValidationError

from lens_core.images import Candidate


@pytest.fixture
def check(lens_registry):
    def run(config, data):
        return lens_registry.build("filters", lens_registry.parse("filters", config)).check(Candidate("x", data)).reason

    return run


def encoded(width, height, format_="PNG", **options):
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).save(stream, format_, **options)
    return stream.getvalue()


def test_area_is_kept_from_the_bound_on(check):
    config = {"type": "min-area", "pixels": 600}
    assert check(config, encoded(30, 20)) is None
    assert check(config, encoded(600, 1)) is None
    assert check(config, encoded(13, 46)) == "13x46 is less than 600 pixels"


def test_area_is_the_papers_unless_said(check):
    assert check("min-area", encoded(384, 384)) is None
    assert check("min-area", encoded(384, 383)) == "384x383 is less than 147,456 pixels"


def test_area_needs_the_header_only(check):
    data = encoded(30, 20)
    assert check({"type": "min-area", "pixels": 600}, data[: data.index(b"IDAT") + 8]) is None


@pytest.mark.parametrize("pixels", [0, -1, "many"])
def test_an_area_that_makes_no_sense_is_refused(lens_registry, pixels):
    with pytest.raises(ValidationError):
        lens_registry.parse("filters", {"type": "min-area", "pixels": pixels})


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_decodable_keeps_whole_files_and_drops_cut_ones(check, format_):
    data = encoded(64, 48, format_)
    assert check("decodable", data) is None
    reason = check("decodable", data[: len(data) * 3 // 4])
    assert reason
    assert reason.splitlines() == [reason]
