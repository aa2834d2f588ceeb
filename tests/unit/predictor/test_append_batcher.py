"""Checkpoints of many jobs in one round trip."""

import asyncio
from collections.abc import Sequence

import pytest

from eventing.cloudevent.job_event import job_of
from eventing.errors import StoreUnavailable
from eventing.job.store import Lease, LeaseStatus, TokenBatch
from predictor.generation.append_batcher import AppendBatcher, flush_interval_s
from tests.unit.predictor.harness import UnreliableStore, asking

ONE = TokenBatch(index=0, token_ids=(1,))


class CountingStore(UnreliableStore):
    """Knows how many appends came with each round trip, and can be slow."""

    def __init__(self) -> None:
        super().__init__()
        self.trips: list[int] = []
        self.must_wait = False
        self.delay_s = 0.0

    async def append_all(self, appends: Sequence[tuple[Lease, TokenBatch]]) -> list[LeaseStatus]:
        self.trips.append(len(appends))
        await asyncio.sleep(60 if self.must_wait else self.delay_s)
        return await super().append_all(appends)

    async def running(self, count: int) -> list[Lease]:
        jobs = [(await self.submit(job_of(asking(event_id=f"e{i}"))))[0] for i in range(count)]
        return [(await self.acquire(job.id, "p", can_resume=True)).lease for job in jobs]


async def test_appends_due_together_are_written_in_one_round_trip() -> None:
    store = CountingStore()
    group = AppendBatcher(store)
    jobs = await store.running(16)

    holds = await asyncio.gather(*[group.append(job, ONE) for job in jobs])

    assert holds == [LeaseStatus.OK] * 16
    assert store.trips == [16]


async def test_each_gets_its_own_answer() -> None:
    store = CountingStore()
    group = AppendBatcher(store)
    fine, cancelled = await store.running(2)
    await store.cancel(cancelled.job_id)

    holds = await asyncio.gather(*[group.append(job, ONE) for job in (cancelled, fine)])

    assert holds == [LeaseStatus.TERMINAL, LeaseStatus.OK]


async def test_an_unavailable_store_fails_every_append_of_the_batch() -> None:
    store = CountingStore()
    group = AppendBatcher(store)
    jobs = await store.running(3)
    store.is_away = True

    answers = await asyncio.gather(
        *[group.append(job, ONE) for job in jobs], return_exceptions=True
    )

    assert [type(answer) for answer in answers] == [StoreUnavailable] * 3


@pytest.mark.parametrize("must_wait", [True, False], ids=["while-writing", "before-writing"])
async def test_stopping_the_first_does_not_strand_the_others(must_wait: bool) -> None:
    store = CountingStore()
    store.must_wait = must_wait
    group = AppendBatcher(store)
    jobs = await store.running(2)
    first, second = (asyncio.ensure_future(group.append(job, ONE)) for job in jobs)
    await asyncio.sleep(0.02 if must_wait else 0)
    first.cancel()

    with pytest.raises(StoreUnavailable):
        await asyncio.wait_for(second, 10)
    store.must_wait = False
    assert await group.append(jobs[1], ONE) is LeaseStatus.OK


@pytest.mark.parametrize(
    ("took_s", "interval_s"),
    [
        pytest.param(0.0001, 0.05 / 16, id="never shorter than a sixteenth"),
        pytest.param(0.001, 0.00625, id="four times a write, at least"),
        pytest.param(0.005, 0.025, id="slower"),
        pytest.param(0.02, 0.05, id="never longer than was set"),
    ],
)
def test_the_flush_interval_is_as_short_as_the_store_is_quick(
    took_s: float, interval_s: float
) -> None:
    assert flush_interval_s(0.05, took_s) == pytest.approx(interval_s)


async def test_a_slow_store_is_asked_less_often() -> None:
    store = CountingStore()
    group = AppendBatcher(store)
    (job,) = await store.running(1)
    before = group.flush_interval_s(0.05)
    await group.append(job, ONE)
    quick = group.flush_interval_s(0.05)
    store.delay_s = 0.03
    await group.append(job, TokenBatch(index=1, token_ids=(2,)))

    assert before == 0.05  # nothing is known yet
    assert quick < 0.01
    assert group.flush_interval_s(0.05) > quick
