"""The page at `/` and its files under `/static/`, with a policy that lets nothing run but them."""

from __future__ import annotations

from pathlib import Path, PurePath

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

__all__ = ["POLICY", "router"]

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
"""Content-Security-Policy of the page: its own files, pictures that it made itself, and this server's API."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
# Said here, since what a system's own table says of .js differs, and nosniff makes a wrong type fatal.
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

router = APIRouter(include_in_schema=False)
files = StaticFiles(directory=Path(__file__).with_name("page"))


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """The page."""
    return await send("index.html", request)


@router.api_route("/static/{name}", methods=["GET", "HEAD"])
async def static(name: str, request: Request) -> Response:
    """One of its files; 404 for any other name."""
    return await send(name, request)


async def send(name: str, request: Request) -> Response:
    """A file of the page, or 304 where the browser has it already."""
    suffix = PurePath(name).suffix
    if suffix not in TYPES:
        raise HTTPException(404)
    response = await files.get_response(name, request.scope)
    response.headers.update(HEADERS)
    if response.status_code == 200:
        response.headers["Content-Type"] = TYPES[suffix]
    return response
