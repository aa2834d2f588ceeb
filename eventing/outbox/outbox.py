"""Sweeps: publishes the events of stuck jobs again, and fails jobs whose deadline has passed.

Called by the api, in loops; any number of sweepers share the work. With an external broker, a job whose event may
not have been published is published within 30 s of the crash (10 s until it is due, 15 s reserved by a sweeper that
died, 5 s between two sweeps). With any broker, a job that was not started for long, or whose attempt died, is
published again; a predictor that has it already answers for the duplicate (docs/adr/0140). A waiting job whose
deadline passes is failed within a second, without starting a predictor. Jobs that are no longer kept are taken out
of the lists.
"""

import asyncio
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from prometheus_client import Counter

from eventing.clock import SystemClock
from eventing.cloudevent.job_event import request_event
from eventing.cloudevent.publisher import Publisher
from eventing.errors import BrokerUnavailable, Unavailable
from eventing.job.job import Job, JobId, JobState
from eventing.job.store import JobSweeper
from eventing.outbox.publisher import publish_recorded

_BATCH: Final = 100
_STRANDED_BATCHES: Final = 5
"""Batches of one sweep: jobs in a long backlog are found here too, and must not keep the api busy."""
_PRUNED_AT_ONCE: Final = 500
_FAILURES_IN_A_ROW: Final = 3
"""After this many failures in a row the broker is taken to be unavailable; fewer concern single events."""
_DEADLINES_EVERY_S: Final = 0.5
_swept = Counter("torpor_outbox_swept_total", "Events sent by the outbox sweep.", ["kind"])
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """Number of events that one sweep sent."""

    requests: int = 0
    stranded: int = 0


class FollowerSettler(Protocol):
    """Ends or promotes jobs that follow another (`eventing.outbox.followers.FollowerListener`)."""

    async def settle(self, leader: JobId) -> None: ...


async def run(
    store: JobSweeper,
    publisher: Publisher,
    every_s: float,
    followers: FollowerSettler | None = None,
) -> None:
    """Sweep until cancelled; an unavailable store or broker is logged, and the next sweep tries again."""
    while True:
        try:
            while await store.prune(_PRUNED_AT_ONCE) == _PRUNED_AT_ONCE:
                pass
            swept = await sweep_once(store, publisher, followers)
            if swept != Swept():
                counts = {"requests": swept.requests, "stranded": swept.stranded}
                _log.info("sent again", action="sweep", **counts)
        except Unavailable as error:
            _log.debug("will look again", action="sweep", reason=error.code)
        await asyncio.sleep(every_s)


async def run_deadlines(store: JobSweeper) -> None:
    """Fail overdue jobs, until cancelled."""
    while True:
        try:
            while late := await store.expire(_BATCH):
                _log.info("late", action="expire", jobs=len(late))
        except Unavailable as error:
            _log.debug("will look again", action="expire", reason=error.code)
        await asyncio.sleep(_DEADLINES_EVERY_S)


async def sweep_once(
    store: JobSweeper, publisher: Publisher, followers: FollowerSettler | None = None
) -> Swept:
    """Send the events that are due. Raises `Unavailable` for the store or the broker; events not sent are due again
    in 15 s, so a crash in here can only duplicate an event.
    """
    requests = await _sweep_unpublished(store, publisher)
    _swept.labels("request").inc(requests)
    stranded = await _sweep_unstarted(store, publisher, followers)
    _swept.labels("stranded").inc(stranded)
    return Swept(requests=requests, stranded=stranded)


async def _sweep_unpublished(store: JobSweeper, publisher: Publisher) -> int:
    """A failure of one event does not stop those behind it."""
    sent = failures = 0
    while job_ids := await store.take_unpublished(_BATCH):
        for job_id in job_ids:
            job = await store.get(job_id, with_result=False)
            if job is None or not _is_owed(job):
                await store.mark_published(job_id)
                continue
            try:
                await publish_recorded(store, publisher, job_id, request_event(job))
                sent, failures = sent + 1, 0
            except BrokerUnavailable:
                failures += 1
                if failures == _FAILURES_IN_A_ROW:
                    raise
    return sent


async def _sweep_unstarted(
    store: JobSweeper, publisher: Publisher, followers: FollowerSettler | None
) -> int:
    """A broker that does not deduplicate gets one more event each time a job's age has doubled, not one each sweep."""
    sent = 0
    for _ in range(_STRANDED_BATCHES):
        job_ids = await store.claim_unstarted(_BATCH)
        for job_id in job_ids:
            job = await store.get(job_id, with_result=False)
            if job is not None and job.stream_id != job.id:
                if followers is not None:
                    await followers.settle(job.stream_id)
                await store.look_later(job_id, 0)
            elif job is not None and not job.state.is_terminal:
                await publish_recorded(store, publisher, job_id, request_event(job))
                await store.look_later(job_id, max(SystemClock().wall_ms() - job.created_ms, 1))
                sent += 1
        if len(job_ids) < _BATCH:
            break
    return sent


def _is_owed(job: Job) -> bool:
    """True for a queued job, or a started one whose lease has lapsed (docs/adr/0140). The lease is judged by this
    host's clock; a wrong clock causes a duplicate or a delay, nothing worse.
    """
    is_lapsed = job.lease_until_ms <= SystemClock().wall_ms()
    return job.state is JobState.QUEUED or (job.state is JobState.IN_PROGRESS and is_lapsed)
