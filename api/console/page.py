"""Serves the console's files. They contain no tenant's data and need no key; the page asks for a key and sends it
with each call.

Called by `api.app`.
"""

import gzip
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from api.http.compression import accepts_gzip

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
    "vary": "accept-encoding",
}
_KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
_FOLDER: Final = files("api.console").joinpath("web")


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
    """A script of the console, or its style sheet."""
    return _file(request, name)


def _file(request: Request, name: str) -> Response:
    """The file, as gzip to clients that accept it; each form has an ETag of its own."""
    if name not in _names():
        return Response("no such file", status_code=404, media_type="text/plain")
    is_packed = accepts_gzip(",".join(request.headers.getlist("accept-encoding")))
    content, tag = _content(name, is_packed)
    headers = _HEADERS | {"etag": tag} | ({"content-encoding": "gzip"} if is_packed else {})
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_KINDS[PurePath(name).suffix], headers=headers)


@cache
def _names() -> frozenset[str]:
    return frozenset(
        each.name for each in _FOLDER.iterdir() if PurePath(each.name).suffix in _KINDS
    )


@cache
def _content(name: str, is_packed: bool) -> tuple[bytes, str]:
    content = _FOLDER.joinpath(name).read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]
    if is_packed:
        return gzip.compress(content, 9, mtime=0), f'"{digest}-gzip"'
    return content, f'"{digest}"'
