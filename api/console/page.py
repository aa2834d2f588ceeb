"""Serves the console's files. They contain no tenant's data and need no key; the page asks for a key and sends it
with each call.

Called by `api.app`.
"""

import hashlib
from functools import cache
from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

router = APIRouter(include_in_schema=False)

_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""No inline scripts and none from other origins, so that markup in a model's output stays text."""
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_KINDS: Final = {
    "console.html": "text/html; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "console.css": "text/css; charset=utf-8",
}


@router.get("/")
async def root(_: Request) -> Response:
    """Redirect to the console."""
    return RedirectResponse("/console", status_code=307)


@router.get("/console/")
async def console_slash(_: Request) -> Response:
    """Redirect to the address without the slash."""
    return RedirectResponse("/console", status_code=308)


@router.get("/console")
async def console(request: Request) -> Response:
    """The console's page."""
    return _file(request, "console.html")


@router.get("/console/{name}")
async def console_file(request: Request, name: str) -> Response:
    """The console's script or style sheet."""
    return _file(request, name)


def _file(request: Request, name: str) -> Response:
    if name not in _KINDS:
        return Response("no such file", status_code=404, media_type="text/plain")
    content, tag = _content(name)
    headers = _HEADERS | {"etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_KINDS[name], headers=headers)


@cache
def _content(name: str) -> tuple[bytes, str]:
    content = files("api.console").joinpath(name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:16]}"'
