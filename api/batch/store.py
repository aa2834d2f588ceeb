"""The durable records of batches, and which of them want a runner.

Called by `/v1/batches` and the runner. A runner holds a batch for as long as it keeps renewing; one
that stalls is overtaken, and what it then writes is refused by its epoch.
"""

import re
from collections.abc import Sequence
from typing import Final

from redis.asyncio import Redis

from api.batch.batch import Batch, parse_batch
from eventing.errors import NotFound
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import run

HOLD_MS: Final = 15_000
"""How long a runner that fell silent keeps a batch from the others."""
_RETENTION_S: Final = 30 * 24 * 3600
_ID: Final = re.compile(r"batch_[0-9a-f]{24}\Z")


class BatchStore:
    """Batches on one Redis client that it does not own. Every method may raise
    `StoreUnavailable`.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def create(self, batch: Batch) -> Batch:
        """Record it and have it run; the batch of that id, which may have been there before.

        The index comes first: an entry without a batch is dropped, a batch without an entry would
        wait for ever.
        """
        async with failures_named():
            await run(self._redis, "index", [keys.ACTIVE_BATCHES], [batch.id, 0, "NX", 0])
            await self._redis.zadd(
                keys.batches_of(batch.tenant), {batch.id: batch.created_at}, nx=True
            )
            await self._redis.hsetnx(keys.batch(batch.id), "record", batch.to_json())
        return await self.get(batch.id)

    async def get(self, batch_id: str, tenant: str | None = None) -> Batch:
        """Raises `NotFound`, also for another tenant's."""
        raw = None
        if _ID.match(batch_id):
            async with failures_named():
                raw = await self._redis.hget(keys.batch(batch_id), "record")
        batch = parse_batch(raw) if raw else None
        if batch is None or tenant not in (None, batch.tenant):
            raise NotFound("no such batch")
        return batch

    async def list(self, tenant: str) -> Sequence[Batch]:
        """Newest first; at most 1,000."""
        async with failures_named():
            names = await self._redis.zrange(keys.batches_of(tenant), 0, 999, desc=True)
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hget(keys.batch(name.decode()), "record")
                records = await pipe.execute()
        return [parse_batch(raw) for raw in records if raw]

    async def ask_to_cancel(self, batch_id: str) -> None:
        """The runner will see it at its next turn."""
        async with failures_named():
            await self._redis.hset(keys.batch(batch_id), "cancel", 1)
            await run(self._redis, "index", [keys.ACTIVE_BATCHES], [batch_id, 0, "NX", 0])

    async def is_cancel_asked(self, batch_id: str) -> bool:
        async with failures_named():
            return bool(await self._redis.hexists(keys.batch(batch_id), "cancel"))

    async def take(self, limit: int) -> Sequence[tuple[str, int]]:
        """Batches that nobody runs, each with the epoch to write under."""
        async with failures_named():
            names = await run(self._redis, "take_due", [keys.ACTIVE_BATCHES], [limit, HOLD_MS])
            return [
                (
                    name.decode(),
                    int(await self._redis.hincrby(keys.batch(name.decode()), "epoch", 1)),
                )
                for name in names
            ]

    async def save(self, batch: Batch, epoch: int) -> bool:
        """Write the record and hold on to it; False when another runner has overtaken us."""
        async with failures_named():
            args: Sequence[str | bytes | int] = (epoch, batch.to_json(), _RETENTION_S)
            if not await run(self._redis, "batch_save", [keys.batch(batch.id)], args):
                return False
            if batch.status.is_final:
                await self._redis.zrem(keys.ACTIVE_BATCHES, batch.id)
            else:
                await run(self._redis, "index", [keys.ACTIVE_BATCHES], [batch.id, HOLD_MS, "", 0])
        return True

    async def drop(self, batch_id: str) -> None:
        """Forget an entry that has no batch."""
        async with failures_named():
            await self._redis.zrem(keys.ACTIVE_BATCHES, batch_id)
            await self._redis.delete(keys.batch(batch_id))
