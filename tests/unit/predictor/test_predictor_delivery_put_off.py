"""Deliveries that are refused for lack of a slot, or not needed."""

import asyncio

from tests.unit.predictor.harness import (
    LONG,
    TEN,
    UnreliableStore,
    asking,
    data_of,
    event_of,
    job_id_of,
    open_harness,
)


async def test_a_duplicate_of_a_running_job_is_told_to_come_again() -> None:
    async with open_harness() as harness:
        event = asking(seeded=LONG)
        running = asyncio.ensure_future(harness.deliver(event))
        await harness.wait_tokens(event, 1)

        answer = await harness.deliver(event)
        running.cancel()

        assert answer.status == 409
        assert answer.headers["retry-after"] == "5"  # not the 30 s of its lease: it may end sooner


async def test_a_hundred_deliveries_at_once_make_one_run() -> None:
    async with open_harness(max_concurrency=100) as harness:
        event = asking(seeded=TEN)
        answers = await asyncio.gather(*[harness.deliver(event) for _ in range(100)])

        assert sorted({answer.status for answer in answers}) == [200, 409]
        job = await harness.store.get(job_id_of(event))
        assert job is not None
        assert job.attempt == 1


async def test_while_the_engine_starts_deliveries_are_put_off() -> None:
    async with open_harness(is_open=False) as harness:
        answer = await harness.deliver(asking())

        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1


async def test_while_draining_deliveries_are_put_off() -> None:
    async with open_harness() as harness:
        harness.admission.drain()

        assert (await harness.deliver(asking())).status == 503


async def test_a_job_of_many_sequences_runs_though_small_ones_never_stop_coming() -> None:
    """It found each freed slot taken, and never ran."""
    async with open_harness(max_concurrency=4) as harness:
        seeded = {"output_tokens": 20, "tokens_per_s": 200}
        is_over = asyncio.Event()

        async def keep_coming(lane: int) -> None:
            number = 0
            while not is_over.is_set():
                number += 1
                event = asking(event_id=f"small-{lane}-{number}", seeded=seeded)
                if (await harness.deliver(event)).status == 503:
                    await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            for lane in range(4):
                group.create_task(keep_coming(lane))
            await asyncio.sleep(0.05)
            answer = await harness.deliver(asking(event_id="large", seeded=seeded, n=4))
            is_over.set()

        assert answer.status == 200
        assert len(data_of(answer)["response"]["choices"]) == 4


async def test_more_than_the_batch_holds_is_put_off() -> None:
    async with open_harness(max_concurrency=2) as harness:
        events = [asking(event_id=f"e{i}", seeded=LONG) for i in range(3)]
        running = [asyncio.ensure_future(harness.deliver(event)) for event in events[:2]]
        await harness.wait_tokens(events[1], 1)

        assert (await harness.deliver(events[2])).status == 503
        assert await harness.store.get(job_id_of(events[2])) is None
        for task in running:
            task.cancel()


async def test_a_job_takes_a_slot_for_each_of_its_choices() -> None:
    async with open_harness(max_concurrency=4) as harness:
        wide, other = asking(event_id="wide", n=4, seeded=LONG), asking(event_id="other")
        running = asyncio.ensure_future(harness.deliver(wide))
        await harness.wait_tokens(wide, 1)
        answer = await harness.deliver(other)
        running.cancel()

        assert answer.status == 503


async def test_while_the_store_is_away_deliveries_are_put_off() -> None:
    store = UnreliableStore()
    store.is_away = True
    async with open_harness(store=store) as harness:
        assert (await harness.deliver(asking())).status == 503
        assert (await harness.deliver(event_of(b"no json"))).status == 503


async def test_a_job_that_may_be_what_kills_predictors_runs_when_nobody_else_does() -> None:
    suspect, slow = asking(event_id="suspect"), asking(event_id="slow")
    async with open_harness(tokens_per_s=200, max_attempts=2) as harness:
        await harness.store.create_and_make(suspect, 3)
        harness.store.lapse(suspect)  # one attempt of two is lost
        beside = asyncio.create_task(harness.deliver(slow))
        await harness.wait_tokens(slow, 1)

        answer = await harness.deliver(suspect)

        assert answer.status == 200
        assert beside.done(), "it did not wait"
        assert (await beside).status == 200
        assert [a["outcome"] for a in data_of(answer)["attempts"]] == ["lost", "completed"]
