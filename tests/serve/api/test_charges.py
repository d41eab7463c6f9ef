"""What a day's allowance is charged: what was drawn, and nothing that the server failed to draw."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import openai
import pytest

from lens_serve.admission.keys import ANONYMOUS
from lens_serve.engine.engines import Engines
from serve.live import live_server, settings_for, wait_until

URL = "/v1/images/generations"


@pytest.fixture(scope="module")
def live(tiny_folder):
    """A server of engines that do what prompts say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        command = (sys.executable, "-m", "serve.faulty_engine")
        patch.setattr("lens_serve.server.Engines", partial(Engines, command=command))
        with live_server(settings_for(tiny_folder, engine={"warm_up": False})) as live:
            yield live


def charged_s(live, prompt, status):
    """Seconds that a request cost."""
    account = live.server.admission._quotas._account(ANONYMOUS)
    before = account.seconds
    with live.http() as client:
        assert client.post(URL, json={"prompt": prompt}).status_code == status
    wait_until(lambda: live.server.admission.inside == 0, "the end of the request")
    assert account.held_seconds == pytest.approx(0.0, abs=1e-9)
    return account.seconds - before


def test_what_was_drawn_is_charged(live):
    assert charged_s(live, "a circle", 200) > 0


@pytest.mark.parametrize("fault", ["NaN", "poison"])
def test_nobody_pays_for_what_the_server_failed_to_draw(live, fault):
    """NaN are found when all steps are taken."""
    assert charged_s(live, f"{fault} on the first day", 500) == 0


def test_what_ends_engines_is_not_sent_again(live):
    """By OpenAI's clients, of their own accord: each time would end two more."""
    restarts = live.states[0].restarts
    with live.openai(max_retries=2) as client, pytest.raises(openai.InternalServerError, match="lost twice") as caught:
        client.images.generate(prompt="die")
    assert caught.value.code == "engine_lost"
    wait_until(lambda: live.server.engines.is_ready, "a new engine")
    assert live.states[0].restarts == restarts + 2


def test_a_refused_picture_was_drawn_all_the_same(live, monkeypatch):
    from lens_serve.safety.gate import Unsafe

    async def refuse(_):
        raise Unsafe("not this", "image")

    monkeypatch.setattr(live.server.gate, "check_image", refuse)
    assert charged_s(live, "a square", 403) > 0
