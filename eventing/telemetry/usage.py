"""What tenants used, by day, API key, model and call. A day is that of store time, in UTC, on which a job ended.

Written by `eventing.live.ended`, in the script that acknowledges an end. Read by the api, erased by `torpor keys`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson
from redis.asyncio import Redis

from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.telemetry.metric.ledger import Ledger

DAY_S: Final = 24 * 3600
LONGEST_KEPT_DAYS: Final = 800

Measures = Mapping[str, int]
"""Amounts by name: jobs by the state they ended in, tokens, milliseconds of GPU time, millionths of the currency."""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What jobs of one kind of call, model and API key used on a day. `key_id` is empty for none."""

    url: str
    model: str
    key_id: str
    measures: Measures


class UsageRecords:
    """The days of tenants; every method raises `StoreUnavailable`. The client belongs to the caller."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def today(self) -> int:
        """The day of store time, since the epoch."""
        async with failures_named():
            now_s, _ = await self._redis.time()
        return int(now_s) // DAY_S

    async def days(self, tenant: str, days: Sequence[int]) -> list[list[UsageRow]]:
        """The rows of each of these days."""
        async with failures_named(), self._redis.pipeline(transaction=False) as pipe:
            for day in days:
                pipe.hgetall(keys.usage_of(tenant, day))
            records = await pipe.execute()
        return [list(_rows(record)) for record in records]

    async def erase(self, tenant: str, key_ids: Sequence[str] = ()) -> int:
        """Forget what a tenant used, in the ledger too, and its budgets and those of its keys; how many days were
        known.
        """
        today = await self.today()
        days = [keys.usage_of(tenant, today + 1 - ago) for ago in range(LONGEST_KEPT_DAYS + 2)]
        async with failures_named():
            gone = int(await self._redis.unlink(*days))
            accounts = [keys.budget("key", key_id) for key_id in key_ids]
            await self._redis.unlink(keys.budget("tenant", tenant), *accounts)
        await Ledger(self._redis).forget_tenant(tenant)
        return gone


def _rows(record: Mapping[bytes, bytes]) -> Iterator[UsageRow]:
    for name, raw in record.items():
        url, model, key_id = name.decode("utf-8", "replace").split("|", 2)
        sums = {each: int(amount) for each, amount in orjson.loads(raw).items()}
        yield UsageRow(url, model, key_id, sums)
