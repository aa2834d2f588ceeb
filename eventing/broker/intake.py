"""Records a fresh job and puts its event into our broker's queues, in one flight.

Called by the api where it shares the broker's Redis (docs/adr/0081, 0117). Only for jobs whose id
was made a moment ago: nobody can have sent them before, so what the record says need not be waited
for. The order stays note, record, event. If the process dies, what the store has heard stands: a
record without an event is found by the sweep.
"""

from eventing.broker.router import DirectPublisher
from eventing.clock import Clock
from eventing.cloudevent.job_event import request_event
from eventing.job.job import Job
from eventing.job.store import NewJob
from eventing.store.job_record import fresh
from eventing.store.redis_store import RedisStore
from eventing.telemetry import trace


class DirectIntake:
    """Store and queues over one connection."""

    def __init__(self, store: RedisStore, publisher: DirectPublisher, clock: Clock) -> None:
        self._store = store
        self._publisher = publisher
        self._clock = clock

    async def take(self, new: NewJob) -> Job:
        """The job, recorded and waiting in every queue that wants it. Raises `StoreUnavailable`;
        then some of it may have been done.
        """
        # The event tells this host's time; the record's is not known yet.
        event = request_event(fresh(new, self._clock.wall_ms()))
        with trace.span("enqueue", parent=new.traceparent, type=event.type):
            return await self._store.create_with(new, self._publisher.calls(event))
