"""All live readers of a process on one connection to the store.

Called by the api for every SSE stream, WebSocket and long poll. One loop reads the token streams that have readers
(XREAD over up to a thousand streams) and passes their entries on: directly to a reader's callback when it has
nothing buffered, else into the reader's bounded buffer. A reader that does not keep up is cut off with its cursor
and delays no other. Must not know HTTP. A Redis Cluster, which would need one connection a node, is not supported.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog
from redis.asyncio import Redis

from eventing.errors import StoreUnavailable, TorporError
from eventing.job.job import JobId
from eventing.job.store import JobReader
from eventing.job.stream import EntryKind, StreamEntry, cursor_order
from eventing.redis import keys
from eventing.redis.connection import connect, failures_named
from eventing.redis.stream_entry import RawEntries, TokensEntry, parse_flat_entry, tokens_entries

_BLOCK_MS: Final = 1_000
"""Must stay below the socket timeout, or an idle multiplexer would be taken for an unavailable store."""
_SHORT_BLOCK_MS: Final = 10
"""The block time while more streams are silent than one read covers."""
_SOCKET_TIMEOUT_S: Final = 2.5
_STREAMS_PER_READ: Final = 1_000
"""Streams of one read while all are silent. A read costs the store about 1.5 µs a stream, during which it serves no
other command.
"""
_STREAMS_PER_BUSY_READ: Final = 250
"""While there is news: it is passed on before the next answer comes, and while it is in the processor's cache."""
_ROUND_PER_STREAM_S: Final = 1e-5
"""All streams are read once in so long for each of them, or more seldom: a seventh of the store's time at most, and of
ours. The token of a single reader is hardly delayed.
"""
_SLICE_S: Final = 0.002
"""After so long, other calls of the process get their turn before the next entries are passed on."""
_ENTRIES_PER_READ: Final = 64
_TURNS_TO_SEND: Final = 2
"""Iterations of the event loop in which a task begins and its command is written."""
_NUDGE_EVERY_S: Final = 0.005
_BACKOFF_S: Final = 0.5
_BUFFER_BYTES: Final = 256 * 1024
"""Size of a reader's buffer: some 1,000 small entries, a minute of tokens."""

_log = structlog.get_logger()


class ReaderCutOff(TorporError):
    """The reader fell too far behind. It may follow again from its cursor."""

    status = 409
    code = "reader_cut_off"


TokenCallback = Callable[[Sequence[TokensEntry]], bool]
"""Takes entries of tokens as soon as they are read; False when it cannot take them now. It runs in the multiplexer's
loop and must not wait.
"""


class Reader:
    """A reader of one job's stream, from a cursor on; it sees each entry once, in order."""

    __slots__ = (
        "_arrived",
        "_bytes",
        "_direct",
        "_entries",
        "_failure",
        "_is_ahead",
        "_is_live",
        "_join",
        "_on_tokens",
        "_store",
        "cursor",
        "job_id",
    )

    def __init__(
        self,
        store: JobReader,
        job_id: JobId,
        after: str,
        join: Callable[["Reader"], bool],
        on_tokens: TokenCallback | None,
    ) -> None:
        self.cursor = after
        self.job_id = job_id
        self._store = store
        self._join = join
        self._on_tokens = on_tokens
        self._is_live = False
        self._is_ahead = False
        self._direct: TokenCallback | None = None
        self._entries: deque[StreamEntry] = deque()
        self._bytes = 0
        self._failure: Exception | None = None
        self._arrived = asyncio.Event()

    async def next(self, timeout_s: float) -> list[StreamEntry]:
        """New entries that the callback did not take; none after the timeout.

        Stored entries are read first, at the reader's own pace; then the reader joins the live tail. Raises
        `ReaderCutOff`, the callback's exceptions, and `StoreUnavailable` only before the tail, which survives a
        restart of the store.
        """
        if not self._is_live:
            entries = await self.catch_up()
            if not entries:
                self._is_live = True
                if self._join(self):  # the tail is ahead of us: fetch what lies between
                    entries = await self.catch_up()
            if entries:
                return entries
        if not self._arrived.is_set():
            self._direct = self._on_tokens  # nothing is buffered, so order is kept
            try:
                async with asyncio.timeout(timeout_s):
                    await self._arrived.wait()
            except TimeoutError:
                return []
            finally:
                self._direct = None
        if self._failure is not None:
            raise self._failure
        return self._drain()

    async def catch_up(self) -> list[StreamEntry]:
        """The stored entries after the cursor, whether the tail has delivered them or not. Raises
        `StoreUnavailable`.
        """
        entries = await self._store.read_stream(self.job_id, self.cursor)
        if entries:
            self.cursor = entries[-1].cursor
            self._is_ahead = False  # the tail may bring them again
        return entries

    def take(self, tokens: Sequence[TokensEntry]) -> bool:
        """True when the callback took them: it is asked only while the reader waits with an empty buffer. Called by
        the multiplexer only, for every live token.
        """
        direct = self._direct
        if direct is None or not (self._is_ahead or self._is_after_cursor(tokens[0])):
            return False
        try:
            was_taken = direct(tokens)
        except (
            Exception
        ) as error:  # the error is raised by the reader's next(); other readers go on
            self._direct, self._failure = None, error
            self._arrived.set()
            return True
        if was_taken:
            self.cursor = tokens[-1].cursor.decode()
            self._is_ahead = True
        return was_taken

    def _is_after_cursor(self, entry: TokensEntry) -> bool:
        return cursor_order(entry.cursor.decode()) > cursor_order(self.cursor)

    def push(self, entries: Sequence[StreamEntry]) -> None:
        """Called by the multiplexer only. A reader whose buffer overflows is cut off; a reader with an empty buffer
        can always take one read of the multiplexer.
        """
        if self._failure is not None:
            return
        entries = self._fresh(entries)
        if not entries:
            return
        self._direct = None
        more = sum(_weight(entry) for entry in entries)
        if self._entries and self._bytes + more > _BUFFER_BYTES:
            self._failure = ReaderCutOff(f"too slow; go on after {self.cursor}")
            self._entries.clear()
        else:
            self._entries.extend(entries)
            self._bytes += more
        self._arrived.set()

    def _drain(self) -> list[StreamEntry]:
        self._arrived.clear()
        self._bytes = 0
        fresh = list(self._fresh(self._entries))
        self._entries.clear()
        if (
            fresh and fresh[-1].kind is EntryKind.ARCHIVED
        ):  # what came before may not have reached us
            self._is_live = False
            fresh.pop()
        if fresh:
            self.cursor = fresh[-1].cursor
        return fresh

    def _fresh(self, entries: Iterable[StreamEntry]) -> Sequence[StreamEntry]:
        """The entries after the cursor. Catch-up and live tail overlap; the overlap is dropped."""
        if self._is_ahead:
            return list(entries)
        seen = cursor_order(self.cursor)
        fresh = [entry for entry in entries if cursor_order(entry.cursor) > seen]
        self._is_ahead = bool(fresh)
        return fresh


class _Stream:
    """A stream that at least one reader follows; `position` is where the next read starts."""

    __slots__ = ("key", "position", "readers")

    def __init__(self, key: bytes, position: bytes) -> None:
        self.key = key
        self.position = position
        self.readers: set[Reader] = set()


_News = tuple[_Stream, RawEntries]


class StreamMultiplexer:
    """The shared connection and its readers. Run `run` in a task of the process."""

    def __init__(self, redis_url: str, store: JobReader, control: Redis) -> None:
        """`control` is a client with connections of its own; it interrupts this one's blocking read."""
        self._redis = connect(redis_url, timeout_s=_SOCKET_TIMEOUT_S, max_connections=1)
        self._line = self._redis.dedicated_connection()
        self._store = store
        self._control = control
        self._streams: dict[bytes, _Stream] = {}
        self._version = 0
        self._read_version = 0
        self._next_round_s = 0.0
        self._connection_id = 0
        self._changed = asyncio.Event()

    @property
    def reader_count(self) -> int:
        return sum(len(stream.readers) for stream in self._streams.values())

    @asynccontextmanager
    async def follow(
        self, job_id: JobId, after: str = "", on_tokens: TokenCallback | None = None
    ) -> AsyncIterator[Reader]:
        """A reader of the job's stream after a cursor, closed when the block ends. Entries that `on_tokens` takes
        are not returned by the reader.
        """
        reader = Reader(self._store, job_id, after, self._join, on_tokens)
        try:
            yield reader
        finally:
            self._leave(reader)

    def _join(self, reader: Reader) -> bool:
        """True when the stream is already read from a position after the reader's."""
        key = keys.tokens(reader.job_id).encode()
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(key, (reader.cursor or "0-0").encode())
            self._version += 1
            self._changed.set()
        stream.readers.add(reader)
        return cursor_order(stream.position.decode()) > cursor_order(reader.cursor)

    def _leave(self, reader: Reader) -> None:
        key = keys.tokens(reader.job_id).encode()
        stream = self._streams.get(key)
        if stream is not None:
            stream.readers.discard(reader)
            if not stream.readers:
                del self._streams[key]

    async def run(self) -> None:
        """Read until cancelled. While the store is unavailable it waits; no position is lost."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._unblock_read())
            while True:
                try:
                    await self._read_until_failure()
                except StoreUnavailable as error:
                    self._connection_id = 0
                    _log.debug(
                        "live readers wait for the store", action="multiplexer", reason=error.code
                    )
                    await asyncio.sleep(_BACKOFF_S)

    async def close(self) -> None:
        await self._redis.aclose()

    async def _read_until_failure(self) -> None:
        """While the entries of one read are passed on, the store makes the answer to the next."""
        async with failures_named():
            (self._connection_id,) = await self._line.send([("CLIENT", "ID")])
            news: Sequence[_News] = ()
            is_busy = False
            while True:
                while not self._streams:
                    self._changed.clear()
                    await self._changed.wait()
                due_s, found = self._next_round_s, 0
                for streams, block_ms in self._round(is_busy):
                    reading = asyncio.create_task(self._read(streams, block_ms, due_s))
                    try:
                        for _ in range(_TURNS_TO_SEND):
                            await asyncio.sleep(0)
                        await _pass_on(news)
                        news = await reading
                    finally:
                        reading.cancel()
                    found += len(news)
                is_busy = found > 0

    def _round(self, is_busy: bool) -> Iterator[tuple[Sequence[_Stream], int]]:
        """The reads of every stream once: of which, and how long it may block."""
        self._read_version = self._version
        streams = list(self._streams.values())
        self._next_round_s = max(
            self._next_round_s, time.monotonic() + len(streams) * _ROUND_PER_STREAM_S
        )
        most = _STREAMS_PER_BUSY_READ if is_busy else _STREAMS_PER_READ
        block_ms = 0 if is_busy else _SHORT_BLOCK_MS
        for at in range(0, len(streams), most):
            yield streams[at : at + most], _BLOCK_MS if len(streams) <= most else block_ms

    async def _read(
        self, streams: Sequence[_Stream], block_ms: int, due_s: float
    ) -> Sequence[_News]:
        """What is new in these streams. One whose last reader leaves meanwhile may be joined anew, from an earlier
        position: this answer is not for that reader.
        """
        if (early_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(early_s)
        head = ("XREAD", "COUNT", _ENTRIES_PER_READ, *(("BLOCK", block_ms) if block_ms else ()))
        names, positions = [each.key for each in streams], [each.position for each in streams]
        (answer,) = await self._line.send([(*head, "STREAMS", *names, *positions)])
        by_key = {each.key: each for each in streams}
        news = [(by_key[key], raw) for key, raw in answer or ()]
        for stream, raw in news:
            stream.position = raw[-1][0]
        return news

    async def _unblock_read(self) -> None:
        """Interrupt the blocking read after a stream was added, until the read covers it.

        Repeated, because an interrupt between two reads has no effect.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._streams and self._read_version < self._version:
                if self._connection_id:
                    with suppress(StoreUnavailable):
                        async with failures_named():
                            await self._control.client_unblock(self._connection_id)
                await asyncio.sleep(_NUDGE_EVERY_S)


async def _pass_on(news: Iterable[_News]) -> None:
    """Give entries to the readers of their streams; other calls get their turn meanwhile. Entries of one stream are
    parsed once, and not at all when they are tokens that every reader takes as they are.
    """
    until_s = _now_s() + _SLICE_S
    for stream, raw in news:
        tokens = tokens_entries(raw)
        entries: list[StreamEntry] | None = None
        for reader in stream.readers:
            if tokens is not None and reader.take(tokens):
                continue
            if entries is None:
                entries = [parse_flat_entry(cursor, flat) for cursor, flat in raw]
            reader.push(entries)
        if _now_s() > until_s:
            await asyncio.sleep(0)
            until_s = _now_s() + _SLICE_S


_now_s: Final = time.monotonic
"""Not the thread's CPU time, which takes ten times as long to ask for, and is asked for each stream."""


def _weight(entry: StreamEntry) -> int:
    texts = len(entry.delta) + len(entry.calls) + len(entry.output)
    return 200 + texts + 8 * len(entry.token_ids)
