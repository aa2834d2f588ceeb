"""The rule of `ours` in `bench/prefix_claims.py` is that of `claim.lua`: they take the same jobs in the same order."""

import random

import pytest
from redis.asyncio import Redis

from bench.prefix_claims import Job, Replica, pull_matching
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
