"""Reads the embedded broker's queue: waiting and running jobs, and those that arrived and finished since the last
read.

Called by the server. It does not change the queue. Each event is read once, when it is new: the prompt's length is
estimated from its size (about four bytes a token), the deadline is an attribute. The answer's length comes from the
job record's usage.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Final

import orjson
from redis.exceptions import NoPermissionError

from eventing.broker.queue.view import QueueView
from eventing.cloudevent.event import from_record
from eventing.job.job import Lane, job_id_of_identity
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.replica import ReplicaDirectory
from knative.external_scaler.scaler import Finished, QueueSnapshot, WaitingJob

_BYTES_PER_TOKEN: Final = 4
_PAGE: Final = 500
"""Names, or fields of as many records, that one command reads."""
_READ_BYTES: Final = 4 * 1024 * 1024
"""Of event records, in one command."""
_UNKNOWN_BYTES: Final = _READ_BYTES // 16
_READY_PHASE: Final = "ready"


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of an event: its arrival, its prompt's length, its deadline, its lane."""

    came_s: float
    prompt_tokens: int
    void_s: float
    is_batch: bool

    def waiting(self, now_s: float) -> WaitingJob:
        """The job as one that waits, at `now_s`."""
        wait_s = max(0.0, now_s - self.came_s)
        return WaitingJob(self.prompt_tokens, wait_s, self.void_s - now_s, self.is_batch)


class QueueSource:
    """Remembers each queue's jobs since the last read. Every command reads a page, so that a deep queue, or one of
    large events, costs time and not memory; what a read that timed out has learnt is kept.
    """

    def __init__(self, redis: SharedRedis) -> None:
        self._redis = redis
        self._view = QueueView(redis)
        self._replicas = ReplicaDirectory(redis)
        self._known: dict[str, dict[bytes, _Known]] = {}
        self._reported: dict[str, set[bytes]] = {}

    async def look(self, queue: str, model: str) -> QueueSnapshot:
        """The queue now. Raises `StoreUnavailable`; the next read reports what was missed."""
        replicas = [each for each in await self._replicas.list(model) if not each.is_draining]
        async with failures_named():
            depth = await self._view.size(queue)
            expected = await self._view.expected(queue)
            known, before = self._known.setdefault(queue, {}), self._reported.get(queue, set())
            ready, held = await self._members(queue)
            # One that moved back into a page that was read before is still there.
            present = ready | held | await self._still_there(queue, known.keys() - ready - held)
            await self._learn(queue, known, present)
            gone = {name: known[name] for name in known.keys() - present}
            finished = await self._finished({n: job for n, job in gone.items() if n in before})
            now_s = await self._now_s()
        for name in gone:
            del known[name]
        self._reported[queue] = set(known)
        claimed = sorted((known[n] for n in held & known.keys()), key=lambda job: job.came_s)
        # A claimed event that is to be delivered again waits; which ones the queue does not say.
        again = claimed[: depth.retrying]
        waiting = sorted(
            [*(job for name, job in known.items() if name not in held), *again],
            key=lambda job: job.came_s,
        )
        new = [job for name, job in known.items() if name not in before]
        return QueueSnapshot(
            waiting=tuple(job.waiting(now_s) for job in waiting),
            running=max(0, depth.pending - depth.retrying),
            ready=sum(replica.phase == _READY_PHASE for replica in replicas),
            existing=len(replicas),
            arrived=tuple(job.prompt_tokens for job in new if not job.is_batch),
            finished=tuple(finished),
            arrived_batch=tuple(job.prompt_tokens for job in new if job.is_batch),
            held=sum(replica.id in expected for replica in replicas),
        )

    async def _members(self, queue: str) -> tuple[set[bytes], set[bytes]]:
        """The events that wait, then those that were claimed: one that is claimed meanwhile is in both. Pages are read
        from the end, since events leave at the beginning.
        """
        found: set[bytes] = set()
        for lane in Lane:
            key, last = keys.queue(queue, f"ready:{lane}"), -1
            while page := await self._redis.zrange(key, last - _PAGE + 1, last):
                found.update(page)
                last -= _PAGE
        held: dict[bytes, bytes] = await self._redis.hgetall(keys.queue(queue, "held"))
        return found, set(held.values())

    async def _still_there(self, queue: str, names: Collection[bytes]) -> set[bytes]:
        found: set[bytes] = set()
        for page in _pages(names):
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in page:
                    pipe.hexists(keys.queue(queue, "events"), name)
                answers = await pipe.execute()
            found.update(name for name, is_there in zip(page, answers, strict=True) if is_there)
        return found

    async def _learn(self, queue: str, known: dict[bytes, _Known], present: set[bytes]) -> None:
        """Read the events that are new. One that has ended meanwhile is left out."""
        events = keys.queue(queue, "events")
        for page in _pages(present - known.keys()):
            for names in _fitting(page, await self._sizes(events, page)):
                records = await self._redis.hmget(events, names)
                for name, record in zip(names, records, strict=True):
                    if record is not None:
                        known[name] = _known(record)

    async def _sizes(self, events: str, names: Sequence[bytes]) -> list[int]:
        """Bytes of the records; a guess where our user may not ask, in an older install."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hstrlen(events, name)
            try:
                return list(await pipe.execute())
            except NoPermissionError:
                return [_UNKNOWN_BYTES] * len(names)

    async def _finished(self, gone: Mapping[bytes, _Known]) -> list[Finished]:
        found: list[Finished] = []
        for page in _pages(gone):
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in page:
                    job_id = job_id_of_identity(name.decode("utf-8", "replace"))
                    pipe.hget(keys.job(job_id), "usage")
                usages = await pipe.execute()
            found += [_finished(gone[n], u) for n, u in zip(page, usages, strict=True)]
        return found

    async def _now_s(self) -> float:
        seconds, microseconds = await self._redis.time()
        return int(seconds) + int(microseconds) / 1e6


def _pages(names: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The names, a page at a time."""
    left = iter(names)
    while page := list(islice(left, _PAGE)):
        yield page


def _fitting(names: Sequence[bytes], sizes: Sequence[int]) -> Iterator[list[bytes]]:
    """The names in groups whose records hold at most `_READ_BYTES`, or one record."""
    group: list[bytes] = []
    left = _READ_BYTES
    for name, size in zip(names, sizes, strict=True):
        if group and size > left:
            yield group
            group, left = [], _READ_BYTES
        group.append(name)
        left -= size
    if group:
        yield group


def _finished(job: _Known, usage: bytes | None) -> Finished:
    """What a job's recorded usage says of it."""
    counts = orjson.loads(usage) if usage else {}
    output = counts.get("completion_tokens")
    prompt_tokens = int(counts.get("prompt_tokens", job.prompt_tokens))
    return Finished(prompt_tokens, None if output is None else int(output))


def _known(stamped: bytes) -> _Known:
    """What a stamped event record says of a job."""
    stamp, record = stamped.split(b" ", 1)
    event = from_record(record)
    tokens = max(1, len(event.data) // _BYTES_PER_TOKEN)
    void_s = _void_s(event.extensions.get("expirytime", ""))
    return _Known(int(stamp) / 1000, tokens, void_s, event.extensions.get("priority") == Lane.BATCH)


def _void_s(expirytime: str) -> float:
    """The deadline in epoch seconds; none for an invalid time."""
    try:
        moment = datetime.fromisoformat(expirytime)
    except ValueError:
        return math.inf
    return moment.timestamp() if moment.tzinfo is not None else math.inf
