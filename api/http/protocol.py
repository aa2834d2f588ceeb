"""uvicorn's HTTP protocol with limits that it lacks: time and size of headers, number of connections. It also
closes refused uploads so that the client can read the answer, and writes streams to the socket directly.

Given to uvicorn by `api.__main__` (`http=`). It relies on undocumented parts of uvicorn's `HttpToolsProtocol`;
`tests/integration/api/test_api_connections.py` fails when they change. Must not know any route.
"""

import asyncio
import socket
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from eventing.process.http_protocol import HttpProtocol

HEAD_TIMEOUT_S: Final = 5.0
"""From the start of a connection, or the first byte of a later request, to the end of its headers."""
HEAD_LIMIT_BYTES: Final = 64 * 1024
PART_S: Final = 2.0
"""How long a connection is still read, and its data discarded, after a refusal was sent to a client that is still
sending.
"""
CONNECTIONS: Final = 10_000
"""A waiting connection costs about 10 KiB, one that streams about 50."""

UNSENT_BYTES: Final = 128 * 1024
"""What the kernel may buffer for a client beyond the data already in flight."""

_CYCLE: Final = "torpor.cycle"
_WITHOUT_BODY: Final = frozenset({"GET", "HEAD"})
_SLOW: Final = ("408 Request Timeout", "the headers came too slowly")
_LONG: Final = ("431 Request Header Fields Too Large", "the headers are too long")
_FULL: Final = ("503 Service Unavailable", "too many connections")


class BoundedHttpProtocol(HttpProtocol):
    """One connection."""

    connections_limit: ClassVar[int] = CONNECTIONS
    head_timeout_s: ClassVar[float] = HEAD_TIMEOUT_S

    _head_bytes = 0
    _is_in_head = True
    _expects_head = True  # also between two requests, when no time runs
    _head_timer: asyncio.TimerHandle | None = None
    _parting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._bound_unsent(transport)
        if len(self.connections) > self.connections_limit:
            self._reject(*_FULL, "retry-after: 1\r\n")
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        if self._parting is not None:
            self._parting.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._parting is not None or self.transport.is_closing():
            return
        part = data
        if self._expects_head:  # headers that end in this data may be too long all the same
            part = data[: HEAD_LIMIT_BYTES - self._head_bytes]
            self._head_bytes += len(part)
        super().data_received(part)
        rest = data[len(part) :]
        if self._is_in_head and not self.transport.is_closing():
            if rest and self._head_bytes >= HEAD_LIMIT_BYTES:
                self._reject(*_LONG)
            elif self._head_timer is None:
                self._await_head()
        if rest and self.transport.get_protocol() is self:  # else it is a WebSocket now
            self.data_received(rest)

    def on_message_begin(self) -> None:
        self._is_in_head = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._expects_head = True
        super().on_message_complete()

    def on_request(self) -> None:
        self._expects_head = False
        self._head_came()
        super().on_request()
        self.scope[_CYCLE] = self.cycle  # type: ignore[typeddict-unknown-key]
        if self.cycle is not None and self.scope["method"] not in _WITHOUT_BODY:
            self.cycle.transport = _LingeringClose(self, self.cycle)  # type: ignore[assignment]

    def lingering_close(self) -> None:
        """Close once the client has had time to read the response. Closing with unread input makes the kernel reset
        the connection, and many clients send the whole body before they read.
        """
        if self._parting is None and not self.transport.is_closing():
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self._parting = self.loop.call_later(PART_S, self.transport.close)

    def _bound_unsent(self, transport: asyncio.Transport) -> None:
        """By default the kernel buffers 7 MB for a client that reads nothing (measured)."""
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._reject, *_SLOW)

    def _head_came(self) -> None:
        self._is_in_head = False
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _reject(self, status: str, reason: str, extra: str = "") -> None:
        """Answer with an error, unless a response has begun, and close."""
        self._head_came()
        is_silent = self.cycle is None or self.cycle.response_complete
        if is_silent:
            head = f"HTTP/1.1 {status}\r\ncontent-type: text/plain\r\nconnection: close\r\n{extra}"
            self.transport.write(
                f"{head}content-length: {len(reason)}\r\n\r\n{reason}".encode("ascii")
            )
        if is_silent and status != _FULL[0]:
            self.lingering_close()
        else:  # a connection over the limit must not stay open
            self.transport.close()


class _LingeringClose:
    """The transport of a call with a body: closing it before the whole body was read is a lingering close."""

    __slots__ = ("_cycle", "_protocol", "abort", "is_closing", "write")

    def __init__(self, protocol: BoundedHttpProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing
        self.abort = protocol.transport.abort

    def close(self) -> None:
        if self._cycle.more_body:
            self._protocol.lingering_close()
        else:
            self._protocol.transport.close()


class ResponseWriter:
    """The connection of one streamed response."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def is_writable(self) -> bool:
        """False when a write would have to wait: the response has not begun, or the client reads too slowly."""
        cycle = self._cycle
        return (
            cycle.response_started and not cycle.response_complete and not cycle.flow.write_paused
        )

    def write(self, data: bytes) -> None:
        """Write `data` to the socket at once, as the server's `send` would. Only while it is writable."""
        cycle = self._cycle
        if data and not cycle.disconnected:  # an empty chunk would end the response
            framed = b"%x\r\n%b\r\n" % (len(data), data) if cycle.chunked_encoding else data
            cycle.transport.write(framed)

    def abort(self) -> None:
        """Close the connection of a client that does not read; unsent data is dropped."""
        self._cycle.transport.abort()


def writer_of(scope: Mapping[str, Any]) -> ResponseWriter | None:
    """The `ResponseWriter` of a call; None under a server without this protocol."""
    cycle = scope.get(_CYCLE)
    return ResponseWriter(cycle) if cycle is not None else None


def protocol_class(connections: int) -> type[BoundedHttpProtocol]:
    """The protocol class for uvicorn, with the settings of this process."""
    return type("LimitedHttpProtocol", (BoundedHttpProtocol,), {"connections_limit": connections})
