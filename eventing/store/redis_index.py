"""Who is listed where, and which job is due for which sweep: sorted sets over all jobs.

Called by `eventing.store.redis_store` only. The scripts write them together with the record; an
entry whose job has expired since is dropped by whoever reads it next.
"""

from collections.abc import Sequence
from typing import Final

from redis.asyncio import Redis

from eventing.job.job import JobId, JobState
from eventing.job.store import LeaseSettings
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import run

_HOLD_BY_SWEEPER_MS: Final = 15_000


class RedisIndex:
    """The lists of each tenant, and the notes that sweepers work off."""

    def __init__(self, redis: Redis, settings: LeaseSettings) -> None:
        self._redis = redis
        longest_s = max(settings.retention_s, settings.dead_letter_retention_s)
        self.keep_ms: Final = (
            2000 * longest_s
        )  #: lists are pruned by age: longer than any job stays

    async def take_due(self, index: str, limit: int) -> list[JobId]:
        """Members that are due, taken for 15 s, so that sweepers share them."""
        async with failures_named():
            due = await run(self._redis, "take_due", [index], [limit, _HOLD_BY_SWEEPER_MS])
        return [JobId(member.decode()) for member in due]

    async def claim_unstarted(self, limit: int) -> list[JobId]:
        """Of those whose look is due, who runs nowhere; notes of jobs that have ended are dropped
        on the way.
        """
        due = await self.take_due(keys.UNSTARTED, limit)
        if not due:
            return []
        async with failures_named():
            async with self._redis.pipeline(transaction=False) as pipe:
                for job_id in due:
                    pipe.hmget(keys.job(job_id), ["state", "lease_until_ms"])
                rows = dict(zip(due, await pipe.execute(), strict=True))
            seconds, microseconds = await self._redis.time()
            ended = [job_id for job_id, row in rows.items() if _has_ended(row)]
            if ended:
                await self._redis.zrem(keys.UNSTARTED, *ended)
        now_ms = int(seconds) * 1000 + int(microseconds) // 1000
        return [
            job_id
            for job_id, row in rows.items()
            if not _has_ended(row) and int(row[1] or 0) <= now_ms
        ]

    async def look_later(self, job_id: JobId, after_ms: int) -> None:
        """Leave a job that has not ended alone for so long."""
        async with failures_named():
            await run(self._redis, "look_later", [keys.UNSTARTED], [job_id, after_ms])


def _has_ended(row: Sequence[bytes | None]) -> bool:
    """Of `state` first; a job that is gone has ended, too."""
    return row[0] is None or JobState(row[0].decode()).is_terminal
