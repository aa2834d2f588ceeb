"""What the store knows of providers: limits, what is left of them, and circuit breakers; as figures, and as samples.

Called by `eventing.telemetry.metric.live` and the api's overview; the state is written by
`predictor.engine.upstream`, whose processes sleep while nothing is asked. Must not know how a limit is followed.
"""

from collections.abc import Collection, Mapping
from typing import Final

import orjson
from redis.asyncio import Redis
from typing_extensions import TypedDict

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


class Allowed(TypedDict):
    """What a provider allows a minute, and what is left of it now."""

    per_minute: float
    left: float


class ProviderFigures(TypedDict):
    """An endpoint that a model's predictors ask. `requests` and `tokens` are null where no limit is known."""

    model: str
    endpoint: str
    breaker: str
    pause_s: float
    requests: Allowed | None
    tokens: Allowed | None


async def read_providers(redis: Redis, models: Collection[str]) -> list[ProviderFigures]:
    """The endpoints of these models that were called in the last week. Raises `StoreUnavailable`."""
    async with failures_named():
        listed = await redis.hgetall(keys.providers())
        if not listed:
            return []
        async with redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for digest in listed:
                pipe.hmget(keys.provider(digest.decode()), _FIELDS)
            (now_s, micros), *rows = await pipe.execute()
    now_ms = now_s * 1000 + micros // 1000
    found = []
    for entry, row in zip(listed.values(), rows, strict=True):
        named = orjson.loads(entry)
        if named["model"] in models and row[0] is not None:
            state = dict(zip(_FIELDS, row, strict=True))
            found.append(_figures(named["model"], named["endpoint"], state, now_ms))
    return sorted(found, key=lambda each: (each["model"], each["endpoint"]))


def _figures(
    model: str, endpoint: str, state: Mapping[str, bytes | None], now_ms: int
) -> ProviderFigures:
    def number(name: str) -> float:
        return float(state[name] or 0)

    passed = max(0.0, now_ms - number("at")) / _WINDOW_MS

    def allowed(short: str) -> Allowed | None:
        limit = number(f"limit_{short}")
        left = min(number(f"level_{short}") + limit * passed, limit)
        return {"per_minute": limit, "left": max(0.0, left)} if limit else None

    return {
        "model": model,
        "endpoint": endpoint,
        "breaker": (state["state"] or b"").decode(),
        "pause_s": max(0.0, number("blocked_until") - now_ms) / 1000,
        "requests": allowed("r"),
        "tokens": allowed("t"),
    }


async def provider_samples(redis: Redis, models: Collection[str]) -> Samples:
    """The samples of every endpoint of these models. Raises `StoreUnavailable`."""
    found = Series(list)
    for each in await read_providers(redis, models):
        labels = (each["model"], each["endpoint"])
        found[OPEN].append((labels, each["breaker"] != "closed"))
        found[THROTTLED].append((labels, each["pause_s"]))
        for of, allowed in (("requests", each["requests"]), ("tokens", each["tokens"])):
            if allowed is not None:
                found[LIMIT].append(((*labels, of), allowed["per_minute"]))
                found[LEFT].append(((*labels, of), allowed["left"]))
    return found
