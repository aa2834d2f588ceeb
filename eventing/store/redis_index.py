"""Job lists and due times of the sweeps: sorted sets over all jobs.

Called by `eventing.store.redis_store` only. Scripts write them together with the record; an entry whose job has
expired is dropped by the next reader.
"""

from collections.abc import Sequence
from typing import Final

from redis.asyncio import Redis

from eventing.job.job import JobId, JobState
from eventing.redis import keys
from eventing.redis.connection import failures_named, store_now_ms
from eventing.redis.script import run

_HOLD_BY_SWEEPER_MS: Final = 15_000


class RedisIndex:
    """The entries that sweepers work off."""

    def __init__(self, redis: Redis, lease_ms: int) -> None:
        self._redis = redis
        self._lease_ms = lease_ms

    async def take_due(self, index: str, limit: int) -> list[JobId]:
        """Members that are due, reserved for 15 s, so that sweepers share the work."""
        async with failures_named():
            due = await run(self._redis, "take_due", [index], [limit, _HOLD_BY_SWEEPER_MS])
        return [JobId(member.decode()) for member in due]

    async def claim_unstarted(self, limit: int) -> list[JobId]:
        """Of the jobs that are due for a check, those that run nowhere; entries of ended jobs are dropped."""
        due = await self.take_due(keys.UNSTARTED, limit)
        if not due:
            return []
        async with failures_named():
            async with self._redis.pipeline(transaction=False) as pipe:
                for job_id in due:
                    pipe.hmget(keys.job(job_id), ["state", "lease_until_ms"])
                rows = dict(zip(due, await pipe.execute(), strict=True))
            now_ms = await store_now_ms(self._redis)
            ended = [job_id for job_id, row in rows.items() if _has_ended(row)]
            if ended:
                await self._redis.zrem(keys.UNSTARTED, *ended)
        return [
            job_id
            for job_id, row in rows.items()
            # One that ends later than any lease was given before the store's clock went back.
            if not _has_ended(row) and not 0 < int(row[1] or 0) - now_ms <= self._lease_ms
        ]

    async def look_later(self, job_id: JobId, after_ms: int) -> None:
        """Postpone the next check of a job that has not ended."""
        async with failures_named():
            await run(self._redis, "look_later", [keys.UNSTARTED], [job_id, after_ms])


def _has_ended(row: Sequence[bytes | None]) -> bool:
    """True for the state of an ended job, and for a job that no longer exists."""
    return row[0] is None or JobState(row[0].decode()).is_terminal
