"""Who is listed where, and which job is due for which sweep: sorted sets over all jobs.

Called by `eventing.store.redis_store` only. These keys lie in other slots than the jobs, so they are
written *before* the record: a crash in between leaves an entry without a job, which whoever reads
it next drops, and never a job that no index knows.
"""

from collections.abc import Callable, Sequence
from typing import Final

from redis.asyncio import Redis

from eventing.job.job import Job, JobId
from eventing.job.list_cursor import ListCursor
from eventing.job.store import LeaseSettings, Page
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import Call, run
from eventing.store import job_record

SWEEP_AFTER_MS: Final = 10_000
"""An outbox entry this old was not cleared by its writer; the sweep looks at it. Found and sent
again in 30 s.
"""
_HOLD_BY_SWEEPER_MS: Final = 15_000
_LIST_SCAN: Final = 100


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
            jobs = dict(zip(due, await self._get_many(due), strict=True))
            seconds, microseconds = await self._redis.time()
            ended = [job_id for job_id, job in jobs.items() if job is None or job.state.is_terminal]
            if ended:
                await self._redis.zrem(keys.UNSTARTED, *ended)
        now_ms = int(seconds) * 1000 + int(microseconds) // 1000
        return [
            job_id
            for job_id, job in jobs.items()
            if job and not job.state.is_terminal and job.lease_until_ms <= now_ms
        ]

    async def page(
        self, index: str, is_wanted: Callable[[Job], bool], limit: int, cursor: str
    ) -> Page:
        """Walk a list from its newest end; entries of expired jobs are dropped on the way."""
        place = ListCursor.parse(cursor)
        found: list[tuple[Job, ListCursor]] = []
        while places := await self._places(index, place):
            async with failures_named():
                jobs = await self._get_many([place.job_id for place in places])
                if gone := [p.job_id for p, job in zip(places, jobs, strict=True) if job is None]:
                    await self._redis.zrem(index, *gone)
            for place, job in zip(places, jobs, strict=True):
                if job is None or not is_wanted(job):
                    continue
                if len(found) == limit:
                    return Page(jobs=tuple(j for j, _ in found), next_cursor=str(found[-1][1]))
                found.append((job, place))
        return Page(jobs=tuple(job for job, _ in found))

    async def _places(self, index: str, after: ListCursor | None) -> list[ListCursor]:
        """The next places of a list, newest first; empty at its end. Those that share their
        millisecond with `after` are read again and skipped, since Redis knows no cursor in a score.
        """
        top, offset = str(after.at_ms) if after else "+inf", 0
        while True:
            async with failures_named():
                rows = await self._redis.zrange(
                    index,
                    top,
                    "-inf",
                    desc=True,
                    byscore=True,
                    offset=offset,
                    num=_LIST_SCAN,
                    withscores=True,
                )
            places = [ListCursor(int(score), JobId(member.decode())) for member, score in rows]
            fresh = [place for place in places if after is None or place < after]
            if fresh or len(rows) < _LIST_SCAN:
                return fresh
            offset += _LIST_SCAN

    async def _get_many(self, job_ids: Sequence[JobId]) -> list[Job | None]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hgetall(keys.job(job_id))
            records = await pipe.execute()
        return [job_record.parse(job_id, r) for job_id, r in zip(job_ids, records, strict=True)]
