"""Server-sent events: frames, and the response that sends them.

Called by every stream. The response is our own for the sake of what an event and an open stream cost (docs/adr/0041).
Must not know jobs.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Any, Final, Protocol

import orjson
import structlog
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from api.http.protocol import writer_of
from api.http.shutdown import Shutdown


def frame(event: str, data: Any, *, cursor: str = "") -> bytes:
    """One event. `data` becomes one line of JSON, so nothing in it can break the frame."""
    head = f"id: {cursor}\nevent: {event}\n" if cursor else f"event: {event}\n"
    return head.encode() + b"data: " + orjson.dumps(data) + b"\n\n"


def data_frame(data: bytes) -> bytes:
    """An event without a name, as in OpenAI's streams. `data` is one line."""
    return b"data: " + data + b"\n\n"


def last_comment(text: str) -> bytes:
    """A comment that says why the stream ends here. `text` must not contain line breaks.

    Only at the end of a stream: a reader that splits at empty lines would take the comment for the beginning of the
    next event and drop both.
    """
    return f": {text}\n".encode()


KEEP_ALIVE: Final = b" \n"
"""Keeps an idle stream open. A line with one blank is a field without a name, which readers ignore. A comment would
not do (see `last_comment`), nor an empty line, which OpenAI's client takes for an event once any event had an id.
"""
LINE_LIMIT_BYTES: Final = 96 * 1024
"""Longest line of a stream where possible: the default limit of readers is 128 KiB (aiohttp)."""
RAW_SEND: Final = "torpor.send"
"""Scope key under which `api.http.middleware` stores the server's own `send`."""
_STUCK_S: Final = 30.0
_log = structlog.get_logger()


class Hold(Protocol):
    """Counts an open stream for its tenant, and says how long its credential is valid."""

    @property
    def count(self) -> AbstractContextManager[Any]: ...

    async def until_revoked(self) -> None: ...


_HEADERS: Final = {
    "cache-control": "no-store",
    "connection": "keep-alive",
    "x-accel-buffering": "no",  # or nginx would keep events back
}


class Stream(StreamingResponse):
    """A stream of complete frames. Frames that are ready at the same time are sent in one write.

    A client that stops reading is detected by the keep-alive, within `_STUCK_S`. `farewell` is the last frame of a
    stream that a shutdown cuts off.
    """

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        *,
        keep_alive_s: float,
        shutdown: Shutdown,
        farewell: Callable[[], bytes] = lambda: b"",
        on_disconnect: Callable[[Message], Awaitable[None]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.hold: Hold | None = None
        self._frames = frames
        self._keep_alive_s = keep_alive_s
        self._shutdown = shutdown
        self._farewell = farewell
        self._on_disconnect = on_disconnect
        self._has_begun = asyncio.Event()
        self._has_ended = False
        self._sending = asyncio.Lock()
        super().__init__(
            frames, headers={**_HEADERS, **(headers or {})}, media_type="text/event-stream"
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._wire = scope.get(RAW_SEND, send)
        with self.hold.count if self.hold is not None else nullcontext():
            if await self._run(receive, send):
                return
            _log.info("a client does not read its stream", action="stream", for_s=_STUCK_S)
            if (wire := writer_of(scope)) is not None:
                wire.abort()
                await asyncio.sleep(0)  # the server is told before this returns

    async def _run(self, receive: Receive, send: Send) -> bool:
        """Stream until the frames end, the client leaves, or the process ends the stream; False when the client reads
        nothing.
        """
        ends = (self._write(send), self._until_left(receive), self._until_told())
        running = {asyncio.create_task(end) for end in ends}
        try:
            while True:
                ended, _ = await asyncio.wait(
                    running, timeout=self._keep_alive_s, return_when=asyncio.FIRST_COMPLETED
                )
                if ended:
                    break
                if not await self._keep_open():
                    return False
        finally:
            for task in running:
                task.cancel()
            await asyncio.wait(running)
        for task in ended:
            task.result()
        return True

    async def _write(self, send: Send) -> None:
        """Write frames as they come, past the layers between here and the server: they cost as much as everything else
        (docs/adr/0041).
        """
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        self._has_begun.set()
        wire = self._wire
        async with aclosing(self._frames) as frames:
            async for data in frames:
                await wire({"type": "http.response.body", "body": data, "more_body": True})
        await self._end(b"")

    async def _end(self, last: bytes) -> None:
        async with self._sending:
            self._has_ended = True
            await self._wire({"type": "http.response.body", "body": last, "more_body": False})

    async def _keep_open(self) -> bool:
        """Send a keep-alive; False when the client takes nothing for `_STUCK_S`."""
        async with self._sending:
            if self._has_ended or not self._has_begun.is_set():
                return True
            try:
                async with asyncio.timeout(_STUCK_S):
                    await self._wire(
                        {"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True}
                    )
            except TimeoutError:
                return False
        return True

    async def _until_left(self, receive: Receive) -> None:
        while (message := await receive())["type"] != "http.disconnect":
            continue
        self._has_ended = True
        if self._on_disconnect is not None:
            await self._on_disconnect(message)

    async def _until_told(self) -> None:
        """End the stream with the farewell when the process shuts down, or when its key was revoked."""
        if not await self._is_shutting_down():
            await self._end(last_comment("the key of this stream was revoked"))
            return
        await self._has_begun.wait()
        await self._end(self._farewell())

    async def _is_shutting_down(self) -> bool:
        """True at shutdown; False when the key that opened the stream was revoked before."""
        if self.hold is None:
            await self._shutdown.wait()
            return True
        shutdown = asyncio.create_task(self._shutdown.wait())
        revoked = asyncio.create_task(self.hold.until_revoked())
        try:
            await asyncio.wait({shutdown, revoked}, return_when=asyncio.FIRST_COMPLETED)
            return shutdown.done()
        finally:
            shutdown.cancel()
            revoked.cancel()
