"""Gives back the lease of a job whose predictor is known to be dead.

Called by the activator. On a cluster nobody knows that a pod is dead rather than cut off, so there the
lease runs out; here the process was our child.
"""

from collections.abc import Mapping
from contextlib import suppress

import structlog

from eventing.cloudevent.event import parse_http
from eventing.cloudevent.job_event import job_id_of
from eventing.errors import BadRequest, StoreUnavailable
from eventing.job.job import JobError, JobId
from eventing.job.store import ReleaseReason
from eventing.store.redis_store import RedisStore

_log = structlog.get_logger()


class LostLeases:
    """Releases in one store, on a client that it does not own."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store

    async def release(self, owner: str, headers: Mapping[str, str], body: bytes) -> None:
        """The next delivery of this event starts at once; what another holds stays untouched. A
        store that is away costs the time until the lease runs out.
        """
        job_id = _job_id(headers, body)
        with suppress(StoreUnavailable):
            lease = await self._store.lease_of(job_id, owner) if job_id else None
            if lease is not None:
                error = JobError(code="predictor_lost", message="the predictor's process ended")
                await self._store.release(lease, ReleaseReason.LOST, error)
                _log.info("lease released", action="lease_release", job_id=job_id, replica=owner)


def _job_id(headers: Mapping[str, str], body: bytes) -> JobId | None:
    with suppress(BadRequest, ValueError):
        event = parse_http(headers, body)
        return job_id_of(event)
    return None
