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
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from lens_serve.admission.keys import Keyring
    from lens_serve.config import ListenSettings

__all__ = ["Doorkeeper", "ImagesKey", "OPEN_TO_ALL", "check_listen", "key_of"]

_SAFE = {"GET", "HEAD", "OPTIONS"}

OPEN_TO_ALL = re.compile(r"/|/static/[^/]*|/health/(live|ready)")
"""What needs no key: the page, and whether the server is there."""

_HEADERS = {
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
        ConfigError: the server would listen beyond this machine, and has no keys.
    """
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
        self._allowed = {name.lower() for name in listen.allowed_hosts}
        self._names = {"localhost", listen.host.lower()} | self._allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, as ASGI wants it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
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
        name = _hostname(host)
        if name is None or not (name in self._names or name.endswith(".localhost") or _is_address(name)):
            message = "This server does not go by that name; its operator can add it to listen.allowed_hosts."
            raise ApiError(421, message, code="unknown_host")
        origin = headers.get("origin")
        if scope["method"] not in _SAFE and origin is not None and not self._is_own(origin, host):
            raise ApiError(403, "Pages of other sites may not use this server.", code="cross_origin")
        if self._open_to_all is None or not self._open_to_all.fullmatch(scope["path"]):
            key = key_of(headers, self._keyring(scope), self._purpose)
            scope.setdefault("state", {}).update(key=key, key_id=key.id)

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether it is this server's page: named as in Host, or as it is allowed, if a proxy changed Host."""
        place = origin.lower().partition("://")[2]
        return place == host.lower() or _hostname(place) in self._allowed


def _hostname(host: str) -> str | None:
    """The name of a Host header, without its port; None if there is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
