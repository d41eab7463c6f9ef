"""Addresses of services that speak OpenAI's API."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from lens_core.config.base import Url

__all__ = ["OPENAI_URL", "EndpointUrl", "is_openai"]

OPENAI_URL = "https://api.openai.com/v1"


def _of_http(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("an endpoint starts with http:// or https://")
    return url.rstrip("/")


EndpointUrl = Annotated[Url, AfterValidator(_of_http)]
"""The address up to and with /v1; without a slash at its end, and without credentials."""


def is_openai(url: str) -> bool:
    """Whether an endpoint is OpenAI's own, which is strict where others are lenient."""
    return urlsplit(url).hostname == urlsplit(OPENAI_URL).hostname
