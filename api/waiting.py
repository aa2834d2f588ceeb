"""Where a queued job stands: its place, the expected wait, and what is waking for it.

Implements `api.front.Waiting` on the broker's queue and the replicas' own announcements. With a
Knative Broker there is no queue to look at; then only the replicas are known.
"""

import asyncio
from typing import Final

from redis.asyncio import Redis

from api.front import Outlook
from eventing.broker.queue import QueueView, member_of
from eventing.clock import Clock
from eventing.job import Job
from eventing.job_event import request_event
from eventing.replica import Replica, ReplicaDirectory

_FRESH_S: Final = 0.1
ASLEEP: Final = "asleep"
"""The phase of a model without a replica."""


class QueueWaiting:
    """Reads one Redis; takes nothing from the queue."""

    def __init__(self, redis: Redis, clock: Clock) -> None:
        self._queues = QueueView(redis)
        self._directory = ReplicaDirectory(redis)
        self._clock = clock
        self._replicas: dict[str, tuple[float, tuple[Replica, ...]]] = {}
        self._asking = asyncio.Lock()

    async def outlook(self, job: Job) -> Outlook | None:
        member = member_of(request_event(job))
        position = await self._queues.position(f"requests-{job.request.model}", member)
        replicas = await self.replicas(job.request.model)
        return Outlook(
            position=position.ahead if position else None,
            expected_wait_s=position.expected_wait_s if position else None,
            phase=replicas[0].phase if replicas else ASLEEP,
            phase_since_ms=replicas[0].since_ms if replicas else 0,
            replicas=len(replicas),
        )

    async def replicas(self, model: str) -> tuple[Replica, ...]:
        """The oldest first: the one that is furthest. Kept for a moment, so that a thousand waiting
        readers ask once.
        """
        async with self._asking:
            asked_s, replicas = self._replicas.get(model, (float("-inf"), ()))
            now_s = self._clock.monotonic_s()
            if now_s - asked_s > _FRESH_S:
                replicas = await self._directory.list(model)
                self._replicas[model] = (now_s, replicas)
        return replicas
