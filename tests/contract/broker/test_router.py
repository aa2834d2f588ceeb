"""Events that a producer with the broker's Redis puts into its queues itself, without the ingress."""

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from eventing.broker.queue.view import QueueView
from eventing.broker.router import DirectPublisher
from eventing.broker.trigger import Trigger
from eventing.cloudevent.event import Event
from eventing.errors import BrokerUnavailable
from eventing.redis.connection import connect
from tests.contract.broker.stack import Subscriber, build, pumping, trigger, until
from tests.time_limits import STORE_S

EVENT = Event(id="1", source="/s", type="wanted", data=b"{}")


def wanting(kind: str, name: str, subscriber: str = "http://127.0.0.1:9/") -> Trigger:
    return replace(trigger(subscriber), name=name, filters=({"exact": {"type": kind}},))


async def test_an_event_waits_in_every_queue_whose_trigger_wants_it(redis: Redis) -> None:
    publisher = DirectPublisher(redis, [wanting("wanted", "yes"), wanting("other", "no")])

    await publisher.publish(EVENT)

    view = QueueView(redis)
    waiting = [(await view.depth(name)).total_waiting for name in ("yes", "no")]
    assert waiting == [1, 0]


async def test_the_ingress_and_we_know_an_event_by_the_same_name(redis: Redis) -> None:
    each = wanting("wanted", "yes")

    await DirectPublisher(redis, [each]).publish(EVENT)
    await build(redis, each)[0].send(EVENT)

    assert (await QueueView(redis).depth("yes")).total_waiting == 1


async def test_a_pump_that_waits_for_work_delivers_it(redis: Redis) -> None:
    async with Subscriber().serving() as subscriber:
        each = wanting("wanted", "yes", subscriber.url)
        async with pumping(build(redis, each)[0]):
            await DirectPublisher(redis, [each]).publish(EVENT)

            async def has_come() -> bool:
                return bool(subscriber.got)

            await until(has_come)

    assert [(event.id, event.data) for event in subscriber.got] == [(EVENT.id, EVENT.data)]


async def test_a_store_that_is_away_is_a_broker_that_takes_nothing() -> None:
    away = connect("redis://127.0.0.1:9/0", timeout_s=0.2)

    with pytest.raises(BrokerUnavailable):
        await DirectPublisher(away, [wanting("wanted", "yes")]).publish(EVENT)


async def test_with_acks_an_event_is_accepted_once_a_replica_has_it(redis_url: str) -> None:
    # A primary that a failover left behind still answers, and what it accepts is gone a moment later.
    alone, hasty = connect(redis_url, timeout_s=STORE_S), connect(redis_url, timeout_s=0.6)

    await DirectPublisher(alone, [wanting("wanted", "yes")]).publish(EVENT)
    with pytest.raises(BrokerUnavailable):
        await DirectPublisher(hasty, [wanting("wanted", "yes")], acks=1).publish(EVENT)

    await alone.aclose()
    await hasty.aclose()
