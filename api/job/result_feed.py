"""The ended jobs of a tenant, one after the other: what a producer reads that the broker cannot
reach.

The scripts that end a job write it (`eventing/redis/scripts/_lib.lua`), some 10,000 ends for three
days; `api.routes.events` reads it for `GET /v1/events`. It holds job ids, not results: what a reader
sees is the job as it is. One loop a process looks for all readers (docs/adr/0140). Must not know
HTTP.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

from redis.asyncio import Redis

from eventing.errors import Overloaded, StoreUnavailable
from eventing.job.job import Job, JobId
from eventing.job.store import JobReader
from eventing.live.stream_multiplexer import order_of
from eventing.redis import keys
from eventing.redis.connection import failures_named

_LOOK_EVERY_S: Final = 0.2
READERS: Final = 64
"""Readers a tenant may have at one api process."""
_PAGE: Final = 100
NOW: Final = "$"


@dataclass(frozen=True, slots=True)
class FeedEntry:
    """One end; `job` is None when it is no longer kept, or was sent round again since."""

    cursor: str
    job: Job | None


class _Line:
    """A tenant whose feed somebody reads here."""

    def __init__(self) -> None:
        self.readers = 0
        self.newest = ""
        self.grew = asyncio.Event()


class ResultFeed:
    """Feeds on one Redis client that it does not own. Run `run` in a task.
    Every method may raise `StoreUnavailable`.
    """

    def __init__(self, redis: Redis, store: JobReader) -> None:
        self._redis = redis
        self._store = store
        self._lines: dict[str, _Line] = {}
        self._is_read = asyncio.Event()

    async def newest(self, tenant: str) -> str:
        """The cursor to read on from when only what comes is wanted."""
        async with failures_named():
            rows = await self._redis.xrevrange(keys.results_of(tenant), count=1)
        return rows[0][0].decode() if rows else "0-0"

    async def has_forgotten(self, tenant: str, after: str) -> bool:
        """Whether ends right after that cursor may be gone."""
        async with failures_named():
            rows = await self._redis.xrange(keys.results_of(tenant), count=1)
            if not rows or order_of(rows[0][0].decode()) <= order_of(after):
                return not rows
            return not await self._redis.xrange(
                keys.results_of(tenant), min=after, max=after, count=1
            )

    async def page(self, tenant: str, after: str) -> AsyncGenerator[FeedEntry, None]:
        """The next ends after a cursor, the oldest first. A job is read when its turn comes: a hundred
        answers of a megabyte each are not held for a reader that takes one at a time.
        """
        async with failures_named():
            rows = await self._redis.xrange(keys.results_of(tenant), min=f"({after}", count=_PAGE)
        for cursor, fields in rows:
            yield await self._read(tenant, cursor.decode(), fields)

    def check_room(self, tenant: str) -> None:
        """Raises `Overloaded` when the tenant has as many readers here as it may."""
        if tenant in self._lines and self._lines[tenant].readers >= READERS:
            raise Overloaded(f"{READERS} readers of these events are here already", 5.0)

    @asynccontextmanager
    async def reading(self, tenant: str) -> AsyncIterator[None]:
        """While a reader of the tenant's feed is there."""
        line = self._lines.setdefault(tenant, _Line())
        line.readers += 1
        self._is_read.set()
        try:
            yield
        finally:
            line.readers -= 1
            if not line.readers:
                del self._lines[tenant]

    async def grew(self, tenant: str, after: str) -> None:
        """Return once there is more than `after`. Only while `reading`."""
        line = self._lines[tenant]
        while order_of(line.newest) <= order_of(after):
            line.grew.clear()
            await line.grew.wait()

    async def run(self) -> None:
        """Look for all readers at once, until cancelled. With no reader, ask nothing."""
        while True:
            while not self._lines:
                self._is_read.clear()
                await self._is_read.wait()
            with suppress(StoreUnavailable):  # the next look may fare better
                await self._look()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _look(self) -> None:
        tenants = list(self._lines)
        async with failures_named(), self._redis.pipeline(transaction=False) as pipe:
            for tenant in tenants:
                pipe.xrevrange(keys.results_of(tenant), count=1)
            newest = await pipe.execute()
        for tenant, rows in zip(tenants, newest, strict=True):
            line = self._lines.get(tenant)
            if rows and line is not None and line.newest != (cursor := rows[0][0].decode()):
                line.newest = cursor
                line.grew.set()

    async def _read(self, tenant: str, cursor: str, fields: dict[bytes, bytes]) -> FeedEntry:
        job = await self._store.get(JobId(fields[b"job"].decode()))
        is_it = (
            job is not None
            and job.tenant == tenant
            and job.state.is_terminal
            and job.attempt == int(fields[b"attempt"])
        )
        return FeedEntry(cursor, job if is_it else None)
