"""All live readers of a process on one connection to the store.

Called by the api for every SSE stream, WebSocket and long poll. One loop reads the token streams that have readers
(XREAD over up to a thousand streams) and passes their entries on: directly to a reader's callback when it has
nothing buffered, else into the reader's bounded buffer. A reader that does not keep up is cut off with its cursor
and delays no other. Must not know HTTP. A Redis Cluster, which would need one connection a node, is not supported.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
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
from eventing.redis.stream_entry import TokensEntry, parse_flat_entry, tokens_entry

_BLOCK_MS: Final = 1_000
"""Must stay below the socket timeout, or an idle multiplexer would be taken for an unavailable store."""
_SHORT_BLOCK_MS: Final = 10
"""The block time while there are more streams than one read covers."""
_SOCKET_TIMEOUT_S: Final = 2.5
_STREAMS_PER_READ: Final = 1_000
"""Streams of one read. A read costs the store about 1.5 µs a stream, during which it serves no other command."""
_ROUND_PER_STREAM_S: Final = 6e-6
"""All streams are read once in so long for each of them, or more seldom: a quarter of the store's time at most. The
token of a single reader is hardly delayed.
"""
_SLICE_S: Final = 0.002
"""After so long, other calls of the process get their turn before the next entries are passed on."""
_ENTRIES_PER_READ: Final = 64
_NUDGE_EVERY_S: Final = 0.005
_BACKOFF_S: Final = 0.5
_BUFFER_BYTES: Final = 256 * 1024
"""Size of a reader's buffer: some 1,000 small entries, a minute of tokens."""

_log = structlog.get_logger()


class ReaderCutOff(TorporError):
    """The reader fell too far behind. It may follow again from its cursor."""

    status = 409
    code = "reader_cut_off"


_Raw = Sequence[tuple[bytes, list[bytes]]]
"""Entries as Redis sends them: each a cursor, and names and values in turn."""
_Answer = Sequence[tuple[bytes, _Raw]]
"""Entries by the key of their stream."""

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
        async with failures_named():
            (self._connection_id,) = await self._line.send([("CLIENT", "ID")])
            while True:
                while not self._streams:
                    self._changed.clear()
                    await self._changed.wait()
                await self._read_all()

    async def _read_all(self) -> None:
        """Every stream once. While the entries of one read are passed on, the store makes the answer to the next."""
        began_s = time.monotonic()
        self._read_version = self._version
        streams = list(self._streams.values())
        parts = [
            streams[at : at + _STREAMS_PER_READ] for at in range(0, len(streams), _STREAMS_PER_READ)
        ]
        block_ms = _BLOCK_MS if len(parts) == 1 else _SHORT_BLOCK_MS
        answer = await self._read(parts[0], block_ms)
        for part, following in zip(parts, [*parts[1:], None], strict=True):
            if following is None:
                await self._hand_out(part, answer)
                continue
            reading = asyncio.create_task(self._read(following, block_ms))
            try:
                await self._hand_out(part, answer)
                answer = await reading
            finally:
                reading.cancel()
        due_s = began_s + len(streams) * _ROUND_PER_STREAM_S
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    async def _read(self, streams: Sequence[_Stream], block_ms: int) -> _Answer:
        """What is new in these streams, by their keys."""
        keys_first = [stream.key for stream in streams], [stream.position for stream in streams]
        head = ("XREAD", "COUNT", _ENTRIES_PER_READ, "BLOCK", block_ms, "STREAMS")
        (answer,) = await self._line.send([(*head, *keys_first[0], *keys_first[1])])
        return answer or ()

    async def _hand_out(self, streams: Iterable[_Stream], answer: _Answer) -> None:
        """Pass on what was read of `streams`. A stream whose last reader left meanwhile may have been joined anew,
        from an earlier position: this answer is not for that reader.
        """
        if not answer:
            return
        by_key = {stream.key: stream for stream in streams}
        until_s = _cpu_s() + _SLICE_S
        for key, raw in answer:
            stream = by_key[key]
            stream.position = raw[-1][0]
            _pass_on(raw, stream.readers)
            if _cpu_s() > until_s:
                await asyncio.sleep(0)
                until_s = _cpu_s() + _SLICE_S

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


def _pass_on(raw: _Raw, readers: Iterable[Reader]) -> None:
    """Give entries of one stream to its readers. They are parsed once, and not at all when they are tokens that every
    reader takes as they are.
    """
    tokens = [entry for cursor, flat in raw if (entry := tokens_entry(cursor, flat))]
    is_all_tokens = len(tokens) == len(raw)
    entries: list[StreamEntry] | None = None
    for reader in readers:
        if is_all_tokens and reader.take(tokens):
            continue
        if entries is None:
            entries = [parse_flat_entry(cursor, flat) for cursor, flat in raw]
        reader.push(entries)


_cpu_s: Final = time.thread_time
"""Not wall time, which on a busy machine counts other processes."""


def _weight(entry: StreamEntry) -> int:
    texts = len(entry.delta) + len(entry.calls) + len(entry.output)
    return 200 + texts + 8 * len(entry.token_ids)
