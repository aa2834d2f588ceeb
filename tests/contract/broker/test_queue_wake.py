"""Pumps that wait for events, on a real server: an event wakes one of them, and none is left behind by it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from redis.asyncio import Redis

from eventing.broker.delivery import pump
from eventing.broker.queue.queue import Queue
from eventing.broker.queue.view import QueueView
from eventing.redis import keys
from eventing.redis.connection import connect
from eventing.redis.multiplexed_connection import SharedRedis
from tests.contract.broker.queue_rig import NAME, TICKETS, event, ids, put, settle
from tests.contract.broker.stack import EVENT, Stack, Subscriber, build, trigger, until

LONG_MS = 60_000


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[SharedRedis]:
    """As that of the other tests, with patience for a consumer that waits."""
    client = connect(redis_url, timeout_s=90)
    await client.flushall()
    yield client
    await client.aclose()


async def are_waiting(redis: Redis, count: int) -> None:
    async def enough() -> bool:
        return int((await redis.info("clients"))["blocked_clients"]) >= count

    await until(enough)


class Waiting:
    """Consumers of the queue that wait for an event."""

    def __init__(self, redis: SharedRedis, count: int) -> None:
        self.queues = [Queue(redis, NAME, f"waiting-{n}") for n in range(count)]
        self.tasks: list[asyncio.Task[bool]] = []

    async def begin(self, redis: Redis) -> None:
        for queue in self.queues:
            assert await queue.claim(1) == []
            self.tasks.append(asyncio.ensure_future(queue.wait(LONG_MS)))
        await are_waiting(redis, len(self.queues))

    def woken(self) -> list[Queue]:
        return [q for q, task in zip(self.queues, self.tasks, strict=True) if task.done()]

    async def number(self, count: int) -> list[Queue]:
        async def enough() -> bool:
            return len(self.woken()) >= count

        await until(enough)
        return self.woken()

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_an_event_wakes_one_of_the_pumps_that_wait(queue: Queue, redis: SharedRedis) -> None:
    waiting = Waiting(redis, 5)
    await waiting.begin(redis)

    await put(queue, event(1))
    (woken,) = await waiting.number(1)
    # The others wait on after the server has done with the event: it answers in order.
    await are_waiting(redis, 4)

    assert waiting.woken() == [woken]
    assert ids(await woken.claim(1)) == ["1"]
    await waiting.end()


async def test_each_of_several_events_wakes_another_pump(queue: Queue, redis: SharedRedis) -> None:
    waiting = Waiting(redis, 4)
    await waiting.begin(redis)

    await put(queue, event(1), event(2), event(3))
    woken = await waiting.number(3)

    claimed = [each for one in woken for each in await one.claim(1)]
    assert sorted(ids(claimed)) == ["1", "2", "3"]
    await waiting.end()


async def test_claimed_events_wake_one_pump_that_begins_to_wait_once(
    queue: Queue, redis: SharedRedis
) -> None:
    await put(queue, *(event(n) for n in range(20)))
    other = Queue(redis, NAME, "other")
    assert len(await queue.claim(20)) == 20  # and it did not see that these were all

    assert await other.claim(1) == []
    assert await other.wait(LONG_MS)
    assert await other.claim(1) == []

    assert not await other.wait(1)
    assert not await queue.wait(1)


async def test_a_claim_that_takes_all_events_leaves_none_to_wake_a_pump(
    queue: Queue, redis: SharedRedis
) -> None:
    await put(queue, *(event(n) for n in range(20)))
    assert len(await queue.claim(21)) == 20

    assert not await Queue(redis, NAME, "other").wait(1)


async def test_a_pump_that_finds_nothing_each_second_writes_nothing(
    queue: Queue, redis: SharedRedis
) -> None:
    await put(queue, event(1))
    await queue.claim(2)
    idle = Queue(redis, NAME, "idle")
    await idle.claim(2)
    before = (await redis.info("replication"))["master_repl_offset"]

    assert not await idle.wait(1)
    assert await idle.claim(2) == []

    assert (await redis.info("replication"))["master_repl_offset"] == before


async def test_what_a_full_claim_left_wakes_a_pump_that_begins_to_wait(
    queue: Queue, redis: SharedRedis
) -> None:
    assert await (other := Queue(redis, NAME, "other")).claim(1) == []
    await put(queue, event(1), event(2))
    assert ids(await queue.claim(1)) == ["1"]

    assert await other.wait(LONG_MS)

    assert ids(await other.claim(1)) == ["2"]


async def test_a_pump_that_waits_alone_asks_for_nothing_more_than_one_that_reads(
    queue: Queue, redis: Redis
) -> None:
    await queue.claim(1)
    await put(queue, event(1))
    assert await queue.wait(LONG_MS)
    await redis.config_resetstat()

    await queue.claim(16)

    assert "cmdstat_xgroup|setid" not in await redis.info("commandstats")


async def test_waking_another_pump_leaves_no_work(queue: Queue, redis: Redis) -> None:
    await put(queue, event(1))
    await queue.wake()

    claimed = await queue.claim(16)
    await settle(queue, *claimed)
    assert await queue.claim(16) == []

    depth = await QueueView(queue.redis).depth(NAME)
    assert (len(claimed), depth.lag, depth.pending) == (1, 0, 0)


async def test_a_queue_made_by_an_older_pump_is_waited_for(queue: Queue, redis: Redis) -> None:
    await redis.xgroup_destroy(TICKETS, keys.WAKE_GROUP)
    await queue.claim(1)

    assert not await queue.wait(LONG_MS)  # it makes the group
    await put(queue, event(1))

    assert await queue.wait(LONG_MS)


async def test_a_queue_that_the_store_lost_is_made_again_by_a_pump_that_waits(
    queue: Queue, redis: Redis
) -> None:
    await queue.claim(1)
    await redis.flushall()

    assert not await queue.wait(LONG_MS)
    assert await queue.claim(1) == []

    assert [g["name"].decode() for g in await redis.xinfo_groups(TICKETS)] == [
        keys.GROUP,
        keys.WAKE_GROUP,
    ]


@asynccontextmanager
async def in_turn(
    redis: SharedRedis, monkeypatch: pytest.MonkeyPatch, *subscribers: Subscriber
) -> AsyncIterator[tuple[list[Stack], Callable[[Stack], Awaitable[None]]]]:
    """Pumps whose wait ends by an event alone, and a call that starts one of them and returns when it waits."""
    monkeypatch.setattr(pump, "_WAIT_MS", LONG_MS)
    stacks = build(redis, *(trigger(each.url) for each in subscribers))
    await stacks[0].queue.ensure()
    started: list[Stack] = []
    async with asyncio.TaskGroup() as group:

        async def start(stack: Stack) -> None:
            started.append(stack)
            group.create_task(stack.pump.run())
            await are_waiting(redis, len(started))

        yield stacks, start
        for stack in stacks:
            stack.pump.stop()
        for _ in stacks:
            await stacks[0].queue.wake()


async def test_an_event_that_wakes_a_stopped_pump_wakes_another(
    redis: SharedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Subscriber().serving() as first, Subscriber().serving() as second:
        async with in_turn(redis, monkeypatch, first, second) as (stacks, start):
            stopped, other = stacks
            await start(stopped)
            await start(other)
            stopped.pump.stop()

            await other.send(EVENT)
            await until(other.is_drained)

        assert (len(first.got), len(second.got)) == (0, 1)


async def test_an_event_that_its_subscriber_refused_wakes_another_pump(
    redis: SharedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pump of the one that refused has waited longest, and may claim nothing now."""
    refuse = asyncio.Event()

    async def refusing(_: web.Request, __: int) -> web.Response:
        await refuse.wait()
        return web.Response(status=503)

    async with (
        Subscriber(answers=[refusing]).serving() as full,
        Subscriber().serving() as free,
        in_turn(redis, monkeypatch, full, free) as (stacks, start),
    ):
        await start(stacks[0])
        await stacks[0].send(EVENT)
        await until(lambda: given(full, 1))
        await are_waiting(redis, 1)
        await start(stacks[1])
        full.readiness = lambda: 503

        refuse.set()
        await until(stacks[1].is_drained)

        assert (len(full.got), len(free.got)) == (1, 1)


async def given(subscriber: Subscriber, count: int) -> bool:
    return len(subscriber.got) >= count


async def test_consumers_that_are_gone_are_forgotten_and_those_with_events_are_not(
    queue: Queue, redis: Redis
) -> None:
    await put(queue, event(1), event(2))
    busy = Queue(queue.redis, NAME, "busy")
    await busy.claim(1)
    for number in range(3):
        ended = Queue(queue.redis, NAME, f"ended-{number}")
        await settle(ended, *await ended.claim(1))

    await queue.tidy()
    assert len(await redis.xinfo_consumers(TICKETS, keys.GROUP)) == 4
    await asyncio.sleep(0.002)
    await queue.tidy(gone_after_ms=1)

    kept = [each["name"] for each in await redis.xinfo_consumers(TICKETS, keys.GROUP)]
    assert kept == [b"busy"]
