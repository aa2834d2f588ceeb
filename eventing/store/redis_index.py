"""Who is listed where, and which job is due for which sweep: sorted sets over all jobs.

Called by `eventing.store.redis_store` only. These keys lie in other slots than the jobs, so they are
written *before* the record: a crash in between leaves an entry without a job, which whoever reads
it next drops, and never a job that no index knows.
"""

from collections.abc import Sequence
from typing import Final

from redis.asyncio import Redis

from eventing.job.job import JobId, JobState
from eventing.job.store import LeaseSettings
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import Call, run

SWEEP_AFTER_MS: Final = 10_000
"""An outbox entry this old was not cleared by its writer; the sweep looks at it. Found and sent
again in 30 s.
"""
_HOLD_BY_SWEEPER_MS: Final = 15_000


def schedule_check(
    index: str, *job_ids: JobId, after_ms: int, mode: str = "", keep_ms: int = 0
) -> Call:
    """The call that notes jobs in an index for `after_ms` from now; `NX` keeps an older note."""
    return ("index", [index], [job_ids[0], after_ms, mode, keep_ms, *job_ids[1:]])


class RedisIndex:
    """The lists of each tenant, and the notes that sweepers work off."""

    def __init__(self, redis: Redis, settings: LeaseSettings) -> None:
        self._redis = redis
        longest_s = max(settings.retention_s, settings.dead_letter_retention_s)
        self._keep_ms = 2000 * longest_s

    def listed(self, index: str, job_id: JobId, mode: str = "") -> Call:
        """The call that puts a job on a list. Lists are pruned by age as they grow, since only
        some are ever read to their end; twice the longest retention is longer than any job stays.
        """
        return schedule_check(index, job_id, after_ms=0, mode=mode, keep_ms=self._keep_ms)

    async def unlist(self, job_id: JobId, tenant: str) -> None:
        """Take a job off its tenant's lists; its notes stay."""
        await self._redis.zrem(keys.jobs_of(tenant), job_id)
        await self._redis.zrem(keys.dead_letters_of(tenant), job_id)

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


def _has_ended(row: Sequence[bytes | None]) -> bool:
    """Of `state` first; a job that is gone has ended, too."""
    return row[0] is None or JobState(row[0].decode()).is_terminal
