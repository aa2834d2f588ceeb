"""Undeliverable events become dead letters; their jobs are failed first."""

import asyncio
import base64
from dataclasses import replace

import pytest
from aiohttp import web
from redis.asyncio import Redis

from eventing.broker.delivery.decision import DeliverySpec
from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import REQUESTED
from eventing.job.job import JobError, JobState, derive_job_id
from eventing.job.store import Ending
from eventing.redis import keys
from tests.contract.broker.stack import (
    EVENT,
    FAST,
    Subscriber,
    build,
    pumping,
    says,
    trigger,
    until,
)
from tests.contract.rig import finish, new_job


def job_request(event_id: str = "7") -> Event:
    new = new_job(event_id)
    return Event(
        id=event_id,
        source=new.source,
        type=REQUESTED,
        extensions={"tenant": "acme"},
        datacontenttype="application/json",
        data=new.request.to_json(),
    )


class TestDeadLetters:
    async def test_a_job_that_cannot_be_delivered_is_failed_first(self, redis: Redis) -> None:
        async with Subscriber([says(400)]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                await stack.send(job_request())
                await until(stack.is_drained)

        (job,) = (await stack.store.list_dead_letters("acme")).jobs
        assert job.id == derive_job_id("/tests/producer", "7", "acme")
        assert job.error is not None
        assert (job.state, job.error.code) == (JobState.FAILED, "undeliverable")

    @pytest.mark.parametrize("data", [b"no json", b"[]", b'{"url": "/v1/none"}', b"\xff"])
    async def test_a_request_that_is_no_job_is_a_dead_letter_with_its_data(
        self, redis: Redis, data: bytes
    ) -> None:
        async with Subscriber([says(400)]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                await stack.send(
                    Event(id="x", source="/s", type=REQUESTED, extensions={"priority": "?"})
                )
                await stack.send(Event(id="bad", source="/s", type=REQUESTED, data=data))
                await until(stack.is_drained)

        dead = (await stack.store.list_dead_letters("default")).jobs
        assert {job.event_id for job in dead} == {"x", "bad"}
        assert all(job.error and job.error.field for job in dead)

    async def test_a_job_that_runs_well_is_never_set_aside(self, redis: Redis) -> None:
        # F10b: the retries are over long before the first run is.
        async with Subscriber([says(409)]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            event = job_request()
            new = new_job("7")
            await stack.store.submit(new)
            taken = await stack.store.acquire(new.id, "worker", can_resume=True)
            async with pumping(stack):
                await stack.send(event)

                async def is_tried() -> bool:
                    return len(subscriber.got) > FAST.retry

                await until(is_tried)
                await asyncio.sleep(0.1)

        assert (await stack.store.list_dead_letters("acme")).jobs == ()
        assert not await stack.is_drained()
        ending = Ending(state=JobState.COMPLETED)
        assert await finish(stack.store, taken.lease, ending) == "ok"

    async def test_the_sink_gets_knatives_extensions(self, redis: Redis) -> None:
        async with Subscriber([says(400)]).serving() as one, Subscriber().serving() as sink:
            spec = DeliverySpec(retry=0, dead_letter_sink=sink.url)
            (stack,) = build(redis, trigger(one.url, spec))
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        (told,) = sink.got
        assert told.identity == EVENT.identity
        assert told.extensions["knativeerrordest"] == one.url
        assert told.extensions["knativeerrorcode"] == "400"
        assert told.extensions["knativeerrordata"]

    async def test_the_sink_gets_the_subscribers_answer(self, redis: Redis) -> None:
        async def refuses(_: web.Request, __: int) -> web.Response:
            return web.Response(status=400, body=b"no such shelf " + b"x" * 2000)

        async with Subscriber([refuses]).serving() as one, Subscriber().serving() as sink:
            spec = DeliverySpec(retry=0, dead_letter_sink=sink.url)
            (stack,) = build(redis, trigger(one.url, spec))
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        said = base64.b64decode(sink.got[0].extensions["knativeerrordata"])
        assert said.startswith(b"no such shelf")
        assert len(said) == 1024

    async def test_the_sink_is_tried_as_often_as_retry_says(self, redis: Redis) -> None:
        busy = Subscriber([says(503), says(503), says(204)])
        async with Subscriber([says(400)]).serving() as one, busy.serving() as sink:
            spec = replace(FAST, retry=2, dead_letter_sink=sink.url)
            (stack,) = build(redis, trigger(one.url, spec))
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        assert len(sink.got) == 3

    @pytest.mark.parametrize("sink", ["http://127.0.0.1:1/", "not a url"])
    async def test_a_sink_that_is_away_loses_nothing(self, redis: Redis, sink: str) -> None:
        async with Subscriber([says(400)]).serving() as subscriber:
            spec = DeliverySpec(retry=0, dead_letter_sink=sink)
            (stack,) = build(redis, trigger(subscriber.url, spec))
            async with pumping(stack):
                await stack.send(job_request())
                await stack.send(EVENT)
                await until(stack.is_drained)

        assert len((await stack.store.list_dead_letters("acme")).jobs) == 1
        assert await redis.hlen(keys.queue(stack.trigger.name, "dead")) == 1

    async def test_a_job_redriven_at_once_is_delivered_again(self, redis: Redis) -> None:
        # The redrive's event comes while the first delivery is still being settled.
        event = job_request()
        (stack,) = build(redis, trigger("http://127.0.0.1:1/"))
        job, _ = await stack.store.submit(new_job("7"))
        redriven = asyncio.Event()

        async def fails_the_job(_: web.Request, number: int) -> web.Response:
            if number == 0:
                error = JobError(code="engine_error", message="x")
                dead = Ending(state=JobState.FAILED, error=error, is_dead_letter=True)
                await stack.store.conclude(job.id, dead)
                assert await stack.store.redrive(job, None)
                await stack.send(event)
                redriven.set()
            return web.Response(status=204)

        async with Subscriber([fails_the_job]).serving() as subscriber:
            (live,) = build(redis, trigger(subscriber.url))
            async with pumping(live):
                await live.send(event)
                await redriven.wait()
                await until(live.is_drained)

        assert len(subscriber.got) == 2
