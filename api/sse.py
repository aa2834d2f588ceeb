"""Server-sent events: frames, and the response that sends them.

Called by every stream. The response is sse-starlette's, with its per-event costs taken out
(docs/adr/0042). Must not know jobs.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import orjson
from sse_starlette import EventSourceResponse
from starlette.types import Message


def frame(event: str, data: Any, *, cursor: str = "") -> bytes:
    """One event. `data` becomes one line of JSON, so nothing in it can break the frame."""
    head = f"id: {cursor}\nevent: {event}\n" if cursor else f"event: {event}\n"
    return head.encode() + b"data: " + orjson.dumps(data) + b"\n\n"


def data_frame(data: bytes) -> bytes:
    """A nameless event, as OpenAI's streams have them. `data` is one line."""
    return b"data: " + data + b"\n\n"


def comment(text: str) -> bytes:
    """A line that readers skip. `text` must not hold line breaks.

    No empty line follows: OpenAI's client takes that for an event once any event had an id, and
    fails on its missing data.
    """
    return f": {text}\n".encode()


_KEEP_ALIVE: Final = comment("keep-alive")


class Stream(EventSourceResponse):
    """A stream of ready-made frames. Several frames that are there at once go out in one write."""

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        *,
        keep_alive_s: float,
        on_disconnect: Callable[[Message], Awaitable[None]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            frames,
            headers=headers,
            ping=keep_alive_s,
            # sse-starlette takes bytes as they are; its annotation only knows its own event.
            ping_message_factory=lambda: _KEEP_ALIVE,  # type: ignore[arg-type, return-value]
            send_timeout=30.0,
            client_close_handler_callable=on_disconnect,
        )
