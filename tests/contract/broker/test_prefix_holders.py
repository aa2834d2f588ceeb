"""A job is left for a moment to the pump whose engine holds its prefix, where that pump has room (docs/adr/0372)."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from eventing.broker.delivery.dead_letter import DeadLetterHandler
from eventing.broker.delivery.pump import Pump
from eventing.broker.queue.queue import Queue
from eventing.broker.queue.view import QueueView
from eventing.broker.router import Router
from eventing.job.job import JobId
from eventing.job.prompt import SeenPrefixes, prompt_prefix
from eventing.job.store import ConversationTurn
from eventing.redis import keys
from eventing.redis.connection import connect
from eventing.store.steps.redis_tools import RedisToolStore
from tests.contract.broker.queue_rig import IDLE_MS, ids, put, settle
from tests.contract.broker.stack import NAME, Stack, Subscriber, pumping, trigger, until
from tests.contract.broker.test_queue_prefix import MOST_PASSES, Rig, prompt, take
from tests.contract.rig import new_job
from tests.redis_server import VALKEY, RedisServer, debian_redis

LEFT, ROOM, HOLDERS = (keys.queue(NAME, part) for part in ("left", "room", "holders"))
COME_BACK = 2


@pytest.fixture
async def rig(redis: Redis) -> Rig:
    """Two pumps with room, each of which holds a prefix."""
    rig = Rig(redis)
    await rig.queues[0].ensure()
    await rig.know_each_other()
    for queue in rig.queues:
        assert await take(queue) == []
    for member, score in await redis.zrange(ROOM, 0, -1, withscores=True):
        await redis.zadd(ROOM, {member: score + 1_900})  # however long the machine stalls now
    return rig


async def pass_time(redis: Redis, ms: int) -> None:
    """Let what is left have been left so much longer."""
    for member, score in await redis.zrange(LEFT, 0, -1, withscores=True):
        await redis.zadd(LEFT, {member: score - ms})


async def test_a_job_is_left_to_the_pump_that_holds_its_prefix(rig: Rig) -> None:
    job = await rig.submit(prompt(1, "again"))

    assert await take(rig.queues[0]) == []
    (claimed,) = await rig.queues[1].claim(1)
    assert claimed.event.id == job
    assert claimed.left_ms >= 0


async def test_a_job_that_its_holder_does_not_take_in_time_is_for_any(rig: Rig) -> None:
    job = await rig.submit(prompt(1, "again"))
    assert await take(rig.queues[0]) == []
    await pass_time(rig.redis, 30)

    assert await take(rig.queues[0], 2) == [job]

    # The pump that took it holds the prefix now.
    other = await other_pump(rig, 0)
    job = await rig.submit(prompt(1, "and again"))
    assert await take(other) == []
    assert await take(rig.queues[0]) == [job]


async def other_pump(rig: Rig, number: int) -> Queue:
    """One more pump with room, beside another engine that has seen another prefix."""
    queue = Queue(rig.redis, NAME, f"other-{number}", seen=SeenPrefixes())
    await rig.submit(prompt(2 + number))
    await queue.claim(1, claim_idle_ms=IDLE_MS)
    assert await take(queue) == []
    return queue


async def test_two_of_the_pumps_that_left_a_job_look_again_when_it_is_for_any(rig: Rig) -> None:
    others = [await other_pump(rig, n) for n in range(4)]
    await rig.submit(prompt(1, "again"))
    for queue in others:
        await take(queue)

    ((_, score),) = await rig.redis.zrange(LEFT, 0, -1, withscores=True)
    assert 0 < score % 1 <= COME_BACK / 4
    await others[0].wait(60_000)  # with nothing new


async def test_a_holder_without_room_is_not_waited_for(rig: Rig) -> None:
    await rig.submit(prompt(1))
    await rig.submit(prompt(1))
    assert len(await take(rig.queues[1], 1)) == 1  # as many as it had room for
    await take(rig.queues[1], 1)
    job = await rig.submit(prompt(1, "again"))

    assert await take(rig.queues[0]) == [job]


async def test_a_holder_that_has_not_claimed_for_two_seconds_is_not_waited_for(rig: Rig) -> None:
    for member, score in await rig.redis.zrange(ROOM, 0, -1, withscores=True):
        await rig.redis.zadd(ROOM, {member: score - 10_000})
    job = await rig.submit(prompt(1, "again"))

    assert await take(rig.queues[0]) == [job]


async def test_a_holder_whose_engine_refused_a_job_is_not_waited_for(rig: Rig) -> None:
    job = await rig.submit(prompt(1, "again"))
    (claimed,) = await rig.queues[1].claim(2)
    await rig.queues[1].nack(claimed.ticket, rig.lane)

    assert await take(rig.queues[0]) == [job]


async def test_what_an_engine_held_is_nobodys_once_it_has_gone(rig: Rig) -> None:
    rig.queues[1].forget_seen()
    await rig.submit("short")
    await settle(rig.queues[1], *await rig.queues[1].claim(2))
    for member, score in await rig.redis.zrange(ROOM, 0, -1, withscores=True):
        if member.decode() not in [queue.holder for queue in rig.queues]:
            await rig.redis.zadd(ROOM, {member: score - 10_000})
    job = await rig.submit(prompt(1, "again"))

    assert await take(rig.queues[0]) == [job]


async def test_of_several_holders_the_last_one_with_room_takes_it(rig: Rig) -> None:
    other = await other_pump(rig, 0)
    await rig.submit(prompt(1, "again"))
    assert await take(other, 2) == []
    await pass_time(rig.redis, 30)
    assert len(await take(other, 2)) == 1
    job = await rig.submit(prompt(1, "again"))

    assert await take(rig.queues[1]) == []
    assert await take(other) == [job]


async def test_a_holder_that_is_full_leaves_it_to_those_before_it(rig: Rig) -> None:
    await rig.submit(prompt(1))
    assert await take(rig.queues[0], 2) == []
    await pass_time(rig.redis, 30)
    assert len(await take(rig.queues[0], 1)) == 1  # holds it too now, and is full
    third = await other_pump(rig, 0)
    job = await rig.submit(prompt(1, "again"))

    assert await take(third) == []
    assert await take(rig.queues[1]) == [job]


async def test_a_key_goes_before_blocks(rig: Rig) -> None:
    key = {"prompt_cache_key": "thread"}
    await rig.submit("a short one", body=key)
    await settle(rig.queues[0], *await rig.queues[0].claim(2))
    job = await rig.submit(prompt(1, "again"), body=key)

    assert await take(rig.queues[1]) == []
    assert await take(rig.queues[0]) == [job]


@pytest.mark.parametrize(("shared", "is_left"), [(3, False), (4, True), (7, True)])
async def test_a_job_that_shares_less_than_half_of_its_start_is_left_to_no_pump(
    rig: Rig, shared: int, is_left: bool
) -> None:
    """All prompts with one short start gathered at one engine: p95 of the first token twice the plain order's."""
    common = "".join(f"{n:<1024}" for n in range(shared))
    await rig.submit(common + "a" * 1024 * (7 - shared) + "b" * 400)
    await settle(rig.queues[1], *await rig.queues[1].claim(2))
    job = await rig.submit(common + "c" * 1024 * (7 - shared) + "d" * 400)

    assert await take(rig.queues[0]) == ([] if is_left else [job])


async def test_what_waits_behind_a_job_that_is_left_passes_it_four_times_at_most(rig: Rig) -> None:
    left = await rig.submit(prompt(1, "again"))
    for _ in range(8):
        await rig.submit("short")

    assert (await take(rig.queues[0], 9)).index(left) == MOST_PASSES


async def test_a_clock_that_went_back_leaves_no_job_longer(rig: Rig) -> None:
    job = await rig.submit(prompt(1, "again"))
    assert await take(rig.queues[0]) == []
    await pass_time(rig.redis, -600_000)

    assert await take(rig.queues[0]) == [job]


async def test_the_work_counts_right_while_a_job_is_left(rig: Rig) -> None:
    await rig.submit(prompt(1, "again"))
    before = await QueueView(rig.redis).depth(NAME)
    assert await take(rig.queues[0], 4) == []

    assert await QueueView(rig.redis).depth(NAME) == before
    assert before.lag == before.total_waiting == 1


async def hear_out(queue: Queue) -> None:
    """Until no event that was put so far is going to wake a pump. The first wait makes what it waits at."""
    while await queue.wait(1) or await queue.wait(1):
        pass


async def test_a_pump_that_left_a_job_sleeps_until_it_is_for_any(rig: Rig) -> None:
    other = await other_pump(rig, 0)
    await hear_out(other)
    await rig.submit(prompt(1, "again"))
    assert await other.wait(60_000)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    assert await take(other) == []

    assert not await other.wait(1_000)
    assert loop.time() - began_s >= 0.029


async def test_the_pump_that_a_job_is_left_to_is_woken_and_no_other(rig: Rig) -> None:
    other = await other_pump(rig, 0)
    for queue in (other, *rig.queues):
        await hear_out(queue)
    job = await rig.submit(prompt(1, "again"))
    assert await other.wait(60_000)
    assert await take(other) == []

    assert not await rig.queues[0].wait(1)
    assert await rig.queues[1].wait(60_000)
    assert await take(rig.queues[1]) == [job]


async def test_a_fresh_pump_takes_what_is_first(rig: Rig) -> None:
    job = await rig.submit(prompt(1, "again"))
    fresh = Queue(rig.redis, NAME, "fresh", seen=SeenPrefixes())

    assert ids(await fresh.claim(1, claim_idle_ms=IDLE_MS)) == [job]


async def test_what_is_kept_of_holders_is_bounded_and_expires(rig: Rig) -> None:
    for n in range(20):
        queue = Queue(rig.redis, NAME, f"other-{n}", seen=SeenPrefixes())
        await rig.submit(prompt(1, "again"))
        await settle(queue, *await queue.claim(1, claim_idle_ms=IDLE_MS))

    assert max(len(each.split()) for each in await rig.redis.hvals(HOLDERS)) <= 17
    await rig.queues[0].claim(1, claim_idle_ms=IDLE_MS)
    for key in (HOLDERS, ROOM):
        assert 0 < await rig.redis.ttl(key) <= 3600


async def test_pumps_whose_queue_is_empty_know_each_other(redis: Redis) -> None:
    """Neither has anything pending that tells the other of it."""
    rig = Rig(redis)
    await rig.queues[0].ensure()
    for number, queue in enumerate(rig.queues):
        await rig.submit(prompt(number))
        await settle(queue, *await queue.claim(1, claim_idle_ms=IDLE_MS))
    for queue in (*rig.queues, *rig.queues):
        await queue.claim(1, claim_idle_ms=IDLE_MS)
    for number, queue in enumerate(rig.queues):  # each again, as one that the other knows
        await rig.submit(prompt(number))
        await settle(queue, *await queue.claim(2))
    job = await rig.submit(prompt(1, "again"))

    assert await take(rig.queues[0]) == []
    assert await take(rig.queues[1]) == [job]


async def test_turns_with_a_common_start_go_to_the_engine_of_the_first(redis: Redis) -> None:
    """Two pumps, each before an engine of its own, with hardly anything to do."""
    rig, store = Rig(redis), RedisToolStore(redis)
    async with AsyncExitStack() as running:
        engines = [await running.enter_async_context(Subscriber().serving()) for _ in range(2)]
        stacks = []
        for engine, queue in zip(engines, rig.queues, strict=True):
            to = trigger(engine.url)
            router = Router([(to, queue)])
            pump = Pump(to, queue, router, DeadLetterHandler(redis, store, router))
            stacks.append(Stack(redis, to, pump, queue, store, router))
        await rig.queues[0].ensure()
        await rig.know_each_other()
        for queue in rig.queues:
            await queue.claim(2)
        await running.enter_async_context(pumping(*stacks))

        async def run(text: str) -> int:
            job_id: JobId = await rig.submit(text)

            async def is_taken() -> bool:
                return any(e.id == job_id for each in engines for e in each.got)

            await until(is_taken, timeout_s=30)
            return [any(e.id == job_id for e in each.got) for each in engines].index(True)

        turns = [(prefix, f" turn {turn}") for turn in range(6) for prefix in (0, 1)]
        for _ in range(3):  # a machine that stalls for 30 ms lets any engine have a turn
            where = [await run(prompt(prefix, text)) for prefix, text in turns]
            if where == [prefix for prefix, _ in turns]:
                break
        assert where == [prefix for prefix, _ in turns]


async def test_the_next_turn_of_a_conversation_goes_to_the_engine_of_the_last(rig: Rig) -> None:
    async def say(text: str) -> JobId:
        job_id = await rig.submit(text)
        turn = ConversationTurn(id="conv_1", items=())
        await rig.redis.hset(
            keys.job(job_id), "prefix", prompt_prefix(replace(new_job(), turn=turn))
        )
        return job_id

    await say("hello")
    await settle(rig.queues[1], *await rig.queues[1].claim(2))
    job = await say("and then?")

    assert await take(rig.queues[0]) == []
    assert await take(rig.queues[1]) == [job]


async def test_a_job_that_is_queued_again_goes_to_the_engine_that_had_it(rig: Rig) -> None:
    """As by a script that has an answer made again, or goes on after a tool's result."""
    await rig.submit("a short one", body={"prompt_cache_key": "thread"})
    (claimed,) = await rig.queues[1].claim(2)
    await settle(rig.queues[1], claimed)
    await put(rig.queues[0], claimed.event)

    assert await take(rig.queues[0]) == []
    assert await take(rig.queues[1]) == [claimed.event.id]


async def test_a_pump_looks_when_a_job_is_due_again_that_its_engine_began(rig: Rig) -> None:
    """Nothing else tells it: any other pump would be as likely the first to look."""
    await hear_out(rig.queues[1])
    await rig.submit("short")
    assert await rig.queues[1].wait(60_000)
    (claimed,) = await rig.queues[1].claim(1)
    await rig.queues[1].defer(claimed.ticket, 50, by_any=False)

    assert not await rig.queues[1].wait(60_000)
    assert await take(rig.queues[1]) == [claimed.event.id]


async def test_a_pump_whose_engine_gives_no_answer_holds_nothing_any_more(rig: Rig) -> None:
    engine = Subscriber()
    queue, to = rig.queues[0], trigger(engine.url)
    router = Router([(to, queue)])
    store = RedisToolStore(rig.redis)
    pump = Pump(to, queue, router, DeadLetterHandler(rig.redis, store, router))
    before = queue.holder
    async with pumping(Stack(rig.redis, to, pump, queue, store, router)):
        async with engine.serving():
            await rig.submit("short")
            await until(lambda: has_got(engine))
        await rig.submit("short")

        async def is_another() -> bool:
            return queue.holder != before

        await until(is_another, timeout_s=30)


async def has_got(engine: Subscriber) -> bool:
    return bool(engine.got)


async def test_a_claim_by_a_holder_costs_nine_commands_in_its_script_more(rig: Rig) -> None:
    async def cost(queue: Queue) -> int:
        await rig.submit(prompt(1, "again"))
        await rig.redis.config_resetstat()
        (claimed,) = await queue.claim(2)
        spent = await rig.redis.info("commandstats")
        await settle(queue, claimed)
        return sum(each["calls"] for name, each in spent.items() if "config" not in name)

    plain = await cost(Queue(rig.redis, NAME, "plain"))
    assert await cost(rig.queues[1]) == plain + 9


@pytest.mark.parametrize("part", ["tickets", "wake"])
@pytest.mark.parametrize("binary", [VALKEY, debian_redis()], ids=["valkey", "redis"])
async def test_a_pump_that_waits_outlives_the_loss_of_what_it_waits_at(
    tmp_path: Path, binary: Path | None, part: str
) -> None:
    if binary is None:
        pytest.skip("needs Debian's redis-server")
    server = RedisServer(tmp_path, binary=binary)
    server.start()
    redis = connect(server.url, timeout_s=30)
    try:
        rig = Rig(redis)
        await rig.queues[0].ensure()
        await rig.know_each_other()
        queue = rig.queues[1]
        await hear_out(queue)
        waiting = asyncio.create_task(queue.wait(60_000))

        async def is_blocked() -> bool:
            return bool((await redis.info("clients"))["blocked_clients"])

        await until(is_blocked, timeout_s=30)
        lost = f"{queue.prefix}wake:{queue.holder}" if part == "wake" else f"{queue.prefix}tickets"
        await redis.delete(lost)

        assert not await waiting
        assert await take(queue) == []
        assert not await queue.wait(1)
        job = await rig.submit("short")
        assert await take(queue) == [job]
    finally:
        await redis.aclose()
        server.kill()
