"""Who asks, and by what name and from where they reach the server.

Three things keep strangers out: API keys; the Host header, since a page may make its own name lead to this machine (DNS
rebinding); and the Origin header, since a page of another site may send forms in its visitor's name.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.datastructures import Headers, MutableHeaders

from lens_core.errors import ConfigError
from lens_serve.admission.keys import ANONYMOUS, Key, KeyRefusedError
from lens_serve.api.errors import ApiError, answer
from lens_serve.listening import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from lens_serve.admission.keys import Keyring
    from lens_serve.config import ListenSettings

__all__ = ["HEADERS", "Doorkeeper", "ImagesKey", "OPEN_TO_ALL", "check_listen", "key_of"]

_SAFE = {"GET", "HEAD", "OPTIONS"}
_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"[a-z0-9._:-]+")

OPEN_TO_ALL = re.compile(r"/|/static/[^/]*|/health/(live|ready)")
"""What needs no key: the page, and whether the server is there."""

HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""On every answer that does not say otherwise, as the page does."""


def check_listen(listen: ListenSettings) -> None:
    """Refuse to let anybody in from outside without keys.

    Raises:
        ConfigError: the server would listen beyond this machine, and has no keys; or it cannot have such a name.
    """
    _named(listen.allowed_hosts)
    if is_loopback(listen.host) or listen.keys is not None or listen.insecure:
        return
    raise ConfigError(
        f"{listen.host} can be reached from other machines, and there are no API keys: make one with `lens serve keys"
        " add NAME` and start with --keys lens-keys.json, or say --insecure if whoever reaches it may use it",
        key="listen.host",
    )


def key_of(headers: Headers, keyring: Keyring | None, scope: str) -> Key:
    """The key that a request comes with.

    Args:
        headers: of the request.
        keyring: None where nobody needs a key.
        scope: what the key has to be for.

    Raises:
        ApiError: 401 without a good key, 403 with one that is for something else.
    """
    if keyring is None:
        return ANONYMOUS
    scheme, _, text = headers.get("authorization", "").partition(" ")
    try:
        if scheme.lower() != "bearer" or not text.strip():
            raise KeyRefusedError("There is no API key; send it as `Authorization: Bearer lens-…`.")
        key = keyring.find(text.strip())
    except KeyRefusedError as error:
        headers_back = {"www-authenticate": "Bearer"}
        raise ApiError(401, str(error), code="invalid_api_key", headers=headers_back) from None
    if not key.may(scope):
        raise ApiError(403, f"This API key is not for '{scope}'.", code="insufficient_scope")
    return key


async def _let_in(request: Request) -> Key:
    key: Key = request.state.key
    return key


ImagesKey = Annotated[Key, Depends(_let_in)]
"""The key that the door keeper let a request in by."""


class Doorkeeper:
    """Lets in what reaches this server by one of its names, was not sent by another site's page, and has a key.

    Names are: any address, since nobody can make a page's name an address; localhost; what the server listens on; and
    those that the settings allow. Whoever is not let in has no body read and no route looked up.

    Args:
        app: what is inside.
        listen: where the server listens, and its further names.
        keyring: finds the keys, or None where nobody needs one; by default those of the application's server.
        purpose: what a key has to be for.
        open_to_all: paths that need none; None: there are no such.
    """

    def __init__(
        self,
        app: ASGIApp,
        listen: ListenSettings,
        *,
        keyring: Callable[[Scope], Keyring | None] = lambda scope: scope["app"].state.server.keyring,
        purpose: str = "images",
        open_to_all: re.Pattern[str] | None = OPEN_TO_ALL,
    ):
        self._app, self._keyring, self._purpose = app, keyring, purpose
        self._open_to_all = open_to_all
        self._allowed = _named(listen.allowed_hosts)
        self._names = {"localhost", listen.host.lower()} | {name for name, _ in self._allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, as ASGI wants it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope, Headers(scope=scope))
        except ApiError as error:
            await answer(error)(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        place = _place(host)
        if place is None or not self._is_named(place[0]):
            message = "This server does not go by that name; its operator can add it to listen.allowed_hosts."
            raise ApiError(421, message, code="unknown_host")
        origin, scheme = headers.get("origin"), scope.get("scheme", "http")
        if scope["method"] not in _SAFE and origin is not None and not self._is_own(origin, host, scheme):
            raise ApiError(403, "Pages of other sites may not use this server.", code="cross_origin")
        if self._open_to_all is None or not self._open_to_all.fullmatch(scope["path"]):
            key = key_of(headers, self._keyring(scope), self._purpose)
            scope.setdefault("state", {}).update(key=key, key_id=key.id)

    def _is_named(self, name: str) -> bool:
        return name in self._names or name.endswith(".localhost") or _is_address(name)

    def _is_own(self, origin: str, host: str, scheme: str) -> bool:
        """Whether it is this server's page: scheme, name and port are those of the request, or are allowed.

        A proxy may have changed Host, or not have told that it does TLS; so for names that are allowed, only the port
        has to be right, and a page over http is no good where the server was asked over https.
        """
        page_scheme, _, rest = origin.lower().partition("://")
        place = _place(rest)
        if place is None or page_scheme not in _PORTS:
            return False
        name, port = place[0], place[1] or _PORTS[page_scheme]
        asked = _place(host)
        if asked is not None and (page_scheme, name, port) == (scheme, asked[0], asked[1] or _PORTS.get(scheme)):
            return True
        if (page_scheme, scheme) == ("http", "https"):
            return False
        return (name, port) in {(allowed, special or _PORTS[page_scheme]) for allowed, special in self._allowed}


def _named(allowed_hosts: Sequence[str]) -> list[tuple[str, int | None]]:
    """The names and ports of `listen.allowed_hosts`.

    Raises:
        ConfigError: one is none.
    """
    places = []
    for said in allowed_hosts:
        place = _place(said)
        if place is None:
            raise ConfigError(
                f"{said!r} is no name of a server: say one like images.example.org or images.example.org:8443",
                key="listen.allowed_hosts",
            )
        places.append(place)
    return places


def _place(host: str) -> tuple[str, int | None] | None:
    """Name and port of a Host header, or of what is written like one; None if it is none."""
    try:
        parts = urlsplit(f"//{host}")
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not name or parts.netloc != host or "@" in host or not _NAME.fullmatch(name):
        return None
    return name, port


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
