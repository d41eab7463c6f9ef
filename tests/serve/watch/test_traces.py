"""Spans without a server: when there are none, what an error tells, and a collector that is not there."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from lens_serve.watch.traces import Traces, span, stages


def test_without_an_endpoint_nothing_is_loaded():
    code = """
import sys
from lens_serve.watch.traces import Traces, span, stages
traces = Traces(None)
with traces.request({}) as facts, span("rewrite"):
    stages({"denoise": 1.0})
    facts["status"] = 200
traces.close()
assert not any(name.startswith("opentelemetry") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_a_request_there_is_no_span():
    exporter = InMemorySpanExporter()
    traces = Traces(None, exporter=exporter)
    with span("rewrite"):
        stages({"denoise": 1.0})
    with traces.request({}):
        pass
    traces.close()
    assert [one.name for one in exporter.get_finished_spans()] == ["request"]


def test_an_error_tells_its_kind_and_not_its_words():
    exporter = InMemorySpanExporter()
    traces = Traces(None, exporter=exporter)
    with pytest.raises(ValueError, match="secret"), traces.request({}), span("rewrite"):
        raise ValueError("a secret prompt")
    traces.close()
    rewrite, _ = exporter.get_finished_spans()
    assert rewrite.status.status_code is StatusCode.ERROR
    assert rewrite.status.description == "ValueError"
    assert "secret" not in rewrite.to_json()


def test_stages_end_now_and_follow_each_other():
    exporter = InMemorySpanExporter()
    traces = Traces(None, exporter=exporter)
    with traces.request({}) as facts:
        stages({"encode": 0.25, "denoise": 2.0, "decode": 0.5})
        facts.update(name="POST /x", status=200)
    traces.close()
    *parts, root = exporter.get_finished_spans()
    assert root.name == "POST /x"
    assert dict(root.attributes) == {"status": 200}
    assert [one.name for one in parts] == ["encode", "denoise", "decode"]
    assert [one.end_time - one.start_time for one in parts] == [250_000_000, 2_000_000_000, 500_000_000]
    assert [one.start_time for one in parts[1:]] == [one.end_time for one in parts[:-1]]
    assert parts[-1].end_time <= root.end_time


def test_headers_that_name_no_trace_begin_one():
    exporter = InMemorySpanExporter()
    traces = Traces(None, exporter=exporter)
    for headers in ({}, {"traceparent": "nonsense"}, {"traceparent": "00-" + 32 * "0" + "-" + 16 * "0" + "-01"}):
        with traces.request(headers):
            pass
    traces.close()
    spans = exporter.get_finished_spans()
    assert len({one.context.trace_id for one in spans}) == 3
    assert all(one.parent is None for one in spans)


def test_a_collector_that_is_not_there_stops_nobody(caplog):
    traces = Traces("http://127.0.0.1:9/v1/traces")
    with traces.request({}), span("rewrite"):
        pass
    traces.close()
    assert not [thread for thread in threading.enumerate() if "Span" in thread.name or "Otel" in thread.name]
