"""Spans of OpenTelemetry, sent to a collector by OTLP over HTTP from a thread of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

__all__ = ["RequestSpan", "Spans"]


_PATIENCE_S = 2.0
"""With a collector that does not answer; the end of the server waits for no longer."""


class RequestSpan:
    """The span of a request; stages become its children, also after it has ended.

    Args:
        tracer: makes spans.
        root: the request's own.
    """

    def __init__(self, tracer: Tracer, root: Span):
        self._tracer, self._root = tracer, root
        self._context = set_span_in_context(root)

    def stage(self, name: str, began_ns: int, ended_ns: int, error: str | None = None) -> None:
        """Add a stage that is over."""
        one = self._tracer.start_span(name, context=self._context, start_time=began_ns)
        if error is not None:
            one.set_status(Status(StatusCode.ERROR, error))
        one.end(end_time=ended_ns)

    def end(self, name: str, attributes: Mapping[str, str | int | float]) -> None:
        """The request is over."""
        self._root.update_name(name)
        self._root.set_attributes(attributes)
        self._root.end()


class Spans:
    """Makes and sends spans.

    Args:
        endpoint: where to.
        exporter: another way out.
    """

    def __init__(self, endpoint: str | None, exporter: SpanExporter | None):
        resource = Resource.create({"service.name": "lens-serve"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint, timeout=_PATIENCE_S))
        )
        self._tracer = self._provider.get_tracer("lens_serve")

    def request(self, headers: Mapping[str, str]) -> RequestSpan:
        """Begin a request's span, in the trace that its headers name, if they do."""
        context = TraceContextTextMapPropagator().extract(headers)
        return RequestSpan(self._tracer, self._tracer.start_span("request", context=context, kind=SpanKind.SERVER))

    def close(self) -> None:
        """Send what is left; the thread ends."""
        self._provider.shutdown()
