"""Finds what was recorded but perhaps not told, and tells it.

Called by the api, in a loop; any number of sweepers share the work. A job whose request event may
not have reached the broker is published again (the broker knows it by its identity), and an ended
job whose result event may not have gone out is announced. Found within 30 s of the crash that left
it: 10 s until it is due, 15 s in the hands of a sweeper that died, 5 s between two looks. A job
whose event a broker took, and that nobody has started for long, is published again too: whoever has
it already answers for the second (docs/adr/0086).
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog
from prometheus_client import Counter

from eventing.clock import SystemClock
from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import request_event, result_event
from eventing.cloudevent.publisher import Publisher
from eventing.errors import Unavailable
from eventing.job.job import Job, JobId, JobState
from eventing.job.store import Store

_BATCH: Final = 100
_STRANDED_BATCHES: Final = 5
"""In one look: a backlog that is merely long comes up here too, and must not keep the api busy."""
_swept = Counter("torpor_outbox_swept_total", "Events sent by the outbox sweep.", ["kind"])
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What one sweep sent."""

    requests: int = 0
    stranded: int = 0
    results: int = 0


async def run(store: Store, publisher: Publisher, every_s: float) -> None:
    """Sweep until cancelled; store or broker away is logged and tried again at the next look."""
    while True:
        try:
            swept = await sweep_once(store, publisher)
            if swept != Swept():
                _log.info("sent again", action="sweep", **_counts(swept))
        except Unavailable as error:
            _log.debug("will look again", action="sweep", reason=error.code)
        await asyncio.sleep(every_s)


async def sweep_once(store: Store, publisher: Publisher) -> Swept:
    """Send what is due. Raises `Unavailable` at the first thing that cannot be sent; what was not
    marked is due again in 15 s, so a crash in here only repeats an event.
    """
    requests = await _sweep(
        store, publisher, store.take_unpublished, _owed_request, store.mark_published
    )
    again = await _sweep_stranded(store, publisher)
    results = await _sweep(
        store, publisher, store.take_unannounced, _owed_result, store.mark_announced
    )
    _swept.labels("request").inc(requests)
    _swept.labels("stranded").inc(again)
    _swept.labels("result").inc(results)
    return Swept(requests=requests, stranded=again, results=results)


async def _sweep_stranded(store: Store, publisher: Publisher) -> int:
    """A broker that does not know events by their identity gets one more each time a job's age
    has doubled, not one each look.
    """
    sent = 0
    for _ in range(_STRANDED_BATCHES):
        job_ids = await store.claim_unstarted(_BATCH)
        for job_id in job_ids:
            job = await store.get(job_id)
            if job is not None and (event := _owed_request(job)):
                await publisher.publish(event)
                age_ms = max(SystemClock().wall_ms() - job.created_ms, 1)
                await store.mark_published(job_id, age_ms=age_ms)
                sent += 1
        if len(job_ids) < _BATCH:
            break
    return sent


async def _sweep(
    store: Store,
    publisher: Publisher,
    take: Callable[[int], Awaitable[list[JobId]]],
    owed: Callable[[Job], Event | None],
    mark: Callable[[JobId], Awaitable[None]],
) -> int:
    sent = 0
    while job_ids := await take(_BATCH):
        for job_id in job_ids:
            job = await store.get(job_id)
            event = owed(job) if job is not None else None
            if event is not None:
                await publisher.publish(event)
                sent += 1
            await mark(job_id)
    return sent


def _owed_request(job: Job) -> Event | None:
    """A queued job, or a started one whose lease is over (docs/adr/0052). The lease is judged by
    this host's clock: a wrong one costs a duplicate or a delay, no more.
    """
    is_lapsed = job.lease_until_ms <= SystemClock().wall_ms()
    is_stranded = job.state is JobState.IN_PROGRESS and is_lapsed
    return request_event(job) if job.state is JobState.QUEUED or is_stranded else None


def _owed_result(job: Job) -> Event | None:
    """Entries are written before the end they announce; one whose job goes on is dropped, and comes
    again with its end.
    """
    return result_event(job) if job.state.is_terminal and not job.is_announced else None


def _counts(swept: Swept) -> dict[str, int]:
    return {
        "requests": swept.requests,
        "stranded": swept.stranded,
        "results": swept.results,
    }
