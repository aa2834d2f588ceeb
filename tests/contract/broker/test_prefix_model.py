"""The rules of `window` and `ours` in `bench/prefix_claims.py` are those of `claim.lua`: they give the same jobs to the
same pumps.
"""

import random

import pytest
from redis.asyncio import Redis

from bench.prefix_claims import SLOTS, Holders, Job, Replica, pull_matching
from eventing.broker.queue.queue import Queue
from eventing.job.prompt import SeenPrefixes
from eventing.redis import keys
from tests.contract.broker.queue_rig import IDLE_MS, settle
from tests.contract.broker.stack import NAME
from tests.contract.broker.test_queue_prefix import Rig, prompt, take

COUNT = 24


@pytest.mark.parametrize("seed", range(4))
async def test_the_simulated_rule_takes_what_the_script_takes(redis: Redis, seed: int) -> None:
    rig = Rig(redis)
    await rig.queues[0].ensure()
    await rig.know_each_other()
    draw = random.Random(seed)
    prefixes = [draw.choice([0, 1, 2]) for _ in range(COUNT)]
    submitted = [await rig.submit(prompt(n, f" {place}")) for place, n in enumerate(prefixes)]

    taken = await take(rig.queues[0], COUNT)

    engine = Replica(keeps=1)
    engine.kept[0] = (
        None  # what pump 0 claimed, and nothing else, while they got to know each other
    )
    waiting = [Job(float(place), prefix, 0.0) for place, prefix in enumerate(prefixes)]
    expected = []
    while waiting:
        job = waiting.pop(pull_matching(waiting, engine, now_s=0.0))
        expected.append(submitted[int(job.arrived_s)])
    assert list(taken) == expected
    assert expected != submitted


@pytest.mark.parametrize("seed", range(4))
async def test_the_simulated_holder_is_the_pump_that_a_job_is_left_to(
    redis: Redis, seed: int
) -> None:
    """Jobs come one at a time to pumps with room or without, drawn anew for each."""
    rig = Rig(redis)
    await rig.queues[0].ensure()
    rig.queues += [Queue(redis, NAME, f"pump-{n}", seen=SeenPrefixes()) for n in (2, 3)]
    for number, queue in [*enumerate(rig.queues)] * 2:
        await rig.submit(prompt(number))
        await queue.claim(1, claim_idle_ms=IDLE_MS)
    draw, holders = random.Random(seed), Holders()
    replicas = [Replica(keeps=1) for _ in rig.queues]
    for number in range(COUNT):
        job = Job(float(number), draw.choice([5, 6, 7]), 0.0)
        with_room = draw.sample(range(len(replicas)), draw.randrange(1, len(replicas) + 1))
        for place, replica in enumerate(replicas):
            replica.busy = 0 if place in with_room else SLOTS
        scores = {queue.holder: 0 for queue in rig.queues}
        now_ms = int((await redis.time())[0]) * 1000 + 1_500  # however long the machine stalls
        scores |= {rig.queues[place].holder: now_ms for place in with_room}
        await redis.zadd(keys.queue(NAME, "room"), scores)
        await rig.submit(prompt(job.prefix, f" {number}"))
        holder = holders.of(job)
        mine = [] if holder is None else [replicas.index(holder)]
        others = [place for place in with_room if place not in mine]
        if mine and others:
            # Whichever of the others comes first leaves it.
            assert await take(rig.queues[draw.choice(others)]) == []
        taker = draw.choice(mine or with_room)
        (claimed,) = await rig.queues[taker].claim(1)
        await settle(rig.queues[taker], claimed)
        holders.took(job, replicas[taker])
