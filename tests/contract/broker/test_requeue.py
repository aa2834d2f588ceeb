"""A request that Knative's broker gave up is failed only when its retries can have been spent."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import REQUESTED, request_event
from eventing.job.job import API_SOURCE, Job, JobId, JobState, derive_job_id
from eventing.job.store import Ending, NewJob, ReleaseReason
from eventing.redis import keys
from tests.contract.broker.stack import Stack, Subscriber, build, pumping, says, trigger, until
from tests.contract.rig import FAULT, new_job

SPAN_S = 600.0
CUT_OFF = {"knativeerrorcode": "-1"}
ANSWERED = {"knativeerrorcode": "503"}


async def given_up(stack: Stack, event: Event, why: Mapping[str, str]) -> None:
    """The event arrives at the relay as a dead letter and is dealt with."""
    async with Subscriber([says(405)]).serving() as subscriber:
        live = replace(stack.trigger, subscriber=subscriber.url)
        (relay,) = build(stack.redis, live)
        async with pumping(relay):
            await relay.send(replace(event, extensions={**event.extensions, **why}))
            await until(relay.is_drained)


@pytest.fixture
def stack(redis: Redis) -> Stack:
    (made,) = build(redis, replace(trigger("http://127.0.0.1:1/"), retry_span_s=SPAN_S))
    return made


async def published(stack: Stack, number: str = "7") -> Job:
    """A job whose event a broker has taken."""
    job, _ = await stack.store.submit(new_job(number))
    return job


async def passes(stack: Stack, job_id: JobId, seconds: float) -> None:
    """Let time pass in the record of one job."""
    for name in ("created_ms", "redriven_ms", "requeued_ms", "lease_until_ms"):
        value = int(await stack.redis.hget(keys.job(job_id), name) or 0)
        if value:
            await stack.redis.hset(keys.job(job_id), name, str(value - int(seconds * 1000)))


async def state(stack: Stack, job_id: JobId) -> JobState:
    job = await stack.store.get(job_id)
    assert job is not None
    return job.state


async def due_in_s(stack: Stack, job_id: JobId) -> float:
    """How long from now until the job is published again."""
    due_ms = await stack.redis.zscore(keys.UNPUBLISHED, job_id)
    assert due_ms is not None
    seconds, microseconds = await stack.redis.time()
    return float(due_ms) / 1000 - seconds - microseconds / 1e6


@pytest.mark.parametrize("why", [CUT_OFF, ANSWERED, {"knativeerrorcode": "400"}])
async def test_a_young_job_is_published_again_at_once(stack: Stack, why: dict[str, str]) -> None:
    job = await published(stack)

    await given_up(stack, request_event(job), why)

    assert await state(stack, job.id) is JobState.QUEUED
    assert job.id in await stack.store.take_unpublished(10)
    assert (await stack.store.list_dead_letters("acme")).jobs == ()


async def test_a_job_whose_retries_can_be_spent_is_failed_with_the_last_answer(
    stack: Stack,
) -> None:
    job = await published(stack)
    await passes(stack, job.id, SPAN_S)

    await given_up(stack, request_event(job), ANSWERED)

    failed = await stack.store.get(job.id)
    assert failed is not None
    assert failed.error is not None
    assert (failed.state, failed.is_dead_letter) == (JobState.FAILED, True)
    assert failed.error.code == "undeliverable"
    assert "503" in failed.error.message


async def test_a_job_that_waited_long_in_a_queue_is_not_failed_by_a_consumer_that_shuts_down(
    stack: Stack,
) -> None:
    job = await published(stack)
    for _ in range(3):
        await passes(stack, job.id, 2 * SPAN_S)
        await given_up(stack, request_event(job), CUT_OFF)
        assert await state(stack, job.id) is JobState.QUEUED

    await passes(stack, job.id, 2 * SPAN_S)
    await given_up(stack, request_event(job), CUT_OFF)  # but not for ever

    assert await state(stack, job.id) is JobState.FAILED


async def test_the_span_begins_anew_when_the_job_is_published_again(stack: Stack) -> None:
    job = await published(stack)
    await passes(stack, job.id, SPAN_S - 5)
    await given_up(stack, request_event(job), ANSWERED)
    await passes(stack, job.id, SPAN_S - 5)

    await given_up(stack, request_event(job), ANSWERED)

    assert await state(stack, job.id) is JobState.QUEUED


async def test_each_return_waits_twice_as_long_before_it_is_published(stack: Stack) -> None:
    # A broker that refuses the event at once must not be asked in a loop.
    job = await published(stack)
    waits = []
    for _ in range(4):
        await given_up(stack, request_event(job), {"knativeerrorcode": "400"})
        waits.append(await due_in_s(stack, job.id))

    assert [round(wait) for wait in waits] == [0, 2, 4, 8]


async def test_a_redriven_job_has_its_whole_span_again(stack: Stack) -> None:
    job = await published(stack)
    dead = Ending(state=JobState.FAILED, error=FAULT, is_dead_letter=True)
    await stack.store.conclude(job.id, dead)
    await passes(stack, job.id, 10 * SPAN_S)
    assert await stack.store.redrive(job, None)

    await given_up(stack, request_event(job), ANSWERED)

    assert await state(stack, job.id) is JobState.QUEUED


async def test_a_job_handed_over_a_moment_ago_has_its_whole_span_again(stack: Stack) -> None:
    job = await published(stack)
    await passes(stack, job.id, 10 * SPAN_S)
    taken = await stack.store.acquire(job.id, "worker", can_resume=True)
    await stack.store.release(taken.lease, ReleaseReason.HANDOVER, FAULT)

    await given_up(stack, request_event(job), ANSWERED)

    assert await state(stack, job.id) is JobState.QUEUED


async def test_a_job_that_has_ended_is_no_dead_letter(stack: Stack) -> None:
    job = await published(stack)
    await stack.store.cancel(job.id)
    await passes(stack, job.id, 10 * SPAN_S)

    await given_up(stack, request_event(job), ANSWERED)

    assert await state(stack, job.id) is JobState.CANCELLED
    assert await stack.redis.zcard(keys.dead_letters_of("acme")) == 0


async def test_a_deleted_job_of_the_api_is_not_made_anew(stack: Stack) -> None:
    new = replace(new_job("8"), source=API_SOURCE, id=JobId("job_" + "0" * 32), event_id="")
    job, _ = await stack.store.submit(new)
    await stack.store.cancel(job.id)
    await stack.store.delete(job.id)

    await given_up(stack, request_event(job), ANSWERED)

    assert await stack.store.get(job.id) is None
    assert await stack.redis.hgetall(keys.job(job.id)) == {b"deleted": b"1"}


async def test_a_producers_unrecorded_request_is_recorded_and_published_again(
    stack: Stack,
) -> None:
    new: NewJob = new_job("9")
    event = Event(
        id="9",
        source=new.source,
        type=REQUESTED,
        extensions={"tenant": "acme"},
        datacontenttype="application/json",
        data=new.request.to_json(),
    )

    await given_up(stack, event, ANSWERED)

    job_id = derive_job_id(new.source, "9", "acme")
    assert await state(stack, job_id) is JobState.QUEUED
    assert job_id in await stack.store.take_unpublished(10)


async def test_an_invalid_job_becomes_a_dead_letter_at_once(stack: Stack) -> None:
    await given_up(stack, Event(id="bad", source="/s", type=REQUESTED, data=b"{no"), CUT_OFF)

    (dead,) = (await stack.store.list_dead_letters("default")).jobs
    assert dead.event_id == "bad"
