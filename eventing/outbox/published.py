"""Jobs whose event the broker has, until their notes in the outbox are cleared, many at a time.

Called by the api: every submit adds one, a loop clears them. A note says that an event may not have
gone out; one that stays a moment longer costs nothing, since the sweep looks only at notes that are
ten seconds old. If the process dies, the notes stand and the sweep publishes again what has not run
by then, which the broker or the job's record knows for a duplicate (docs/adr/0115).
"""

import asyncio
from typing import Final

import structlog

from eventing.errors import StoreUnavailable
from eventing.job.job import JobId
from eventing.job.store import Store

_EVERY_S: Final = 0.1
_AT_ONCE: Final = 1000

_log = structlog.get_logger()


class PublishedJobs:
    """Run `run` in a task of the process, and `clear` at its end."""

    def __init__(self) -> None:
        self._due: list[JobId] = []
        self._has_some = asyncio.Event()

    def add(self, job_id: JobId) -> None:
        """The broker confirmed this job's event."""
        self._due.append(job_id)
        self._has_some.set()

    async def run(self, store: Store) -> None:
        """Clear notes until cancelled."""
        while True:
            await self._has_some.wait()
            await asyncio.sleep(_EVERY_S)
            await self.clear(store)

    async def clear(self, store: Store) -> None:
        """Clear the notes there are. What a store that is away did not hear, the sweep finds."""
        self._has_some.clear()
        due, self._due = self._due, []
        for start in range(0, len(due), _AT_ONCE):
            try:
                await store.mark_published(*due[start : start + _AT_ONCE])
            except StoreUnavailable:
                _log.warning("the sweep will publish again", action="submit", jobs=len(due))
                return
