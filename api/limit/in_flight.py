"""How many jobs of a tenant have not ended. Called by `api.limit.gate`.

A set of job ids a tenant: a place is taken before the job is recorded and given back when its
result event arrives. A place whose job ended unheard (an event that was lost, a crash between the
two) is found when the set is full: its oldest entries are held against the store.
"""

import time
from typing import Final

from redis.asyncio import Redis

from eventing.job.job import JobId, JobState
from eventing.redis import keys
from eventing.redis.connection import failures_named

_LOOK_AT: Final = 50
_LOOK_EVERY_S: Final = 1.0
"""Who is full and asks on must not cost fifty reads a call."""
_YOUNG_MS: Final = 5_000
"""A place this young may belong to a job that is just being recorded."""
_KEEP_S: Final = 31 * 24 * 3600


class InFlightJobs:
    """Places of every tenant. Every method raises `StoreUnavailable`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._looked_s: dict[str, float] = {}

    async def take(self, tenant: str, job_id: JobId, limit: int) -> bool:
        """Take a place; False when there is none."""
        if await self._add(tenant, job_id) <= limit:
            return True
        if await self._tidy(tenant) and await self._add(tenant, job_id) <= limit:
            return True
        await self.leave(tenant, job_id)
        return False

    async def rename(self, tenant: str, old: JobId, new: JobId) -> None:
        """The job got another id than it was announced with (an Idempotency-Key)."""
        await self._add(tenant, new)
        await self.leave(tenant, old)

    async def leave(self, tenant: str, job_id: JobId) -> None:
        """Give a place back; idempotent."""
        async with failures_named():
            await self._redis.zrem(keys.jobs_in_flight_of(tenant), job_id)

    async def _add(self, tenant: str, job_id: JobId) -> int:
        """How many places are taken, this one included."""
        key = keys.jobs_in_flight_of(tenant)
        async with failures_named():
            seconds, microseconds = await self._redis.time()
            now_ms = int(seconds) * 1000 + int(microseconds) // 1000
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.zadd(key, {job_id: now_ms}, nx=True)
                pipe.zcard(key)
                pipe.expire(key, _KEEP_S)
                answers = await pipe.execute()
        return int(answers[1])

    async def _tidy(self, tenant: str) -> bool:
        """Give back places of jobs that ended or never came to be; True when the places are to be
        counted again, False just after a look. Also when none was left to give back: somebody else may
        have done so since the count.
        """
        now_s = time.monotonic()
        if now_s - self._looked_s.get(tenant, float("-inf")) < _LOOK_EVERY_S:
            return False
        self._looked_s[tenant] = now_s
        key = keys.jobs_in_flight_of(tenant)
        async with failures_named():
            seconds = (await self._redis.time())[0]
            oldest = await self._redis.zrange(key, 0, _LOOK_AT - 1, withscores=True)
            async with self._redis.pipeline(transaction=False) as pipe:
                for member, _ in oldest:
                    pipe.hget(
                        keys.job(JobId(member.decode())), "state"
                    )  # not the megabytes beside it
                states = await pipe.execute() if oldest else []
        old_ms = seconds * 1000 - _YOUNG_MS
        gone = [
            member
            for (member, at_ms), state in zip(oldest, states, strict=True)
            if (at_ms < old_ms if state is None else JobState(state.decode()).is_terminal)
        ]
        if gone:
            async with failures_named():
                await self._redis.zrem(key, *gone)
        return True
