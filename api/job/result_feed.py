"""The feed of a tenant's ended jobs, for producers that the broker cannot reach.

The scripts that end a job write it (`eventing/redis/scripts/_end.lua`), some 10,000 entries for three days;
`api.routes.events` serves it as `GET /v1/events`. It has job ids, not results: a reader gets the job as it is when
read. One loop a process reads for all its readers (docs/adr/0140). Must not know HTTP.
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
from eventing.job.stream import cursor_order
from eventing.redis import keys
from eventing.redis.connection import failures_named

_LOOK_EVERY_S: Final = 0.2
READERS: Final = 64
"""Readers that a tenant may have at one api process."""
_PAGE: Final = 100


@dataclass(frozen=True, slots=True)
class FeedEntry:
    """One ended job; `job` is None when it has been deleted or redriven since."""

    cursor: str
    job: Job | None


class _FollowedTenant:
    """A tenant whose feed has readers in this process."""

    def __init__(self) -> None:
        self.readers = 0
        self.newest = ""
        self.grew = asyncio.Event()


class ResultFeed:
    """Feeds in Redis; the client belongs to the caller. Run `run` in a task. Every method may raise
    `StoreUnavailable`.
    """

    def __init__(self, redis: Redis, store: JobReader) -> None:
        self._redis = redis
        self._store = store
        self._followed: dict[str, _FollowedTenant] = {}
        self._is_read = asyncio.Event()

    async def newest(self, tenant: str) -> str:
        """The cursor for reading only new entries."""
        async with failures_named():
            rows = await self._redis.xrevrange(keys.results_of(tenant), count=1)
        return rows[0][0].decode() if rows else "0-0"

    async def has_forgotten(self, tenant: str, after: str) -> bool:
        """True when entries right after that cursor may have been trimmed."""
        async with failures_named():
            rows = await self._redis.xrange(keys.results_of(tenant), count=1)
            if not rows or cursor_order(rows[0][0].decode()) <= cursor_order(after):
                return not rows
            return not await self._redis.xrange(
                keys.results_of(tenant), min=after, max=after, count=1
            )

    async def page(self, tenant: str, after: str) -> AsyncGenerator[FeedEntry, None]:
        """The next entries after a cursor, oldest first. Each job is read when its turn comes, so that a hundred
        results of a megabyte are not held in memory for a reader that takes one at a time.
        """
        async with failures_named():
            rows = await self._redis.xrange(keys.results_of(tenant), min=f"({after}", count=_PAGE)
        for cursor, fields in rows:
            yield await self._read(tenant, cursor.decode(), fields)

    def check_room(self, tenant: str) -> None:
        """Raises `Overloaded` when the tenant has the largest allowed number of readers here."""
        if tenant in self._followed and self._followed[tenant].readers >= READERS:
            raise Overloaded(f"{READERS} readers of these events are here already", 5.0)

    @asynccontextmanager
    async def reading(self, tenant: str) -> AsyncIterator[None]:
        """Registers a reader of the tenant's feed while the block runs."""
        followed = self._followed.setdefault(tenant, _FollowedTenant())
        followed.readers += 1
        self._is_read.set()
        try:
            yield
        finally:
            followed.readers -= 1
            if not followed.readers:
                del self._followed[tenant]

    async def grew(self, tenant: str, after: str) -> None:
        """Return once there are entries after `after`. Only inside `reading`."""
        followed = self._followed[tenant]
        while cursor_order(followed.newest) <= cursor_order(after):
            followed.grew.clear()
            await followed.grew.wait()

    async def run(self) -> None:
        """Check all feeds with readers, until cancelled. Without readers nothing is read."""
        while True:
            while not self._followed:
                self._is_read.clear()
                await self._is_read.wait()
            with suppress(StoreUnavailable):  # the next check may succeed
                await self._look()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _look(self) -> None:
        tenants = list(self._followed)
        async with failures_named(), self._redis.pipeline(transaction=False) as pipe:
            for tenant in tenants:
                pipe.xrevrange(keys.results_of(tenant), count=1)
            newest = await pipe.execute()
        for tenant, rows in zip(tenants, newest, strict=True):
            followed = self._followed.get(tenant)
            if rows and followed is not None and followed.newest != (cursor := rows[0][0].decode()):
                followed.newest = cursor
                followed.grew.set()

    async def _read(self, tenant: str, cursor: str, fields: dict[bytes, bytes]) -> FeedEntry:
        job = await self._store.get(JobId(fields[b"job"].decode()), with_result=False)
        is_it = (
            job is not None
            and job.tenant == tenant
            and job.state.is_terminal
            and job.attempt == int(fields[b"attempt"])
        )
        return FeedEntry(cursor, job if is_it else None)
