"""The job that an event asks for, as the store has it.

Called by `predictor.delivery.delivery`.
"""

from dataclasses import replace

from eventing.errors import IdempotencyConflict, JobDeleted, Unavailable
from eventing.job.job import API_SOURCE, Job
from eventing.job.store import JobWorker, NewJob


class RecordedJobs:
    """The records of the jobs that deliveries are of."""

    def __init__(self, store: JobWorker, *, is_store_shared: bool) -> None:
        self._store = store
        self._is_store_shared = is_store_shared

    async def recorded(self, new: NewJob) -> Job:
        """The job as recorded: the record decides, whatever a later event with the same identity says (a redriven
        job may have been edited). Jobs of our api are recorded already; those of other producers are recorded here.
        Raises `JobDeleted`, also for an event that claims our api as its source without a record.
        """
        recorded = await self._store.get(new.id)
        if recorded is not None and not self._is_redriven(recorded, new):
            return replace(recorded, request=recorded.to_run)
        if self.is_strange(new.source):
            # A server that a failover cut off has not the newest jobs, and acking their events would lose them.
            if await self._store.is_gone(new.id):
                raise JobDeleted("our api has no such job")
            raise Unavailable("the store has moved")
        try:
            job, _ = await self._store.submit(new)
        except JobDeleted:
            raise
        except IdempotencyConflict:
            raise Unavailable("another request took this identity just now") from None
        return job

    def _is_redriven(self, recorded: Job, new: NewJob) -> bool:
        """True when the shared store, which is not ours, has given a job that ended here a new life."""
        is_later = recorded.state.is_terminal and recorded.attempt < new.attempt
        return is_later and not self._is_store_shared

    def is_strange(self, source: str) -> bool:
        """True when the source is our api, which records before it sends. (Without a shared store, false.)"""
        return self._is_store_shared and source == API_SOURCE


def is_elsewhere(job: Job, new: NewJob) -> bool:
    """True for an event from before the job was sent to another model, whose predictor has an event of its own."""
    return not job.state.is_terminal and job.request.model != new.request.model
