"""Addresses of endpoints."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from lens_core.config.endpoints import OPENAI_URL, EndpointUrl, is_openai

ENDPOINT = TypeAdapter(EndpointUrl)


@pytest.mark.parametrize(
    ("url", "own"),
    [
        (OPENAI_URL, True),
        ("https://API.openai.com/v1/", True),
        ("https://api.openai.com:443/v1/eu", True),
        ("http://localhost:8000/v1", False),
        ("https://api.openai.com.example.org/v1", False),
        ("https://example.org/api.openai.com/v1", False),
    ],
)
def test_openai_is_told_by_its_host(url, own):
    assert ENDPOINT.validate_python(url) == url.rstrip("/")
    assert is_openai(url) == own


@pytest.mark.parametrize("url", ["ftp://example.org/v1", "localhost:8000/v1", "", "https://me:hush@example.org/v1"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValidationError, match=r"starts with http|must not carry credentials"):
        ENDPOINT.validate_python(url)
