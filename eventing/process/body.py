"""Reads request bodies: bounded in size and in time, decoded, and whole or refused.

Called by every handler of the api and the broker that takes a body: there is no other way to read one.
Must not know what the body is about.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from starlette.requests import ClientDisconnect, Request

from eventing.errors import BadRequest, Overloaded
from eventing.process.content_encoding import decoder_of

HELD_BYTES: Final = 64 * 1024 * 1024
"""64 calls of the largest size at once, or thousands of the usual ones."""
SLOWEST_BYTES_PER_S: Final = 16 * 1024
_RETRY_AFTER_S: Final = 1.0


class BodyTooLarge(BadRequest):
    """The body is over the limit; reading stopped where that became clear."""

    status = 413
    code = "body_too_large"


class BodyTooSlow(BadRequest):
    """The body stopped arriving."""

    status = 408
    code = "body_too_slow"


class NoBodyRoom(Overloaded):
    """Others are sending too much already."""

    code = "no_body_room"


class BodyRoom:
    """How much of bodies that are still coming in a process holds. Every sender may be slow and have
    sent almost all that one call may: a limit a call is none for the process (docs/adr/0096).
    """

    def __init__(self, most_bytes: int = HELD_BYTES) -> None:
        self._left = most_bytes

    def take(self, size: int) -> None:
        """Raises `NoBodyRoom` when there is no room; then nothing is taken."""
        if size > self._left:
            raise NoBodyRoom("too many large bodies at once", _RETRY_AFTER_S)
        self._left -= size

    def give(self, size: int) -> None:
        self._left += size


class BodyReader:
    """Bodies of at most `limit_bytes`, as sent and as decoded, out of the room that all readers of a
    process share. A piece may take `timeout_s`; a body that, and what its size takes at the slowest
    pace that is still a sender's and not an attack's.
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
        comes too slowly, `NoBodyRoom` when too much is held for others, `UnsupportedEncoding`, and
        `BadRequest` for a body that is not whole.
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
        """The body piece by piece, none of them held, with the refusals of `read`."""
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
        chunks, seen = request.stream(), 0
        clock = asyncio.get_running_loop()
        started_s = clock.time()
        while True:
            whole_s = started_s + self._timeout_s + seen / SLOWEST_BYTES_PER_S
            # Pieces that came fast earn no extra time for later ones: an upload could stand still for hours with it.
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
