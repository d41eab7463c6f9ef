"""What the server fails at is counted and logged, also where the status of the answer does not tell."""

from __future__ import annotations

import logging
import shutil

import pytest
from prometheus_client import generate_latest

from serve.live import live_server, settings_for, wait_until

PROMPT = "a heron that nobody may hear of"


@pytest.mark.parametrize("how", ["an answer", "a stream", "a job", "a job that nobody asks for"])
def test_a_failure_is_told_once_however_it_is_answered(tiny_folder, tmp_path, caplog, how):
    store = tmp_path / "store"
    with (
        caplog.at_level(logging.INFO, "lens_serve"),
        live_server(settings_for(tiny_folder, output={"store": str(store)})) as live,
        live.http() as client,
    ):
        shutil.rmtree(store)
        store.write_text("in the way")
        body = {"prompt": PROMPT, "stream": how == "a stream"}
        answer = client.post("/v1/images/jobs" if "job" in how else "/v1/images/generations", json=body)
        if how == "a job":
            assert "storage_failed" in client.get(answer.json()["urls"]["events"]).text
        wait_until(lambda: live.count("lens_failures_total", code="storage_failed"), "the failure")
        wait_until(lambda: live.rests, "its end")
        assert live.count("lens_failures_total", code="storage_failed") == 1
    facts = [getattr(record, "facts", {}) for record in caplog.records]
    (asked,) = [one for one in facts if one.get("method") == "POST"]
    (told,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert told.startswith(f"order {asked['order']} failed: The image was drawn, but could not be stored. ")
    assert str(tmp_path) in told
    assert PROMPT not in caplog.text


def test_what_the_server_declines_is_no_failure(tiny_folder, caplog):
    safety = [{"type": "block-list", "words": ["heron"]}]
    with live_server(settings_for(tiny_folder, safety=safety)) as live, live.http() as client:
        assert client.post("/v1/images/generations", json={"prompt": PROMPT}).status_code == 403
        assert b"lens_failures_total{" not in generate_latest(live.server.metrics.registry)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
