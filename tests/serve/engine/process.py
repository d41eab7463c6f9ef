"""An engine as the API process sees it, without asyncio: its socket, its memory and what it says."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from lens_serve.config import ServeSettings
from lens_serve.engine.messages import Draw, Drawn, Failed, FromEngine, Heartbeat, Preview, Progress, Ready, Release
from lens_serve.engine.wire import Channel, ChannelClosedError, Slots

TESTS = Path(__file__).parents[2]
PATIENCE_S = 120.0
"""How long anything may take on a machine that is busy with other things."""


def settings_of(*folders, loras=None, **engine):
    """A server's settings for models in these folders, called lens, lens-1, and so on."""
    names = ["lens", *(f"lens-{number}" for number in range(1, len(folders)))]
    models = [
        {"name": name, "folder": str(folder), "loras": loras or {}} for name, folder in zip(names, folders, strict=True)
    ]
    engine = {"device": "cpu", "threads": 1, "warm_up": False, **engine}
    return ServeSettings.model_validate({"models": models, "engine": engine})


def draw_of(id, *, model="lens", prompt="a red circle", height=16, width=16, seed=7, steps=3, guidance=3.0, **others):
    """A `Draw` with small defaults."""
    return Draw(
        id=id,
        model=model,
        prompt=prompt,
        height=height,
        width=width,
        seed=seed,
        steps=steps,
        guidance=guidance,
        **{"arrived": time.monotonic(), **others},
    )


@dataclass
class Told:
    """What an engine said of one job."""

    progress: list[int] = field(default_factory=list)
    previews: list[Preview] = field(default_factory=list)
    drawn: Drawn | None = None
    picture: Any = None
    failed: Failed | None = None

    @property
    def over(self):
        return self.drawn is not None or self.failed is not None


class Parent:
    """The API process's side of an engine: its end of the socket, and the memory."""

    def __init__(self, *, slots, slot_bytes):
        self.slots = Slots.create(slots, slot_bytes)
        ours, self.theirs = socket.socketpair()
        self.channel = Channel(ours, FromEngine)
        self.told: dict[str, Told] = {}
        self.said = []
        self.ready: Ready | None = None
        self.release = True

    @property
    def beats(self):
        return [message for message in self.said if isinstance(message, Heartbeat)]

    def send(self, *messages):
        for message in messages:
            if isinstance(message, Draw):
                self.told[message.id] = Told()
            self.channel.send(message)

    def hear(self, wait_s):
        """Take what has come; pictures are copied, and their slots released unless `release` is False."""
        for message in self.channel.receive(wait_s):
            self.said.append(message)
            if isinstance(message, Ready):
                self.ready = message
            elif not isinstance(message, Heartbeat):
                self._hear_of(self.told[message.id], message)

    def _hear_of(self, told, message):
        assert not told.over
        if isinstance(message, Progress):
            told.progress.append(message.step)
        elif isinstance(message, Preview):
            told.previews.append(message)
        elif isinstance(message, Failed):
            told.failed = message
        else:
            told.drawn = message
            told.picture = self.slots.read(message.slot, message.height, message.width)
            if self.release:
                self.channel.send(Release(slot=message.slot))

    def until(self, condition):
        """Hear until a condition holds.

        Raises:
            AssertionError: it takes too long.
        """
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, (self.told, self.beats[-3:])
            self.work()

    def work(self):
        """Let something happen."""
        self.hear(PATIENCE_S)

    def drawn(self, *draws):
        """Send jobs and wait until all are over."""
        self.send(*draws)
        self.until(lambda: all(self.told[draw.id].over for draw in draws))
        return [self.told[draw.id] for draw in draws]


class EngineProcess(Parent):
    """Starts an engine; a context manager that leaves no process behind."""

    def __init__(self, settings, *, module="lens_serve.engine", slots=4, slot_bytes=64 * 64 * 3, env=None):
        super().__init__(slots=slots, slot_bytes=slot_bytes)
        command = [sys.executable, "-m", module, "--index", "0"]
        command += ["--socket-fd", str(self.theirs.fileno()), "--memory-fd", str(self.slots.fd)]
        command += ["--slots", str(slots), "--slot-bytes", str(slot_bytes)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[self.theirs.fileno(), self.slots.fd],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS), **(env or {})},
        )
        self.theirs.close()
        text = settings if isinstance(settings, str) else settings.model_dump_json()
        self.process.stdin.write(text.encode())
        self.process.stdin.close()
        self.process.stdin = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        self.slots.close()

    def work(self):
        try:
            super().work()
        except ChannelClosedError as error:
            raise AssertionError(self.process.stderr.read().decode()) from error

    def until_ready(self):
        self.until(lambda: self.ready)
        return self.ready

    def ended(self):
        """Wait until the process ends; its exit code and what it said."""
        _, said = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, said.decode()


def children():
    """The processes that this one has started, whatever for: servers that several tests share are among them."""
    return set(psutil.Process().children(recursive=True))
