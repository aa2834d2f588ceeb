"""Sliding windows in Redis, counted by the `limits` library, and the charges of each job.

Called by `api.limit.gate`. Must not know how a job's cost is computed.
"""

from dataclasses import dataclass
from typing import Final

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.asyncio import Redis

from api.limit.limit import MINUTE_S, LimitWindow
from eventing.job.job import JobId
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import run

_KEEP_S: Final = 31 * 24 * 3600
"""A charge is kept for longer than the longest job (deadlines are at most 30 days)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitMeter:
    """A counter of a tenant: `name`, up to `limit` a minute."""

    name: str
    tenant: str
    limit: int

    @property
    def item(self) -> RateLimitItemPerMinute:
        return RateLimitItemPerMinute(self.limit)

    @property
    def whose(self) -> tuple[str, str]:
        return self.name, keys.escape(self.tenant)

    @property
    def current(self) -> str:
        """The window's key as the library writes it; a charge shares its hash slot."""
        return f"{keys.LIMITS}:{{{self.item.key_for(*self.whose)}}}"

    def charge(self, job_id: JobId) -> str:
        return f"{self.current}:charge:{job_id}"


class Windows:
    """The counters of every tenant, on the connections of a Redis client that belongs to the caller. Every method
    raises `StoreUnavailable`.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        # The address is not used: the pool knows it, and the password.
        self._storage = RedisStorage(
            "async+redis://pool:6379",
            implementation="redispy",
            key_prefix=keys.LIMITS,
            connection_pool=redis.connection_pool,
        )
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)

    async def take(self, meter: LimitMeter, cost: int) -> tuple[bool, LimitWindow]:
        """Take `cost` if it fits, all or nothing; gives the window after it."""
        async with failures_named():
            is_taken = await self._limiter.hit(meter.item, *meter.whose, cost=cost)
        return is_taken, await self.look(meter)

    async def look(self, meter: LimitMeter) -> LimitWindow:
        """The window as it is now. One that would last longer than any was begun before the store's clock went
        back: it lasts a whole window from now.
        """
        name = meter.item.key_for(*meter.whose)
        async with failures_named():
            row = await self._storage.get_sliding_window(name, MINUTE_S)
            if row[3] > 2 * MINUTE_S + 1:
                await self._redis.expire(meter.current, 2 * MINUTE_S)
                await self._redis.expire(f"{meter.current}/-1", MINUTE_S)
                row = await self._storage.get_sliding_window(name, MINUTE_S)
        previous, previous_left_s, current, current_kept_s = row
        return LimitWindow(
            limit=meter.limit,
            previous=previous,
            previous_left_s=previous_left_s,
            current=current,
            current_left_s=max(0.0, current_kept_s - MINUTE_S),  # kept for one more, as the last
        )

    async def charge(self, meter: LimitMeter, job_id: JobId, cost: int) -> None:
        """Record that the job was charged `cost`."""
        async with failures_named():
            await run(self._redis, "limit_charge", [meter.charge(job_id)], [cost, _KEEP_S])

    async def settle(self, meter: LimitMeter, job_id: JobId, on_admitted: int) -> int:
        """Correct the job's charge to what it `used`; gives the difference, negative when tokens were returned.

        Idempotent, across processes. A process that dies before it leaves the charge as it was.
        """
        current = meter.current
        where = [meter.charge(job_id), f"{current}/-1", current, f"{current}/late"]
        how = [on_admitted, MINUTE_S * 1000, meter.limit]
        async with failures_named():
            return int(await run(self._redis, "limit_settle", where, how))
