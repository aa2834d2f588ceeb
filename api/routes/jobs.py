"""`/v1/jobs`: submit, look, list, follow, cancel.

Called by `api.wiring`. A job is one line of an OpenAI Batch file; everything else the api offers ends
up as one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson
from starlette.datastructures import QueryParams
from starlette.responses import Response

from api.auth.principal import Principal, Scope
from api.http.protocol import wire_of
from api.http.shutdown import Shutdown
from api.http.sse import Stream
from api.job.live import LiveDeps, outlook_of, wait_for_end
from api.job.submission import SubmitDeps, parse_submit_options, submit
from api.openapi import operation as docs
from api.routes.route import Call, Routes
from api.routes.stream import END, job_frames, parse_cursor
from api.view.job import accepted_view, cost_view, job_view
from api.view.timeline import timeline
from api.webhook.webhook import WebhookDelivery, subject_of
from eventing.clock import Clock
from eventing.errors import BadRequest, NotFound, TorporError
from eventing.job.job import Job, JobId, JobState, is_job_id
from eventing.job.store import JobIntake, JobReader, ListField
from eventing.telemetry.cost import Price
from eventing.telemetry.metric.ledger import Ledger


class WebhookDeliveries(Protocol):
    """The webhooks that were sent of a job (`api.webhook.store.WebhookStore`)."""

    async def of(self, tenant: str, subject: str) -> Sequence[WebhookDelivery]: ...


class PastWaking(Protocol):
    """Tells what a job that has ended waited for (`api.job.waiting.WakingNotes`)."""

    async def of(self, job: Job) -> list[dict[str, Any]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDeps:
    """What `/v1/jobs` needs."""

    store: JobIntake
    submission: SubmitDeps
    live: LiveDeps
    deliveries: WebhookDeliveries
    past_waking: PastWaking
    ledger: Ledger
    price: Price
    clock: Clock
    shutdown: Shutdown
    keep_alive_s: float
    max_wait_s: float


routes: Routes[JobDeps] = Routes()

_LIST_LIMIT: Final = 100


@routes.operation("POST", "/v1/jobs", scope=Scope.JOBS_WRITE, doc=docs.SUBMIT_JOB)
async def submit_job(call: Call[JobDeps]) -> Response:
    """Submit a job and get its id.

    The job is recorded before the answer: a 202 is a promise. With an `Idempotency-Key`, the same
    body gives the same job again (200 once it has ended), another body 409.
    """
    line = await call.read_object()
    options = parse_submit_options(line, call.request.headers)
    job, _ = await submit(call.deps.submission, call.principal, line, options)
    return accepted(job)


@routes.operation("GET", "/v1/jobs", scope=Scope.JOBS_READ, doc=docs.LIST_JOBS)
async def list_jobs(call: Call[JobDeps]) -> Response:
    """List jobs, newest first.

    Without their results, unless `include=result` asks for them. A page looks at a bounded number
    of jobs, so it may hold fewer than `limit`, or none: while there is a `next_cursor`, there may
    be more.
    """
    query = call.request.query_params
    include = _included(query)
    page = await call.deps.store.list_jobs(
        call.principal.tenant,
        states=_states(query),
        limit=whole_number(query, "limit", default=20, least=1, most=_LIST_LIMIT),
        cursor=query.get("cursor", ""),
        include=include,
    )
    has_result = ListField.RESULT in include
    return json_response(
        {
            "object": "list",
            "data": [
                job_view(job, with_request=ListField.REQUEST in include, with_result=has_result)
                for job in page.jobs
            ],
            "next_cursor": page.next_cursor or None,
        }
    )


@routes.operation("GET", "/v1/jobs/{id}", scope=Scope.JOBS_READ, doc=docs.GET_JOB)
async def get_job(call: Call[JobDeps]) -> Response:
    """Look at a job.

    With `wait`, the answer comes when the job has ended, or after that many seconds. While it is
    queued, `waiting` tells its place, the expected wait and what is waking for it. `timeline` tells
    its whole life with durations, webhooks included.
    """
    query = call.request.query_params
    wait_s = seconds(query, "wait", most=call.deps.max_wait_s)
    job = await own_job(call.deps.store, call.principal, call.request.path_params["id"])
    if wait_s:
        with naming(job):
            held = wait_for_end(call.deps.live, job, wait_s)
            job = await call.deps.shutdown.cut_off(held)
    outlook = await outlook_of(call.deps.live, job)
    wanted = query.get("include", "").split(",")
    view = job_view(job, outlook, with_request="request" in wanted)
    if "timeline" in wanted:
        view["timeline"] = await _timeline(call.deps, job)
    overhead = await call.deps.ledger.overhead(job.request.model)
    return json_response(view | {"cost": cost_view(job, call.deps.price, overhead)})


async def _timeline(deps: JobDeps, job: Job) -> dict[str, Any]:
    deliveries = await deps.deliveries.of(job.tenant, subject_of(job))
    replicas = await deps.live.waiting.replicas(job.request.model)
    kept = await deps.past_waking.of(job)
    return timeline(job, replicas, deliveries, deps.clock.wall_ms(), kept)


@routes.operation("GET", "/v1/jobs/{id}/events", scope=Scope.JOBS_READ, doc=docs.JOB_EVENTS)
async def follow_job(call: Call[JobDeps]) -> Response:
    """Follow a job live (server-sent events).

    `state`, `waking` (no id), `attempt`, `tokens`, and last `result`. `Last-Event-ID` (or
    `?after=`) resumes where a stream was left; after the last event the answer is 204.
    """
    call.check_stream_room()
    text = call.request.headers.get("last-event-id") or call.request.query_params.get("after", "")
    after = parse_cursor(text)
    job = await own_job(call.deps.store, call.principal, call.request.path_params["id"])
    if text.endswith(END) and job.state.is_terminal:
        return Response(status_code=204)  # tells a browser's EventSource to stop coming back
    frames = job_frames(call.deps.live, job, after, wire_of(call.request.scope))
    return Stream(frames, keep_alive_s=call.deps.keep_alive_s, shutdown=call.deps.shutdown)


@routes.operation("DELETE", "/v1/jobs/{id}", scope=Scope.JOBS_CANCEL, doc=docs.CANCEL_JOB)
async def cancel_job(call: Call[JobDeps]) -> Response:
    """Cancel a job.

    Idempotent; the answer is the job as it then is, so a job that ended just before stays
    `completed` and says so.
    """
    job = await own_job(call.deps.store, call.principal, call.request.path_params["id"])
    return json_response(job_view(await cancelled(call.deps.store, job)))


@contextmanager
def naming(job: Job) -> Iterator[None]:
    """A refusal of the call inside names the job that it has."""
    try:
        yield
    except TorporError as error:
        error.headers = {**error.headers, "torpor-job-id": job.id}
        raise


async def cancelled(store: JobIntake, job: Job) -> Job:
    """The job after a cancel. The first terminal state wins."""
    if job.state.is_terminal:
        return job
    after = await store.cancel(job.id)
    if after is None:
        raise NotFound("no such job")
    return after


async def own_job(store: JobReader, principal: Principal, job_id: str) -> Job:
    """The tenant's job of that id. Raises `NotFound`, also for another tenant's."""
    job = await store.get(JobId(job_id)) if is_job_id(job_id) else None
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


def _included(query: QueryParams) -> list[ListField]:
    named = [name for text in query.getlist("include") for name in text.split(",") if name]
    for name in named:
        if name not in list(ListField):
            raise BadRequest(f"include must be one of {', '.join(ListField)}", "include")
    return [ListField(name) for name in named]
