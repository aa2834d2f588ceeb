"""Prometheus metrics of waiting and running jobs: the figures for scaling and alerts.

Called by the broker's `/metrics`. They are exported here and not by the predictor, which does not run at zero. A
job counts as waiting until an attempt runs: a job handed to a predictor that is still starting is waiting, whatever
the queue says. Every broker shows the same figures of the same store, so take `max`, never `sum`, over instances.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis

from eventing.broker.queue.view import expected_wait_s, pace_per_minute
from eventing.job.job import JobId, JobState, Lane, job_id_of_identity
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import run
from eventing.telemetry.metric.family import DEAD_LETTERS, Family, Latest, Samples, Series

REQUESTS: Final = "requests-"
"""Queues of request events are named `requests-<model>`."""

DEPTH: Final = Family(
    "torpor_queue_depth",
    "Jobs that wait for a predictor: queued, or handed over with no attempt running yet.",
    ("model", "lane"),
)
OLDEST: Final = Family(
    "torpor_queue_oldest_age_seconds",
    "How long the oldest waiting job of the lane has waited; 0 when none waits.",
    ("model", "lane"),
)
EXPECTED: Final = Family(
    "torpor_queue_expected_wait_seconds",
    "Expected wait of a job submitted now at the present pace: 0 when none waits before it; "
    "absent without a pace.",
    ("model", "lane"),
)
RUNNING: Final = Family("torpor_jobs_in_flight", "Jobs with a running attempt.", ("model",))
RETRYING: Final = Family(
    "torpor_queue_retrying",
    "Events whose delivery failed and that wait for their next try.",
    ("queue",),
)
EVENTS: Final = Family(
    "torpor_queue_events",
    "Events in a queue: waiting for a pump, or claimed by a pump.",
    ("queue",),
)
PACE: Final = Family(
    "torpor_queue_settled_per_minute", "Events settled a minute, over the last minutes.", ("queue",)
)
_FAMILIES: Final = (DEPTH, OLDEST, EXPECTED, RUNNING, RETRYING, EVENTS, PACE)
_latest: Final = Latest(_FAMILIES)

_FRESH_S: Final = 1.0
_HEADS: Final = 256
"""Number of tenants of a lane whose first event is read to find the oldest."""
_HELD: Final = 2000


@dataclass(slots=True)
class LaneView:
    """The waiting jobs of one lane."""

    count: int = 0
    oldest_ms: int = 0

    def add(self, since_ms: int) -> None:
        """Count one more waiting job, waiting since then."""
        self.count += 1
        if since_ms and (not self.oldest_ms or since_ms < self.oldest_ms):
            self.oldest_ms = since_ms


@dataclass(slots=True, kw_only=True)
class QueueStats:
    """The content of a queue at one time."""

    now_s: int
    retrying: int
    per_minute: float
    lanes: dict[Lane, LaneView]
    ready: int = 0
    held: int = 0
    running: int = 0


@dataclass(frozen=True, slots=True)
class _Held:
    """An event claimed by a pump."""

    job_id: JobId
    enqueued_ms: int


class QueueMetrics:
    """Reads the named queues, at most once a second, without changing them."""

    def __init__(self, redis: Redis, queues: Sequence[str]) -> None:
        self._redis = redis
        self._queues = tuple(queues)
        self._looked_s = float("-inf")
        self._looking = asyncio.Lock()
        for name in self._queues:
            if not name.startswith(REQUESTS):  # those are counted by the api
                DEAD_LETTERS.labels(
                    name
                )  # started at zero, so that Prometheus sees the first increase

    async def refresh(self) -> None:
        """Show what the queues hold now; nothing while the store is unavailable."""
        async with self._looking:
            now_s = asyncio.get_running_loop().time()
            if now_s - self._looked_s < _FRESH_S:
                return
            if await _latest.refresh(self._read):
                self._looked_s = asyncio.get_running_loop().time()

    async def _read(self) -> Samples:
        return samples({name: await self._look(name) for name in self._queues})

    async def _look(self, name: str) -> QueueStats:
        parts = ("tickets", "events", "held", "retry", "pace", *keys.READY)
        async with failures_named():
            answer = await run(
                self._redis,
                "queue_stats",
                [keys.queue(name, part) for part in parts],
                [keys.GROUP, _HEADS, _HELD],
            )
        look, held = parse_stats(answer)
        if name.startswith(REQUESTS):
            await self._sort_out(look, held)
        return look

    async def _sort_out(self, look: QueueStats, held: Sequence[_Held]) -> None:
        """Which events claimed by a pump belong to running jobs, and which still wait for a predictor."""
        async with failures_named(), self._redis.pipeline(transaction=False) as pipe:
            for each in held:
                pipe.hmget(keys.job(each.job_id), "state", "lane", "created_ms")
            records = await pipe.execute()
        for each, (state, lane, created_ms) in zip(held, records, strict=True):
            if state == JobState.IN_PROGRESS.encode():
                look.running += 1
            elif state is None or state == JobState.QUEUED.encode():
                found = Lane(lane.decode()) if lane else Lane.DEFAULT
                look.lanes[found].add(int(created_ms or each.enqueued_ms))


def parse_stats(answer: Sequence[Any]) -> tuple[QueueStats, list[_Held]]:
    """The answer of `queue_stats.lua`."""
    now_s, retrying, pace, lanes, held = answer
    settled = {int(k): int(v) for k, v in zip(pace[0::2], pace[1::2], strict=True)}
    look = QueueStats(
        now_s=int(now_s),
        retrying=int(retrying),
        per_minute=pace_per_minute(settled, int(now_s)),
        lanes={
            lane: LaneView(int(count), int(oldest_ms))
            for lane, (count, oldest_ms) in zip(Lane, lanes, strict=True)
        },
        ready=sum(int(count) for count, _ in lanes),
        held=len(held),
    )
    return look, [_held(member, int(stamp)) for member, stamp in held]


def samples(looks: dict[str, QueueStats]) -> Samples:
    """The series of each family, by queue name."""
    found = Series(list)
    for name, look in looks.items():
        found[EVENTS].append(((name,), look.ready + look.held))
        found[RETRYING].append(((name,), look.retrying))
        found[PACE].append(((name,), look.per_minute))
        if name.startswith(REQUESTS):
            _add_model(found, name.removeprefix(REQUESTS), look)
    return found


def _add_model(found: Series, model: str, look: QueueStats) -> None:
    found[RUNNING].append(((model,), look.running))
    ahead = 0
    for lane, view in look.lanes.items():
        age_s = max(look.now_s - view.oldest_ms / 1000, 0.0) if view.oldest_ms else 0.0
        found[DEPTH].append(((model, lane), view.count))
        found[OLDEST].append(((model, lane), age_s))
        ahead += view.count
        # With an empty queue the pace measures demand, not how long a job would wait.
        wait_s = expected_wait_s(ahead, look.per_minute) if ahead else 0.0
        if wait_s is not None:
            found[EXPECTED].append(((model, lane), wait_s))


def _held(member: bytes, stamp: int) -> _Held:
    return _Held(job_id_of_identity(member.decode("utf-8", "replace")), stamp)
