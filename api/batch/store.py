"""The durable records of batches, and the index of those that need a runner.

Called by `/v1/batches` and the runner. A runner claims a batch and renews its claim; a stalled runner is overtaken,
and its later writes are fenced by its epoch. Record, list and index change in one script.
"""

import re
import secrets
from collections.abc import Sequence
from typing import Final

from redis.asyncio import Redis

from api.batch.batch import WINDOW_S, Batch, parse_batch
from eventing.errors import NotFound
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import run

CLAIM_MS: Final = 15_000
"""How long a silent runner keeps its claim."""
_RETENTION_S: Final = 30 * 24 * 3600
_LISTED_S: Final = _RETENTION_S + 2 * WINDOW_S
"""A record is kept from its last change on, which is at most a completion window after its creation."""
_LONGEST_STEP: Final = 2**32
"""Epochs grow by chance: after a failover to a lagging replica two runners would be given the same next one."""
_ID: Final = re.compile(r"batch_[0-9a-f]{24}\Z")


class BatchStore:
    """Batches in Redis; the client belongs to the caller. Every method may raise `StoreUnavailable`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def create(self, batch: Batch) -> Batch:
        """Record a batch and queue it for a runner; gives the stored batch with that id, which may be an earlier
        one.
        """
        where = [*_keys(batch.id), keys.batches_of(batch.tenant)]
        what: Sequence[str | bytes | int] = [
            batch.id,
            batch.to_json(),
            batch.created_at,
            _RETENTION_S,
            _LISTED_S,
        ]
        async with failures_named():
            return parse_batch(await run(self._redis, "batch_create", where, what))

    async def get(self, batch_id: str, tenant: str | None = None) -> Batch:
        """The tenant's batch. Raises `NotFound`."""
        raw = None
        if _ID.match(batch_id):
            async with failures_named():
                raw = await self._redis.hget(keys.batch(batch_id), "record")
        batch = parse_batch(raw) if raw else None
        if batch is None or tenant not in (None, batch.tenant):
            raise NotFound("no such batch")
        return batch

    async def list(self, tenant: str) -> Sequence[Batch]:
        """The tenant's batches, newest first, at most 1,000. Entries of expired records are dropped."""
        index = keys.batches_of(tenant)
        async with failures_named():
            names = await self._redis.zrange(index, 0, 999, desc=True)
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hget(keys.batch(name.decode()), "record")
                records = await pipe.execute()
            if gone := [name for name, raw in zip(names, records, strict=True) if not raw]:
                await self._redis.zrem(index, *gone)
        return [parse_batch(raw) for raw in records if raw]

    async def ask_to_cancel(self, batch_id: str) -> None:
        """Request cancellation; the runner acts on it in its next round."""
        async with failures_named():
            await run(self._redis, "batch_cancel", _keys(batch_id), [batch_id])

    async def is_cancel_asked(self, batch_id: str) -> bool:
        async with failures_named():
            return bool(await self._redis.hexists(keys.batch(batch_id), "cancel"))

    async def claim(self, limit: int) -> Sequence[tuple[str, int]]:
        """Claim batches without a runner; each comes with the epoch to write under."""
        claimed = []
        async with failures_named():
            due = await run(self._redis, "take_due", [keys.ACTIVE_BATCHES], [limit, CLAIM_MS])
            for name in (member.decode() for member in due):
                step = 1 + secrets.randbelow(_LONGEST_STEP)
                epoch = int(await run(self._redis, "batch_claim", _keys(name), [name, step]))
                if epoch:
                    claimed.append((name, epoch))
        return claimed

    async def renew(self, batch_id: str, epoch: int, claim_ms: int = CLAIM_MS) -> bool:
        """Extend the claim by `claim_ms`; False when another runner has claimed the batch."""
        async with failures_named():
            args: Sequence[str | int] = (epoch, batch_id, claim_ms, "", 0)
            return bool(await run(self._redis, "batch_save", _keys(batch_id), args))

    async def save(self, batch: Batch, epoch: int) -> bool:
        """Write the record and renew the claim; False when another runner has claimed the batch."""
        claim_ms = 0 if batch.status.is_final else CLAIM_MS
        args: Sequence[str | bytes | int] = (
            epoch,
            batch.id,
            claim_ms,
            batch.to_json(),
            _RETENTION_S,
        )
        async with failures_named():
            return bool(await run(self._redis, "batch_save", _keys(batch.id), args))


def _keys(batch_id: str) -> list[str]:
    return [keys.batch(batch_id), keys.ACTIVE_BATCHES]
