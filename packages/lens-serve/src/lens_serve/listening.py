"""Sockets and servers of this process: whom they let in, and how they are bound and ended."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from typing import TYPE_CHECKING

import uvicorn

from lens_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lens_serve.config import ListenSettings

__all__ = ["Http", "is_loopback", "is_private", "listening"]

_DEAF_MS = 30_000
"""How long what was sent to a client may stay unacknowledged: else its connection lies in the kernel for minutes."""


class Http(uvicorn.Server):
    """uvicorn without its own handling of signals: it would close the door before anybody inside has finished."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to whoever runs the server."""
        yield


def listening(host: str, port: int, *, key: str, advice: str) -> socket.socket:
    """A socket that listens; port 0 takes any that is free.

    Args:
        host: a name or an address of this machine.
        port: which.
        key: the setting that says so, and
        advice: what else it may say, for the message.

    Raises:
        ConfigError: the port is taken, or the host is none of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ConfigError(f"cannot listen on {host}:{port}: {why}; {advice}", key=key) from error
    except UnicodeError as error:  # what Python says of "a..b", which it takes for a name in need of encoding
        raise ConfigError(f"cannot listen on {host}:{port}: {host!r} is no name of a host", key=key) from error
    # What it accepts inherits this. asyncio sets it only where a socket tells its protocol, which these do not; without
    # it, the body of an answer waits until the client has acknowledged the head, which takes up to 40 ms.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAF_MS)
    return bound


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host of that name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_private(listen: ListenSettings) -> bool:
    """Whether nobody is served but who is on this machine anyway: no keys, and no sign of a proxy."""
    return is_loopback(listen.host) and listen.keys is None and not listen.insecure and not listen.allowed_hosts
