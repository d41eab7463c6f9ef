"""A server of random weights in processes of its own, and what it takes of the machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families

from lens_core.config.prediction import PredictionConfig
from lens_core.diffusion import save_model_folder
from lens_core.diffusion.text_encoders.small.encoder import SmallTextEncoder
from lens_core.registry import load_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["OPEN_DOORS", "Running", "Usage", "nano_model", "serving"]

PATCH = 8
WAIT_S = 120.0

OPEN_DOORS = {"max_backlog_s": 1e6, "max_wait_factor": 1e6}
"""Nobody is refused: for measuring the order of work, and not who may come in."""


def nano_model(folder: Path) -> Path:
    """Save a model of the preset "nano" with random weights in a folder, and return that."""
    registry = load_registry()
    encoder_config = registry.parse("text_encoders", {"type": "small"})
    encoder = SmallTextEncoder.fit(encoder_config, ["a red kite over a green hill, in the evening"], seed=0)
    pixels = registry.parse("autoencoders", {"type": "pixels", "patch": PATCH})
    autoencoder = registry.build("autoencoders", pixels)
    config = registry.parse("models", {"type": "lens", "preset": "nano"})
    transformer = registry.build(
        "models",
        config,
        in_channels=autoencoder.channels,
        enc_hidden_dim=encoder_config.width,
        num_text_layers=1,
    )
    transformer.init_weights(0)
    save_model_folder(
        folder,
        transformer=transformer,
        model=config,
        text_encoder=encoder,
        autoencoder=autoencoder,
        sampler=registry.parse("samplers", {"type": "flow-euler", "steps": 20}),
        prediction=PredictionConfig(type="velocity"),
        image_size=(64, 64),
        guidance=3.0,
        guidance_rescale=True,
        parents=[],
        licence="",
    )
    return folder


@dataclass(frozen=True)
class Usage:
    """What a process holds."""

    fds: int
    threads: int
    rss_mb: float

    @classmethod
    def of(cls, process: psutil.Process) -> Usage:
        """Look at a process."""
        with process.oneshot():
            return cls(process.num_fds(), process.num_threads(), process.memory_info().rss / 2**20)


@dataclass(frozen=True)
class Running:
    """A server that is ready.

    Args:
        url: where it answers.
        metrics_url: where it tells of itself.
        api: the process that answers.
        engine: the process that computes.
        said: lines of its standard error.
    """

    url: str
    metrics_url: str
    api: psutil.Process
    engine: psutil.Process
    said: list[str]

    def usage(self) -> dict[str, Usage]:
        """Of both processes."""
        return {"api": Usage.of(self.api), "engine": Usage.of(self.engine)}

    async def metrics(self) -> dict[str, float]:
        """The values of all metrics, added up over their labels."""
        async with aiohttp.ClientSession() as session, session.get(self.metrics_url) as answer:
            text = await answer.text()
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
        return values

    async def working(self) -> float:
        """Pictures that anybody in the server still has, and requests that were let in."""
        told = await self.metrics()
        names = ("lens_engine_jobs", "lens_running_images", "lens_waiting_images", "lens_inside_requests")
        return sum(told[name] for name in names)

    async def idle(self) -> bool:
        """Wait until nothing is left of any request; False if that does not come."""
        end = time.monotonic() + WAIT_S
        while await self.working():
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.6)  # for two more signs of life
        return True


@contextlib.asynccontextmanager
async def serving(folder: Path, model: Path, **changes: Any) -> AsyncIterator[Running]:
    """Run `lens serve` in processes of its own until the end of the block.

    Args:
        folder: for its settings.
        model: a model folder.
        changes: of the settings; `engine` and `bounds` are added to those that are needed here.

    Raises:
        RuntimeError: it ends by itself.
    """
    metrics_port = _free_port()
    settings = {
        "models": [{"name": "nano", "folder": str(model.resolve())}],
        "listen": {"port": 0, "metrics_port": metrics_port, "drain_s": 1.0},
        **changes,
        # One core computes, the other is left to the server, to the clients and to what else there is.
        "engine": {"device": "cpu", "threads": 1, **changes.get("engine", {})},
        "bounds": {"min_side": 32, "max_side": 128, "max_pixels": 128**2, **changes.get("bounds", {})},
    }
    file = folder / f"serve-{metrics_port}.yaml"  # JSON is YAML
    file.write_text(json.dumps(settings), encoding="utf-8")
    lens = Path(sys.executable).with_name("lens")
    process = await asyncio.create_subprocess_exec(
        lens, "serve", "--config", file, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    said: list[str] = []
    reading = asyncio.create_task(_read(process, said))
    try:
        while not any(line == "lens: ready" for line in said):
            if process.returncode is not None:
                raise RuntimeError(f"lens serve ended by itself: {said[-5:]}")
            await asyncio.sleep(0.05)
        url = next(match[0] for line in said if (match := re.search(r"http://\S+", line)))
        api = psutil.Process(process.pid)
        (engine,) = api.children()
        yield Running(url, f"http://127.0.0.1:{metrics_port}/metrics", api, engine, said)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), WAIT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await reading


async def _read(process: asyncio.subprocess.Process, said: list[str]) -> None:
    assert process.stderr is not None
    while line := await process.stderr.readline():
        said.append(line.decode(errors="replace").rstrip())
        del said[:-1000]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
