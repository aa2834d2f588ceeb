"""What a subscriber of our broker may rely on: Knative's delivery rules, on a real server."""

import asyncio
from dataclasses import replace

import orjson
import pytest
from aiohttp import web
from redis.asyncio import Redis

from eventing import keys
from eventing.broker.delivery import BackoffPolicy, DeliverySpec
from eventing.broker.queue import Queue
from eventing.event import Event, build_binary, build_structured
from eventing.job import Job, JobError, JobState, derive_job_id, new_job_id
from eventing.job_event import COMPLETED, REQUESTED, request_event, result_event
from eventing.store import Ending
from tests.contract.broker.stack import (
    FAST,
    Answer,
    Subscriber,
    build,
    pumping,
    says,
    trigger,
    until,
)
from tests.contract.rig import new_job

EVENT = Event(id="1", source="/s", type="t", datacontenttype="text/plain", data=b"hello")


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


def replies(event: Event, status: int = 200, *, in_structured_mode: bool = False) -> Answer:
    async def answer(_: web.Request, __: int) -> web.Response:
        headers, body = (build_structured if in_structured_mode else build_binary)(event)
        return web.Response(status=status, headers=headers, body=body)

    return answer


class TestDelivery:
    async def test_an_event_arrives_once_and_whole(self, redis: Redis) -> None:
        async with Subscriber().serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                assert await stack.send(EVENT) == 1
                await until(stack.is_drained)

        assert subscriber.got == [EVENT]
        assert subscriber.headers[0]["prefer"] == "reply"

    async def test_the_delivery_carries_our_token(self, redis: Redis) -> None:
        async with Subscriber().serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url), token="s3cret")
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        assert subscriber.headers[0]["authorization"] == "Bearer s3cret"

    @pytest.mark.parametrize("status", [404, 408, 409, 429, 500, 503])
    async def test_what_may_do_better_is_tried_until_it_does(
        self, redis: Redis, status: int
    ) -> None:
        async with Subscriber([says(status), says(status), says(202)]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        assert subscriber.got == [EVENT] * 3

    @pytest.mark.parametrize("status", [301, 302, 400, 401, 403, 413, 415, 422])
    async def test_a_refusal_is_final_and_kept(self, redis: Redis, status: int) -> None:
        async with Subscriber([says(status, location="/elsewhere")]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        assert len(subscriber.got) == 1
        (note,) = (await redis.hvals(keys.queue(stack.trigger.name, "dead")))[0:1]
        assert str(status) in orjson.loads(note)["reason"]

    async def test_after_its_retries_an_event_is_set_aside(self, redis: Redis) -> None:
        async with Subscriber([says(500)]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        assert len(subscriber.got) == FAST.retry + 1
        assert await redis.hlen(keys.queue(stack.trigger.name, "dead")) == 1

    async def test_nobody_there_is_tried_again(self, redis: Redis) -> None:
        subscriber = Subscriber()
        slow = DeliverySpec(retry=100, backoff_policy=BackoffPolicy.LINEAR, backoff_delay_s=0.02)
        (stack,) = build(redis, trigger(subscriber.url, slow))
        async with pumping(stack):
            await stack.send(EVENT)
            await until(stack.is_pending)
            async with subscriber.serving():
                await until(stack.is_drained)

        assert subscriber.got == [EVENT]

    async def test_an_answer_that_does_not_come_in_time_is_none(self, redis: Redis) -> None:
        async def never(_: web.Request, __: int) -> web.Response:
            await asyncio.sleep(3600)
            return web.Response()

        spec = DeliverySpec(retry=1, backoff_delay_s=0.01, timeout_s=0.2)
        async with Subscriber([never, says(204)]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url, spec))
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        assert len(subscriber.got) == 2

    async def test_retry_after_is_obeyed(self, redis: Redis) -> None:
        spec = DeliverySpec(retry=1, backoff_delay_s=0.01, timeout_s=5, retry_after_max_s=5)
        async with Subscriber([says(503, retry_after="1"), says(204)]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url, spec))
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        assert subscriber.at_s[1] - subscriber.at_s[0] >= 1.0

    async def test_no_more_are_delivered_at_once_than_the_trigger_allows(
        self, redis: Redis
    ) -> None:
        under_way, most = 0, 0

        async def slow(_: web.Request, __: int) -> web.Response:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.02)
            under_way -= 1
            return web.Response(status=204)

        async with Subscriber([slow]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url, parallelism=3))
            async with pumping(stack):
                for number in range(20):
                    await stack.send(Event(id=str(number), source="/s", type="t"))
                await until(stack.is_drained)

        assert most == 3
        assert len(subscriber.got) == 20

    async def test_several_pumps_share_the_work(self, redis: Redis) -> None:
        async with Subscriber().serving() as subscriber:
            (one,) = build(redis, trigger(subscriber.url))
            (two,) = build(redis, trigger(subscriber.url))
            async with pumping(one, two):
                for number in range(100):
                    await one.send(Event(id=str(number), source="/s", type="t"))
                await until(one.is_drained)

        assert sorted(int(e.id) for e in subscriber.got) == list(range(100))

    async def test_an_outcome_that_the_store_would_not_take_is_stored_as_soon_as_it_does(
        self, redis: Redis
    ) -> None:
        # It used to lie pending until somebody took its pump for dead, 15 s later.
        async def ends_as_the_store_stops(_: web.Request, __: int) -> web.Response:
            await redis.config_set("min-replicas-to-write", 1)  # every write is NOREPLICAS
            return web.Response(status=204)

        async with Subscriber([ends_as_the_store_stops]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                await stack.send(EVENT)
                await asyncio.sleep(0.3)
                assert await stack.is_pending()
                await redis.config_set("min-replicas-to-write", 0)
                await until(stack.is_drained, timeout_s=3)

        assert len(subscriber.got) == 1

    async def test_all_that_a_dead_pump_held_is_delivered_in_one_go(self, redis: Redis) -> None:
        async with Subscriber().serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url, parallelism=64))
            for number in range(50):
                await stack.send(replace(EVENT, id=str(number)))
            dead = Queue(redis, stack.trigger.name, "dead")
            await dead.ensure()
            tickets = [each.ticket for each in await dead.claim(50)]
            name = keys.queue(stack.trigger.name, "tickets")
            await redis.xclaim(name, keys.GROUP, "dead", 0, tickets, idle=20_000, justid=True)

            async with pumping(stack):
                await until(stack.is_drained, timeout_s=4)  # 16 at a time, it had taken 15 s

        assert len(subscriber.got) == 50

    async def test_a_pump_that_stops_gives_back_what_is_under_way(self, redis: Redis) -> None:
        begun = asyncio.Event()

        async def never(_: web.Request, __: int) -> web.Response:
            begun.set()
            await asyncio.sleep(3600)
            return web.Response()

        async with Subscriber([never, says(204)]).serving() as subscriber:
            (one,) = build(redis, trigger(subscriber.url))
            async with pumping(one):
                await one.send(EVENT)
                await begun.wait()
            (two,) = build(redis, trigger(subscriber.url))
            async with pumping(two):
                await until(two.is_drained)

        assert subscriber.got == [EVENT] * 2

    @pytest.mark.parametrize(
        "event",
        [
            Event(id="1", source="/s", type="t", datacontenttype="text/plain\r\nx-injected: 1"),
            Event(id="1", source="/s", type="t", datacontenttype="text/plain\n"),
            Event(id="1", source="/s", type="t", datacontenttype="é"),
            Event(id="1", source="/s", type="t", subject="\x00\x1f"),
            Event(id="é" * 500, source="😀", type='"%"'),
        ],
        ids=["header", "newline", "latin", "controls", "unicode"],
    )
    async def test_no_event_stops_the_pump(self, redis: Redis, event: Event) -> None:
        # A pump that dies of an event dies of it again after each restart, with all its queue.
        async with Subscriber().serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                await stack.send(event)
                await stack.send(Event(id="next", source="/s", type="t"))
                await until(stack.is_drained)

        assert "next" in [each.id for each in subscriber.got]
        assert not any("x-injected" in headers for headers in subscriber.headers)


class TestReplies:
    REPLY = Event(id="r", source="/r", type="answer", datacontenttype="text/plain", data=b"because")

    @pytest.mark.parametrize("in_structured_mode", [False, True], ids=["binary", "structured"])
    async def test_an_event_in_a_200_is_routed(
        self, redis: Redis, in_structured_mode: bool
    ) -> None:
        first = replies(self.REPLY, in_structured_mode=in_structured_mode)
        async with Subscriber([first, says(204)]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        assert subscriber.got == [EVENT, self.REPLY]

    @pytest.mark.parametrize("status", [201, 202, 204])
    async def test_an_event_in_another_2xx_is_not_routed(self, redis: Redis, status: int) -> None:
        async with Subscriber([replies(self.REPLY, status), says(204)]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        assert subscriber.got == [EVENT]

    @pytest.mark.parametrize("size", [70_000, 1_000_000, 5_000_000])
    async def test_a_long_reply_is_routed_whole(self, redis: Redis, size: int) -> None:
        # Reading «up to n bytes» gives what has come so far, which is the first 64 KiB or less.
        body = bytes(n % 251 for n in range(size))
        reply = Event(id="r", source="/r", type="answer", datacontenttype="x/y", data=body)

        async def in_pieces(request: web.Request, _: int) -> web.StreamResponse:
            headers, whole = build_binary(reply)
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            for start in range(0, len(whole), 60_000):
                await response.write(whole[start : start + 60_000])
                await asyncio.sleep(0)
            return response

        async with Subscriber([in_pieces, says(204)]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        assert len(subscriber.got) == 2
        assert subscriber.got[1].data == body

    async def test_a_body_that_is_no_event_is_no_reply(self, redis: Redis) -> None:
        async def text(_: web.Request, __: int) -> web.Response:
            return web.Response(text="thanks")

        async with Subscriber([text]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        assert subscriber.got == [EVENT]

    async def test_an_echo_does_not_run_in_circles(self, redis: Redis) -> None:
        async with Subscriber([replies(EVENT)]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        assert subscriber.got == [EVENT]


class TestDeadLetters:
    async def test_a_job_that_cannot_be_delivered_is_failed_first(self, redis: Redis) -> None:
        async with Subscriber([says(400)]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                await stack.send(job_request())
                await until(stack.is_drained)

        (job,) = (await stack.store.list_dead_letters("acme")).jobs
        assert job.id == derive_job_id("/tests/producer", "7")
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
            await stack.store.create(new)
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
        assert await stack.store.finish(new.id, taken.attempt, ending) == "ok"

    async def test_the_sink_is_told_with_knatives_extensions(self, redis: Redis) -> None:
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
        job, _ = await stack.store.create(new_job("7"))
        redriven = asyncio.Event()

        async def fails_the_job(_: web.Request, number: int) -> web.Response:
            if number == 0:
                error = JobError(code="engine_error", message="x")
                dead = Ending(state=JobState.FAILED, error=error, is_dead_letter=True)
                await stack.store.conclude(job.id, dead)
                assert await stack.store.redrive(job.id, None)
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


class TestRouting:
    async def test_an_event_goes_to_every_trigger_that_wants_it(self, redis: Redis) -> None:
        async with Subscriber().serving() as one, Subscriber().serving() as two:
            wants_all = trigger(one.url)
            wants_results = replace(
                trigger(two.url), name="results", filters=({"exact": {"type": COMPLETED}},)
            )
            stacks = build(redis, wants_all, wants_results)
            ended = Job(
                id=new_job_id(),
                state=JobState.COMPLETED,
                request=new_job().request,
                finished_ms=1_800_000_000_000,
            )
            async with pumping(*stacks):
                assert await stacks[0].send(request_event(ended)) == 1
                assert await stacks[0].send(result_event(ended)) == 2
                await until(stacks[0].is_drained)
                await until(stacks[1].is_drained)

        assert [e.type for e in two.got] == [COMPLETED]
        assert {e.type for e in one.got} == {REQUESTED, COMPLETED}
