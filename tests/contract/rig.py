"""A store and a way to let time pass in it, for suites that run against every implementation.

A lease lapses in 30 s and a dead letter stays for 14 days; no test waits for either. In memory the clock is an
argument. In Redis every stored time is moved into the past instead, which is the same to every script.
"""

from dataclasses import dataclass, field
from typing import Final, Protocol

from redis.asyncio import Redis

from eventing.job.job import JobError, JobId, JobRequest, JobState, Lane, derive_job_id
from eventing.job.step import StepStore
from eventing.job.store import (
    ARRIVED,
    Ending,
    JobReader,
    JobWorker,
    Lease,
    LeaseSettings,
    LeaseStatus,
    NewJob,
    Publication,
    ReleaseReason,
    Store,
    TokenBatch,
)
from eventing.job.stream import EntryKind
from eventing.redis import keys
from eventing.store.steps.memory_steps import MemoryStepStore
from eventing.store.steps.redis_steps import RedisStepStore

SOURCE: Final = "/tests/producer"
SETTINGS: Final = LeaseSettings(
    lease_ms=30_000, max_attempts=3, retention_s=3600, dead_letter_retention_s=7200
)
FAULT = JobError(code="engine_error", message="the engine gave up")
ANSWER = Ending(state=JobState.COMPLETED, result={"text": "because"}, usage={"total_tokens": 3})
LEASE_MS = SETTINGS.lease_ms
NOBODYS: Final = Lease(derive_job_id(SOURCE, "nobody"), 1, "a")
"""A lease of a job that is not recorded."""
TERMINAL = [state for state in JobState if state.is_terminal]
_TIMES: Final = (
    "created_ms",
    "started_ms",
    "first_token_ms",
    "finished_ms",
    "deadline_ms",
    "lease_until_ms",
    *("began_ms", "tripped_ms", "checked_ms", "floor_ms", "probe_until_ms", "next_probe_ms"),
)


@dataclass(slots=True)
class FakeClock:
    """A clock that goes on only when told to."""

    now_ms: int = 1_800_000_000_000

    def monotonic_s(self) -> float:
        return self.now_ms / 1000

    def wall_ms(self) -> int:
        return self.now_ms


class WholeStore(Store, StepStore, Protocol):
    """Every interface of the store together."""


class Rig(Protocol):
    """What a suite needs of an implementation under test."""

    @property
    def store(self) -> WholeStore: ...

    async def pass_time(self, milliseconds: int) -> None: ...

    async def now_ms(self) -> int: ...


@dataclass(slots=True)
class MemoryRig:
    clock: FakeClock = field(default_factory=FakeClock)
    store: MemoryStepStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = MemoryStepStore(SETTINGS, self.clock)

    async def pass_time(self, milliseconds: int) -> None:
        self.clock.now_ms += milliseconds

    async def now_ms(self) -> int:
        return self.clock.now_ms


@dataclass(slots=True)
class RedisRig:
    redis: Redis
    store: RedisStepStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = RedisStepStore(self.redis, SETTINGS)

    async def pass_time(self, milliseconds: int) -> None:
        for key in [key async for key in self.redis.scan_iter(match=f"{keys.PREFIX}:*")]:
            kind = await self.redis.type(key)
            if kind == b"zset":
                for member, score in await self.redis.zrange(key, 0, -1, withscores=True):
                    await self.redis.zadd(key, {member: score - milliseconds})
            elif kind == b"hash":
                await self._age(key, milliseconds)
            left_ms = await self.redis.pttl(key)
            if left_ms >= 0:
                await self.redis.pexpire(key, max(left_ms - milliseconds, 0))

    async def now_ms(self) -> int:
        seconds, microseconds = await self.redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def _age(self, key: bytes, milliseconds: int) -> None:
        record = await self.redis.hgetall(key)
        for name in _TIMES:
            if int(record.get(name.encode()) or 0) > 0:
                await self.redis.hincrby(key, name, -milliseconds)


def new_job(
    event_id: str = "1", *, prompt: str = "why?", tenant: str = "acme", deadline_ms: int = 0
) -> NewJob:
    """A job that an event of `SOURCE` asks for."""
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
    return NewJob(
        id=job_id(event_id, tenant),
        request=JobRequest(url="/v1/chat/completions", body=body, custom_id=event_id),
        source=SOURCE,
        event_id=event_id,
        tenant=tenant,
        lane=Lane.DEFAULT,
        deadline_ms=deadline_ms,
        metadata={"webhook": "https://example.org/hook"},
    )


def job_id(event_id: str = "1", tenant: str = "acme") -> JobId:
    return derive_job_id(SOURCE, event_id, tenant)


async def started(rig: Rig, event_id: str = "1", **arguments: object) -> Lease:
    """Create a job and take its lease."""
    await rig.store.submit(new_job(event_id, **arguments))  # type: ignore[arg-type]
    return (await rig.store.acquire(job_id(event_id), "worker-1", can_resume=True)).lease


async def append(store: JobWorker, lease: Lease, batch: TokenBatch) -> LeaseStatus:
    """Checkpoint tokens of one job."""
    return (await store.append_all([(lease, batch)]))[0]


async def finish(store: JobWorker, lease: Lease, ending: Ending) -> LeaseStatus:
    """End a job; what the store says of it."""
    return await store.finish(lease, ending)


async def redrive(
    rig: Rig,
    event_id: str = "1",
    request: JobRequest | None = None,
    publication: Publication = ARRIVED,
) -> bool:
    """Redrive a job as it is now; False when that was refused."""
    job = await rig.store.get(job_id(event_id))
    return job is not None and await rig.store.redrive(job, request, publication)


async def ids_of(store: JobReader, of: JobId, count: int) -> list[int]:
    """The first `count` token ids that are to be continued, from the job's stream."""
    ids: list[int] = []
    after = ""
    while entries := await store.read_stream(of, after):
        for entry in entries:
            if entry.kind is EntryKind.ATTEMPT:
                del ids[entry.index :]
            ids.extend(entry.token_ids)
        after = entries[-1].cursor
    return ids[:count]


async def dead(rig: Rig, event_id: str = "1") -> None:
    """Make a dead letter: a job that failed in each of its attempts."""
    await rig.store.submit(new_job(event_id))
    for _ in range(SETTINGS.max_attempts):
        taken = await rig.store.acquire(job_id(event_id), "worker-1", can_resume=True)
        await rig.store.release(taken.lease, ReleaseReason.FAILURE, FAULT)
