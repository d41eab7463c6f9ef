"""Traces of requests, and of the stages that they go through.

Without an endpoint nothing is loaded and nothing happens. A context variable names the request that the code works for,
so that whoever works for it can add to it: also tasks that it started.
"""

from __future__ import annotations

import contextlib
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING

from lens_core.errors import MissingExtraError
from lens_core.specs import pip_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.sdk.trace.export import SpanExporter

    from lens_serve.watch.spans import RequestSpan, Spans

__all__ = ["Traces", "span", "stages"]

_current: ContextVar[RequestSpan | None] = ContextVar("lens_serve_request_span", default=None)


class Traces:
    """Where traces go.

    Args:
        endpoint: of a collector, such as http://localhost:4318/v1/traces; None: nowhere.
        exporter: another way out than OTLP.

    Raises:
        MissingExtraError: there is an endpoint, and the libraries are not installed.
    """

    def __init__(self, endpoint: str | None, *, exporter: SpanExporter | None = None):
        self._spans: Spans | None = None
        if endpoint is None and exporter is None:
            return
        try:
            from lens_serve.watch.spans import Spans  # noqa: PLC0415 (its libraries are an extra)
        except ImportError:
            message = f"watch.traces needs OpenTelemetry, which is not installed: {pip_line('lens-serve[otel]')}"
            raise MissingExtraError(message) from None
        self._spans = Spans(endpoint, exporter)

    @contextlib.contextmanager
    def request(self, headers: Mapping[str, str]) -> Iterator[dict[str, str | int | float]]:
        """A request, until the end of the block. A trace that its client began goes on.

        Args:
            headers: of the request.

        Yields:
            The attributes of its span, to be filled; "name" is the span's.
        """
        attributes: dict[str, str | int | float] = {"name": "request"}
        if self._spans is None:
            yield attributes
            return
        one = self._spans.request(headers)
        token = _current.set(one)
        try:
            yield attributes
        finally:
            _current.reset(token)
            one.end(str(attributes.pop("name")), attributes)

    def close(self) -> None:
        """Send what is left."""
        if self._spans is not None:
            self._spans.close()


@contextlib.contextmanager
def span(name: str) -> Iterator[None]:
    """A stage of the request that this code works for, until the end of the block; nothing without a request."""
    request = _current.get()
    if request is None:
        yield
        return
    began, error = time.time_ns(), None
    try:
        yield
    except BaseException as exception:
        error = type(exception).__name__  # what it says may hold a prompt
        raise
    finally:
        request.stage(name, began, time.time_ns(), error)


def stages(seconds: Mapping[str, float]) -> None:
    """Stages that are over, one after the other until now, of which only the seconds are known."""
    request = _current.get()
    if request is None:
        return
    at = time.time_ns() - round(1e9 * sum(seconds.values()))
    for name, spent in seconds.items():
        request.stage(name, at, at := at + round(1e9 * spent))
