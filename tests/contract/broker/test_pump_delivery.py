"""Deliveries follow Knative's delivery rules, on a real server."""

import asyncio
from dataclasses import replace

import orjson
import pytest
from aiohttp import web
from redis.asyncio import Redis

from eventing.broker.delivery.decision import BackoffPolicy, DeliverySpec
from eventing.broker.queue.queue import Queue
from eventing.cloudevent.event import Event
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


class TestDelivery:
    async def test_an_event_arrives_once_and_whole(self, redis: Redis) -> None:
        async with Subscriber().serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                assert await stack.send(EVENT) == 1
                await until(stack.is_drained)

        assert subscriber.got == [EVENT]
        assert subscriber.headers[0]["prefer"] == "reply"

    async def test_a_configured_header_that_cannot_be_sent_does_not_dead_letter_the_event(
        self, redis: Redis
    ) -> None:
        probed = asyncio.Event()

        def readiness() -> int:
            probed.set()  # the pump has found that it reaches nobody
            return 200

        async with Subscriber(readiness=readiness).serving() as subscriber:
            (broken,) = build(redis, trigger(subscriber.url), token="to\nken")
            async with pumping(broken):
                await broken.send(EVENT)
                await asyncio.wait_for(probed.wait(), 20)
            (stack,) = build(redis, trigger(subscriber.url), token="token")
            async with pumping(stack):
                await until(stack.is_drained, timeout_s=20)

        assert subscriber.got == [EVENT]
        assert await redis.hlen(keys.queue(stack.trigger.name, "dead")) == 0

    async def test_the_delivery_carries_our_token(self, redis: Redis) -> None:
        async with Subscriber().serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url), token="s3cret")
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        assert subscriber.headers[0]["authorization"] == "Bearer s3cret"

    @pytest.mark.parametrize("status", [404, 408, 409, 429, 500, 503])
    async def test_a_retryable_status_is_retried_until_it_succeeds(
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

    async def test_a_refused_connection_is_retried(self, redis: Redis) -> None:
        subscriber = Subscriber()
        slow = DeliverySpec(retry=100, backoff_policy=BackoffPolicy.LINEAR, backoff_delay_s=0.02)
        (stack,) = build(redis, trigger(subscriber.url, slow))
        async with pumping(stack):
            await stack.send(EVENT)
            await asyncio.sleep(0.3)
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
