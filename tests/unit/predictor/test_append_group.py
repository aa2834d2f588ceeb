"""Checkpoints of many jobs in one round trip."""

import asyncio
from collections.abc import Sequence

import pytest

from eventing.errors import StoreUnavailable
from eventing.job import JobId
from eventing.job_event import job_of
from eventing.store import Hold, TokenBatch
from predictor.append_group import AppendGroup
from tests.unit.predictor.desk import UnreliableStore, asking

ONE = TokenBatch(index=0, token_ids=(1,))


class CountingStore(UnreliableStore):
    """Knows how many appends came with each round trip, and can be slow."""

    def __init__(self) -> None:
        super().__init__()
        self.trips: list[int] = []
        self.must_wait = False

    async def append_all(self, appends: Sequence[tuple[JobId, int, TokenBatch]]) -> list[Hold]:
        self.trips.append(len(appends))
        if self.must_wait:
            await asyncio.sleep(60)
        return await super().append_all(appends)

    async def running(self, count: int) -> list[JobId]:
        jobs = [(await self.create(job_of(asking(event_id=f"e{i}"))))[0] for i in range(count)]
        for job in jobs:
            await self.acquire(job.id, "p", can_resume=True)
        return [job.id for job in jobs]


async def test_what_is_due_together_is_written_in_one_round_trip() -> None:
    store = CountingStore()
    group = AppendGroup(store)
    jobs = await store.running(16)

    holds = await asyncio.gather(*[group.append(job, 1, ONE) for job in jobs])

    assert holds == [Hold.OK] * 16
    assert store.trips == [16]


async def test_each_gets_its_own_answer() -> None:
    store = CountingStore()
    group = AppendGroup(store)
    fine, cancelled = await store.running(2)
    await store.cancel(cancelled)

    holds = await asyncio.gather(*[group.append(job, 1, ONE) for job in (cancelled, fine)])

    assert holds == [Hold.TERMINAL, Hold.OK]


async def test_a_store_that_is_away_is_everybodys_trouble() -> None:
    store = CountingStore()
    group = AppendGroup(store)
    jobs = await store.running(3)
    store.is_away = True

    answers = await asyncio.gather(
        *[group.append(job, 1, ONE) for job in jobs], return_exceptions=True
    )

    assert [type(answer) for answer in answers] == [StoreUnavailable] * 3


@pytest.mark.parametrize("must_wait", [True, False], ids=["while-writing", "before-writing"])
async def test_stopping_the_first_does_not_strand_the_others(must_wait: bool) -> None:
    store = CountingStore()
    store.must_wait = must_wait
    group = AppendGroup(store)
    jobs = await store.running(2)
    first, second = (asyncio.ensure_future(group.append(job, 1, ONE)) for job in jobs)
    await asyncio.sleep(0.02 if must_wait else 0)
    first.cancel()

    with pytest.raises(StoreUnavailable):
        await asyncio.wait_for(second, 1)
    store.must_wait = False
    assert await group.append(jobs[1], 1, ONE) is Hold.OK
