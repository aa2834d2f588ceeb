"""`/v1/dead-letters`: jobs that failed for good, and what a person may do about them.

Called by `api.wiring`. A dead letter is the failed job itself, so it has the job's id and the job's
tenant. Must not know why it failed.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import structlog
from starlette.responses import Response

from api.auth.principal import Scope
from api.http.body import parse_object
from api.job.catalog import Catalog
from api.job.submission import Admission
from api.openapi import dead_letters as docs
from api.routes.jobs import json_response, own_job, whole_number
from api.routes.route import Call, Routes
from api.view.job import job_view
from eventing.cloudevent.job_event import request_event
from eventing.cloudevent.publisher import Publisher
from eventing.errors import (
    BrokerUnavailable,
    NotFound,
    StoreUnavailable,
    Unavailable,
    WrongState,
)
from eventing.job.job import Job, JobId, JobRequest, parse_request
from eventing.job.store import NewJob, Store
from eventing.outbox.published import PublishedJobs


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterDeps:
    """What `/v1/dead-letters` needs."""

    store: Store
    catalog: Catalog
    publisher: Publisher
    published: PublishedJobs
    admission: Admission
    submit_timeout_s: float


routes: Routes[DeadLetterDeps] = Routes()

_AT_ONCE: Final = 100
"""Most jobs that one call redrives; it says when there are more."""
_log = structlog.get_logger()


@routes.operation("GET", "/v1/dead-letters", scope=Scope.JOBS_READ, doc=docs.LIST)
async def list_dead_letters(call: Call[DeadLetterDeps]) -> Response:
    """List jobs that were set aside, newest first, with reason, attempts and request."""
    query = call.request.query_params
    page = await call.deps.store.list_dead_letters(
        call.principal.tenant,
        limit=whole_number(query, "limit", default=20, least=1, most=100),
        cursor=query.get("cursor", ""),
    )
    return json_response(
        {
            "object": "list",
            "data": [_view(job) for job in page.jobs],
            "next_cursor": page.next_cursor or None,
        }
    )


@routes.operation("GET", "/v1/dead-letters/{id}", scope=Scope.JOBS_READ, doc=docs.GET)
async def get_dead_letter(call: Call[DeadLetterDeps]) -> Response:
    """Look at a dead letter."""
    return json_response(_view(await _own(call)))


@routes.operation(
    "POST",
    "/v1/dead-letters/{id}/redrive",
    scope=Scope.ADMIN,
    doc=docs.REDRIVE,
    replays=True,
)
async def redrive_dead_letter(call: Call[DeadLetterDeps]) -> Response:
    """Give a dead letter a new life under its id.

    A body `{url, body}` replaces its request, for one that could never work as it was; without,
    what was generated so far is kept.
    """
    job = await _own(call)
    request = await _edited(call)
    if request is None and not job.request.url:
        raise WrongState("it never was a job; send a request to redrive it with")
    if not await _redrive(call, job, request):
        raise WrongState("it is a dead letter no longer")
    after = await call.deps.store.get(job.id)
    return json_response(job_view(after or job), status=202)


@routes.operation(
    "POST",
    "/v1/dead-letters/redrive",
    scope=Scope.ADMIN,
    doc=docs.REDRIVE_ALL,
    replays=True,
)
async def redrive_dead_letters(call: Call[DeadLetterDeps]) -> Response:
    """Redrive up to 100 of the tenant's dead letters, newest first; `has_more` says whether to
    call again. Those that never were jobs are skipped. A limit on the way ends it: refused
    when none was redriven, else the list as far as it came.
    """
    page = await call.deps.store.list_dead_letters(call.principal.tenant, limit=_AT_ONCE)
    redriven: list[JobId] = []
    for job in (job for job in page.jobs if job.request.url):
        try:
            if await _redrive(call, job, None):
                redriven.append(job.id)
        except Unavailable:
            if not redriven:
                raise
            return json_response({"redriven": redriven, "has_more": True}, status=202)
    has_more = bool(page.next_cursor)
    return json_response({"redriven": redriven, "has_more": has_more}, status=202)


@routes.operation("DELETE", "/v1/dead-letters/{id}", scope=Scope.ADMIN, doc=docs.DISCARD)
async def discard_dead_letter(call: Call[DeadLetterDeps]) -> Response:
    """Forget a dead letter, its tokens included."""
    job = await _own(call)
    if not await call.deps.store.delete(job.id):
        raise WrongState("it is a dead letter no longer")
    _log.info("discarded", action="discard", job_id=job.id)
    return json_response({"id": job.id, "object": "job", "deleted": True})


async def _own(call: Call[DeadLetterDeps]) -> Job:
    job = await own_job(call.deps.store, call.principal, call.request.path_params["id"])
    if not job.is_dead_letter:
        raise NotFound("no such job")
    return job


async def _edited(call: Call[DeadLetterDeps]) -> JobRequest | None:
    raw = await call.read()
    line = parse_object(raw) if raw else {}
    if not line:
        return None
    request = parse_request(line)
    await call.deps.catalog.check(request)
    return request


async def _redrive(call: Call[DeadLetterDeps], job: Job, request: JobRequest | None) -> bool:
    """The store queues it and notes that its event is owed; the event goes out now if it can, and
    with the sweep if not. Limits hold for it as for a new job.
    """
    deps = call.deps
    await deps.admission.admit(call.principal, _again(job, request))
    # A note of its first life that is yet to be cleared must not take that of the second along.
    await deps.published.clear(deps.store)
    if not await deps.store.redrive(job.id, request):
        await deps.admission.on_rejected(job.tenant, job.id)
        return False
    _log.info("redriven", action="redrive", job_id=job.id)
    try:
        async with asyncio.timeout(deps.submit_timeout_s):
            queued = await deps.store.get(job.id)
            if queued is not None:
                await deps.publisher.publish(request_event(queued))
                await deps.store.mark_published(job.id)
    except (TimeoutError, BrokerUnavailable, StoreUnavailable):
        _log.warning("left to the sweep", action="redrive", job_id=job.id)
    return True


def _again(job: Job, request: JobRequest | None) -> NewJob:
    """The job as if it were new, for those who let new ones in. It has no deadline any more."""
    return NewJob(
        id=job.id,
        request=request or job.request,
        source=job.source,
        event_id=job.event_id,
        tenant=job.tenant,
        lane=job.lane,
    )


def _view(job: Job) -> dict[str, Any]:
    return job_view(job, with_request=True) | {"object": "dead_letter"}
