"""All live readers of a process on one connection to the store.

Called by the api for every SSE stream, WebSocket and long poll. One loop reads the token streams
that somebody follows (XREAD BLOCK over the whole set) and hands entries to the readers' bounded
buffers; a reader that does not keep up is cut off with its cursor and slows nobody. Must not know
HTTP. On a Redis Cluster it would need one connection a node, which it has not.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog
from redis.asyncio import Redis

from eventing import keys
from eventing.connection import connect, failures_named
from eventing.errors import StoreUnavailable, TorporError
from eventing.job import JobId
from eventing.job_record import parse_entry
from eventing.store import Store, StreamEntry

_BLOCK_MS: Final = 1_000
"""Must stay below the socket timeout, or an idle hub would look like a dead store."""
_SOCKET_TIMEOUT_S: Final = 2.5
_MIN_PACE_S: Final = 0.010
_PACE_PER_STREAM_S: Final = 20e-6
"""A read of n streams costs Redis and us about 1.5 µs a stream; at this pace that is under a tenth
of a core, and 1,000 streams are looked at every 20 ms.
"""
_ENTRIES_PER_READ: Final = 64
_NUDGE_EVERY_S: Final = 0.005
_BACKOFF_S: Final = 0.5
_BUFFER_BYTES: Final = 256 * 1024
"""What a reader may leave untaken: some 1,000 small entries, a minute of tokens."""

_log = structlog.get_logger()


class ReaderCutOff(TorporError):
    """This reader fell too far behind. It may follow again from its cursor."""

    status = 409
    code = "reader_cut_off"


class Reader:
    """One follower of one job's stream, from a cursor on; it sees each entry once, in order."""

    def __init__(
        self, store: Store, job_id: JobId, after: str, join: Callable[["Reader"], bool]
    ) -> None:
        self.cursor = after
        self.job_id = job_id
        self._store = store
        self._join = join
        self._is_live = False
        self._entries: deque[StreamEntry] = deque()
        self._bytes = 0
        self._is_cut_off = False
        self._arrived = asyncio.Event()

    async def next(self, timeout_s: float) -> list[StreamEntry]:
        """Entries that came, or none after the timeout.

        What stands in the store is read from there, at the reader's own pace; then it joins the
        live tail. Raises `ReaderCutOff`, and `StoreUnavailable` only before the tail: that outlives
        a store's restart.
        """
        if not self._is_live:
            entries = await self._store.read_stream(self.job_id, self.cursor)
            if not entries:
                self._is_live = True
                if self._join(self):  # the tail is ahead of us: fetch what lies between
                    entries = await self._store.read_stream(self.job_id, self.cursor)
            if entries:
                self.cursor = entries[-1].cursor
                return entries
        if not self._arrived.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._arrived.wait()
        if self._is_cut_off:
            raise ReaderCutOff(f"too slow; go on after {self.cursor}")
        return self._drain()

    def offer(self, entries: list[StreamEntry]) -> None:
        """Called by the hub only. A reader that leaves too much untaken is cut off; one read of the
        hub is never too much for a reader that had taken everything.
        """
        if self._is_cut_off:
            return
        more = sum(_weight(entry) for entry in entries)
        if self._entries and self._bytes + more > _BUFFER_BYTES:
            self._is_cut_off = True
            self._entries.clear()
        else:
            self._entries.extend(entries)
            self._bytes += more
        self._arrived.set()

    def _drain(self) -> list[StreamEntry]:
        self._arrived.clear()
        self._bytes = 0
        # The catch-up and the live tail overlap; the cursor tells which entries are new.
        seen = order_of(self.cursor)
        fresh = [entry for entry in self._entries if order_of(entry.cursor) > seen]
        self._entries.clear()
        if fresh:
            self.cursor = fresh[-1].cursor
        return fresh


class _Stream:
    """A stream that at least one reader follows."""

    __slots__ = ("position", "readers")

    def __init__(self, position: str) -> None:
        self.position = position
        self.readers: set[Reader] = set()


class TokenHub:
    """The one connection, and who follows what. Run `run` in a task of the process."""

    def __init__(self, redis_url: str, store: Store, control: Redis) -> None:
        """`control` is a client with connections of its own; it wakes ours out of its blocking
        read.
        """
        self._redis = connect(redis_url, timeout_s=_SOCKET_TIMEOUT_S, max_connections=1)
        self._store = store
        self._control = control
        self._streams: dict[str, _Stream] = {}
        self._version = 0
        self._read_version = 0
        self._connection_id = 0
        self._changed = asyncio.Event()

    @property
    def reader_count(self) -> int:
        return sum(len(stream.readers) for stream in self._streams.values())

    @asynccontextmanager
    async def follow(self, job_id: JobId, after: str = "") -> AsyncIterator[Reader]:
        """A reader of the job's stream after a cursor; it is let go when the block ends."""
        reader = Reader(self._store, job_id, after, self._join)
        try:
            yield reader
        finally:
            self._leave(reader)

    def _join(self, reader: Reader) -> bool:
        """True when the stream is already read from a later position than the reader's."""
        key = keys.tokens(reader.job_id)
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(reader.cursor or "0-0")
            self._version += 1
            self._changed.set()
        stream.readers.add(reader)
        return order_of(stream.position) > order_of(reader.cursor)

    def _leave(self, reader: Reader) -> None:
        key = keys.tokens(reader.job_id)
        stream = self._streams.get(key)
        if stream is not None:
            stream.readers.discard(reader)
            if not stream.readers:
                del self._streams[key]

    async def run(self) -> None:
        """Read until cancelled. A store that is away is waited for; no position is lost."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._nudge())
            while True:
                try:
                    await self._read_until_failure()
                except StoreUnavailable as error:
                    self._connection_id = 0
                    _log.warning("live readers wait for the store", action="hub", reason=error.code)
                    await asyncio.sleep(_BACKOFF_S)

    async def close(self) -> None:
        await self._redis.aclose()

    async def _read_until_failure(self) -> None:
        loop = asyncio.get_running_loop()
        async with failures_named(), self._redis.client() as connection:
            self._connection_id = int(await connection.client_id())
            while True:
                while not self._streams:
                    self._changed.clear()
                    await self._changed.wait()
                started_s = loop.time()
                self._read_version = self._version
                positions = {key: stream.position for key, stream in self._streams.items()}
                answer = await connection.xread(positions, count=_ENTRIES_PER_READ, block=_BLOCK_MS)
                self._hand_out(answer or [])
                pace_s = max(_MIN_PACE_S, len(positions) * _PACE_PER_STREAM_S)
                await asyncio.sleep(max(0.0, started_s + pace_s - loop.time()))

    def _hand_out(self, answer: object) -> None:
        rows = answer.items() if isinstance(answer, dict) else answer
        for key, raw in rows:  # type: ignore[attr-defined]
            stream = self._streams.get(key.decode())
            if stream is None:
                continue
            entries = [parse_entry(cursor, fields) for cursor, fields in raw]
            stream.position = entries[-1].cursor
            for reader in stream.readers:
                reader.offer(entries)

    async def _nudge(self) -> None:
        """Wake the read when the set of streams has grown, until it reads the grown set.

        Repeated, since a nudge that comes between two reads wakes nobody.
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


def order_of(cursor: str) -> tuple[int, int]:
    """Where a stream cursor stands; cursors are ordered by their two numbers."""
    milliseconds, _, sequence = cursor.partition("-")
    return int(milliseconds or 0), int(sequence or 0)


def _weight(entry: StreamEntry) -> int:
    return 200 + len(entry.delta) + 8 * len(entry.token_ids)
