"""The second port: who may read it, and that nothing is left of it."""

from __future__ import annotations

import asyncio
import socket

import httpx2
import pytest

from lens_core.errors import ConfigError
from lens_serve.config import ListenSettings
from lens_serve.engine.engines import EngineState
from lens_serve.engine.messages import Heartbeat
from lens_serve.watch.metrics import Metrics


class Engines:
    """Two engines, one of which was never ready."""

    def __init__(self):
        self.tick = 1

    @property
    def states(self):
        beat = Heartbeat(doing="idle", expected_s=0, tick=self.tick, running=1, waiting=2, tokens=70, tick_s=0.05)
        common = {"device": None, "restarts": 4, "jobs": 3, "backlog_s": 1.5, "cost_error": {"tiny": 0.1}}
        return [
            EngineState(index=0, pid=1, is_ready=True, heartbeat=beat, heartbeat_age_s=0.2, **common),
            EngineState(index=1, pid=None, is_ready=False, heartbeat=None, heartbeat_age_s=None, **common),
        ]


async def read(port, path="/metrics", **headers):
    async with httpx2.AsyncClient() as client:
        return await client.get(f"http://127.0.0.1:{port}{path}", headers=headers)


def test_it_answers_between_start_and_stop():
    async def go():
        engines = Engines()
        metrics = Metrics(engines)
        await metrics.start(ListenSettings(metrics_port=0))
        try:
            port = metrics.port
            answer = await read(port)
            assert answer.status_code == 200
            assert 'lens_engine_ready{engine="0"} 1.0' in answer.text
            assert 'lens_engine_ready{engine="1"} 0.0' in answer.text
            assert 'lens_tick_tokens{engine="0"} 70.0' in answer.text
            assert 'lens_engine_heartbeat_age_seconds{engine="1"}' not in answer.text
            assert (await read(port, host="example.org")).status_code == 421
            while "lens_tick_seconds_count 2.0" not in (await read(port)).text:
                engines.tick = 2
                await asyncio.sleep(0.01)
        finally:
            await metrics.stop()
        with pytest.raises(httpx2.ConnectError):
            await read(port)
        assert metrics.port is None

    asyncio.run(go())


def test_no_port_is_no_server():
    async def go():
        metrics = Metrics(Engines())
        await metrics.start(ListenSettings(metrics_port=None))
        assert metrics.port is None
        await metrics.stop()
        await metrics.stop()

    asyncio.run(go())


def test_a_port_that_is_taken_is_one_line():
    async def go(port):
        metrics = Metrics(Engines())
        with pytest.raises(ConfigError, match=r"listen\.metrics_port: cannot listen on .*: Address already in use; "):
            await metrics.start(ListenSettings(metrics_port=port))
        await metrics.stop()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        asyncio.run(go(taken.getsockname()[1]))
