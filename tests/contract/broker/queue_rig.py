"""Puts and claims events of a queue, and lets time pass in it, for tests of the queue."""

from collections.abc import Sequence

from redis.asyncio import Redis

from eventing.broker.queue.claim import Claimed
from eventing.broker.queue.queue import Queue
from eventing.cloudevent.event import Event
from eventing.job.job import Lane
from eventing.redis import keys

NAME = "requests-tiny"
TICKETS = keys.queue(NAME, "tickets")
IDLE_MS = 15_000


def event(number: object, source: str = "/s") -> Event:
    return Event(id=str(number), source=source, type="t", data=b"x" * 10)


def sized_event(number: int, size_bytes: int) -> Event:
    """An event whose record in the queue has so many bytes, or a few more: its data is in base64."""
    return Event(id=str(number), source="/s", type="t", data=b"x" * (size_bytes * 3 // 4))


async def put(
    queue: Queue, *events: Event, lane: Lane = Lane.DEFAULT, tenant: str = ""
) -> Sequence[int]:
    return list(await queue.send([queue.put_call(e, lane=lane, tenant=tenant) for e in events]))


async def settle(queue: Queue, *claimed: Claimed) -> None:
    await queue.send([queue.settle_call(each.ticket) for each in claimed])


def ids(claimed: Sequence[Claimed]) -> list[str]:
    return [each.event.id for each in claimed]


async def silence(redis: Redis, claimed: Sequence[Claimed], consumer: str = "dead") -> None:
    """Make it long since anybody spoke up for these."""
    await redis.xclaim(
        TICKETS, keys.GROUP, consumer, 0, [c.ticket for c in claimed], idle=IDLE_MS * 4, justid=True
    )


async def make_due(redis: Redis) -> None:
    """Let the waits of all deferred events be over."""
    for ticket in await redis.zrange(keys.queue(NAME, "retry"), 0, -1):
        await redis.zadd(keys.queue(NAME, "retry"), {ticket: 1})
