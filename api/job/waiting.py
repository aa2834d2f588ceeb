"""The state of a queued job's wait: its place, the expected wait, and the starting replicas; also the replica
phases that an ended job waited for.

Implements `api.job.live.Waiting` with the broker's queue and the replica directory. With a Knative Broker the queue
cannot be read; then only the replicas are known.
"""

import asyncio
from contextlib import suppress
from typing import Final

import orjson
from redis.asyncio import Redis

from api.job.live import QueueStatus
from api.view.outlook import Outlook
from api.view.timeline import Step, waking_steps
from eventing.broker.queue.queue import member_of
from eventing.broker.queue.view import QueueView
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
"""A job that waited less did not wait for a replica to start."""
_FIELD: Final = "waking"
ASLEEP: Final = "asleep"
"""The phase of a model without a replica."""


class QueueWaiting:
    """Reads queues and replicas without changing them."""

    def __init__(self, redis: Redis, clock: Clock) -> None:
        self._queues = QueueView(redis)
        self._directory = ReplicaDirectory(redis)
        self._clock = clock
        self._replicas: dict[str, tuple[float, tuple[Replica, ...]]] = {}
        self._asking = asyncio.Lock()

    async def outlook(self, job: Job) -> Outlook | None:
        member = member_of(request_event(job))
        if job.step:  # no predictor is wanted yet
            before = await self._queues.position(f"step-{job.step}", member)
            return Outlook(position=before.ahead) if before else None
        position = await self._queues.position(f"requests-{job.request.model}", member)
        known = await self.replicas(job.request.model)
        replicas = tuple(each for each in known if not each.is_draining)
        return Outlook(
            position=position.ahead if position else None,
            expected_wait_s=position.expected_wait_s if position else None,
            phase=replicas[0].phase if replicas else ASLEEP,
            phase_since_ms=replicas[0].since_ms if replicas else 0,
            replicas=len(replicas),
            reason=await self._failure(job.request.model, replicas),
        )

    async def _failure(self, model: str, replicas: tuple[Replica, ...]) -> str:
        """Why no replica starts, when none is ready."""
        if any(replica.phase == READY for replica in replicas):
            return ""
        return await self._directory.failure(model)

    async def replicas(self, model: str) -> tuple[Replica, ...]:
        """Oldest first: the one furthest in its start. Cached for a moment, so that a thousand waiting readers
        cause one read.
        """
        async with self._asking:
            asked_s, replicas = self._replicas.get(model, (float("-inf"), ()))
            now_s = self._clock.monotonic_s()
            if now_s - asked_s > _FRESH_S:
                replicas = await self._directory.list(model)
                self._replicas[model] = (now_s, replicas)
        return replicas


class WakingNotes:
    """The replica phases that a job waited for, stored on its record when it ends (a `ResultListener`), because the
    replica itself may be gone by the time they are read.
    """

    def __init__(self, redis: Redis, waiting: QueueStatus, clock: Clock) -> None:
        self._redis = redis
        self._waiting = waiting
        self._clock = clock

    async def ended(self, job: Job) -> None:
        """Store them. With the store unavailable they are lost."""
        if (job.started_ms or job.finished_ms) - job.created_ms < _NOTED_MS:
            return
        with suppress(StoreUnavailable):
            replicas = await self._waiting.replicas(job.request.model)
            if steps := waking_steps(job, replicas, self._clock.wall_ms()):
                # `swap_field` changes a field of an existing record only.
                async with failures_named():
                    note = orjson.dumps(steps)
                    await run(self._redis, "swap_field", [keys.job(job.id)], [_FIELD, note])

    async def of(self, job: Job) -> list[Step]:
        """The stored phases; empty for a job that has not ended, or did not wait for a start."""
        if not job.state.is_terminal:
            return []
        async with failures_named():
            row = await self._redis.hget(keys.job(job.id), _FIELD)
        found: list[Step] = orjson.loads(row) if row else []
        return found
