"""Jobs in a queue whose trigger is gone: a withdrawn canary's, a removed model's. Each ends once."""

import asyncio
from collections.abc import Sequence

from prometheus_client import REGISTRY
from redis.asyncio import Redis

from eventing.broker.abandoned import AbandonedQueues
from eventing.broker.queue.queue import Queue
from eventing.broker.queue.view import QueueView
from eventing.broker.router import DirectPublisher, Router
from eventing.broker.trigger import Trigger, parse_trigger
from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import REQUESTED
from tests.contract.broker.stack import Subscriber, build, pumping, until

IDLE_MS = 15_000
CANARYS_HALF = {"any": [{"suffix": {"id": digit}} for digit in "01234567"]}


def requests(name: str, *filters: object, url: str = "http://127.0.0.1:9/") -> Trigger:
    """A request trigger, as the manifests have it."""
    spec = {"subscriber": {"uri": url}, "filters": list(filters), "delivery": {"timeout": "PT5S"}}
    return parse_trigger({"metadata": {"name": name}, "spec": spec})


def of_model(model: str) -> dict[str, object]:
    return {"exact": {"type": REQUESTED, "model": model}}


def event(number: int, model: str = "tiny") -> Event:
    return Event(id=f"job_{number:024x}", source="/s", type=REQUESTED, extensions={"model": model})


async def made(redis: Redis, *triggers: Trigger) -> None:
    """What a broker with these triggers does first."""
    for each in triggers:
        await Queue(redis, each.name, "a broker").ensure()


def mover(redis: Redis, triggers: Sequence[Trigger], *, idle_ms: int = IDLE_MS) -> AbandonedQueues:
    router = Router([(each, Queue(redis, each.name, "mover")) for each in triggers])
    names = [each.name for each in triggers]
    return AbandonedQueues(redis, router, names, consumer="mover", claim_idle_ms=idle_ms)


async def waiting(redis: Redis, name: str) -> int:
    return (await QueueView(redis).depth(name)).total_waiting


async def test_a_withdrawn_canarys_jobs_are_delivered_to_the_model_each_once(redis: Redis) -> None:
    canary = requests("requests-tiny-canary", of_model("tiny"), CANARYS_HALF)
    stable = requests("requests-tiny", of_model("tiny"), {"not": CANARYS_HALF})
    await made(redis, canary, stable)
    old_api = DirectPublisher(redis, [canary, stable])
    events = [event(number) for number in range(32)]
    for each in events:
        await old_api.publish(each)
    assert await waiting(redis, canary.name) == 16

    async with Subscriber().serving() as subscriber:
        whole = requests("requests-tiny", of_model("tiny"), url=subscriber.url)
        assert await mover(redis, [whole]).move() == 16
        (stack,) = build(redis, whole)
        async with pumping(stack):
            await until(stack.is_drained)

    assert sorted(e.id for e in subscriber.got) == sorted(e.id for e in events)
    assert await waiting(redis, canary.name) == 0


async def test_a_removed_models_jobs_go_to_the_trigger_for_requests_without_a_model(
    redis: Redis,
) -> None:
    removed = requests("requests-drafter", of_model("drafter"))
    kept = requests("requests-tiny", of_model("tiny"))
    strays = requests(
        "strays", {"all": [{"exact": {"type": REQUESTED}}, {"not": {"exact": {"model": "tiny"}}}]}
    )
    await made(redis, removed, kept, strays)
    await DirectPublisher(redis, [removed]).publish(event(1, "drafter"))

    await mover(redis, [kept, strays]).move()

    assert [await waiting(redis, each) for each in ("requests-drafter", "strays")] == [0, 1]


async def test_events_claimed_by_a_leaving_pump_stay_until_it_is_silent(redis: Redis) -> None:
    canary = requests("requests-tiny-canary", of_model("tiny"))
    stable = requests("requests-tiny", of_model("tiny"))
    await made(redis, canary, stable)
    await DirectPublisher(redis, [canary]).publish(event(1))
    await Queue(redis, canary.name, "leaving pump").claim(1)

    assert await mover(redis, [stable]).move() == 0
    assert await mover(redis, [stable], idle_ms=1).move() == 1
    assert await waiting(redis, "requests-tiny") == 1


async def test_events_that_an_older_api_still_puts_there_are_moved_too(redis: Redis) -> None:
    canary = requests("requests-tiny-canary", of_model("tiny"))
    stable = requests("requests-tiny", of_model("tiny"))
    await made(redis, canary, stable)
    empties = mover(redis, [stable])
    await empties.move()

    await DirectPublisher(redis, [canary]).publish(event(1))

    assert await empties.move() == 1


async def test_a_relay_beside_knatives_broker_leaves_requests_where_they_are(redis: Redis) -> None:
    given_up = requests("given-up", {"exact": {"type": REQUESTED}})
    old = requests("requests-tiny", of_model("tiny"))
    await made(redis, given_up, old)
    await DirectPublisher(redis, [old]).publish(event(1))

    await asyncio.wait_for(mover(redis, [given_up]).run(asyncio.Event()), 2)

    assert [await waiting(redis, each.name) for each in (given_up, old)] == [0, 1]


async def test_jobs_without_a_matching_trigger_are_counted(redis: Redis) -> None:
    gone = requests("requests-gone", of_model("gone"))
    kept = requests("requests-tiny", of_model("tiny"))
    await made(redis, gone, kept)
    await DirectPublisher(redis, [gone]).publish(event(1, "gone"))

    await mover(redis, [kept]).move()

    shown = REGISTRY.get_sample_value("torpor_queue_abandoned_events", {"queue": "requests-gone"})
    assert shown == 1
