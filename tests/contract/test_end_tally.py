"""Every end is counted once, whichever process hears of it and however often it is delivered."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import orjson
import pytest
from redis.asyncio import Redis

from api.limit.usage import UsageTally
from eventing.job.job import KEY, JobState
from eventing.job.store import Ending
from eventing.live.ended import EndedConsumer, EndListener
from eventing.redis import keys
from eventing.telemetry.cost import Price, Prices
from eventing.telemetry.usage import UsageRecords
from tests.contract.broker.stack import until
from tests.contract.rig import RedisRig, finish, job_id, new_job, started
from tests.contract.test_ended import Listener, make_idle, none_pending, told

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
ANSWERED = Ending(state=JobState.COMPLETED, result={"text": "because"}, usage=USAGE)
PRICES = Prices(Price(), {})


@pytest.fixture
def rig(redis: Redis) -> RedisRig:
    return RedisRig(redis)


@asynccontextmanager
async def counting(rig: RedisRig, *listeners: EndListener) -> AsyncIterator[None]:
    tally = UsageTally(["m"], PRICES, 100)
    consumer = EndedConsumer(rig.store.redis, rig.store, listeners, tally=tally)
    task = asyncio.ensure_future(consumer.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def used(rig: RedisRig) -> dict[str, int]:
    """What the tenant used today, of every row together."""
    records = UsageRecords(rig.redis)
    today = await records.today()
    sums: dict[str, int] = {}
    for rows in await records.days("acme", [today - 1, today]):
        for row in rows:
            for name, amount in row.measures.items():
                sums[name] = sums.get(name, 0) + amount
    return sums


async def ended_jobs(rig: RedisRig, count: int) -> None:
    for number in range(count):
        await finish(rig.store, await started(rig, str(number)), ANSWERED)


class Stuck:
    """A listener of a process that is killed while it is at work."""

    def __init__(self) -> None:
        self.has_begun = asyncio.Event()

    async def ended(self, job: object) -> None:
        self.has_begun.set()
        await asyncio.sleep(3600)


async def test_ends_are_counted_once_by_many_processes(rig: RedisRig) -> None:
    one, other = Listener(), Listener()
    async with counting(rig, one), counting(rig, other):
        await ended_jobs(rig, 40)

        async def all_counted() -> bool:
            return (await used(rig)).get("completed") == 40 and await none_pending(rig)

        await until(all_counted)
    assert await used(rig) == {"completed": 40, "input_tokens": 280, "output_tokens": 120}


async def test_an_end_of_a_process_that_was_killed_is_counted_once(rig: RedisRig) -> None:
    stuck = Stuck()
    async with counting(rig, stuck):
        await ended_jobs(rig, 3)
        await stuck.has_begun.wait()
    await make_idle(rig)
    again = Listener()
    async with counting(rig, again):
        await until(lambda: told(again, 3))
        await until(lambda: none_pending(rig))
    assert (await used(rig))["completed"] == 3


async def test_an_end_that_two_processes_acknowledge_is_counted_once(rig: RedisRig) -> None:
    # The first was slow, so the second has claimed its entries; then both are done.
    await ended_jobs(rig, 3)
    tally = UsageTally(["m"], PRICES, 100)
    one, other = (EndedConsumer(rig.store.redis, rig.store, (), tally=tally) for _ in range(2))
    await rig.redis.xgroup_create(keys.ENDED, "api", id="0")
    rows = await one._next()
    await make_idle(rig)
    claimed = await other._take_over()
    assert len(rows) == len(claimed) == 3

    await other._notify_all(claimed[:1])
    await one._notify_all(rows)
    await other._notify_all(claimed)

    assert (await used(rig))["completed"] == 3


async def test_an_end_that_a_listener_refused_is_counted_when_it_is_done(rig: RedisRig) -> None:
    listener = Listener()
    listener.failures = 1
    async with counting(rig, listener):
        await ended_jobs(rig, 1)

        async def refused() -> bool:
            return not listener.failures

        await until(refused)
    assert await used(rig) == {}
    await make_idle(rig)
    async with counting(rig, listener):
        await until(lambda: none_pending(rig))
    assert (await used(rig))["completed"] == 1


async def test_a_job_that_was_deleted_before_anybody_heard_of_its_end_is_counted(
    rig: RedisRig,
) -> None:
    # As a caller might do who would rather not pay.
    new = replace(new_job(), metadata={KEY: "k1"})
    await rig.store.submit(new)
    lease = (await rig.store.acquire(job_id(), "worker", can_resume=True)).lease
    await finish(rig.store, lease, ANSWERED)
    await rig.store.delete(job_id())
    listener = Listener()
    async with counting(rig, listener):
        await until(lambda: told(listener, 1))
        await until(lambda: none_pending(rig))
    assert await used(rig) == {"completed": 1, "input_tokens": 7, "output_tokens": 3}
    records = UsageRecords(rig.redis)
    (rows,) = await records.days("acme", [await records.today()])
    assert [row.key_id for row in rows] == ["k1"]


async def test_entries_of_an_older_version_are_counted_by_the_record(rig: RedisRig) -> None:
    await finish(rig.store, await started(rig), ANSWERED)
    ((_, fields),) = await rig.redis.xrange(keys.ENDED)
    await rig.redis.delete(keys.ENDED)
    old = {k: v for k, v in fields.items() if k not in (b"usage", b"gpu_ms", b"key")}
    await rig.redis.xadd(keys.ENDED, old)
    async with counting(rig):

        async def counted() -> bool:
            return bool(await used(rig))

        await until(counted)
    assert await used(rig) == {"completed": 1, "input_tokens": 7, "output_tokens": 3}


async def test_a_day_has_no_more_rows_than_a_bound(rig: RedisRig) -> None:
    await ended_jobs(rig, 1)
    records = UsageRecords(rig.redis)
    day = keys.usage_of("acme", await records.today())
    full = {f"|m|k{number}": orjson.dumps({"completed": 1}) for number in range(10_000)}
    await rig.redis.hset(day, mapping=full)
    async with counting(rig):

        async def counted() -> bool:
            return (await used(rig)).get("completed") == 10_001

        await until(counted)
    assert await rig.redis.hget(day, "/v1/chat/completions|m|other") is not None
    assert await rig.redis.hlen(day) == 10_001
