"""`/v1/jobs`: submit, look, list, follow, cancel.

Called by `api.app`. A job is one line of an OpenAI Batch file; everything else the api offers ends
up as one.
"""

from typing import Any, Final

import orjson
from starlette.datastructures import QueryParams
from starlette.responses import Response

from api.auth.principal import Principal, Scope
from api.front import Front
from api.http.body import read_object
from api.http.protocol import wire_of
from api.http.sse import Stream
from api.job.live import outlook_of, wait_for_end
from api.job.submission import parse_submit_options, submit
from api.openapi import operation as docs
from api.routes.route import Call, new_router, operation
from api.routes.stream import END, job_frames, parse_cursor
from api.view.job import accepted_view, cost_view, job_view
from api.view.timeline import timeline
from api.webhook.webhook import subject_of
from eventing.errors import BadRequest, NotFound
from eventing.job.job import Job, JobId, JobState, is_job_id

router = new_router()

_LIST_LIMIT: Final = 100


@operation(router, "POST", "/v1/jobs", scope=Scope.JOBS_WRITE, doc=docs.SUBMIT_JOB)
async def submit_job(call: Call) -> Response:
    """Hand in a job and get its id.

    The job is recorded before the answer: a 202 is a promise. With an `Idempotency-Key`, the same
    body gives the same job again (200 once it has ended), another body 409.
    """
    settings = call.front.settings
    line = await read_object(
        call.request, limit=settings.body_limit_bytes, timeout_s=settings.body_timeout_s
    )
    wish = parse_submit_options(line, call.request.headers)
    job, _ = await submit(call.front, call.principal, line, wish)
    return accepted(job)


@operation(router, "GET", "/v1/jobs", scope=Scope.JOBS_READ, doc=docs.LIST_JOBS)
async def list_jobs(call: Call) -> Response:
    """List jobs, newest first."""
    query = call.request.query_params
    states = _states(query)
    cursor = query.get("cursor", "")
    page = await call.front.store.list_jobs(
        call.principal.tenant,
        states=states,
        limit=whole_number(query, "limit", default=20, least=1, most=_LIST_LIMIT),
        cursor=cursor,
    )
    return json_response(
        {
            "object": "list",
            "data": [job_view(job) for job in page.jobs],
            "next_cursor": page.next_cursor or None,
        }
    )


@operation(router, "GET", "/v1/jobs/{id}", scope=Scope.JOBS_READ, doc=docs.GET_JOB)
async def get_job(call: Call) -> Response:
    """Look at a job.

    With `wait`, the answer comes when the job has ended, or after that many seconds. While it is
    queued, `waiting` tells its place, the expected wait and what is waking for it. `timeline` tells
    its whole life with durations, webhooks included.
    """
    query = call.request.query_params
    wait_s = seconds(query, "wait", most=call.front.settings.max_wait_s)
    job = await own_job(call.front, call.principal, call.request.path_params["id"])
    if wait_s:
        job = await wait_for_end(call.front, job, wait_s)
    outlook = await outlook_of(call.front, job)
    wanted = query.get("include", "").split(",")
    view = job_view(job, outlook, with_request="request" in wanted)
    if "timeline" in wanted:
        view["timeline"] = await _timeline(call.front, job)
    ledger = call.front.ledger
    overhead = await ledger.overhead(job.request.model) if ledger else None
    return json_response(view | {"cost": cost_view(job, call.front.settings.price, overhead)})


async def _timeline(front: Front, job: Job) -> dict[str, Any]:
    deliveries = (
        await front.webhooks.store.of(job.tenant, subject_of(job)) if front.webhooks else ()
    )
    replicas = await front.waiting.replicas(job.request.model)
    kept = await front.past_waking.of(job) if front.past_waking else ()
    return timeline(job, replicas, deliveries, front.clock.wall_ms(), kept)


@operation(router, "GET", "/v1/jobs/{id}/events", scope=Scope.JOBS_READ, doc=docs.JOB_EVENTS)
async def follow_job(call: Call) -> Response:
    """Follow a job live (server-sent events).

    `state`, `waking` (no id), `attempt`, `tokens`, and last `result`. `Last-Event-ID` (or
    `?after=`) resumes where a stream was left; after the last event the answer is 204.
    """
    text = call.request.headers.get("last-event-id") or call.request.query_params.get("after", "")
    after = parse_cursor(text)
    job = await own_job(call.front, call.principal, call.request.path_params["id"])
    if text.endswith(END) and job.state.is_terminal:
        return Response(status_code=204)  # tells a browser's EventSource to stop coming back
    frames = job_frames(call.front, job, after, wire_of(call.request.scope))
    return Stream(frames, keep_alive_s=call.front.settings.keep_alive_s)


@operation(router, "DELETE", "/v1/jobs/{id}", scope=Scope.JOBS_CANCEL, doc=docs.CANCEL_JOB)
async def cancel_job(call: Call) -> Response:
    """Cancel a job.

    Idempotent; the answer is the job as it then is, so a job that ended just before stays
    `completed` and says so.
    """
    job = await own_job(call.front, call.principal, call.request.path_params["id"])
    return json_response(job_view(await cancelled(call.front, job)))


async def cancelled(front: Front, job: Job) -> Job:
    """The job after a cancel. The first terminal state wins."""
    if job.state.is_terminal:
        return job
    after = await front.store.cancel(job.id)
    if after is None:
        raise NotFound("no such job")
    return after


async def own_job(front: Front, principal: Principal, job_id: str) -> Job:
    """The tenant's job of that id. Raises `NotFound`, also for another tenant's."""
    job = await front.store.get(JobId(job_id)) if is_job_id(job_id) else None
    if job is None or job.tenant != principal.tenant:
        raise NotFound("no such job")
    return job


def accepted(job: Job) -> Response:
    """202 with the way to the job; 200 when it has ended before (a repeated key)."""
    body = job_view(job) if job.state.is_terminal else accepted_view(job)
    status = 200 if job.state.is_terminal else 202
    return json_response(body, status=status, headers={"location": f"/v1/jobs/{job.id}"})


def json_response(
    body: Any, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """`body` as JSON."""
    return Response(
        orjson.dumps(body), status_code=status, media_type="application/json", headers=headers
    )


def whole_number(query: QueryParams, name: str, *, default: int, least: int, most: int) -> int:
    """A query parameter as a number in its range. Raises `BadRequest` naming it."""
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10) or not least <= int(text) <= most:
        raise BadRequest(f"{name} must be a whole number from {least} to {most}", name)
    return int(text)


def seconds(query: QueryParams, name: str, *, most: float) -> float:
    """A query parameter as seconds, 0 when it is not there. Raises `BadRequest` naming it."""
    text = query.get(name)
    if text is None:
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise BadRequest(f"{name} must be seconds from 0 to {most:g}", name)
    return value


def _states(query: QueryParams) -> list[JobState]:
    named = [state for text in query.getlist("state") for state in text.split(",") if state]
    for state in named:
        if state not in list(JobState):
            raise BadRequest(f"state must be one of {', '.join(JobState)}", "state")
    return [JobState(state) for state in named]
