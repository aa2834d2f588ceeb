"""Reads request bodies: bounded in size and time, and JSON or refused.

Called by every handler that takes a body. Must not know what the body is about.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final

import orjson
from starlette.requests import ClientDisconnect, Request

from api.http.body_limiter import BodyRoom
from api.http.errors import BodyTooLarge, BodyTooSlow, UnsupportedMedia
from eventing.errors import BadRequest


class BodyReader:
    """Bodies of calls of at most `limit_bytes`, out of the room that all readers of a process share.
    A piece may take `timeout_s`; a body that, and what its size takes at the slowest pace that is
    still a sender's and not an attack's.
    """

    def __init__(self, room: BodyRoom, *, limit_bytes: int, timeout_s: float) -> None:
        self._room = room
        self._limit_bytes = limit_bytes
        self._timeout_s = timeout_s

    def limited_to(self, limit_bytes: int) -> "BodyReader":
        """A reader with another limit, out of the same room."""
        return BodyReader(self._room, limit_bytes=limit_bytes, timeout_s=self._timeout_s)

    async def read(self, request: Request) -> bytes:
        """The body. Raises `BodyTooLarge` before more than the limit is held, `BodyTooSlow` when it
        comes too slowly, `NoBodyRoom` when too much is held for others.
        """
        body = bytearray()
        try:
            async for chunk in self.stream(request):
                self._room.take(len(chunk))
                body += chunk
            return bytes(body)
        finally:
            self._room.give(len(body))

    async def read_object(self, request: Request) -> dict[str, Any]:
        """The body as a JSON object.

        Raises `UnsupportedMedia` when the content type is not JSON (so a web page cannot post here
        without asking first), `BadRequest` when it is no JSON object.
        """
        kind = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
        if kind != "application/json" and not (
            kind.startswith("application/") and kind[-5:] == "+json"
        ):
            raise UnsupportedMedia("send content-type: application/json", "content-type")
        return parse_object(await self.read(request))

    async def stream(self, request: Request) -> AsyncGenerator[bytes, None]:
        """The body piece by piece, none of them held, with the refusals of `read`."""
        limit = self._limit_bytes
        declared = request.headers.get("content-length", "")
        chunks = request.stream()
        if declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
            raise BodyTooLarge(f"the body is over {limit} bytes", "body")
        seen = 0
        clock = asyncio.get_running_loop()
        started_s = clock.time()
        while True:
            whole_s = started_s + self._timeout_s + seen / SLOWEST_BYTES_PER_S
            # What came fast is no time in hand: an upload could stand still for hours with it.
            try:
                async with asyncio.timeout_at(min(whole_s, clock.time() + self._timeout_s)):
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
