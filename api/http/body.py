"""Reads request bodies: bounded in size and time, and JSON or refused.

Called by every handler that takes a body. Must not know what the body is about.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final

import orjson
from starlette.requests import ClientDisconnect, Request

from api.front import front_of
from api.http.errors import BodyTooLarge, BodyTooSlow, UnsupportedMedia
from eventing.errors import BadRequest


async def read_bytes(request: Request, *, limit: int, timeout_s: float) -> bytes:
    """The body. Raises `BodyTooLarge` before more than `limit` bytes are held, `BodyTooSlow` when
    it comes more slowly than anybody means it to, `NoBodyRoom` when too much is held for others.
    """
    room = front_of(request).body_room
    body = bytearray()
    try:
        async for chunk in stream_bytes(request, limit=limit, timeout_s=timeout_s):
            room.take(len(chunk))
            body += chunk
        return bytes(body)
    finally:
        room.give(len(body))


async def stream_bytes(
    request: Request, *, limit: int, timeout_s: float
) -> AsyncGenerator[bytes, None]:
    """The body piece by piece, with the same refusals as `read_bytes`. It may take `timeout_s`, and
    what its size takes at the slowest pace that is still a sender's and not an attack's.
    """
    declared = request.headers.get("content-length", "")
    chunks = request.stream()
    if declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise BodyTooLarge(f"the body is over {limit} bytes", "body")
    seen = 0
    started_s = asyncio.get_running_loop().time()
    while True:
        try:
            async with asyncio.timeout_at(started_s + timeout_s + seen / SLOWEST_BYTES_PER_S):
                chunk = await anext(chunks, None)
        except TimeoutError as error:
            raise BodyTooSlow("the body comes too slowly", "body") from error
        except ClientDisconnect as error:
            raise BadRequest("the body ended early", "body") from error
        if chunk is None:
            return
        seen += len(chunk)
        if seen > limit:
            raise BodyTooLarge(f"the body is over {limit} bytes", "body")
        yield chunk


async def read_object(request: Request, *, limit: int, timeout_s: float) -> dict[str, Any]:
    """The body as a JSON object.

    Raises `UnsupportedMedia` when the content type is not JSON (so a web page cannot post here
    without asking first), `BadRequest` when it is no JSON object.
    """
    kind = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
    if kind != "application/json" and not (
        kind.startswith("application/") and kind[-5:] == "+json"
    ):
        raise UnsupportedMedia("send content-type: application/json", "content-type")
    return parse_object(await read_bytes(request, limit=limit, timeout_s=timeout_s))


def parse_object(raw: bytes) -> dict[str, Any]:
    """`raw` as a JSON object that can be written out again. Raises `BadRequest` otherwise."""
    if not raw.strip():
        raise BadRequest("the body is empty; send a JSON object", "body")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error.msg} at {error.pos}", "body") from error
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object", "body")
    if raw.count(b"[") + raw.count(b"{") >= _DEPTH_LIMIT:
        check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raises `BadRequest` for nesting that the store could not hold: orjson reads 1,024 levels, and
    writes 254.
    """
    level: list[Any] = [value]
    for _ in range(_DEPTH_LIMIT):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise BadRequest(f"the body is nested over {_DEPTH_LIMIT} levels deep", "body")


_DEPTH_LIMIT: Final = 200
SLOWEST_BYTES_PER_S: Final = 16 * 1024
