"""Empties queues that no trigger names any more, for example those of a withdrawn canary or a removed model.

Called by a broker with an ingress. Waiting events are moved to the queues whose triggers want them now, each once
and with no tries counted; an event that another pump has claimed stays until that pump gives it back or its claim
lapses. Must not know who changed the triggers, or why.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import structlog
from prometheus_client import Gauge

from eventing.broker.metric import REQUESTS
from eventing.broker.queue.queue import Queue
from eventing.broker.queue.view import QueueView
from eventing.broker.router import Router
from eventing.errors import Unavailable
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.multiplexed_connection import SharedRedis

_log = structlog.get_logger()
_waiting = Gauge(
    "torpor_queue_abandoned_events",
    "Events waiting in a queue that no trigger names and that match no other trigger.",
    ["queue"],
)
EVERY_S: Final = 5.0
_AT_ONCE: Final = 64
_UNWANTED_RETRY_MS: Final = 60_000


class AbandonedQueues:
    """Moves events out of request queues that are not in `named`."""

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
        """Check every few seconds until `stopping`. A broker without request triggers (a relay beside Knative's
        broker) has no queue to move jobs to, and does nothing.
        """
        if not any(name.startswith(REQUESTS) for name in self._named):
            return
        while not stopping.is_set():
            with suppress(Unavailable):
                await self.move()
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), EVERY_S)

    async def move(self) -> int:
        """Move every event that can be moved now; gives the number moved."""
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
        while True:
            claimed = await queue.claim(_AT_ONCE, claim_idle_ms=self._claim_idle_ms)
            if not claimed and not queue.is_searching:
                break
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
