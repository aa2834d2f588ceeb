"""Where a queued job stands: its place, the expected wait, and what is waking for it; and what was
waking for a job that has ended.

Implements `api.job.live.Waiting` on the broker's queue and the replicas' own announcements. With a
Knative Broker there is no queue to look at; then only the replicas are known.
"""

import asyncio
from contextlib import suppress
from typing import Final

import orjson
from redis.asyncio import Redis

from api.job.live import QueueStatus
from api.view.outlook import Outlook
from api.view.timeline import Step, waking_steps
from eventing.broker.queue import QueueView, member_of
from eventing.clock import Clock
from eventing.cloudevent.job_event import request_event
from eventing.errors import StoreUnavailable
from eventing.job.job import Job
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import run
from eventing.replica import READY, Replica, ReplicaDirectory

_FRESH_S: Final = 0.1
_NOTED_MS: Final = 500
"""Who waited less did not wait for a replica to wake."""
_FIELD: Final = "waking"
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
            reason=await self._failure(job.request.model, replicas),
        )

    async def _failure(self, model: str, replicas: tuple[Replica, ...]) -> str:
        """Why none starts, where none is ready."""
        if any(replica.phase == READY for replica in replicas):
            return ""
        return await self._directory.failure(model)

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


class WakingNotes:
    """What a job waited for, kept on its record when it ends (a `ResultListener`): the replica that
    woke for it is gone long before anybody looks.
    """

    def __init__(self, redis: Redis, waiting: QueueStatus, clock: Clock) -> None:
        self._redis = redis
        self._waiting = waiting
        self._clock = clock

    async def ended(self, job: Job) -> None:
        """Note it. A store that is away costs the note only."""
        if (job.started_ms or job.finished_ms) - job.created_ms < _NOTED_MS:
            return
        with suppress(StoreUnavailable):
            replicas = await self._waiting.replicas(job.request.model)
            if steps := waking_steps(job, replicas, self._clock.wall_ms()):
                # `swap_field` sets a field of a record that is there, and never makes one.
                async with failures_named():
                    note = orjson.dumps(steps)
                    await run(self._redis, "swap_field", [keys.job(job.id)], [_FIELD, note])

    async def of(self, job: Job) -> list[Step]:
        """What was noted; nothing for a job that has not ended, or found the model awake."""
        if not job.state.is_terminal:
            return []
        async with failures_named():
            row = await self._redis.hget(keys.job(job.id), _FIELD)
        found: list[Step] = orjson.loads(row) if row else []
        return found
