"""Publishes the events of recorded jobs to an external broker, right after the record.

Called by the api, after the submit was answered: the record and the outbox note are one step (docs/adr/0140). The
note is cleared when the broker has confirmed the event. Events that this process does not publish, for example
because it died, are published by the sweep ten seconds later.
"""

import asyncio
from contextlib import suppress
from typing import Final

import structlog

from eventing.cloudevent.event import Event
from eventing.cloudevent.publisher import Publisher
from eventing.errors import EventRefused, EventTooLarge, Unavailable
from eventing.job.job import JobError, JobId, JobState
from eventing.job.store import Ending, JobSweeper, Publication

_AT_ONCE: Final = 16
_WAITING_BYTES: Final = 64 * 1024 * 1024
"""Size of the events that may wait in this process; more are left to the sweep."""

_log = structlog.get_logger()


class OutboxPublisher:
    """A `Route` and a `Publisher`. Run `run` in a task of the process."""

    def __init__(
        self, publisher: Publisher, *, max_unpublished: int, event_limit_bytes: int = 0
    ) -> None:
        self._publisher = publisher
        self._max_unpublished = max_unpublished
        self._limit_bytes = event_limit_bytes
        self._waiting: asyncio.Queue[tuple[JobId, Event]] = asyncio.Queue()
        self._waiting_bytes = 0

    def publication(self, event: Event) -> Publication:
        if self._limit_bytes and len(event.data) > self._limit_bytes:
            raise EventTooLarge(f"the broker takes events of {self._limit_bytes} bytes", "body")
        return Publication(max_unpublished=self._max_unpublished)

    def recorded(self, job_id: JobId, event: Event) -> None:
        if self._waiting_bytes + len(event.data) <= _WAITING_BYTES:
            self._waiting_bytes += len(event.data)
            self._waiting.put_nowait((job_id, event))

    async def publish(self, event: Event) -> None:
        await self._publisher.publish(event)

    async def publish_again(self, event: Event) -> None:
        """Publish an event that the broker should have; one that does not know duplicates gets it twice."""
        await self._publisher.publish(event)

    async def close(self) -> None:
        await self._publisher.close()

    async def run(self, store: JobSweeper) -> None:
        """Publish until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(self._work(store))

    async def _work(self, store: JobSweeper) -> None:
        while True:
            job_id, event = await self._waiting.get()
            try:
                with suppress(Unavailable):  # the note stays; the sweep publishes it
                    await publish_recorded(store, self._publisher, job_id, event)
            finally:
                self._waiting_bytes -= len(event.data)


async def publish_recorded(
    store: JobSweeper, publisher: Publisher, job_id: JobId, event: Event
) -> None:
    """Publish a recorded job's event and clear its note. A job whose event the broker refuses for good is failed.
    Raises `Unavailable`; then the note stays.
    """
    try:
        await publisher.publish(event)
    except EventRefused as error:
        _log.warning("the broker refuses it", action="publish", job_id=job_id, why=error.message)
        reason = JobError(code=error.code, message=error.message)
        ending = Ending(state=JobState.FAILED, error=reason, is_dead_letter=True)
        await store.conclude(job_id, ending)
    await store.mark_published(job_id)
