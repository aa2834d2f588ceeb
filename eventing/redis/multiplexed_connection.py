"""One connection to Redis that all tasks of a process share, and a client that uses it.

Called by `eventing.redis.connection`. A command of the stock client takes a connection out of a pool and
waits for its own answer: 43 us of CPU, thirty times a job; this takes 8 to 11. Commands of all
tasks follow each other on one connection, and what is sent in one turn of the event loop travels
together, answers too (docs/adr/0080). Commands that block the connection (XREAD BLOCK),
transactions and explicit pipelines go on using the pool. Must not know what the commands mean.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import hiredis
from redis._parsers.base import BaseParser
from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import ConnectionError, InvalidResponse, TimeoutError

Command = Sequence[str | bytes | int | float]

_BLOCKING: Final = frozenset({"XREAD", "XREADGROUP", "BLPOP", "BRPOP", "BLMOVE", "BZPOPMIN"})
_ODD_OPTIONS: Final = frozenset({"NEVER_DECODE", "EMPTY_RESPONSE"})
_pack: Final[Callable[[tuple[Any, ...]], bytes]] = hiredis.pack_command
_CLOSED: Final = "the connection was closed"


class _PendingReplies:
    """Commands sent together, and the answers that have come."""

    __slots__ = ("answered", "answers", "count", "due_s")

    def __init__(self, count: int, due_s: float, answered: asyncio.Future[list[Any]]) -> None:
        self.count = count
        self.due_s = due_s
        self.answers: list[Any] = []
        self.answered = answered


class _Protocol(asyncio.Protocol):
    """An open connection. Answers come in the order of the commands. One that is late closes it: so
    are all behind it, and a server that hangs is as good as gone.
    """

    def __init__(self, stream: asyncio.StreamWriter, timeout_s: float) -> None:
        self.loop: Final = asyncio.get_running_loop()
        self._stream: Final = stream  # it would close the connection when it is collected
        self._transport: Final = stream.transport
        self._timeout_s = timeout_s
        self._asked: deque[_PendingReplies] = deque()
        self._unsent: list[bytes] = []
        self._watch: asyncio.TimerHandle | None = None
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse, replyError=BaseParser.parse_error
        )

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    def ask(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """Send the commands; the future has their answers, errors of single commands among them."""
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
        """One write for all that was asked in this turn of the loop: a write took 40 us, most of
        it the kernel's, and wakes the server.
        """
        if self._unsent and self.is_open:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def close(self, reason: Exception) -> None:
        """Fail what was asked, and close."""
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
            self.close(ConnectionError(f"not an answer to anything: {type(error).__name__}"))

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
        """One timer for all: it goes off when the oldest question may be due."""
        self._watch = None
        if not self._asked:
            return
        due_s = self._asked[0].due_s
        if due_s <= self.loop.time():
            self.close(TimeoutError("no answer in time"))
        else:
            self._watch = self.loop.call_at(due_s, self._look)


class MultiplexedConnection:
    """The shared connection: opened when first used, and again after it was lost. Nothing is sent
    twice. If the process dies, what was sent may have been done.
    """

    def __init__(self, pool: ConnectionPool, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._wire: _Protocol | None = None
        self._opening: asyncio.Future[_Protocol] | None = None

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Answers to the commands, in order. Raises the client's `ConnectionError` and
        `TimeoutError`; answers that are errors stand among the others.
        """
        if not commands:
            return []
        wire = self._wire
        if wire is None or not wire.is_open or wire.loop is not asyncio.get_running_loop():
            wire = await self._open()
        return await wire.ask(commands)

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """Raw answers to the commands, in order, in one round trip. Raises the first error among
        them; those after it were run all the same.
        """
        answers = await self.ask(commands)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    async def close(self) -> None:
        """Hang up; the next question opens it again."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close(ConnectionError(_CLOSED))

    async def _open(self) -> _Protocol:
        """Whoever comes while it is being opened waits for the same try, and fails with it."""
        opening = self._opening
        if opening is None or opening.get_loop() is not asyncio.get_running_loop():
            opening = self._opening = asyncio.ensure_future(self._connect())
            opening.add_done_callback(self._opened)
        return await asyncio.shield(opening)

    def _opened(self, opening: asyncio.Future[_Protocol]) -> None:
        if self._opening is opening:
            self._opening = None
        if not opening.cancelled():
            opening.exception()  # those who wait raise it; if none is left, it is nobody's

    async def _connect(self) -> _Protocol:
        """The stock client greets the server (TLS, password, database); then the line is ours."""
        connection = self._pool.connection_class(**self._pool.connection_kwargs)
        async with asyncio.timeout(self._timeout_s):
            await connection.connect()
        stream, connection._writer, connection._reader = connection._writer, None, None
        wire = self._wire = _Protocol(stream, self._timeout_s)
        stream.transport.set_protocol(wire)
        return wire


class SharedRedis(Redis):  # type: ignore[misc]  # redis is untyped to us
    """redis-py's client, whose plain commands go over one shared line."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        timeout_s = self.connection_pool.connection_kwargs.get("socket_timeout") or 5.0
        self._timeout_s = timeout_s
        self._line = MultiplexedConnection(self.connection_pool, timeout_s)
        self._own_lines: list[MultiplexedConnection] = []

    def dedicated_connection(self) -> MultiplexedConnection:
        """One more connection, for somebody who blocks it; closed with the client."""
        self._own_lines.append(MultiplexedConnection(self.connection_pool, self._timeout_s))
        return self._own_lines[-1]

    @property
    def longest_block_ms(self) -> int:
        """How long a command may block a dedicated connection before its answer would be late."""
        return int(min(1.0, self._timeout_s / 2) * 1000)

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """As `MultiplexedConnection.send`, over the line of all."""
        return await self._line.send(commands)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """As redis-py's. It chooses a connection of the pool where the command may block."""
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
        """Close the lines too."""
        for line in (self._line, *self._own_lines):
            await line.close()
        await super().aclose(close_connection_pool)
