"""Routes events to the queues of the triggers that match.

Called by the broker's ingress and pump, and by the api where it shares the broker's Redis. The same triggers and
the same script serve both ways in. Must not know HTTP.
"""

from collections.abc import Sequence

from eventing.broker.queue.queue import Queue
from eventing.broker.trigger import Trigger, load_triggers
from eventing.cloudevent.event import Event, to_record
from eventing.cloudevent.publisher import HttpPublisher, Publisher
from eventing.cloudevent.result_event import RESULT_TYPES
from eventing.errors import BadRequest, BrokerUnavailable, InvalidJob, StoreUnavailable
from eventing.job.job import JobId, Lane
from eventing.job.store import Publication
from eventing.outbox.publisher import OutboxPublisher
from eventing.redis.connection import failures_named
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.redis.replicated import ReplicatedWrites
from eventing.redis.script import Call, run_all
from eventing.settings import BrokerClientSettings
from eventing.telemetry import trace


class Router:
    """Finds the matching queues of an event and puts it there. With `acks`, so many replicas of the store have the
    event when it is accepted: its sender forgets it then, and a server that a failover left behind may still answer.
    """

    def __init__(self, routes: Sequence[tuple[Trigger, Queue]], acks: int = 0) -> None:
        self._routes = routes
        self._promises = ReplicatedWrites(routes[0][1].redis, acks) if routes and acks else None

    @property
    def is_relay(self) -> bool:
        """True beside another broker: request events that arrive here are those that it gave up."""
        return any(trigger.retry_span_s for trigger, _ in self._routes)

    @property
    def wants_results(self) -> bool:
        """True when a trigger may take result events."""
        return any(trigger.may_want(t) for trigger, _ in self._routes for t in RESULT_TYPES)

    def put_calls(self, event: Event, *, is_reply: bool = False) -> list[Call]:
        """The script calls that put the event into every matching queue; idempotent."""
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
        """The event in every matching queue, for the script that records its job or moves it on. Raises `InvalidJob`
        when no trigger matches: the job would wait for ever.
        """
        if self.is_relay:  # the queues are the other broker's: the sweep publishes what is noted
            return Publication(max_unpublished=0)
        wanted = [queue.prefix for trigger, queue in self._routes if trigger.matches(event)]
        if not wanted:
            raise InvalidJob("no trigger takes jobs of this model", "body.model")
        return Publication(queues=tuple(wanted), event=to_record(event))

    def recorded(self, job_id: JobId, event: Event) -> None:
        """Nothing is left to do."""

    async def route(self, event: Event, *, is_reply: bool = False) -> int:
        """Put the event into the matching queues; gives their number. As a reply, it is not delivered once more where
        a pump has claimed it.

        Raises `StoreUnavailable` when a queue could not be reached; the sender retries, and a queue that already
        has the event recognises its identity.
        """
        calls = self.put_calls(event, is_reply=is_reply)
        if calls:
            async with failures_named():
                await run_all(self._promises or self._routes[0][1].redis, calls)
        return len(calls)


class DirectPublisher:
    """A `Publisher` and a `Route` that writes to the queues of the embedded broker without its ingress
    (docs/adr/0140). As with the ingress, the event is in every matching queue when the call returns.
    """

    def __init__(self, redis: SharedRedis, triggers: Sequence[Trigger], acks: int = 0) -> None:
        self._router = Router([(each, Queue(redis, each.name, "")) for each in triggers], acks)

    def publication(self, event: Event) -> Publication:
        """As `Router.publication`."""
        return self._router.publication(event)

    def recorded(self, job_id: JobId, event: Event) -> None:
        """Nothing is left to do."""

    async def publish(self, event: Event) -> None:
        await self._put(event, is_reply=False)

    async def publish_again(self, event: Event) -> None:
        """Publish an event that should be in its queue: only one that is not there is put."""
        await self._put(event, is_reply=True)

    async def _put(self, event: Event, *, is_reply: bool) -> None:
        parent = event.extensions.get("traceparent", "")
        with trace.span("enqueue", parent=parent, type=event.type):
            try:
                await self._router.route(event, is_reply=is_reply)
            except StoreUnavailable as error:
                raise BrokerUnavailable("the broker's store does not answer") from error

    async def close(self) -> None:
        """The client belongs to the caller."""


def lane_of(event: Event) -> Lane:
    """The lane of an event; an unknown lane is the default one."""
    named = event.extensions.get("priority", "")
    return Lane(named) if named in list(Lane) else Lane.DEFAULT


def make_route(
    settings: BrokerClientSettings,
    redis: SharedRedis,
    publisher: Publisher | None = None,
    *,
    max_unpublished: int = 0,
) -> DirectPublisher | OutboxPublisher:
    """The route to the broker: its queues, where they are in `redis`, else its ingress. Raises `BadRequest` when the
    triggers cannot be read.
    """
    if publisher is None and settings.queue_triggers_file is not None:
        try:
            triggers = load_triggers(settings.queue_triggers_file)
            return DirectPublisher(redis, triggers, settings.store_acks)
        except BadRequest as error:
            raise BadRequest(f"TORPOR_QUEUE_TRIGGERS_FILE: {error}", error.field) from error
    over_http = HttpPublisher(
        settings.broker_url,
        timeout_s=settings.broker_timeout_s,
        token=settings.broker_token.get_secret_value(),
        token_file=settings.broker_token_file,
        ca_file=settings.broker_ca_file,
    )
    return OutboxPublisher(
        publisher or over_http,
        max_unpublished=max_unpublished,
        event_limit_bytes=settings.broker_event_limit_bytes,
    )
