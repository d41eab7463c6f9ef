"""The process of an engine: `python -m lens_serve.engine`, started by `lens_serve.engine.client` and nobody else.

    stdin           JSON: `models` and `engine` of a `ServeSettings`; and `costs` and `knee_tokens`, by model, as an
                    engine before this one has reported them: they are not measured again
    --socket-fd     one end of a socket pair, for frames (see `messages`)
    --memory-fd     memory of `--slots` times `--slot-bytes` bytes, for pictures (see `wire.Slots`)
    --index         which of the replicas it is: each takes a GPU of its own

It says `Ready` first, when its models are loaded and their costs known; until then it says nothing. It ends when the
other end of the socket is closed, at once, even amid a call: nobody would want the result.

Exit codes: 0 nobody is left to work for; 2 a mistake in the settings or in a model, which another start
would not cure, told in one line on stderr; 1 anything else: a lost device, or a traceback.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from pydantic import BaseModel, ValidationError

from lens_core.config.base import first_mistake
from lens_core.diffusion.device import pick_device
from lens_core.errors import LensError
from lens_core.registry import load_registry
from lens_serve.config import EngineSettings, ServedModel  # noqa: TC001 (pydantic reads annotations at run time)
from lens_serve.engine import calibration
from lens_serve.engine.cost import CostModel
from lens_serve.engine.loaded import EngineModel
from lens_serve.engine.loop import Engine
from lens_serve.engine.messages import Costs, Ready, ToEngine
from lens_serve.engine.wire import Channel, ChannelClosedError, Slots

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


class _Settings(BaseModel):
    """What an engine is told before it starts."""

    models: list[ServedModel]
    engine: EngineSettings
    costs: dict[str, Any] = {}
    knee_tokens: dict[str, int] = {}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the process; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m lens_serve.engine", description="Started by lens serve.")
    for name in ("socket-fd", "memory-fd", "slots", "slot-bytes", "index"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args(arguments)
    for wanted in (signal.SIGINT, signal.SIGTERM):  # of a terminal or service manager: the API process decides when
        signal.signal(wanted, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    end = socket.socket(fileno=options.socket_fd)
    slots = Slots(options.memory_fd, options.slots, options.slot_bytes)
    threading.Thread(target=_end_with, args=[end], daemon=True).start()
    try:
        settings = _Settings.model_validate_json(sys.stdin.buffer.read())
        engine = _start(settings, Channel(end, ToEngine), slots, options.index)
    except ChannelClosedError:
        return 0
    except ValidationError as error:
        key, message = first_mistake(error)
        return _told(f"settings: {key}: {message}", 2)
    except LensError as error:
        return _told(str(error), 2)
    try:
        engine.run()
    except ChannelClosedError:
        return 0
    except LensError as error:
        return _told(str(error), 1)


def _start(settings: _Settings, channel: Channel, slots: Slots, index: int) -> Engine:
    """Load the models, measure those whose costs nobody knows, and say so."""
    device = _device(settings.engine, index)
    registry = load_registry()
    models = {served.name: EngineModel.load(served, registry, device) for served in settings.models}
    measure = calibration.measured if settings.engine.warm_up else calibration.assumed
    costs, knees = msgspec.convert(settings.costs, dict[str, Costs]), dict(settings.knee_tokens)
    for name, model in models.items():
        if name not in costs:
            costs[name], knee = measure(model.loaded)
            knees[name] = settings.engine.knee_tokens or knee
        elif settings.engine.warm_up:
            calibration.warm_up(model.loaded)
    channel.send(
        Ready(
            device=str(device),
            models=[model.info for model in models.values()],
            costs=costs,
            knee_tokens=knees,
        )
    )
    return Engine(
        channel, slots, models, {name: CostModel(known) for name, known in costs.items()}, knees, settings.engine
    )


def _device(settings: EngineSettings, index: int) -> torch.device:
    device = pick_device(settings.device)
    if device.type == "cuda":
        device = torch.device("cuda", index % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if device.type == "cpu":
        torch.set_num_threads(settings.threads or max(1, (os.cpu_count() or 1) // settings.replicas))
    return device


def _end_with(end: socket.socket) -> None:
    """End this process when the other end of the socket is closed; no call of a model is waited for."""
    poll = select.poll()
    poll.register(end, 0)  # hanging up is always told
    poll.poll()
    os._exit(0)


def _told(message: str, code: int) -> int:
    sys.stderr.write(f"{message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
