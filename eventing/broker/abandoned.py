"""Empties the queues that no trigger names any more: a withdrawn canary's, a removed model's.

Called by a broker with an ingress. What waits there is put into the queues that want it now, each
event once and untried; what another pump holds stays with it until that pump gives it back or is
gone. Must not know who changed the triggers, nor why.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import structlog
from prometheus_client import Gauge

from eventing.broker.metric import REQUESTS
from eventing.broker.queue import Queue, QueueView
from eventing.broker.router import Router
from eventing.errors import Unavailable
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.multiplexed_connection import SharedRedis

_log = structlog.get_logger()
_waiting = Gauge(
    "torpor_queue_abandoned_events",
    "Events that wait in a queue which no trigger names, and which no other queue wants.",
    ["queue"],
)
EVERY_S: Final = 5.0
_AT_ONCE: Final = 64
_UNWANTED_RETRY_MS: Final = 60_000


class AbandonedQueues:
    """Moves events out of request queues that are none of `named`."""

    def __init__(
        self,
        redis: SharedRedis,
        router: Router,
        named: Sequence[str],
        *,
        consumer: str,
        claim_idle_ms: int,
    ) -> None:
        self._redis = redis
        self._router = router
        self._named = frozenset(named)
        self._consumer = consumer
        self._claim_idle_ms = claim_idle_ms
        self._queues: dict[str, Queue] = {}

    async def run(self, stopping: asyncio.Event) -> None:
        """Look every few seconds until `stopping`. Without requests of its own (a relay beside
        Knative's broker) a broker does not know where jobs belong, and leaves them.
        """
        if not any(name.startswith(REQUESTS) for name in self._named):
            return
        while not stopping.is_set():
            with suppress(Unavailable):
                await self.move()
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), EVERY_S)

    async def move(self) -> int:
        """Move what can be moved now; how many events that were."""
        async with failures_named():
            known = {name.decode() for name in await self._redis.smembers(keys.QUEUES)}
        moved = 0
        for name in sorted(known - self._named):
            if name.startswith(REQUESTS):
                moved += await self._empty(name)
        return moved

    async def _empty(self, name: str) -> int:
        queue = self._queues.setdefault(name, Queue(self._redis, name, self._consumer))
        moved = 0
        while claimed := await queue.claim(_AT_ONCE, claim_idle_ms=self._claim_idle_ms):
            for each in claimed:
                if calls := self._router.put_calls(each.event):
                    await queue.send([*calls, queue.settle_call(each.ticket)])
                    moved += 1
                else:
                    await queue.defer(each.ticket, _UNWANTED_RETRY_MS)
        depth = await QueueView(self._redis).depth(name)
        _waiting.labels(name).set(depth.total_waiting + depth.retrying)
        if moved:
            _log.info("moved to where the triggers send them", action="move", queue=name, n=moved)
        return moved
