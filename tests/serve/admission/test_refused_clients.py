"""Real clients of a real server that is too busy for them; what lets them in is a promise, and nothing else."""

from __future__ import annotations

import time

import openai
import pytest

from lens_serve.admission.keys import ANONYMOUS
from lens_serve.engine.messages import Draw
from serve.live import live_server, settings_for
from serve.models import GUIDANCE

ASKED = {"prompt": "a red circle", "size": "16x16", "lens": {"steps": 2}}


@pytest.fixture(scope="module")
def busy(tiny_folder):
    """Half a second of work may wait. As much and a little more has been let in, and never goes on to the engine.

    Whoever was promised a place has a minute to take it: this machine may be busy with other things.
    """
    with live_server(settings_for(tiny_folder, admission={"max_backlog_s": 0.5, "ticket_s": 60.0})) as live:
        common = {"height": 192, "width": 192, "guidance": GUIDANCE, "arrived": time.monotonic()}
        draw = Draw(id="x", model="tiny", prompt="", seed=0, steps=live.steps_for(0.7, side=192), **common)
        admitted = live.ask(lambda: live.server.admission.admit(ANONYMOUS, [draw]))
        yield live
        live.ask(admitted.release)


def post(client, **headers):
    return client.post("/v1/images/generations", json=ASKED, headers=headers)


def test_openais_client_comes_again_by_itself(busy):
    with busy.openai(max_retries=0) as client, pytest.raises(openai.RateLimitError) as caught:
        client.images.generate(prompt="a green circle", size="16x16")
    assert caught.value.code == "queue_full"
    with busy.openai(max_retries=1) as client:
        answer = client.images.generate(prompt="a red circle", size="16x16", extra_body={"lens": {"steps": 2}})
    assert answer.data[0].b64_json


def test_a_client_brings_its_ticket(busy):
    with busy.http() as client:
        refused = post(client)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        wait_ms, wait_s = int(refused.headers["retry-after-ms"]), int(refused.headers["retry-after"])
        assert 0 < wait_ms <= 1000 * wait_s < 61_000
        assert refused.headers["x-should-retry"] == "true"
        ticket = refused.headers["x-lens-ticket"]
        time.sleep(wait_ms / 1000)
        # First attempts, by their own word: only the ticket tells them apart.
        assert post(client, **{"x-stainless-retry-count": "0"}).status_code == 429
        first = {"x-stainless-retry-count": "0", "x-lens-ticket": ticket}
        assert post(client, **first).status_code == 200
        assert post(client, **first).status_code == 429
