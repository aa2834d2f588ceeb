"""`/v1/dead-letters`: list, redrive and discard jobs that failed for good.

Called by `api.wiring`. A dead letter is the failed job itself, with the job's id and tenant. Must not know why it
failed.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import structlog
from starlette.responses import Response
from typing_extensions import TypedDict

from api.auth.principal import Scope
from api.http.body import parse_object
from api.http.parameter import CURSOR, LIMIT
from api.job.catalog import Catalog
from api.job.submission import JobAdmission
from api.job.submit_options import JOB_SCHEMA
from api.openapi.operation import Body
from api.routes.jobs import FIELDS, JobList, json_response, own_job
from api.routes.route import Call, Routes
from api.view.job import JobView, job_view
from api.view.page import Deleted
from eventing.broker.intake import Intake
from eventing.errors import (
    NotFound,
    TorporError,
    Unavailable,
    WrongState,
)
from eventing.job.job import KEY, KEY_BUDGET, Job, JobId, JobRequest, parse_request
from eventing.job.store import JobIntake, ListField, NewJob


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterDeps:
    """The dependencies of `/v1/dead-letters`."""

    store: JobIntake
    catalog: Catalog
    intake: Intake
    admission: JobAdmission


class Skipped(TypedDict):
    """A dead letter that was left as it is, and why."""

    id: str
    code: str
    reason: str


class Redriven(TypedDict):
    """Jobs that were queued again, and those that were not."""

    redriven: list[JobId]
    skipped: list[Skipped]
    has_more: bool
    next_cursor: str | None


routes: Routes[DeadLetterDeps] = Routes("dead letters")

_AT_ONCE: Final = 100
"""Dead letters that one call reads; its answer says when there are more."""
_CHUNK: Final = 10
"""Dead letters read at a time: when a limit ends the call, the cursor is at most this far behind."""
_NEVER_A_JOB: Final = "it is not a valid job; redrive it with a request"
_NO_LONGER_DEAD: Final = "it is not a dead letter any more"
_log = structlog.get_logger()


@routes.operation(
    "GET", "/v1/dead-letters", Scope.JOBS_READ, parameters=(LIMIT, CURSOR, FIELDS), answers=JobList
)
async def list_dead_letters(call: Call[DeadLetterDeps]) -> Response:
    """List dead letters, newest first, with reason, attempts and request; with `include`, what it names instead."""
    query = call.request.query_params
    include = FIELDS.of(query) or [ListField.REQUEST]
    page = await call.deps.store.list_dead_letters(
        call.principal.tenant,
        limit=LIMIT.of(query),
        cursor=query.get(CURSOR.name, ""),
        include=include,
    )
    return json_response(
        {
            "object": "list",
            "data": [_view(job, include) for job in page.jobs],
            "next_cursor": page.next_cursor or None,
        }
    )


@routes.operation("GET", "/v1/dead-letters/{id}", Scope.JOBS_READ, answers=JobView)
async def get_dead_letter(call: Call[DeadLetterDeps]) -> Response:
    """Retrieve a dead letter."""
    return json_response(_view(await _own(call)))


@routes.operation(
    "POST",
    "/v1/dead-letters/{id}/redrive",
    Scope.ADMIN,
    body=Body("RedriveRequest", JOB_SCHEMA, is_required=False),
    answers={202: JobView},
    refuses=(409,),
    replays=True,
)
async def redrive_dead_letter(call: Call[DeadLetterDeps]) -> Response:
    """Queue a dead letter again under its id.

    A body `{url, body}` replaces its request; without one, the tokens generated so far are kept.
    """
    job = await _own(call)
    request = await _edited(call)
    if request is None and not job.request.url:
        raise WrongState(_NEVER_A_JOB)
    if not await _redrive(call, job, request):
        raise WrongState(_NO_LONGER_DEAD)
    after = await call.deps.store.get(job.id)
    return json_response(job_view(after or job), status=202)


@routes.operation(
    "POST",
    "/v1/dead-letters/redrive",
    Scope.ADMIN,
    parameters=(CURSOR,),
    answers={202: Redriven},
    refuses=(422,),
    replays=True,
)
async def redrive_dead_letters(call: Call[DeadLetterDeps]) -> Response:
    """Redrive the tenant's dead letters, newest first, up to 100 a call.

    `skipped` names those that were not redriven and why. While `has_more` is true, call again with `?cursor=` set
    to `next_cursor`, if there is one. When a limit ends the call, it is refused if no job was redriven, and
    otherwise answers with those that were.
    """
    cursor = call.request.query_params.get("cursor", "")
    redriven: list[JobId] = []
    skipped: list[Skipped] = []
    has_more, is_refused = True, False
    while has_more and not is_refused and len(redriven) + len(skipped) < _AT_ONCE:
        page = await call.deps.store.list_dead_letters(
            call.principal.tenant, limit=_CHUNK, cursor=cursor
        )
        try:
            for job in page.jobs:
                await _redrive_or_skip(call, job, redriven, skipped)
        except Unavailable:
            if not redriven:
                raise
            is_refused = True
        else:
            cursor, has_more = page.next_cursor, bool(page.next_cursor)
    return json_response(
        {
            "redriven": redriven,
            "skipped": skipped,
            "has_more": has_more,
            "next_cursor": cursor or None,
        },
        status=202,
    )


async def _redrive_or_skip(
    call: Call[DeadLetterDeps], job: Job, redriven: list[JobId], skipped: list[Skipped]
) -> None:
    """Raises `Unavailable` when a limit or the store refuses."""
    try:
        if not job.request.url:
            raise WrongState(_NEVER_A_JOB)
        if not await _redrive(call, job, None):
            raise WrongState(_NO_LONGER_DEAD)
    except Unavailable:
        raise
    except TorporError as error:
        skipped.append({"id": job.id, "code": error.code, "reason": error.message})
    else:
        redriven.append(job.id)


@routes.operation("DELETE", "/v1/dead-letters/{id}", Scope.ADMIN, answers=Deleted, refuses=(409,))
async def discard_dead_letter(call: Call[DeadLetterDeps]) -> Response:
    """Delete a dead letter and its tokens."""
    job = await _own(call)
    if not await call.deps.store.delete(job.id):
        raise WrongState(_NO_LONGER_DEAD)
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
    """Queue the job and its event again. Limits apply as to a new job."""
    deps = call.deps
    await deps.admission.admit(call.principal, _again(job, request))
    if not await deps.intake.redrive(job, request):
        await deps.admission.on_rejected(job.tenant, job.id)
        return False
    _log.info("redriven", action="redrive", job_id=job.id)
    return True


def _again(job: Job, request: JobRequest | None) -> NewJob:
    """The job as a new one, for admission. It has no deadline any more."""
    return NewJob(
        id=job.id,
        request=request or job.request,
        source=job.source,
        event_id=job.event_id,
        tenant=job.tenant,
        lane=job.lane,
        metadata={name: job.metadata[name] for name in (KEY, KEY_BUDGET) if name in job.metadata},
    )


def _view(job: Job, include: Collection[ListField] = (ListField.REQUEST,)) -> JobView:
    view = job_view(
        job,
        with_request=ListField.REQUEST in include,
        with_prompt=ListField.PROMPT in include,
        with_turns=bool(job.turns),
    )
    return view | {"object": "dead_letter"}
