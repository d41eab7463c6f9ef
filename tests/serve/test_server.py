"""The server as a whole: it starts, and whatever happens nothing is left when it has stopped."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from lens_core.errors import ConfigError
from lens_core.registry import load_registry
from lens_serve.api.app import create_app
from lens_serve.server import Server
from serve.live import settings_for


def test_a_start_that_fails_leaves_nothing(tiny_folder):
    async def run():
        app = create_app(server)
        async with app.router.lifespan_context(app):
            pytest.fail("it started")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = {"port": 0, "metrics_port": taken.getsockname()[1]}
        server = Server.build(settings_for(tiny_folder, listen=listen), load_registry())
        before = set(threading.enumerate())
        with pytest.raises(ConfigError, match="cannot listen"):
            asyncio.run(run())
    assert not set(threading.enumerate()) - before
    assert not [state for state in server.engines.states if state.pid]


def test_settings_that_cannot_be_met_are_told_before_anything_runs(tiny_folder, tmp_path):
    missing = {"port": 0, "metrics_port": None, "keys": str(tmp_path / "none.json")}
    with pytest.raises(ConfigError, match="lens serve keys add"):
        Server.build(settings_for(tiny_folder, listen=missing), load_registry())
