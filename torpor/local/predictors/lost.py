"""Releases the lease of a job whose predictor is known to be dead.

Called by the activator. On a cluster a dead pod cannot be told from one that is cut off, so there the lease must
lapse; here the process was a child.
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
    """Releases leases in one store; the client belongs to the caller."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store

    async def release(self, owner: str, headers: Mapping[str, str], body: bytes) -> None:
        """The next delivery of this event starts at once; another owner's lease is unchanged. With the store
        unavailable the lease lapses instead.
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
