"""Deliveries that come when there is no room or no need for them."""

import asyncio

from tests.unit.predictor.desk import (
    LONG,
    TEN,
    UnreliableStore,
    asking,
    data_of,
    event_of,
    job_id_of,
    open_desk,
)


async def test_a_duplicate_of_a_running_job_is_told_to_come_again() -> None:
    async with open_desk() as desk:
        event = asking(seeded=LONG)
        running = asyncio.ensure_future(desk.deliver(event))
        await desk.wait_tokens(event, 1)

        answer = await desk.deliver(event)
        running.cancel()

        assert answer.status == 409
        assert answer.headers["retry-after"] == "5"  # not the 30 s of its lease: it may end sooner


async def test_a_hundred_deliveries_at_once_make_one_run() -> None:
    async with open_desk(max_concurrency=100) as desk:
        event = asking(seeded=TEN)
        answers = await asyncio.gather(*[desk.deliver(event) for _ in range(100)])

        assert sorted({answer.status for answer in answers}) == [200, 409]
        job = await desk.store.get(job_id_of(event))
        assert job is not None
        assert job.attempt == 1


async def test_while_the_engine_starts_deliveries_are_put_off() -> None:
    async with open_desk(is_open=False) as desk:
        answer = await desk.deliver(asking())

        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1


async def test_while_draining_deliveries_are_put_off() -> None:
    async with open_desk() as desk:
        desk.admission.drain()

        assert (await desk.deliver(asking())).status == 503


async def test_a_job_of_many_sequences_runs_though_small_ones_never_stop_coming() -> None:
    """It found each freed slot taken, and never ran."""
    async with open_desk(max_concurrency=4) as desk:
        seeded = {"output_tokens": 20, "tokens_per_s": 200}
        is_over = asyncio.Event()

        async def keep_coming(lane: int) -> None:
            number = 0
            while not is_over.is_set():
                number += 1
                event = asking(event_id=f"small-{lane}-{number}", seeded=seeded)
                if (await desk.deliver(event)).status == 503:
                    await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            for lane in range(4):
                group.create_task(keep_coming(lane))
            await asyncio.sleep(0.05)
            answer = await desk.deliver(asking(event_id="large", seeded=seeded, n=4))
            is_over.set()

        assert answer.status == 200
        assert len(data_of(answer)["response"]["choices"]) == 4


async def test_more_than_the_batch_holds_is_put_off() -> None:
    async with open_desk(max_concurrency=2) as desk:
        events = [asking(event_id=f"e{i}", seeded=LONG) for i in range(3)]
        running = [asyncio.ensure_future(desk.deliver(event)) for event in events[:2]]
        await desk.wait_tokens(events[1], 1)

        assert (await desk.deliver(events[2])).status == 503
        assert await desk.store.get(job_id_of(events[2])) is None
        for task in running:
            task.cancel()


async def test_a_job_takes_a_slot_for_each_of_its_choices() -> None:
    async with open_desk(max_concurrency=4) as desk:
        wide, other = asking(event_id="wide", n=4, seeded=LONG), asking(event_id="other")
        running = asyncio.ensure_future(desk.deliver(wide))
        await desk.wait_tokens(wide, 1)
        answer = await desk.deliver(other)
        running.cancel()

        assert answer.status == 503


async def test_while_the_store_is_away_deliveries_are_put_off() -> None:
    store = UnreliableStore()
    store.is_away = True
    async with open_desk(store=store) as desk:
        assert (await desk.deliver(asking())).status == 503
        assert (await desk.deliver(event_of(b"no json"))).status == 503


async def test_a_job_that_may_be_what_kills_predictors_runs_when_nobody_else_does() -> None:
    suspect, slow = asking(event_id="suspect"), asking(event_id="slow")
    async with open_desk(tokens_per_s=200, max_attempts=2) as desk:
        await desk.store.create_and_make(suspect, 3)
        desk.store.lapse(suspect)  # one attempt of two is lost
        beside = asyncio.create_task(desk.deliver(slow))
        await desk.wait_tokens(slow, 1)

        answer = await desk.deliver(suspect)

        assert answer.status == 200
        assert beside.done(), "it did not wait"
        assert (await beside).status == 200
        assert [a["outcome"] for a in data_of(answer)["attempts"]] == ["lost", "completed"]
