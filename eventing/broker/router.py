"""Which queues want an event, and the way into them.

Called by the broker's ingress and pump, and by a producer that shares the broker's Redis: our api.
Whatever way an event comes, the same triggers decide and the same script puts it. Must not know
HTTP.
"""

from collections.abc import Sequence

from eventing.broker.queue import Queue
from eventing.broker.trigger import Trigger
from eventing.cloudevent.event import Event
from eventing.errors import BrokerUnavailable, StoreUnavailable
from eventing.job.job import Lane
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.redis.script import Call
from eventing.telemetry import trace


class Router:
    """Knows which queues want an event."""

    def __init__(self, routes: Sequence[tuple[Trigger, Queue]]) -> None:
        self._routes = routes

    def put_calls(self, event: Event, *, is_reply: bool = False) -> list[Call]:
        """The calls that put the event into every queue that wants it; safe to send twice."""
        return [
            queue.put_call(
                event,
                lane=lane_of(event),
                tenant=event.extensions.get("tenant", ""),
                is_reply=is_reply,
            )
            for trigger, queue in self._routes
            if trigger.matches(event)
        ]

    async def route(self, event: Event) -> int:
        """How many queues hold the event now.

        Raises `StoreUnavailable` when one could not be reached; the sender offers it again, and a
        queue that has it already knows it by its identity.
        """
        calls = self.put_calls(event)
        if calls:
            await self._routes[0][1].send(calls)
        return len(calls)


class DirectPublisher:
    """A `Publisher` into the queues of our own broker, without its ingress (docs/adr/0081). It
    promises what the ingress does: every queue that wants the event has it.
    """

    def __init__(self, redis: SharedRedis, triggers: Sequence[Trigger]) -> None:
        self._router = Router([(each, Queue(redis, each.name, "")) for each in triggers])

    def calls(self, event: Event) -> list[Call]:
        """The calls that publish it, for somebody who has more to say in the same flight."""
        return self._router.put_calls(event)

    async def publish(self, event: Event) -> None:
        parent = event.extensions.get("traceparent", "")
        with trace.span("enqueue", parent=parent, type=event.type):
            try:
                await self._router.route(event)
            except StoreUnavailable as error:
                raise BrokerUnavailable("the broker's store does not answer") from error

    async def close(self) -> None:
        """The client is its owner's."""


def lane_of(event: Event) -> Lane:
    """The lane an event waits in; one that names no lane of ours waits in the default one."""
    named = event.extensions.get("priority", "")
    return Lane(named) if named in list(Lane) else Lane.DEFAULT
