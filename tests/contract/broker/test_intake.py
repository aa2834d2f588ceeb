"""A fresh job's record and its event, taken in one flight."""

import pytest
from redis.asyncio import Redis

from eventing.broker.intake import DirectIntake
from eventing.broker.queue import QueueView
from eventing.broker.router import DirectPublisher
from eventing.clock import SystemClock
from eventing.cloudevent.job_event import REQUESTED, request_event
from eventing.errors import StoreUnavailable
from eventing.redis.connection import connect
from eventing.store.redis_store import RedisStore
from tests.contract.broker.stack import trigger
from tests.contract.rig import new_job

NAME = "requests-tiny"


def intake_over(redis: Redis) -> tuple[DirectIntake, DirectPublisher, RedisStore]:
    wanting = trigger("http://127.0.0.1:9/")
    publisher, store = DirectPublisher(redis, [wanting]), RedisStore(redis)
    return DirectIntake(store, publisher, SystemClock()), publisher, store


async def waiting(redis: Redis) -> int:
    return (await QueueView(redis).depth(NAME)).total_waiting


async def test_the_job_is_recorded_and_its_event_waits(redis: Redis) -> None:
    intake, _, store = intake_over(redis)

    job = await intake.take(new_job())

    assert await store.get(job.id) == job
    assert await waiting(redis) == 1


async def test_its_note_stays_until_it_is_cleared(redis: Redis) -> None:
    intake, _, _ = intake_over(redis)

    job = await intake.take(new_job())

    assert await redis.zrange("torpor:outbox:requests", 0, -1) == [job.id.encode()]


async def test_the_sweep_would_send_the_same_event(redis: Redis) -> None:
    intake, publisher, _ = intake_over(redis)
    job = await intake.take(new_job())

    event = request_event(job)
    await publisher.publish(event)

    assert event.type == REQUESTED
    assert await waiting(redis) == 1


async def test_a_server_that_forgot_its_scripts_half_way_takes_it_once(redis: Redis) -> None:
    intake, _, store = intake_over(redis)
    await intake.take(new_job("first"))
    await redis.script_flush()
    await store.create(new_job("other"))  # it knows these scripts again, but not the queue's

    job = await intake.take(new_job())

    assert await store.get(job.id) == job
    assert await waiting(redis) == 2


async def test_a_store_that_is_away_takes_nothing() -> None:
    intake, _, _ = intake_over(connect("redis://127.0.0.1:9/0", timeout_s=0.2))

    with pytest.raises(StoreUnavailable):
        await intake.take(new_job())
