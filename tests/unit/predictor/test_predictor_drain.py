"""Graceful shutdown of a predictor."""

import asyncio

import pytest

from eventing.job.job import JobState
from predictor.delivery.drain import Drain, handover_after_s
from predictor.generation.generation import Interrupted
from tests.unit.predictor.harness import asking, job_id_of, open_harness, read_ids, text_of

LONG = {"output_tokens": 2000, "tokens_per_s": 100}
SHORT = {"output_tokens": 30, "tokens_per_s": 100}


async def test_a_job_that_ends_within_the_grace_is_finished() -> None:
    async with open_harness() as harness:
        event = asking(seeded=SHORT)
        running = asyncio.ensure_future(harness.deliver(event))
        await harness.wait_tokens(event, 1)
        drain = Drain(harness.admission, harness.keeper, grace_s=3)
        drain.begin("SIGTERM")
        await drain.run()

        assert (await running).status == 200


async def test_a_longer_job_is_handed_over_within_the_grace_with_its_tokens() -> None:
    async with open_harness() as harness:
        event = asking(seeded=LONG)
        running = asyncio.ensure_future(harness.deliver(event))
        await harness.wait_tokens(event, 1)
        drain = Drain(harness.admission, harness.keeper, grace_s=0.6)
        drain.begin("SIGTERM")
        await drain.run()
        assert harness.admission.in_flight == 0, "it would have ended before the job was given back"
        answer = await running
        job = await harness.store.get(job_id_of(event))

        assert answer.status == 503
        assert job is not None
        assert (job.state, job.history[0].outcome) == (JobState.QUEUED, "handover")
        assert job.token_count == len(read_ids(await harness.entries(event))) > 20


async def test_a_handed_over_job_costs_no_attempt_however_often() -> None:
    whole = ""
    async with open_harness() as harness:
        whole = text_of(await harness.deliver(asking(seeded={**SHORT, "tokens_per_s": 0})))
    event = asking(seeded=SHORT)
    store = None
    for _ in range(4):  # one more than a job has attempts
        async with open_harness(store=store) as harness:
            store = harness.store
            before = job.token_count if (job := await store.get(job_id_of(event))) else 0
            running = asyncio.ensure_future(harness.deliver(event))
            await harness.wait_tokens(event, before + 1)
            drain = Drain(harness.admission, harness.keeper, grace_s=0.03)
            drain.begin("SIGTERM")
            await drain.run()
            await running
    async with open_harness(store=store) as harness:
        assert text_of(await harness.deliver(event)) == whole


async def test_no_call_is_admitted_from_the_first_moment_of_a_drain() -> None:
    async with open_harness() as harness:
        Drain(harness.admission, harness.keeper, grace_s=60).begin("SIGTERM")

        assert (await harness.deliver(asking())).status == 503


async def test_nothing_in_flight_means_no_wait() -> None:
    async with open_harness() as harness:
        drain = Drain(harness.admission, harness.keeper, grace_s=60)
        drain.begin("SIGTERM")

        await asyncio.wait_for(drain.run(), 0.1)


@pytest.mark.parametrize(
    ("grace_s", "for_itself_s"), [(25, 21), (3, 2), (0.6, 0.4)], ids=["pod", "short", "test"]
)
def test_some_of_the_grace_is_kept_for_the_handover(grace_s: float, for_itself_s: float) -> None:
    assert handover_after_s(grace_s) == pytest.approx(for_itself_s)


async def test_a_store_that_is_away_holds_no_handover_up_for_longer_than_the_lease() -> None:
    async with open_harness(lease_s=0.5) as harness:
        event = asking(seeded=LONG)
        running = asyncio.ensure_future(harness.deliver(event))
        await harness.wait_tokens(event, 1)
        harness.store.is_away = True
        harness.keeper.interrupt_all(Interrupted.HANDOVER)

        assert (await asyncio.wait_for(running, 10)).status == 503
