"""One Redis connection shared by all tasks of a process, and a client that uses it.

Called by `eventing.redis.connection`. Commands of all tasks are pipelined on one connection: those sent in one turn
of the event loop are written together (docs/adr/0080). The stock client takes a connection from a pool for each
command and waits for its answer, which costs four to five times the CPU (bench/README.md). Commands that block the
connection (XREAD BLOCK), transactions and explicit pipelines use the pool. Must not know the meaning of commands.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import hiredis
from redis._parsers.base import BaseParser
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import ConnectionError, InvalidResponse, TimeoutError

from eventing.redis.replica import REPLICA_NOW, says_replica

Command = Sequence[str | bytes | int | float]

_BLOCKING: Final = frozenset({"XREAD", "XREADGROUP", "BLPOP", "BRPOP", "BLMOVE", "BZPOPMIN"})
_ODD_OPTIONS: Final = frozenset({"NEVER_DECODE", "EMPTY_RESPONSE"})
_pack: Final[Callable[[tuple[Any, ...]], bytes]] = hiredis.pack_command
_CLOSED: Final = "the connection was closed"
_REPLACED: Final = "sentinels name another server by now"


class _PendingReplies:
    """Commands sent together, and the replies received so far."""

    __slots__ = ("answered", "answers", "count", "due_s")

    def __init__(self, count: int, due_s: float, answered: asyncio.Future[list[Any]]) -> None:
        self.count = count
        self.due_s = due_s
        self.answers: list[Any] = []
        self.answered = answered


class _Protocol(asyncio.Protocol):
    """An open connection. Replies come in the order of the commands. A late reply closes the connection, since
    every reply behind it is late too and the server may hang.
    """

    def __init__(
        self, stream: asyncio.StreamWriter, timeout_s: float, address: tuple[str, int] | None
    ) -> None:
        self.loop: Final = asyncio.get_running_loop()
        self.address: Final = address  #: as sentinels named it; None where there are none
        self._stream: Final = (
            stream  # otherwise it would close the connection when it is garbage-collected
        )
        self._transport: Final = stream.transport
        self._timeout_s = timeout_s
        self._asked: deque[_PendingReplies] = deque()
        self._unsent: list[bytes] = []
        self._watch: asyncio.TimerHandle | None = None
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=self._refusal)
        self.is_replica = False  #: the server was the primary once, and refuses writes now

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    def ask(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """Send the commands; the future gives their replies, errors of single commands among them."""
        now_s = self.loop.time()
        asked = _PendingReplies(len(commands), now_s + self._timeout_s, self.loop.create_future())
        self._asked.append(asked)
        if not self._unsent:
            self.loop.call_soon(self._flush)
        self._unsent.extend([_pack(tuple(each)) for each in commands])
        if self._watch is None:
            self._watch = self.loop.call_later(self._timeout_s, self._look)
        return asked.answered

    def _flush(self) -> None:
        """One write for all commands of this turn of the event loop: a write cost 40 µs, most of it in the kernel."""
        if self._unsent and self.is_open:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def close(self, reason: Exception) -> None:
        """Close the connection and fail the pending commands."""
        self._transport.abort()
        if self._watch is not None:
            self._watch.cancel()
        while self._asked:
            answered = self._asked.popleft().answered
            if not answered.done():
                answered.set_exception(reason)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not False:
                self._take(answer)
        except (InvalidResponse, IndexError) as error:
            self.close(ConnectionError(f"a reply that is not valid RESP: {type(error).__name__}"))

    def _refusal(self, text: str) -> Exception:
        """An error reply. A server that became a replica keeps its connections: without this one's end the address
        would never be looked up again.
        """
        if says_replica(text) and not self.is_replica:
            self.is_replica = True
            self.loop.call_soon(self.close, ConnectionError(REPLICA_NOW))
        found: Exception = BaseParser.parse_error(text)
        return found

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(ConnectionError(_CLOSED))

    def _take(self, answer: Any) -> None:
        head = self._asked[0]
        head.answers.append(answer)
        if len(head.answers) == head.count:
            self._asked.popleft()
            if not head.answered.done():
                head.answered.set_result(head.answers)

    def _look(self) -> None:
        """One timer for all commands: it fires when the oldest may be overdue."""
        self._watch = None
        if not self._asked:
            return
        due_s = self._asked[0].due_s
        if due_s <= self.loop.time():
            self.close(TimeoutError("no answer in time"))
        else:
            self._watch = self.loop.call_at(due_s, self._look)


class MultiplexedConnection:
    """The shared connection: opened on first use, and again after it was lost. Nothing is sent twice. If the
    process dies, commands that were sent may have been executed.
    """

    def __init__(self, pool: ConnectionPool, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._wire: _Protocol | None = None
        self._opening: asyncio.Future[_Protocol] | None = None

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Replies to the commands, in order; error replies are among them. Raises the client's `ConnectionError`
        and `TimeoutError`.
        """
        if not commands:
            return []
        return await (await self._opened_wire()).ask(commands)

    async def ask_primary(self, commands: Sequence[Command]) -> list[Any]:
        """As `ask`, and afterwards sentinels, where there are any, still name the server that replied. Raises
        `ConnectionError` if they do not: what was written may be lost, whatever a replica confirmed, since one that was
        not yet led away still follows a server that was replaced.
        """
        wire = await self._opened_wire()
        answers = await wire.ask(commands)
        if wire.address is not None and await self._pool.get_master_address() != wire.address:
            wire.close(ConnectionError(_REPLACED))
            raise ConnectionError(_REPLACED)
        return answers

    async def _opened_wire(self) -> _Protocol:
        wire = self._wire
        if wire is None or not wire.is_open or wire.loop is not asyncio.get_running_loop():
            wire = await self._open()
        return wire

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """Raw replies to the commands, in order, in one round trip. Raises the first error reply; the commands
        after it were executed all the same.
        """
        answers = await self.ask(commands)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    async def close(self) -> None:
        """Close, also what is being opened; the next command opens the connection again."""
        opening = self._opening
        if opening is not None and opening.get_loop() is asyncio.get_running_loop():
            opening.cancel()
            await asyncio.wait({opening})
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close(ConnectionError(_CLOSED))

    async def _open(self) -> _Protocol:
        """Concurrent callers share one attempt to connect and fail with it."""
        opening = self._opening
        if opening is None or opening.get_loop() is not asyncio.get_running_loop():
            opening = self._opening = asyncio.ensure_future(self._connect())
            opening.add_done_callback(self._opened)
        return await asyncio.shield(opening)

    def _opened(self, opening: asyncio.Future[_Protocol]) -> None:
        if self._opening is opening:
            self._opening = None
        if not opening.cancelled():
            opening.exception()  # waiting callers raise it; without any, it must not be logged as unretrieved

    async def _connect(self) -> _Protocol:
        """The stock client does the handshake (TLS, password, database); then this protocol takes the socket over."""
        if self._wire is not None and self._wire.is_replica:
            await self._pool.disconnect(inuse_connections=False)
        connection = self._pool.connection_class(**self._pool.connection_kwargs)
        try:
            async with asyncio.timeout(self._timeout_s):
                await connection.connect()
        except BaseException as error:
            connection._close()  # redis-py leaves a connection that was cancelled in its handshake to the collector
            if isinstance(
                error, asyncio.CancelledError
            ):  # of this task, not of those that wait for it
                raise ConnectionError(_CLOSED) from None
            raise
        stream, connection._writer, connection._reader = connection._writer, None, None
        is_named = isinstance(self._pool, SentinelConnectionPool)
        address = (connection.host, connection.port) if is_named else None
        wire = self._wire = _Protocol(stream, self._timeout_s, address)
        stream.transport.set_protocol(wire)
        return wire


class SharedRedis(Redis):  # type: ignore[misc]  # redis is untyped to us
    """redis-py's client with plain commands sent over one shared connection."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        timeout_s = self.connection_pool.connection_kwargs.get("socket_timeout") or 5.0
        self._timeout_s = timeout_s
        self._line = MultiplexedConnection(self.connection_pool, timeout_s)
        self._own_lines: list[MultiplexedConnection] = []

    def dedicated_connection(self) -> MultiplexedConnection:
        """Another connection for a caller that blocks it; closed with the client."""
        self._own_lines.append(MultiplexedConnection(self.connection_pool, self._timeout_s))
        return self._own_lines[-1]

    @property
    def longest_block_ms(self) -> int:
        """How long a command may block a dedicated connection before its reply counts as late."""
        return int(min(1.0, self._timeout_s / 2) * 1000)

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """As `MultiplexedConnection.send`, over the shared connection."""
        return await self._line.send(commands)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """As redis-py's. A command that may block uses a connection of the pool."""
        name = args[0]
        if (
            self.single_connection_client
            or name in _BLOCKING
            or not _ODD_OPTIONS.isdisjoint(options)
        ):
            return await super().execute_command(*args, **options)
        words: Iterable[Any] = (*name.split(), *args[1:]) if " " in name else args
        (answer,) = await self._line.send([tuple(words)])
        parse = self.response_callbacks.get(name)
        options.pop("keys", None)
        return answer if parse is None else parse(answer, **options)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close every connection."""
        for line in (self._line, *self._own_lines):
            await line.close()
        await super().aclose(close_connection_pool)
