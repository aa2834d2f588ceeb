"""The jobs of each tenant that have not ended. Called by `api.limit.gate`.

A set of job ids a tenant: an id is added before the job is recorded and removed when it ends. An id whose end was
missed (a lost event, a crash in between) is found when the set is full: its oldest entries are checked against the
store.
"""

import time
from typing import Final

from redis.asyncio import Redis

from eventing.job.job import JobId, JobState
from eventing.redis import keys
from eventing.redis.connection import failures_named, store_now_ms

_LOOK_AT: Final = 50
_LOOK_EVERY_S: Final = 1.0
"""Least time between two checks, so that a tenant at its limit does not cause fifty reads a call."""
_YOUNG_MS: Final = 5_000
"""An entry younger than this may belong to a job that is being recorded."""
_KEEP_S: Final = 31 * 24 * 3600


class InFlightJobs:
    """The sets of every tenant. Every method raises `StoreUnavailable`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._looked_s: dict[str, float] = {}

    async def take(self, tenant: str, job_id: JobId, limit: int) -> bool:
        """Add a job; False when the tenant is at its limit."""
        if await self._add(tenant, job_id) <= limit:
            return True
        if await self._tidy(tenant) and await self._add(tenant, job_id) <= limit:
            return True
        await self.leave(tenant, job_id)
        return False

    async def leave(self, tenant: str, job_id: JobId) -> None:
        """Remove a job; idempotent."""
        async with failures_named():
            await self._redis.zrem(keys.jobs_in_flight_of(tenant), job_id)

    async def count(self, tenant: str) -> int:
        """How many jobs are in the set."""
        async with failures_named():
            return int(await self._redis.zcard(keys.jobs_in_flight_of(tenant)))

    async def _add(self, tenant: str, job_id: JobId) -> int:
        """The size of the set, this job included."""
        key = keys.jobs_in_flight_of(tenant)
        async with failures_named():
            now_ms = await store_now_ms(self._redis)
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.zadd(key, {job_id: now_ms}, nx=True)
                pipe.zcard(key)
                pipe.expire(key, _KEEP_S)
                answers = await pipe.execute()
        return int(answers[1])

    async def _tidy(self, tenant: str) -> bool:
        """Remove jobs that ended or were never recorded; True when the set should be counted again, also when
        nothing was left to remove, since another process may have done so. False right after a check.
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
                    )  # without request and result
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
