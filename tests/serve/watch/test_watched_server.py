"""A server that draws, watched in all three ways."""

from __future__ import annotations

import io
import json
import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lens_serve.config import WatchSettings
from lens_serve.watch.logs import configure
from serve.live import live_server, settings_for, wait_until
from serve.watch.collector import collector

PROMPT = "a heron that nobody may hear of"
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def watched(tiny_folder):
    """What a server told while it drew two images, refused nonsense, and ended."""
    stream = io.StringIO()
    logger = logging.getLogger("lens_serve")
    before = logger.handlers[:], logger.level, logger.propagate
    configure(WatchSettings(), stream)
    try:
        with collector() as collected:
            listen = {"port": 0, "metrics_port": 0}
            settings = settings_for(tiny_folder, listen=listen, watch={"traces": collected.endpoint})
            with live_server(settings) as live, live.http() as client:
                metrics_url = f"http://127.0.0.1:{live.server.metrics.port}/metrics"
                for trace in ({"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}, {}):
                    body = {"prompt": PROMPT, "n": 1, "size": "16x16", "lens": {"steps": 2}}
                    assert client.post("/v1/images/generations", json=body, headers=trace).status_code == 200
                for index in range(20):
                    client.get(f"/secret/{index}")
                client.request("BREW", "/v1/models")
                client.post("/v1/images/generations", json={"prompt": PROMPT, "n": 99})
                live.server.admission.draining = True
                assert client.post("/v1/images/generations", json=body).status_code == 503
                assert client.get("/health/ready").json()["status"] == "draining"
                assert client.get("/health/ready").headers["retry-after"] == "2"
                live.server.admission.draining = False
                for untold in ("lens_tick_seconds_count 0.0", 'lens_cost_error{engine="0",model="tiny"} 0.0'):
                    wait_until(lambda untold=untold: untold not in client.get(metrics_url).text, "a tick")
                text = client.get(metrics_url).text
        yield text, [json.loads(line) for line in stream.getvalue().splitlines()], collected
    finally:
        logger.handlers[:], logger.level, logger.propagate = before[0], before[1], before[2]


@pytest.fixture(scope="module")
def metrics(watched):
    """Values by name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(watched[0])
        for sample in family.samples
    }


def test_requests_are_counted_by_route_and_status(metrics):
    def requests(route, status):
        return metrics.get(("lens_requests_total", ("route", route), ("status", status)))

    assert requests("/v1/images/generations", "200") == 2
    assert requests("/v1/images/generations", "400") == 1
    assert requests("/v1/images/generations", "503") == 1
    assert requests("other", "404") == 20
    assert metrics["lens_refusals_total", ("code", "draining")] == 1
    assert metrics["lens_request_seconds_count", ("route", "/v1/images/generations")] == 4


def test_images_and_their_stages_are_counted(metrics):
    assert metrics["lens_images_total", ("model", "tiny")] == 2
    for stage in ("encode", "denoise", "decode", "file"):
        assert metrics["lens_stage_seconds_count", ("stage", stage)] == 2
        assert metrics["lens_stage_seconds_sum", ("stage", stage)] > 0


def test_engines_and_the_queue_tell_how_they_are(metrics):
    engine = ("engine", "0")
    assert metrics["lens_engine_ready", engine] == 1
    assert metrics["lens_engine_restarts_total", engine] == 0
    assert metrics["lens_ticks_total", engine] >= 2
    assert metrics["lens_tick_tokens", engine] > 0
    assert metrics["lens_engine_memory_bytes", engine, ("kind", "resident")] > 1e6
    assert metrics["lens_cost_error", engine, ("model", "tiny")] > 0  # since no prediction is perfect
    assert metrics["lens_tick_seconds_count",] > 0
    assert metrics["lens_backlog_seconds",] == 0
    assert metrics["lens_inside_requests",] == 0
    assert metrics["process_resident_memory_bytes",] > 1e6


def test_metrics_tell_nothing_that_a_client_said(watched, metrics):
    assert PROMPT not in watched[0]
    assert "secret" not in watched[0]
    assert "BREW" not in watched[0]
    assert all(name[0].startswith(("lens_", "process_")) for name in metrics)


def test_the_log_has_a_line_for_each_request(watched):
    lines = [line for line in watched[1] if "route" in line]
    drawn, *_ = [line for line in lines if line["status"] == 200 and line["method"] == "POST"]
    assert drawn["key"] == "anonymous"
    assert (drawn["model"], drawn["size"], drawn["steps"], drawn["n"]) == ("tiny", "16x16", 2, 1)
    assert drawn["seconds"] > 0
    assert len(drawn["request"]) == 32
    assert len([line for line in lines if line["status"] == 404]) == 20
    assert all(PROMPT not in json.dumps(line) for line in watched[1])
    assert all("/secret" not in json.dumps(line) for line in watched[1])


def test_a_trace_has_a_span_for_each_stage(watched):
    spans = watched[2].spans
    root = next(span for span in spans if span.trace_id.hex() == TRACE and span.name == "POST /v1/images/generations")
    assert root.parent_span_id.hex() == "b7ad6b7169203331"  # the client's own span goes on
    children = [span for span in spans if span.parent_span_id == root.span_id]
    assert {"rewrite", "encode", "denoise", "decode", "file"} <= {span.name for span in children}
    for span in (root, *children):
        assert span.trace_id == root.trace_id
        assert span.end_time_unix_nano >= span.start_time_unix_nano
    denoise, decode = (next(span for span in children if span.name == name) for name in ("denoise", "decode"))
    assert denoise.end_time_unix_nano <= decode.start_time_unix_nano
    facts = {one.key: one.value for one in root.attributes}
    assert facts["status"].int_value == 200
    other = [span for span in spans if span.name == root.name and span.trace_id != root.trace_id]
    assert len(other) == 3
    assert all(PROMPT.encode() not in body for body in watched[2].bodies)
