"""A store whose scripts read a clock that a test sets: real scripts on a real server, hours in seconds.

Only `now_ms` of `_clock.lua` is replaced; a script that reads the time in another way is refused.
"""

from collections.abc import Iterator

import pytest
from redis.asyncio import Redis

from eventing.redis import script

_KEY = "simulated:now_ms"
_OWN = "local t = redis.call('TIME')\n  return t[1] * 1000 + math.floor(t[2] / 1000)\n"
_SIMULATED = f"return tonumber(redis.call('GET', '{_KEY}'))\n"
START_MS = 1_800_000_000_000


class SimulatedClock:
    """The store's time."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.now_s = 0.0

    async def set(self, now_s: float) -> None:
        self.now_s = now_s
        await self._redis.set(_KEY, START_MS + int(now_s * 1000))


@pytest.fixture
def simulated_scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every script that this test runs reads the simulated time."""
    read = script._read

    def with_simulated_time(name: str) -> str:
        text = read(name).replace(_OWN, _SIMULATED)
        assert "'TIME'" not in text, f"{name} reads the time itself"
        return text

    monkeypatch.setattr(script, "_read", with_simulated_time)
    script.source.cache_clear()
    script._digest.cache_clear()
    yield
    script.source.cache_clear()
    script._digest.cache_clear()
