"""Posts to the ledger what serving takes beside GPUs: CPU time of api and store, and the commands of the store.

Run by every process of the api; one of them at a time reads the store's counters. Must not know prices.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from eventing.errors import StoreUnavailable
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.telemetry.metric.ledger import Ledger, Rows

SERVICE: Final = "service"
"""The ledger's scope of these rows; their names are `api` and `store`."""
_EVERY_S: Final = 10.0
_RUN: Final = b"run"


class ServiceMeter:
    """The client belongs to the caller. `cpu_s` is the CPU time of this process."""

    def __init__(self, redis: Redis, cpu_s: Callable[[], float] = time.process_time) -> None:
        self._redis = redis
        self._ledger = Ledger(redis)
        self._cpu_s = cpu_s
        self._posted_s = cpu_s()

    async def run(self) -> None:
        """Post until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            with suppress(StoreUnavailable):
                await self.post()

    async def post(self) -> None:
        """Post the increase since the last post. Raises `StoreUnavailable`; then it is posted later."""
        used_s = self._cpu_s()
        cpu_ms = round((used_s - self._posted_s) * 1000)
        await self._ledger.post({(SERVICE, "api"): {"cpu_ms": cpu_ms}})
        self._posted_s += cpu_ms / 1000
        async with failures_named():
            turn = await self._redis.set(keys.STORE_METER_TURN, 1, nx=True, px=int(_EVERY_S * 900))
            if turn:
                await self._post_store()

    async def _post_store(self) -> None:
        """The store's increase since any process last read it; the first reading only says where to begin."""
        try:
            info = await self._redis.info("everything")
        except ResponseError:  # the Redis user may not run INFO
            return
        cpu_s = float(info["used_cpu_user"]) + float(info["used_cpu_sys"])
        now = {"cpu_ms": round(cpu_s * 1000), "commands": int(info["total_commands_processed"])}
        seen = await self._redis.hgetall(keys.STORE_METER)
        run = str(info["run_id"]).encode()
        if seen:
            before = seen if seen.get(_RUN) == run else {}  # restarted: its counters began at 0
            used = {
                name: max(0, amount - int(before.get(name.encode(), 0)))
                for name, amount in now.items()
            }
            rows: Rows = {(SERVICE, "store"): used}
            await self._ledger.post(rows)
        await self._redis.hset(keys.STORE_METER, mapping={"run": run, **now})
