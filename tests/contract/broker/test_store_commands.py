"""How many commands the store runs for a job, those inside scripts counted: its one core serves everybody. Bounds, so
that they do not grow unseen; `bench/store_commands.py` tells which command of which script it is.
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from eventing.broker.intake import Intake
from eventing.broker.queue.queue import Queue
from eventing.broker.router import DirectPublisher
from eventing.job.job import API_SOURCE, new_job_id
from eventing.job.store import Lease, NewJob, TokenBatch
from eventing.store.redis_store import RedisStore
from tests.contract.broker.stack import NAME, trigger
from tests.contract.rig import ANSWER, new_job

BOUNDS = {
    "submit": 11,
    "wait": 1,
    "claim": 13,
    "acquire": 6,
    "append": 6,
    "finish": 12,
    "settle": 10,
}


def api_job() -> NewJob:
    """A job of our api."""
    job_id = new_job_id()
    return replace(new_job(), id=job_id, source=API_SOURCE, event_id=job_id)


class Life:
    """What a job's life asks of the store; each step in turn."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.store = RedisStore(redis)
        self.queue = Queue(redis, NAME, "pump")
        publisher = DirectPublisher(redis, [trigger("http://127.0.0.1:9/")])
        self.intake = Intake(self.store, publisher)
        self.spent: dict[str, int] = {}

    async def run(self) -> None:
        new = api_job()
        await self._count("submit", self.intake.submit(new))
        await self._count("wait", self.queue.wait(1000))
        (claimed,) = await self._count("claim", self.queue.claim(16))
        taken = self.store.acquire(new.id, "worker", can_resume=True, expected=new)
        lease: Lease = (await self._count("acquire", taken)).lease
        tokens = TokenBatch(index=0, token_ids=(1, 2), delta='["a"]')
        await self._count("append", self.store.append_all([(lease, tokens)]))
        await self._count("finish", self.store.finish(lease, ANSWER))
        await self._count("settle", self.queue.settle(claimed.ticket))

    async def _count(self, step: str, call: Awaitable[Any]) -> Any:
        await self.redis.config_resetstat()
        answer = await call
        stats = await self.redis.info("commandstats")
        asked = {name: each["calls"] for name, each in stats.items() if "config" not in name}
        self.spent[step] = sum(asked.values())
        return answer


@pytest.fixture
async def life(redis: Redis) -> Life:
    """Of a store that knows the scripts already."""
    life = Life(redis)
    await life.queue.ensure()
    await life.run()
    return life


async def test_each_step_of_a_job_takes_no_more_store_commands_than_now(life: Life) -> None:
    await life.run()

    assert {step: n for step, n in life.spent.items() if n > BOUNDS[step]} == {}
    assert life.spent.keys() == BOUNDS.keys()


async def test_a_job_that_is_claimed_and_settled_with_others_takes_two_commands_for_it(
    life: Life,
) -> None:
    for _ in range(16):
        await life.intake.submit(api_job())

    claimed = await life._count("claim", life.queue.claim(16))
    together = asyncio.gather(*(life.queue.settle(each.ticket) for each in claimed))
    await life._count("settle", together)

    assert len(claimed) == 16
    assert life.spent["claim"] + life.spent["settle"] <= 16 * 2
