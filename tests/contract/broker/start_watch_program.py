"""Watches the starts of `own` for a test, as one api process does: `python -m ... URL COLD_START_S`."""

import asyncio
import sys
from dataclasses import replace

from eventing.broker.router import DirectPublisher
from eventing.job.pipelines.fallback import Fallback
from eventing.job.store import LeaseSettings
from eventing.outbox.start_watch import StartWatch
from eventing.redis.connection import connect
from eventing.store.redis_store import RedisStore
from tests.contract.broker.stack import trigger

LEASE = LeaseSettings(lease_ms=30_000)
FALLBACKS = {
    "own": Fallback(model="other"),
    "close": Fallback(model="other", tenants=frozenset({"trusted"})),
}
TRIGGERS = [
    replace(trigger("http://127.0.0.1:9/"), name=name, filters=({"exact": {"model": name}},))
    for name in ("own", "other", "close")
] + [replace(trigger("http://127.0.0.1:9/"), name="step", filters=({"exact": {"step": "no-op"}},))]


async def main(url: str, cold_start_s: float) -> None:
    redis = connect(url, timeout_s=1)
    watch = StartWatch(
        redis,
        RedisStore(redis, LEASE),
        DirectPublisher(redis, TRIGGERS),
        FALLBACKS,
        lease=LEASE,
        cold_start_s=cold_start_s,
    )
    print("watching", flush=True)
    await watch.run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
