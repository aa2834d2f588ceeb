"""Sliding windows on Redis, counted by the `limits` library. Called by `api.limit_gate`."""

from typing import Final

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.asyncio import Redis

from api.limit import MINUTE_S, Window
from eventing import keys
from eventing.connection import failures_named

_PREFIX: Final = f"{keys.PREFIX}:limits"


class Windows:
    """Counters of every tenant, on the connections of a Redis client that it does not own. Every
    method raises `StoreUnavailable`.
    """

    def __init__(self, redis: Redis) -> None:
        # The address is not used: the pool knows it, and the password.
        self._storage = RedisStorage(
            "async+redis://pool:6379",
            implementation="redispy",
            key_prefix=_PREFIX,
            connection_pool=redis.connection_pool,
        )
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)

    async def take(self, what: str, tenant: str, limit: int, cost: int) -> tuple[bool, Window]:
        """Take `cost` if it fits, all or nothing; and the window as it is after that."""
        item = RateLimitItemPerMinute(limit)
        async with failures_named():
            is_taken = await self._limiter.hit(item, what, tenant, cost=cost)
            row = await self._storage.get_sliding_window(item.key_for(what, tenant), MINUTE_S)
        previous, previous_left_s, current, current_kept_s = row
        return is_taken, Window(
            limit=limit,
            previous=previous,
            previous_left_s=previous_left_s,
            current=current,
            current_left_s=max(0.0, current_kept_s - MINUTE_S),  # kept for one more, as the last
        )
