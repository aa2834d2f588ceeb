"""Reads the embedded broker's queue: waiting and running jobs, and those that arrived and finished since the last
read.

Called by the server. It does not change the queue. Each event is read once, when it is new: the prompt's length is
estimated from its size (about four bytes a token), the deadline is an attribute. The answer's length comes from the
job record's usage.
"""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from redis.asyncio import Redis

from eventing.broker.queue import QueueView
from eventing.cloudevent.event import from_record
from eventing.job.job import job_id_of_identity
from eventing.job.store import JobReader
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.replica import ReplicaDirectory
from knative.external_scaler.scaler import Finished, QueueSnapshot, WaitingJob

_BYTES_PER_TOKEN: Final = 4
_READY_PHASE: Final = "ready"


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of an event: its arrival, its prompt's length, its deadline."""

    came_s: float
    prompt_tokens: int
    void_s: float

    def waiting(self, now_s: float) -> WaitingJob:
        """The job as one that waits, at `now_s`."""
        return WaitingJob(self.prompt_tokens, max(0.0, now_s - self.came_s), self.void_s - now_s)


class QueueSource:
    """Remembers each queue's jobs since the last read."""

    def __init__(self, redis: Redis, store: JobReader) -> None:
        self._redis = redis
        self._store = store
        self._view = QueueView(redis)
        self._replicas = ReplicaDirectory(redis)
        self._known: dict[str, dict[bytes, _Known]] = {}

    async def look(self, queue: str, model: str) -> QueueSnapshot:
        """The queue now. Raises `StoreUnavailable`; the next read reports what was missed."""
        depth = await self._view.depth(queue)
        replicas = await self._replicas.list(model)
        members = await self._members(queue)
        before = self._known.get(queue, {})
        jobs = await self._jobs(queue, members, before)
        gone = {name: job for name, job in before.items() if name not in jobs}
        finished = [await self._finished(name, job.prompt_tokens) for name, job in gone.items()]
        self._known[queue] = jobs
        now_s = await self._now_s()
        # The queue does not say which jobs run; the oldest are taken to.
        running = max(0, depth.pending - depth.retrying)
        waiting = sorted(jobs.values(), key=lambda job: job.came_s)
        waiting = waiting[-count:] if (count := depth.total_waiting + depth.retrying) else []
        return QueueSnapshot(
            waiting=tuple(job.waiting(now_s) for job in waiting),
            running=running,
            ready=sum(replica.phase == _READY_PHASE for replica in replicas),
            existing=len(replicas),
            arrived=tuple(job.prompt_tokens for name, job in jobs.items() if name not in before),
            finished=tuple(finished),
        )

    async def _members(self, queue: str) -> list[bytes]:
        async with failures_named():
            names: list[bytes] = await self._redis.hkeys(keys.queue(queue, "events"))
        return names

    async def _jobs(
        self, queue: str, members: list[bytes], before: dict[bytes, _Known]
    ) -> dict[bytes, _Known]:
        """The jobs of every member; only new ones are read. One that has ended meanwhile is left out."""
        present = set(members)
        jobs = {name: job for name, job in before.items() if name in present}
        new = [name for name in members if name not in before]
        if new:
            async with failures_named():
                records = await self._redis.hmget(keys.queue(queue, "events"), new)
            jobs |= {n: _known(r) for n, r in zip(new, records, strict=True) if r is not None}
        return jobs

    async def _finished(self, name: bytes, prompt_tokens: int) -> Finished:
        job = await self._store.get(job_id_of_identity(name.decode()))
        usage = job.usage if job is not None and job.usage is not None else {}
        output = usage.get("completion_tokens")
        return Finished(
            int(usage.get("prompt_tokens", prompt_tokens)), None if output is None else int(output)
        )

    async def _now_s(self) -> float:
        async with failures_named():
            seconds, microseconds = await self._redis.time()
        return int(seconds) + int(microseconds) / 1e6


def _known(stamped: bytes) -> _Known:
    """What a stamped event record says of a job."""
    stamp, record = stamped.split(b" ", 1)
    event = from_record(record)
    tokens = max(1, len(event.data) // _BYTES_PER_TOKEN)
    return _Known(int(stamp) / 1000, tokens, _void_s(event.extensions.get("expirytime", "")))


def _void_s(expirytime: str) -> float:
    """The deadline in epoch seconds; none for an invalid time."""
    try:
        moment = datetime.fromisoformat(expirytime)
    except ValueError:
        return math.inf
    return moment.timestamp() if moment.tzinfo is not None else math.inf
