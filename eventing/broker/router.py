"""Which queues want an event, and the way into them.

Called by the broker's ingress and pump, and by a producer that shares the broker's Redis: our api.
Whatever way an event comes, the same triggers decide and the same script puts it. Must not know
HTTP.
"""

from collections.abc import Sequence

from eventing.broker.queue import Queue
from eventing.broker.trigger import Trigger
from eventing.cloudevent.event import Event, to_record
from eventing.errors import BrokerUnavailable, InvalidJob, StoreUnavailable
from eventing.job.job import JobId, Lane
from eventing.job.store import Publication
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.redis.script import Call
from eventing.telemetry import trace


class Router:
    """Knows which queues want an event."""

    def __init__(self, routes: Sequence[tuple[Trigger, Queue]]) -> None:
        self._routes = routes

    @property
    def is_relay(self) -> bool:
        """True beside another broker, where requests that come here are those it gave up."""
        return any(trigger.retry_span_s for trigger, _ in self._routes)

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

    def publication(self, event: Event) -> Publication:
        """The event in every queue that wants it, for the step that records its job. Raises
        `InvalidJob` when none does: the job would wait for ever.
        """
        wanted = [queue.prefix for trigger, queue in self._routes if trigger.matches(event)]
        if not wanted:
            raise InvalidJob("no trigger takes jobs of this model", "body.model")
        return Publication(queues=tuple(wanted), event=to_record(event))

    def recorded(self, job_id: JobId, event: Event) -> None:
        """Nothing is left to do."""

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
    """A `Publisher` and a `Route` into the queues of our own broker, without its ingress
    (docs/adr/0140). It
    promises what the ingress does: every queue that wants the event has it.
    """

    def __init__(self, redis: SharedRedis, triggers: Sequence[Trigger]) -> None:
        self._router = Router([(each, Queue(redis, each.name, "")) for each in triggers])

    def publication(self, event: Event) -> Publication:
        """As `Router.publication`."""
        return self._router.publication(event)

    def recorded(self, job_id: JobId, event: Event) -> None:
        """Nothing is left to do."""

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
