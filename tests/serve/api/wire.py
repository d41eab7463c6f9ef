"""What clients send and read, byte by byte."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import httpx2


def pixels(b64: str) -> np.ndarray:
    """The pixels of an image in an answer."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))))


def file_of(array: np.ndarray, format: str = "PNG") -> bytes:
    """A file of pixels."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format)
    return stream.getvalue()


def events_of(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Server-sent events as the standard reads them: `event`, `id`, `data` (parsed); comments as {"comment": …}."""
    event: dict[str, Any] = {}
    for line in lines:
        if not line:
            if "data" in event:
                yield {**event, "data": json.loads(event["data"])}
            event = {}
        elif line.startswith(":"):
            yield {"comment": line[1:].strip()}
        else:
            name, _, value = line.partition(": ")
            assert name not in event, line
            event[name] = value
    assert not event, "the stream ended within an event"


def error_of(response: httpx2.Response, status: int) -> dict[str, Any]:
    """The error of an answer that has to look as OpenAI's do."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    (error,) = response.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"]
    assert error["message"]
    assert error["message"].endswith((".", "?"))
    return error
