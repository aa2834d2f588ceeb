"""All live readers of a process on one connection to the store.

Called by the api for every SSE stream, WebSocket and long poll. One loop reads the token streams
that somebody follows (XREAD over up to a thousand at a time) and hands entries to the readers: a
reader with a callback and nothing before it takes tokens on the spot, every other into a bounded buffer.
One that does not keep up is cut off with its cursor and slows nobody. Must not know HTTP. On a
Redis Cluster it would need one connection a node, which it has not.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from eventing.errors import StoreUnavailable, TorporError
from eventing.job.job import JobId
from eventing.job.store import EntryKind, JobReader, StreamEntry
from eventing.redis import keys
from eventing.redis.connection import connect, failures_named
from eventing.store.job_record import parse_flat_entry

_BLOCK_MS: Final = 1_000
"""Must stay below the socket timeout, or an idle multiplexer would look like a dead store."""
_SHORT_BLOCK_MS: Final = 10
"""The same while there are streams beyond this read's."""
_SOCKET_TIMEOUT_S: Final = 2.5
_STREAMS_PER_READ: Final = 1_000
"""A read costs the store about 1.5 µs a stream, in which it serves nobody else."""
_REST_PER_STREAM_S: Final = 6e-6
"""Rest after a read, so that looking takes at most a fifth of the store."""
_REST_SHARE: Final = 1.0
"""Rest after handing out, as a share of the time that took: calls have their turn, and the more
there is to hand out, the more goes into one beat. A lone reader's token waits for next to nothing.
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


_Entry = tuple[bytes, list[bytes]]
"""Cursor, and names and values in turn."""

TokenCallback = Callable[[Sequence[StreamEntry]], bool]
"""Takes tokens the moment they are read; False when it cannot now. Called in the multiplexer's own loop, so
it must not wait for anything.
"""


class Reader:
    """One follower of one job's stream, from a cursor on; it sees each entry once, in order."""

    __slots__ = (
        "_arrived",
        "_bytes",
        "_entries",
        "_failure",
        "_is_ahead",
        "_is_listening",
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
        self._is_listening = False
        self._entries: deque[StreamEntry] = deque()
        self._bytes = 0
        self._failure: Exception | None = None
        self._arrived = asyncio.Event()

    async def next(self, timeout_s: float) -> list[StreamEntry]:
        """Entries that came and that no callback took, or none after the timeout.

        What stands in the store is read from there, at the reader's own pace; then it joins the
        live tail. Raises `ReaderCutOff`, what the callback raised, and `StoreUnavailable` only before
        the tail: that outlives a store's restart.
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
            self._is_listening = True
            try:
                async with asyncio.timeout(timeout_s):
                    await self._arrived.wait()
            except TimeoutError:
                return []
            finally:
                self._is_listening = False
        if self._failure is not None:
            raise self._failure
        return self._drain()

    async def catch_up(self) -> list[StreamEntry]:
        """What stands in the store after the cursor, whether the tail has brought it or not. Raises
        `StoreUnavailable`.
        """
        entries = await self._store.read_stream(self.job_id, self.cursor)
        if entries:
            self.cursor = entries[-1].cursor
            self._is_ahead = False  # the tail may bring them again
        return entries

    def push(self, entries: Sequence[StreamEntry]) -> None:
        """Called by the multiplexer only. A reader that leaves too much untaken is cut off; one read of the
        multiplexer is never too much for a reader that had taken everything.
        """
        if self._failure is not None or self._was_taken(entries):
            return
        more = sum(_weight(entry) for entry in entries)
        if self._entries and self._bytes + more > _BUFFER_BYTES:
            self._failure = ReaderCutOff(f"too slow; go on after {self.cursor}")
            self._entries.clear()
        else:
            self._entries.extend(entries)
            self._bytes += more
        self._arrived.set()

    def _was_taken(self, entries: Sequence[StreamEntry]) -> bool:
        """Only while the reader waits with nothing untaken, so that order is kept."""
        if self._on_tokens is None or self._entries or not self._is_listening:
            return False
        if any(entry.kind is not EntryKind.TOKENS for entry in entries):
            return False
        fresh = self._fresh(entries)
        try:
            was_tapped = not fresh or self._on_tokens(fresh)
        except Exception as error:  # the reader's own affair; the multiplexer has others to serve
            self._failure = error
            self._arrived.set()
            return True
        if was_tapped and fresh:
            self.cursor = fresh[-1].cursor
        return was_tapped

    def _drain(self) -> list[StreamEntry]:
        self._arrived.clear()
        self._bytes = 0
        fresh = list(self._fresh(self._entries))
        self._entries.clear()
        if fresh:
            self.cursor = fresh[-1].cursor
        return fresh

    def _fresh(self, entries: Iterable[StreamEntry]) -> Sequence[StreamEntry]:
        """Those after the cursor. The catch-up and the live tail overlap, but only once."""
        if self._is_ahead:
            return list(entries)
        seen = order_of(self.cursor)
        fresh = [entry for entry in entries if order_of(entry.cursor) > seen]
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
    """The one connection, and who follows what. Run `run` in a task of the process."""

    def __init__(self, redis_url: str, store: JobReader, control: Redis) -> None:
        """`control` is a client with connections of its own; it wakes ours out of its blocking
        read.
        """
        self._redis = connect(redis_url, timeout_s=_SOCKET_TIMEOUT_S, max_connections=1)
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
        """A reader of the job's stream after a cursor; it is let go when the block ends. What `on_tokens`
        takes, the reader does not give.
        """
        reader = Reader(self._store, job_id, after, self._join, on_tokens)
        try:
            yield reader
        finally:
            self._leave(reader)

    def _join(self, reader: Reader) -> bool:
        """True when the stream is already read from a later position than the reader's."""
        key = keys.tokens(reader.job_id).encode()
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(key, (reader.cursor or "0-0").encode())
            self._version += 1
            self._changed.set()
        stream.readers.add(reader)
        return order_of(stream.position.decode()) > order_of(reader.cursor)

    def _leave(self, reader: Reader) -> None:
        key = keys.tokens(reader.job_id).encode()
        stream = self._streams.get(key)
        if stream is not None:
            stream.readers.discard(reader)
            if not stream.readers:
                del self._streams[key]

    async def run(self) -> None:
        """Read until cancelled. A store that is away is waited for; no position is lost."""
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
        async with failures_named(), self._own_connection() as connection:
            await connection.send_command("CLIENT", "ID")
            self._connection_id = int(await connection.read_response())
            while True:
                while not self._streams:
                    self._changed.clear()
                    await self._changed.wait()
                self._read_version = self._version
                names = list(self._streams)
                for start in range(0, len(names), _STREAMS_PER_READ):
                    some = names[start : start + _STREAMS_PER_READ]
                    await self._read(connection, some, len(names))

    @asynccontextmanager
    async def _own_connection(self) -> AsyncIterator[AbstractConnection]:
        """The connection that blocks; closed in the end, since an answer may be on its way."""
        pool = self._redis.connection_pool
        connection = await pool.get_connection()
        try:
            yield connection
        finally:
            await connection.disconnect()
            await pool.release(connection)

    async def _read(
        self, connection: AbstractConnection, names: Sequence[bytes], all_names: int
    ) -> None:
        """One look at some of the streams, and a rest."""
        streams = [stream for name in names if (stream := self._streams.get(name))]
        if not streams:
            return
        block_ms = _BLOCK_MS if all_names == len(names) else _SHORT_BLOCK_MS
        # Not a client's `xread`: what it does to each entry and key is as much as all that we do.
        await connection.send_command(
            *("XREAD", "COUNT", _ENTRIES_PER_READ, "BLOCK", block_ms, "STREAMS"),
            *(stream.key for stream in streams),
            *(stream.position for stream in streams),
        )
        answer = await connection.read_response()
        began_s = time.thread_time()  # not the clock: on a full machine we would rest for others
        self._hand_out(answer or ())
        worked_s = time.thread_time() - began_s
        await asyncio.sleep(max(worked_s * _REST_SHARE, len(streams) * _REST_PER_STREAM_S))

    def _hand_out(self, answer: Iterable[tuple[bytes, Sequence[_Entry]]]) -> None:
        for key, raw in answer:
            stream = self._streams.get(key)
            if stream is None:
                continue
            entries = [parse_flat_entry(cursor, flat) for cursor, flat in raw]
            stream.position = raw[-1][0]
            for reader in tuple(stream.readers):
                reader.push(entries)

    async def _unblock_read(self) -> None:
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
