"""HTTP to one endpoint. It tells a request that never left from one that may have been billed; it tries nothing twice.

Nothing follows a redirect, because that would carry the key along.
"""

from __future__ import annotations

import base64
import json
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from lens_core.errors import LensError, StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lens_caption.engine.request import Endpoint

__all__ = ["LONG", "Client", "LostError", "NotSentError", "Reply"]

LONG = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=300)
"""For what may take long: a file on its way, or a batch that is made."""

_MAX_ANSWER_BYTES = 16 << 20
_CHUNK = 1 << 20


class NotSentError(Exception):
    """No connection was made: the server knows of nothing."""


class LostError(Exception):
    """The request left, and no whole answer came: it may have been carried out, and billed."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back; `json` is None if it was none."""

    status: int
    headers: Mapping[str, str]
    json: Any


class Client:
    """Requests to one endpoint, over connections that are kept.

    Args:
        endpoint: where to, with its headers.

    Raises:
        LensError: the environment names a proxy by something else than an address.
    """

    def __init__(self, endpoint: Endpoint):
        self._endpoint = endpoint
        self._route = _route(endpoint)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        timeout = aiohttp.ClientTimeout(total=self._endpoint.timeout_s, sock_connect=min(30, self._endpoint.timeout_s))
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=15)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session:
            await self._session.close()

    async def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None, **options: Any) -> Reply:
        """Send JSON.

        Raises:
            NotSentError: it never left.
            LostError: it left, and no whole answer came.
        """
        headers = {"Content-Type": "application/json", **(headers or {})}
        return await self._request("POST", path, data=body, headers=headers, **options)

    async def get(self, path: str, **query: str | int) -> Reply:
        """Ask for JSON; raises as `post` does."""
        return await self._request("GET", path, query=query)

    async def delete(self, path: str) -> Reply:
        """Remove something; raises as `post` does."""
        return await self._request("DELETE", path)

    async def upload(self, path: str, file: Path, fields: Mapping[str, str]) -> Reply:
        """Send a file as a form, read as it goes; raises as `post` does."""
        with file.open("rb") as stream:
            form = aiohttp.FormData()
            for name, value in fields.items():
                form.add_field(name, value)
            form.add_field("file", stream, filename=file.name, content_type="application/jsonl")
            return await self._request("POST", path, data=form, timeout=LONG)

    async def download(self, path: str, file: Path) -> Reply:
        """Write what a path holds to a file, as it comes; if it is refused, the file is left alone.

        Raises:
            LostError: not all of it came.
            StorageError: the disk is full, say.
        """
        session = self._open()
        try:
            async with session.get(self._endpoint.address(path), **self._options(), timeout=LONG) as response:
                if response.status != 200:
                    return await _reply(response)
                await _write(response, file)
                return Reply(status=200, headers=_lower(response.headers), json=None)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise LostError(_one_line(error)) from error

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Reply:
        session = self._open()
        url = self._endpoint.address(path)
        try:
            async with session.request(method, url, **self._options(query, headers), **options) as response:
                return await _reply(response)
        except _NOT_SENT as error:
            raise NotSentError(_one_line(error)) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise LostError(_one_line(error)) from error

    def _options(
        self, query: Mapping[str, str | int] | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        return {
            **self._route,
            "headers": {**self._route["headers"], **(headers or {})},
            "params": {**self._endpoint.query, **(query or {})},
            "allow_redirects": False,
        }

    def _open(self) -> aiohttp.ClientSession:
        assert self._session is not None, "use it in an `async with` block"
        return self._session


_NOT_SENT = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
    aiohttp.ClientHttpProxyError,  # the proxy let nothing through
)


def _route(endpoint: Endpoint) -> dict[str, Any]:
    """Headers and proxy of every request, as aiohttp takes them.

    `https_proxy` and the like count, as for every other program; aiohttp's own way of reading them would read passwords
    from ~/.netrc too. A session's headers go to the proxy as well, so the key stands in those of each request. Errors
    quote addresses, so the proxy's password stands in a header.
    """
    url, headers = urlsplit(endpoint.url), dict(endpoint.headers)
    bypassed = urllib.request.proxy_bypass(url.hostname or "")
    value = None if bypassed else urllib.request.getproxies().get(url.scheme)
    if value is None:
        return {"headers": headers}
    try:
        proxy = URL(value)
        address = proxy.origin()
    except ValueError:
        address = None
    if address is None or address.scheme not in {"http", "https"}:
        # The value is not quoted: there may be a password in it.
        raise LensError(f"{url.scheme}_proxy is set, but to no address such as http://user:password@host:3128")
    login: dict[str, str] = {}
    if proxy.user is not None:
        password = base64.b64encode(f"{proxy.user}:{proxy.password or ''}".encode()).decode()
        login = {"Proxy-Authorization": f"Basic {password}"}
    if url.scheme == "https":  # all that the proxy is told is where to open a tunnel to
        return {"headers": headers, "proxy": address, "proxy_headers": login}
    return {"headers": headers | login, "proxy": address}


async def _reply(response: aiohttp.ClientResponse) -> Reply:
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > _MAX_ANSWER_BYTES:
            raise LostError(f"the answer is longer than {_MAX_ANSWER_BYTES >> 20} MiB")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    return Reply(status=response.status, headers=_lower(response.headers), json=value)


async def _write(response: aiohttp.ClientResponse, file: Path) -> None:
    try:
        with file.open("wb") as stream:
            async for chunk in response.content.iter_chunked(_CHUNK):
                stream.write(chunk)
    except (aiohttp.ClientError, ConnectionError, TimeoutError):
        raise  # of the server's end
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror}") from error


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".rstrip(": ").split())[:300]
