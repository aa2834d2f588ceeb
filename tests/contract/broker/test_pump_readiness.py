"""A pump claims only while its subscriber is ready, and gives refused events back."""

import asyncio

import aiohttp
import pytest
from aiohttp import web
from redis.asyncio import Redis

from eventing.broker.delivery import pump
from eventing.broker.delivery.decision import BackoffPolicy, DeliverySpec
from eventing.broker.queue.queue import Queue
from eventing.broker.queue.view import QueueView
from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import request_event
from eventing.job.job import Lane
from eventing.process.readiness import SubscriberReadiness
from tests.contract.broker.queue_rig import event, ids, put, settle
from tests.contract.broker.stack import (
    NAME,
    Stack,
    Subscriber,
    build,
    pumping,
    says,
    trigger,
    until,
)
from tests.contract.rig import new_job

PATIENT = DeliverySpec(
    retry=50, backoff_policy=BackoffPolicy.LINEAR, backoff_delay_s=2, timeout_s=60
)


async def unready(request: web.Request, _: int) -> web.Response:
    """A predictor that loads."""
    return web.Response(status=503, headers={"retry-after": "1"})


async def send_many(stack: Stack, count: int) -> None:
    for number in range(count):
        await stack.send(Event(id=str(number), source="/s", type="t"))


class TestNobodyThere:
    async def test_nothing_is_claimed_while_nothing_listens(self, redis: Redis) -> None:
        (stack,) = build(redis, trigger("http://127.0.0.1:9/events", PATIENT, parallelism=16))
        async with pumping(stack):
            await send_many(stack, 40)
            await asyncio.sleep(1.2)
            depth = await QueueView(redis).depth(NAME)

        assert (depth.total_waiting, depth.pending, depth.retrying) == (40, 0, 0)

    async def test_every_event_is_delivered_in_order_without_a_try_counted_once_the_subscriber_listens(
        self, redis: Redis
    ) -> None:
        subscriber = Subscriber()
        (stack,) = build(redis, trigger(subscriber.url, PATIENT, parallelism=1))
        async with pumping(stack):
            await send_many(stack, 10)
            await asyncio.sleep(0.7)
            async with subscriber.serving():
                await until(stack.is_drained)

        assert ids_of(subscriber) == [str(n) for n in range(10)]

    async def test_a_subscriber_that_never_comes_has_its_events_set_aside_in_the_end(
        self, redis: Redis
    ) -> None:
        spec = DeliverySpec(retry=1, backoff_delay_s=0.01, timeout_s=5)
        (stack,) = build(redis, trigger("http://127.0.0.1:9/events", spec))
        async with pumping(stack):
            await send_many(stack, 1)
            await until(stack.is_drained)


class TestRefusals:
    async def test_one_refusal_stops_the_claims_of_all_others(self, redis: Redis) -> None:
        is_loading = True

        async def app(request: web.Request, number: int) -> web.StreamResponse:
            return await (unready if is_loading else says(204))(request, number)

        subscriber = Subscriber([app], readiness=lambda: 503 if is_loading else 200)
        async with subscriber.serving():
            (stack,) = build(redis, trigger(subscriber.url, PATIENT, parallelism=16))
            async with pumping(stack):
                is_loading = False
                await send_many(stack, 1)
                await until(stack.is_drained)  # it is ready, and then it drains
                is_loading = True
                await send_many(stack, 60)
                await asyncio.sleep(1.5)
                depth = await QueueView(redis).depth(NAME)
                refused = len(subscriber.got) - 1
                is_loading = False
                await until(stack.is_drained, timeout_s=8)

        assert (depth.total_waiting, depth.retrying) == (60, 0)
        assert refused <= 16

    async def test_a_refused_event_is_another_pumps_at_once(self, redis: Redis) -> None:
        """The healthy pump waits for work; the sick one was quicker."""
        sick, well = Subscriber([unready]), Subscriber()
        async with sick.serving(), well.serving():
            (one,) = build(redis, trigger(sick.url, PATIENT))
            (two,) = build(redis, trigger(well.url, PATIENT))
            async with pumping(one):
                await send_many(one, 1)
                await until(lambda: _has(sick, 1))
                async with pumping(two):
                    await until(one.is_drained, timeout_s=0.9)

        assert len(sick.got) == 1
        assert len(well.got) == 1

    async def test_a_subscriber_that_is_up_and_says_503_for_ever_does_not_keep_an_event_for_ever(
        self, redis: Redis
    ) -> None:
        spec = DeliverySpec(retry=2, backoff_delay_s=0.01, timeout_s=5)
        async with Subscriber([says(503)]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url, spec))
            async with pumping(stack):
                await send_many(stack, 1)
                await until(stack.is_drained)

        assert len(subscriber.got) == 3


class TestNack:
    async def test_a_nacked_event_is_next_without_a_try_under_a_new_ticket(
        self, queue: Queue
    ) -> None:
        await put(queue, *(event(n) for n in range(5)))
        first, _ = await queue.claim(2)
        await queue.nack(first.ticket, Lane.DEFAULT)

        (again,) = await queue.claim(1)

        assert again.event == first.event
        assert (again.tries, again.refusals) == (1, 1)
        assert again.ticket != first.ticket
        assert ids(await queue.claim(5)) == ["2", "3", "4"]

    async def test_tries_that_counted_go_on_counting(self, queue: Queue) -> None:
        await put(queue, event(1))
        (claimed,) = await queue.claim(1)
        await queue.defer(claimed.ticket, 0)
        (claimed,) = await queue.claim(1)
        await queue.nack(claimed.ticket, Lane.DEFAULT)

        (again,) = await queue.claim(1)

        assert again.tries == 2

    async def test_a_waiting_pump_gets_a_nacked_event_at_once(
        self, queue: Queue, other: Queue
    ) -> None:
        await put(queue, event(1))
        (claimed,) = await queue.claim(1)
        assert await other.claim(1) == []
        waiting = asyncio.create_task(other.wait(5000))
        await asyncio.sleep(0.05)
        await queue.nack(claimed.ticket, Lane.DEFAULT)

        async with asyncio.timeout(60):
            await waiting

    async def test_a_settled_event_takes_its_refusals_along(self, queue: Queue) -> None:
        await put(queue, event(1))
        (claimed,) = await queue.claim(1)
        await queue.nack(claimed.ticket, Lane.DEFAULT)
        await settle(queue, *await queue.claim(1))
        await put(queue, event(1))

        (fresh,) = await queue.claim(1)

        assert (fresh.tries, fresh.refusals, fresh.refused_ms) == (1, 0, 0)

    async def test_a_ticket_that_was_settled_is_not_given_back(self, queue: Queue) -> None:
        await put(queue, event(1))
        (claimed,) = await queue.claim(1)
        await settle(queue, claimed)
        await queue.nack(claimed.ticket, Lane.DEFAULT)

        assert await queue.claim(5) == []


def ids_of(subscriber: Subscriber) -> list[str]:
    return [each.id for each in subscriber.got]


async def _has(subscriber: Subscriber, count: int) -> bool:
    return len(subscriber.got) >= count


class TestCancelled:
    async def test_a_held_delivery_ends_when_its_job_is_cancelled(
        self, redis: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An activator that holds it would wake a predictor for nobody."""
        monkeypatch.setattr(pump, "CLAIM_IDLE_MS", 300)  # the beat is a third of it
        left = asyncio.Event()

        async def hold(request: web.Request, _: int) -> web.Response:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                left.set()
                raise
            return web.Response()

        async with Subscriber([hold], handler_cancellation=True).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url, PATIENT))
            job, _ = await stack.store.submit(new_job("7"))
            async with pumping(stack):
                await stack.send(request_event(job))
                await until(lambda: _has(subscriber, 1))
                await stack.store.cancel(job.id)
                await until(stack.is_drained)
                await left.wait()
                assert not await stack.is_pending()


async def test_a_subscriber_that_is_free_in_a_moment_is_not_left_alone_for_longer() -> None:
    async with Subscriber().serving() as subscriber, aiohttp.ClientSession() as session:
        ready = SubscriberReadiness("t", subscriber.url)
        assert await ready.probe(session)
        now_s = asyncio.get_running_loop().time()
        ready.on_refusal(now_s)
        planned_s = ready.next_probe_s(now_s)

        ready.on_refusal(now_s, 0.0)

        assert ready.next_probe_s(now_s) < planned_s
        ready.on_refusal(now_s, 5.0)
        assert ready.next_probe_s(now_s) == pytest.approx(5.0)
