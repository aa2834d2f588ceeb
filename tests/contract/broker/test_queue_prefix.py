"""Prefix-affine claiming: of the first that wait, a pump beside others takes what its engine has seen."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from eventing.broker.intake import Intake
from eventing.broker.queue.claim import Claimed
from eventing.broker.queue.queue import Queue
from eventing.broker.router import DirectPublisher
from eventing.job.job import API_SOURCE, JobId, JobRequest, Lane, new_job_id
from eventing.job.prompt import SeenPrefixes
from eventing.redis import keys
from eventing.store.redis_store import RedisStore
from tests.contract.broker.queue_rig import IDLE_MS, ids, make_due, settle
from tests.contract.broker.stack import NAME, trigger
from tests.contract.rig import new_job

MOST_PASSES = 4
WINDOW = 16


class Rig:
    """Two pumps, each beside its own engine, and jobs of the api."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.queues = [Queue(redis, NAME, f"pump-{n}", seen=SeenPrefixes()) for n in range(2)]
        self.intake = Intake(
            RedisStore(redis), DirectPublisher(redis, [trigger("http://127.0.0.1:9/")])
        )

    lane = Lane.DEFAULT

    async def submit(self, text: str, **changed: Any) -> JobId:
        job_id = new_job_id()
        body: dict[str, Any] = {"model": "tiny"}
        body |= {"messages": [{"role": "user", "content": text}], **changed.pop("body", {})}
        made = replace(new_job(), id=job_id, source=API_SOURCE, event_id=job_id, **changed)
        await self.intake.submit(replace(made, request=JobRequest(url=made.request.url, body=body)))
        return job_id

    async def know_each_other(self) -> None:
        """Each pump claims one job of its prefix (`prompt(0)`, `prompt(1)`) while the other is at work, so that
        they learn of each other; then a second one, so that they know that more may wait.
        """
        for _ in range(2):
            for number in range(2):
                await self.submit(prompt(number))
                await self.queues[number].claim(1, claim_idle_ms=IDLE_MS)
        for number in range(2):
            await self.submit(prompt(number))
            (claimed,) = await self.queues[number].claim(1, claim_idle_ms=IDLE_MS)
            assert claimed


def prompt(number: int, tail: str = "") -> str:
    """A prompt with one of many prefixes of 3 KiB."""
    return f"{number} are you there? ".ljust(3000, str(number % 10)) + tail


@pytest.fixture
async def rig(redis: Redis) -> Rig:
    rig = Rig(redis)
    await rig.queues[0].ensure()
    await rig.know_each_other()
    return rig


async def take(queue: Queue, count: int = 1) -> Sequence[str]:
    claimed: Sequence[Claimed] = await queue.claim(count)
    return ids(claimed)


async def test_a_pump_takes_the_job_whose_prefix_its_engine_has_seen(rig: Rig) -> None:
    first, second = await rig.submit(prompt(0, "a")), await rig.submit(prompt(1, "b"))

    assert await take(rig.queues[1]) == [second]
    assert await take(rig.queues[0]) == [first]


async def test_the_longest_match_is_preferred(rig: Rig) -> None:
    await rig.submit(prompt(1)[:1500] + "x" * 1500)
    whole = await rig.submit(prompt(1, "b"))

    assert await take(rig.queues[1]) == [whole]


async def test_a_job_is_passed_over_at_most_four_times(rig: Rig) -> None:
    patient = await rig.submit(prompt(0))
    for _ in range(8):
        await rig.submit(prompt(1))

    taken = [(await take(rig.queues[1]))[0] for _ in range(9)]

    assert taken.index(patient) == MOST_PASSES


async def test_a_claim_of_many_passes_no_job_over_more_often(rig: Rig) -> None:
    patient = await rig.submit(prompt(0))
    for _ in range(12):
        await rig.submit(prompt(1))

    assert (await take(rig.queues[1], 13)).index(patient) == MOST_PASSES


async def test_a_job_is_passed_over_for_no_longer_than_half_a_second(rig: Rig) -> None:
    patient = await rig.submit(prompt(0))
    for _ in range(3):
        await rig.submit(prompt(1))
    await take(rig.queues[1])
    tries, name = keys.queue(NAME, "tries"), f"\0passed:{API_SOURCE}\0{patient}"
    count, since = (await rig.redis.hget(tries, name)).split()
    await rig.redis.hset(tries, name, b"%d %d" % (int(count), int(since) - 500))

    assert await take(rig.queues[1]) == [patient]


async def test_a_job_behind_the_window_is_not_looked_for(rig: Rig) -> None:
    first = await rig.submit("short")
    for _ in range(WINDOW - 1):
        await rig.submit("short")
    await rig.submit(prompt(1))

    assert await take(rig.queues[1]) == [first]


async def test_a_pump_that_has_seen_nothing_takes_what_is_first(rig: Rig) -> None:
    first = await rig.submit(prompt(0))
    await rig.submit(prompt(1))

    fresh = Queue(rig.redis, NAME, "fresh", seen=SeenPrefixes())

    assert ids(await fresh.claim(1, claim_idle_ms=IDLE_MS)) == [first]


async def test_a_prompt_cache_key_is_of_its_tenant(rig: Rig) -> None:
    key = {"prompt_cache_key": "k"}
    await rig.submit("hello", body=key, tenant="a")
    await rig.queues[1].claim(1)
    await rig.submit("other", body=key, tenant="b")
    again = await rig.submit("more", body=key, tenant="a")

    assert await take(rig.queues[1]) == [again]


async def test_lanes_and_the_shares_of_tenants_stay_as_they_are(rig: Rig) -> None:
    for _ in range(40):
        await rig.submit(prompt(1), tenant="a")
        await rig.submit(prompt(0), tenant="b")
    tenants: Counter[str] = Counter()
    for _ in range(40):
        (claimed,) = await rig.queues[1].claim(1)
        tenants[claimed.event.extensions["tenant"]] += 1
        await settle(rig.queues[1], claimed)

    # Of 40, never further ahead than the window.
    assert abs(tenants["a"] - tenants["b"]) <= WINDOW / 2
    clock = await rig.redis.hget(keys.queue(NAME, f"fair:{Lane.DEFAULT}"), "clock")
    first = await rig.redis.zrange(keys.queue(NAME, f"ready:{Lane.DEFAULT}"), 0, 0, withscores=True)
    assert float(clock) <= first[0][1]


async def test_a_job_that_is_tried_again_goes_to_the_engine_that_began_it(rig: Rig) -> None:
    await rig.submit(prompt(5))
    (claimed,) = await rig.queues[1].claim(1)
    await rig.queues[1].defer(claimed.ticket, 0, by_any=False)

    assert await take(rig.queues[0]) == []
    assert await take(rig.queues[1]) == [claimed.event.id]


async def test_a_job_whose_engine_does_not_come_for_it_goes_to_any(rig: Rig) -> None:
    await rig.submit(prompt(5))
    (claimed,) = await rig.queues[1].claim(1)
    await rig.queues[1].defer(claimed.ticket, 0, by_any=False)
    await make_due(rig.redis)

    assert await take(rig.queues[0]) == [claimed.event.id]


async def test_what_an_engine_that_stops_gives_back_is_anybodys_at_once(rig: Rig) -> None:
    await rig.submit(prompt(5))
    (claimed,) = await rig.queues[1].claim(1)
    await rig.queues[1].defer(claimed.ticket, 0)

    assert await take(rig.queues[0]) == [claimed.event.id]


async def test_nothing_of_a_pass_is_left_when_the_jobs_are_settled(rig: Rig) -> None:
    await rig.submit(prompt(0))
    await rig.submit(prompt(1))
    await settle(rig.queues[1], *await rig.queues[1].claim(1), *await rig.queues[1].claim(1))

    names = await rig.redis.hkeys(keys.queue(NAME, "tries"))
    assert [name for name in names if b"passed" in name] == []


async def test_a_pump_alone_claims_with_the_commands_of_a_queue_without_prefixes(
    redis: Redis,
) -> None:
    rig = Rig(redis)
    await rig.queues[0].ensure()
    plain = Queue(redis, NAME, "plain")

    async def commands(queue: Queue) -> dict[str, int]:
        for _ in range(3):
            await rig.submit(prompt(1))
        spent = {}
        await queue.claim(1, claim_idle_ms=IDLE_MS)
        await redis.config_resetstat()
        for claimed in [*await queue.claim(1), *await queue.claim(1)]:
            await settle(queue, claimed)
        for name, each in (await redis.info("commandstats")).items():
            spent[name] = each["calls"]
        return spent

    await commands(plain)
    await redis.flushdb()
    await plain.ensure()
    without = await commands(plain)
    await redis.flushdb()
    await plain.ensure()

    assert await commands(rig.queues[0]) == without


async def test_a_pump_for_which_another_searches_learns_of_it_when_it_trims_the_queue(
    rig: Rig,
) -> None:
    third = Queue(rig.redis, NAME, "pump-3", seen=SeenPrefixes())
    await rig.submit(prompt(3))
    await rig.submit(prompt(3))
    (before,) = await third.claim(1)

    await third.tidy()
    (after,) = await third.claim(1)

    assert (before.is_prefix_seen, after.is_prefix_seen) == (None, False)
