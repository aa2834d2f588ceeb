"""What the store knows of providers: limits, what is left of them, and circuit breakers, as metric samples.

Called by `eventing.telemetry.metric.live`; the state is written by `predictor.engine.upstream`, whose processes sleep
while nothing is asked. Must not know how a limit is followed.
"""

from collections.abc import Collection, Mapping
from typing import Final

import orjson
from redis.asyncio import Redis

from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.telemetry.metric.family import Family, Samples, Series

_LABELS: Final = ("model", "endpoint")
OPEN: Final = Family(
    "torpor_provider_breaker_open",
    "1 while a provider's circuit breaker keeps calls from it: open, or half open with one probe at a time.",
    _LABELS,
)
THROTTLED: Final = Family(
    "torpor_provider_throttled_seconds",
    "For how long a provider has asked not to be called again.",
    _LABELS,
)
LIMIT: Final = Family(
    "torpor_provider_limit_per_minute",
    "What a provider allows a minute, as its answers say or as it was found by trying.",
    (*_LABELS, "of"),
)
LEFT: Final = Family(
    "torpor_provider_left",
    "What may be sent to a provider now without a wait.",
    (*_LABELS, "of"),
)
PROVIDER_FAMILIES: Final = (OPEN, THROTTLED, LIMIT, LEFT)
_WINDOW_MS: Final = 60_000
_FIELDS: Final = (*("state", "at", "blocked_until", "limit_r", "level_r", "limit_t", "level_t"),)


async def provider_samples(redis: Redis, models: Collection[str]) -> Samples:
    """The samples of every endpoint of these models. Raises `StoreUnavailable`."""
    async with failures_named():
        listed = await redis.hgetall(keys.providers())
        if not listed:
            return {}
        async with redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for digest in listed:
                pipe.hmget(keys.provider(digest.decode()), _FIELDS)
            (now_s, micros), *rows = await pipe.execute()
    now_ms = now_s * 1000 + micros // 1000
    found = Series(list)
    for entry, row in zip(listed.values(), rows, strict=True):
        named = orjson.loads(entry)
        if named["model"] in models and row[0] is not None:
            state = dict(zip(_FIELDS, row, strict=True))
            _add(found, (named["model"], named["endpoint"]), state, now_ms)
    return found


def _add(
    found: Series, labels: tuple[str, str], state: Mapping[str, bytes | None], now_ms: int
) -> None:
    def number(name: str) -> float:
        return float(state[name] or 0)

    found[OPEN].append((labels, state["state"] != b"closed"))
    found[THROTTLED].append((labels, max(0.0, number("blocked_until") - now_ms) / 1000))
    passed = max(0.0, now_ms - number("at")) / _WINDOW_MS
    for of, short in (("requests", "r"), ("tokens", "t")):
        if limit := number(f"limit_{short}"):
            left = min(number(f"level_{short}") + limit * passed, limit)
            found[LIMIT].append(((*labels, of), limit))
            found[LEFT].append(((*labels, of), max(0.0, left)))
