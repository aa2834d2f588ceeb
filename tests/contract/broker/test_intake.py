"""Submit: a job's record, its list entry and its event are written in one step or not at all."""

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from eventing.broker.intake import Intake
from eventing.broker.queue.queue import Queue, member_of
from eventing.broker.queue.view import QueueView
from eventing.broker.router import DirectPublisher
from eventing.cloudevent.event import from_record
from eventing.cloudevent.job_event import request_event
from eventing.errors import IdempotencyConflict, InvalidJob, StoreUnavailable
from eventing.job.job import JobError, JobState, Lane
from eventing.job.store import Ending
from eventing.outbox.outbox import sweep_once
from eventing.redis import keys
from eventing.redis.connection import connect
from eventing.store.redis_store import RedisStore
from tests.contract.broker.stack import trigger
from tests.contract.rig import SETTINGS, RedisRig, job_id, new_job

NAME = "requests-tiny"
FAILED = Ending(
    state=JobState.FAILED, error=JobError(code="e", message="it broke"), is_dead_letter=True
)


def intake_over(redis: Redis) -> tuple[Intake, DirectPublisher, RedisStore]:
    wanting = trigger("http://127.0.0.1:9/")
    publisher, store = DirectPublisher(redis, [wanting]), RedisStore(redis, SETTINGS)
    return Intake(store, publisher), publisher, store


async def depth(redis: Redis) -> tuple[int, int | None, int]:
    """Events that wait, and what KEDA reads: lag and pending."""
    seen = await QueueView(redis).depth(NAME)
    return seen.total_waiting, seen.lag, seen.pending


async def queue_of(redis: Redis) -> Queue:
    queue = Queue(connect_like(redis), NAME, "pump")
    await queue.ensure()
    return queue


def connect_like(redis: Redis) -> Redis:
    return redis


async def test_the_job_is_recorded_listed_and_waits(redis: Redis) -> None:
    await queue_of(redis)
    intake, _, store = intake_over(redis)

    job, is_new = await intake.submit(new_job())

    assert is_new
    assert await store.get(job.id) == job
    assert [one.id for one in (await store.list_jobs("acme")).jobs] == [job.id]
    assert await depth(redis) == (1, 1, 0)
    raw = await redis.hget(keys.queue(NAME, "events"), member_of(request_event(job)))
    event = from_record(raw.split(b" ", 1)[1])
    # All but the time: the record's is the store's.
    assert replace(event, time="") == replace(request_event(job), time="")


async def test_a_job_submitted_twice_waits_once(redis: Redis) -> None:
    intake, _, _ = intake_over(redis)

    answers = await asyncio.gather(*(intake.submit(new_job()) for _ in range(10)))

    assert sorted(is_new for _, is_new in answers) == [False] * 9 + [True]
    assert (await depth(redis))[0] == 1


async def test_a_conflict_changes_nothing(redis: Redis) -> None:
    intake, _, store = intake_over(redis)
    first, _ = await intake.submit(new_job())

    with pytest.raises(IdempotencyConflict):
        await intake.submit(new_job(prompt="other"))

    assert await store.get(first.id) == first
    assert (await depth(redis))[0] == 1


async def test_a_job_that_no_trigger_takes_is_refused_and_leaves_nothing(redis: Redis) -> None:
    publisher = DirectPublisher(redis, [])

    with pytest.raises(InvalidJob):
        await Intake(RedisStore(redis), publisher).submit(new_job())

    assert await redis.keys("*") == []


async def test_the_sweep_would_send_the_same_event(redis: Redis) -> None:
    intake, publisher, _ = intake_over(redis)
    job, _ = await intake.submit(new_job())

    await publisher.publish(request_event(job))

    assert (await depth(redis))[0] == 1


async def test_a_server_that_forgot_its_scripts_takes_it_once(redis: Redis) -> None:
    intake, _, store = intake_over(redis)
    await intake.submit(new_job("first"))
    await redis.script_flush()

    job, _ = await intake.submit(new_job())

    assert await store.get(job.id) == job
    assert (await depth(redis))[0] == 2


async def test_a_store_that_is_away_takes_nothing() -> None:
    intake, _, _ = intake_over(connect("redis://127.0.0.1:9/0", timeout_s=0.2))

    with pytest.raises(StoreUnavailable):
        await intake.submit(new_job())


@pytest.mark.parametrize("lane", list(Lane))
async def test_a_job_cancelled_while_it_waits_starts_no_predictor(redis: Redis, lane: Lane) -> None:
    await queue_of(redis)
    intake, _, store = intake_over(redis)
    await intake.submit(replace(new_job("cancelled"), lane=lane))
    await intake.submit(replace(new_job("other"), lane=lane))

    await store.cancel(job_id("cancelled"))

    assert await depth(redis) == (1, 1, 0)
    (claimed,) = await (await queue_of(redis)).claim(2)
    assert claimed.event.id == "other"


async def test_a_job_whose_deadline_passes_while_it_waits_starts_no_predictor(redis: Redis) -> None:
    # It stayed queued for as long as no predictor ran, and woke one to be told that it was late
    # .
    await queue_of(redis)
    intake, _, store = intake_over(redis)
    rig = RedisRig(redis)
    await intake.submit(new_job(deadline_ms=await rig.now_ms() + 1000))
    await rig.pass_time(1001)

    assert await store.expire(10) == [job_id()]

    assert await depth(redis) == (0, 0, 0)
    job = await store.get(job_id())
    assert job is not None
    assert job.state is JobState.FAILED


async def test_an_event_that_waits_for_its_next_delivery_leaves_with_its_job(redis: Redis) -> None:
    queue = await queue_of(redis)
    intake, _, store = intake_over(redis)
    await intake.submit(new_job())
    (claimed,) = await queue.claim(1)
    await queue.defer(claimed.ticket, 60_000)

    await store.cancel(job_id())

    assert await depth(redis) == (0, 0, 0)
    assert await redis.hlen(keys.queue(NAME, "held")) == 0


async def test_a_claimed_event_stays_with_its_consumer(redis: Redis) -> None:
    queue = await queue_of(redis)
    intake, _, store = intake_over(redis)
    await intake.submit(new_job())
    (claimed,) = await queue.claim(1)

    await store.cancel(job_id())

    assert await depth(redis) == (0, 0, 1)
    await queue.send([queue.settle_call(claimed.ticket)])
    assert await depth(redis) == (0, 0, 0)


async def test_a_redriven_job_waits_again_in_the_same_step(redis: Redis) -> None:
    queue = await queue_of(redis)
    intake, _, store = intake_over(redis)
    await intake.submit(new_job())
    (claimed,) = await queue.claim(1)
    await store.conclude(job_id(), FAILED)
    job = await store.get(job_id())
    assert job is not None

    # The pump that gave it up has not settled its event yet.
    assert await intake.redrive(job, None)
    await queue.send([queue.settle_call(claimed.ticket)])

    (again,) = await queue.claim(1)
    assert again.event.id == claimed.event.id
    settled = await queue.send([queue.settle_call(again.ticket)])
    assert settled == [1]


async def test_a_redriven_job_waits_with_its_edited_request_and_its_attempt(redis: Redis) -> None:
    intake, _, store = intake_over(redis)
    await intake.submit(new_job())
    await store.conclude(job_id(), FAILED)
    job = await store.get(job_id())
    assert job is not None
    edited = new_job(prompt="how?").request

    assert await intake.redrive(job, edited)

    (claimed,) = await (await queue_of(redis)).claim(1)
    assert claimed.event.data == edited.to_json()
    assert claimed.event.extensions["attempt"] == "1"


@pytest.mark.parametrize("gone_after_ms", [0, 60_000])
async def test_jobs_of_a_store_that_lost_its_queues_wait_again(
    redis: Redis, gone_after_ms: int
) -> None:
    # B16: an emptied queue ended the broker, and what the records promised was found after a
    # quarter of an hour.
    queue = await queue_of(redis)
    intake, publisher, store = intake_over(redis)
    await intake.submit(new_job("1"))
    await intake.submit(new_job("2"))
    await redis.delete(*await redis.keys(keys.queue(NAME, "*").replace("{", "?").replace("}", "?")))

    await queue.tidy(gone_after_ms=gone_after_ms)
    await queue.keep(["1-1"])
    await sweep_once(store, publisher)

    assert {one.event.id for one in await queue.claim(5)} == {"1", "2"}
