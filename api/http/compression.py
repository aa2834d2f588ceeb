"""gzip of large answers, for clients that accept it. Streams are sent as they come.

Called by `api.app`. Must not know any route.
"""

import asyncio
import gzip
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LEAST_BYTES: Final = 4096
_THREAD_BYTES: Final = 64 * 1024
"""A larger body is compressed in a thread: a megabyte takes tens of milliseconds."""
_LEVEL: Final = 4
_TYPES: Final = (
    "application/json",
    "application/problem+json",
    "application/openmetrics-text",
    "text/",
)


class Compression:
    """ASGI middleware. A response is compressed when it is whole and large, unless an ETag or a range refers to its
    bytes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start: Message | None = None

        async def send_on(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                if not _is_compressible(Headers(raw=message["headers"])):
                    await send(message)
                    return
                MutableHeaders(scope=message).add_vary_header("Accept-Encoding")
                if not accepts_gzip(",".join(Headers(scope=scope).getlist("accept-encoding"))):
                    await send(message)
                    return
                start = message
                return
            if start is None:
                await send(message)
                return
            begun, start = start, None
            if not message.get("more_body"):
                message = {**message, "body": await _compressed(message.get("body", b""))}
                headers = MutableHeaders(scope=begun)
                headers["content-encoding"] = "gzip"
                headers["content-length"] = str(len(message["body"]))
            await send(begun)
            await send(message)

        await self._app(scope, receive, send_on)


def accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding prefers gzip to the plain body (RFC 9110, 12.5.3)."""
    weights: dict[str, float] = {}
    for entry in header.lower().split(","):
        coding, _, parameter = entry.partition(";")
        weights[coding.strip()] = _weight(parameter)
    weight = weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0)))
    return weight > 0 and weight >= weights.get("identity", 0.0)


def _weight(parameter: str) -> float:
    name, _, value = parameter.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0


def _is_compressible(headers: Headers) -> bool:
    """Decided by the response's headers. A stream has no length."""
    length = headers.get("content-length", "")
    return (
        length.isdigit()
        and int(length) >= _LEAST_BYTES
        and headers.get("content-type", "").startswith(_TYPES)
        and not any(name in headers for name in ("content-encoding", "content-range", "etag"))
        and "no-transform" not in headers.get("cache-control", "")
    )


async def _compressed(body: bytes) -> bytes:
    if len(body) < _THREAD_BYTES:
        return gzip.compress(body, _LEVEL, mtime=0)
    return await asyncio.to_thread(gzip.compress, body, _LEVEL, mtime=0)
