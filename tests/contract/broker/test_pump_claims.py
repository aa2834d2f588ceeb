"""What a pump does for the events that it has in flight, beside delivering them."""

import asyncio
from collections import Counter

import pytest
from aiohttp import web
from redis.asyncio import Redis

from eventing.broker.delivery import pump
from eventing.broker.queue.queue import Queue
from tests.contract.broker.stack import EVENT, Subscriber, build, pumping, trigger, until


async def test_an_event_whose_delivery_takes_longer_than_a_claim_stays_with_its_pump(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim of 0.3 s, a delivery of 1.5 s, and another pump that would take it."""
    monkeypatch.setattr(pump, "CLAIM_IDLE_MS", 300)

    async def slow(_: web.Request, __: int) -> web.Response:
        await asyncio.sleep(1.5)
        return web.Response(status=204)

    async with Subscriber(answers=[slow]).serving() as subscriber:
        one = trigger(subscriber.url)
        stacks = build(redis, one, one)
        async with pumping(*stacks):
            await stacks[0].send(EVENT)
            await until(stacks[0].is_drained)

        assert len(subscriber.got) == 1


async def test_claims_are_renewed_often_and_the_queue_is_trimmed_seldom(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "CLAIM_IDLE_MS", 30)
    calls: Counter[str] = Counter()
    keep, tidy = Queue.keep, Queue.tidy

    async def kept(self: Queue, tickets: list[str]) -> None:
        calls["keep"] += 1
        await keep(self, tickets)

    async def tidied(self: Queue, *, gone_after_ms: int) -> None:
        calls["tidy"] += 1
        await tidy(self, gone_after_ms=gone_after_ms)

    monkeypatch.setattr(Queue, "keep", kept)
    monkeypatch.setattr(Queue, "tidy", tidied)

    async def is_called(name: str, times: int) -> bool:
        return calls[name] >= times

    async with Subscriber().serving() as subscriber:
        (stack,) = build(redis, trigger(subscriber.url))
        async with pumping(stack):
            await until(lambda: is_called("keep", 5))
            assert not calls["tidy"]
            monkeypatch.setattr(pump, "_TIDY_EVERY_S", 1.1)
            await until(lambda: is_called("tidy", 1))


def test_a_pump_blocks_its_connection_for_a_second_at_most() -> None:
    # A hung store is noticed after it: a submit is refused within two.
    assert pump.LONGEST_BLOCK_S == 1
