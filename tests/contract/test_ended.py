"""Every end is delivered to every listener, whoever ended the job and whichever process dies."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from eventing.errors import StoreUnavailable
from eventing.job.job import Job, JobId, JobState
from eventing.job.store import Ending, ReleaseReason
from eventing.live.ended import EndedConsumer
from eventing.redis import keys
from tests.contract.broker.stack import until
from tests.contract.rig import (
    ANSWER,
    FAULT,
    LEASE_MS,
    SETTINGS,
    RedisRig,
    finish,
    job_id,
    new_job,
    redrive,
    started,
)

OLD_MS = 15_001


class Listener:
    """Remembers what it was told; fails as often as it is told to."""

    def __init__(self) -> None:
        self.told: list[tuple[JobId, JobState, int, bool]] = []
        self.failures = 0
        self.is_broken = False

    async def ended(self, job: Job) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("away")
        if self.is_broken:
            raise ZeroDivisionError
        self.told.append((job.id, job.state, job.attempt, job.is_dead_letter))


@pytest.fixture
def rig(redis: Redis) -> RedisRig:
    return RedisRig(redis)


@asynccontextmanager
async def consuming(rig: RedisRig, *listeners: Listener) -> AsyncIterator[None]:
    consumer = EndedConsumer(rig.store.redis, rig.store, listeners)
    task = asyncio.ensure_future(consumer.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def by_finish(rig: RedisRig) -> None:
    await finish(rig.store, await started(rig), ANSWER)


async def by_cancel(rig: RedisRig) -> None:
    await rig.store.submit(new_job())
    await rig.store.cancel(job_id())


async def by_conclude(rig: RedisRig) -> None:
    await rig.store.submit(new_job())
    await rig.store.conclude(job_id(), ANSWER)


async def by_release(rig: RedisRig) -> None:
    await rig.store.submit(new_job())
    for _ in range(SETTINGS.max_attempts):
        taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
        await rig.store.release(taken.lease, ReleaseReason.FAILURE, FAULT)


async def by_acquire(rig: RedisRig) -> None:
    for _ in range(SETTINGS.max_attempts):
        await rig.store.submit(new_job())
        await rig.store.acquire(job_id(), "worker", can_resume=True, is_exclusive=True)
        await rig.pass_time(LEASE_MS + 1)
    await rig.store.acquire(job_id(), "worker", can_resume=True, is_exclusive=True)


async def by_deadline(rig: RedisRig) -> None:
    await rig.store.submit(new_job(deadline_ms=await rig.now_ms() + 1))
    await rig.pass_time(2)
    await rig.store.expire(10)


async def by_reject(rig: RedisRig) -> None:
    await rig.store.reject(new_job(), FAULT, b"no job")


@pytest.mark.parametrize(
    "end",
    [by_finish, by_cancel, by_conclude, by_release, by_acquire, by_deadline, by_reject],
)
async def test_every_listener_is_called_once_for_every_end(
    rig: RedisRig, end: Callable[[RedisRig], Awaitable[None]]
) -> None:
    # Ends that a sweep found were told to nobody but who subscribed to result events.
    one, other = Listener(), Listener()
    async with consuming(rig, one, other):
        await end(rig)

        async def both_told() -> bool:
            return bool(one.told and other.told)

        await until(both_told)

    job = await rig.store.get(job_id())
    assert job is not None
    assert one.told == other.told == [(job.id, job.state, job.attempt, job.is_dead_letter)]


async def test_an_end_from_before_the_consumer_started_is_delivered(rig: RedisRig) -> None:
    await by_cancel(rig)
    listener = Listener()

    async with consuming(rig, listener):
        await until(lambda: told(listener, 1))


async def test_processes_share_the_ends(rig: RedisRig) -> None:
    one, other = Listener(), Listener()
    async with consuming(rig, one), consuming(rig, other):
        for number in range(40):
            await rig.store.submit(new_job(str(number)))
            await rig.store.cancel(job_id(str(number)))

        async def all_told() -> bool:
            return len(one.told) + len(other.told) == 40

        await until(all_told)

    assert len({end[0] for end in one.told + other.told}) == 40


async def test_an_end_that_a_listener_refused_is_delivered_again(rig: RedisRig) -> None:
    listener = Listener()
    listener.failures = 1
    async with consuming(rig, listener):
        await by_cancel(rig)
        await until(lambda: failed(listener))

    await make_idle(rig)
    async with consuming(rig, listener):
        await until(lambda: told(listener, 1))
        await until(lambda: none_pending(rig))


async def test_an_end_claimed_by_a_dead_process_is_delivered_by_another(rig: RedisRig) -> None:
    await by_cancel(rig)
    await rig.redis.xgroup_create(keys.ENDED, "api", id="0")
    await rig.redis.xreadgroup("api", "dead", {keys.ENDED: ">"})
    await make_idle(rig)
    listener = Listener()

    async with consuming(rig, listener):
        await until(lambda: told(listener, 1))


async def test_a_listener_that_breaks_keeps_no_end_from_the_others(rig: RedisRig) -> None:
    broken, fine = Listener(), Listener()
    broken.is_broken = True
    async with consuming(rig, broken, fine):
        await by_cancel(rig)
        await until(lambda: told(fine, 1))
        await until(lambda: none_pending(rig))


async def test_a_store_that_came_back_empty_is_listened_to_again(rig: RedisRig) -> None:
    listener = Listener()
    async with consuming(rig, listener):
        await by_cancel(rig)
        await until(lambda: told(listener, 1))
        await rig.redis.flushall()

        await by_cancel(rig)

        await until(lambda: told(listener, 2))


async def test_an_end_whose_job_was_deleted_or_redriven_is_delivered_as_it_was(
    rig: RedisRig,
) -> None:
    await by_cancel(rig)
    await rig.store.delete(job_id())
    await rig.store.reject(new_job("2"), FAULT, b"no job")
    assert await redrive(rig, "2")
    listener = Listener()

    async with consuming(rig, listener):
        await until(lambda: told(listener, 2))

    assert listener.told == [
        (job_id(), JobState.CANCELLED, 0, False),
        (job_id("2"), JobState.FAILED, 0, True),
    ]


async def test_an_end_whose_second_half_a_power_cut_lost_is_not_delivered(rig: RedisRig) -> None:
    lease = await started(rig)
    entry = {"job": job_id(), "tenant": "acme", "model": "m", "lane": "default", "dead": 0}
    await rig.redis.xadd(keys.ENDED, entry | {"attempt": 1, "state": "completed", "at_ms": 1})
    await finish(rig.store, lease, Ending(state=JobState.FAILED, error=FAULT))
    listener = Listener()

    async with consuming(rig, listener):
        await until(lambda: told(listener, 1))
        await until(lambda: none_pending(rig))

    assert listener.told == [(job_id(), JobState.FAILED, 1, False)]


async def told(listener: Listener, count: int) -> bool:
    return len(listener.told) == count


async def failed(listener: Listener) -> bool:
    return not listener.failures


async def none_pending(rig: RedisRig) -> bool:
    pending = await rig.redis.xpending(keys.ENDED, "api")
    return bool(pending["pending"] == 0)


async def make_idle(rig: RedisRig) -> None:
    """As if who took the entries had been silent for long."""
    for entry in await rig.redis.xpending_range(keys.ENDED, "api", "-", "+", 10):
        await rig.redis.xclaim(
            keys.ENDED,
            "api",
            entry["consumer"],
            0,
            [entry["message_id"]],
            idle=OLD_MS,
            justid=True,
        )
