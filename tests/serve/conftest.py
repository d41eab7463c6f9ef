"""A tiny model and a server of it, shared by all tests that leave it as they found it."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    from serve.models import tiny_model

    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def live(tiny_folder):
    """A server without keys that is never busy for long."""
    from serve.live import live_server, settings_for

    with live_server(settings_for(tiny_folder)) as server:
        yield server


@pytest.fixture(scope="session")
def slow(tiny_folder):
    """A server that lets requests take long; whatever a test begins there it has to give up again."""
    from serve.live import SLOW_BOUNDS, live_server, settings_for

    settings = settings_for(tiny_folder, bounds={**SLOW_BOUNDS, "max_streams": 3})
    with live_server(settings, send_buffer=4096) as server:
        yield server
