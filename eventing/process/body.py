"""Reads request bodies: bounded in size and time, decoded, and complete or refused.

Called by every handler of the api and the broker that reads a body: there is no other way to read one. Must not
know the content.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from starlette.requests import ClientDisconnect, Request

from eventing.errors import BadRequest, Overloaded
from eventing.process.content_encoding import decoder_of

HELD_BYTES: Final = 64 * 1024 * 1024
"""64 calls of the largest size at once, or thousands of the usual ones."""
SLOWEST_BYTES_PER_S: Final = 16 * 1024
_RETRY_AFTER_S: Final = 1.0


class BodyTooLarge(BadRequest):
    """The body is over the size limit; reading stopped as soon as that was known."""

    status = 413
    code = "body_too_large"


class BodyTooSlow(BadRequest):
    """The body did not arrive in time."""

    status = 408
    code = "body_too_slow"


class NoBodyRoom(Overloaded):
    """The unfinished bodies of other calls fill the process's limit."""

    code = "no_body_room"


class BodyRoom:
    """The total size of unfinished bodies in a process. A limit for each call does not bound it: every sender could
    be slow and have sent almost all of its body (docs/adr/0096).
    """

    def __init__(self, most_bytes: int = HELD_BYTES) -> None:
        self._left = most_bytes

    def take(self, size: int) -> None:
        """Reserve room. Raises `NoBodyRoom`, and reserves nothing, when there is not enough."""
        if size > self._left:
            raise NoBodyRoom("too many large bodies at once", _RETRY_AFTER_S)
        self._left -= size

    def give(self, size: int) -> None:
        self._left += size


class BodyReader:
    """Reads bodies of at most `limit_bytes`, as sent and as decoded, within the room that all readers of a process
    share. A piece may take `timeout_s`; a whole body that, plus the time for its size at the slowest accepted pace.
    """

    def __init__(self, room: BodyRoom, *, limit_bytes: int, timeout_s: float) -> None:
        self._room = room
        self._limit_bytes = limit_bytes
        self._timeout_s = timeout_s

    def limited_to(self, limit_bytes: int) -> "BodyReader":
        """A reader with another size limit and the same room."""
        return BodyReader(self._room, limit_bytes=limit_bytes, timeout_s=self._timeout_s)

    async def read(self, request: Request) -> bytes:
        """The body. Raises `BodyTooLarge`, `BodyTooSlow`, `NoBodyRoom`, `UnsupportedEncoding`, and `BadRequest` for
        an incomplete body.
        """
        body, taken = bytearray(), 0
        try:
            async for chunk in self.stream(request):
                self._room.take(len(chunk))
                taken += len(chunk)
                body += chunk
            return bytes(body)
        finally:
            self._room.give(taken)

    async def stream(self, request: Request) -> AsyncGenerator[bytes, None]:
        """The body in pieces, none of them kept; raises as `read`."""
        decoder = decoder_of(request.headers.get("content-encoding", ""))
        size = 0
        async for raw in self._raw(request):
            for piece in decoder.decode(raw) if decoder else (raw,):
                size += len(piece)
                self._check_size(size)
                if piece:
                    yield piece
        if decoder:
            decoder.close()

    async def _raw(self, request: Request) -> AsyncGenerator[bytes, None]:
        """The body as it was sent."""
        declared = request.headers.get("content-length", "")
        length = int(declared[:19]) if declared.isdigit() else None
        self._check_size(length or 0)
        seen = 0
        clock = asyncio.get_running_loop()
        started_s = clock.time()
        async with aclosing(request.stream()) as chunks:
            while seen != length:
                whole_s = started_s + self._timeout_s + seen / SLOWEST_BYTES_PER_S
                # Pieces that came fast earn no extra time for later ones: an upload could stand still for hours.
                try:
                    async with asyncio.timeout_at(min(whole_s, clock.time() + self._timeout_s)):
                        chunk = await anext(chunks, None)
                except TimeoutError as error:
                    raise BodyTooSlow("the body comes too slowly", "body") from error
                except ClientDisconnect as error:
                    raise BadRequest("the body ended early", "body") from error
                if chunk is None:
                    break
                seen += len(chunk)
                self._check_size(seen)
                yield chunk
        if length is not None and seen != length:
            raise BadRequest(f"{seen} bytes came, and content-length said {length}", "body")

    def _check_size(self, size: int) -> None:
        if size > self._limit_bytes:
            raise BodyTooLarge(f"the body is over {self._limit_bytes} bytes", "body")
