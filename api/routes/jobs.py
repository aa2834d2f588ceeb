"""`/v1/jobs`: submit, retrieve, list, follow, cancel.

Called by `api.wiring`. A job is one line of an OpenAI Batch file; every other call that runs a model becomes one.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson
from starlette.responses import Response

from api.auth.principal import Principal, Scope
from api.http.byte_range import partial_response
from api.http.parameter import CURSOR, LIMIT, Parameter, Seconds, Words
from api.http.protocol import writer_of
from api.http.shutdown import Shutdown
from api.http.sse import Stream
from api.job.live import LiveDeps, outlook_of, wait_for_end
from api.job.submission import SubmitDeps, submit
from api.job.submit_options import JOB_SCHEMA, SUBMIT_HEADERS, parse_submit_options
from api.openapi.operation import Body, Text
from api.routes.route import Call, Routes
from api.routes.stream import END, job_frames, parse_cursor
from api.view.cache import job_headers
from api.view.job import AcceptedJobView, JobView, ResultView, accepted_view, cost_view, job_view
from api.view.page import CursorPage
from api.view.timeline import TimelineView, timeline
from api.webhook.webhook import WebhookDelivery, subject_of
from eventing.clock import Clock
from eventing.errors import NotFound, TorporError, WrongState
from eventing.job.answer_links import shown_result
from eventing.job.job import Job, JobId, JobState, is_job_id
from eventing.job.store import JobIntake, JobReader, ListField
from eventing.telemetry.cost import Price, TokenPrice
from eventing.telemetry.metric.ledger import Ledger


class WebhookDeliveries(Protocol):
    """The webhook deliveries of a job (`api.webhook.store.WebhookStore`)."""

    async def of(self, tenant: str, subject: str) -> Sequence[WebhookDelivery]: ...


class PastWaking(Protocol):
    """The replica phases that an ended job waited for (`api.job.waiting.WakingNotes`)."""

    async def of(self, job: Job) -> list[dict[str, Any]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDeps:
    """The dependencies of `/v1/jobs`."""

    store: JobIntake
    submission: SubmitDeps
    live: LiveDeps
    deliveries: WebhookDeliveries
    past_waking: PastWaking
    ledger: Ledger
    price: Price
    token_prices: Mapping[str, TokenPrice]
    clock: Clock
    shutdown: Shutdown
    keep_alive_s: float
    max_wait_s: float


class JobList(CursorPage):
    """A page of jobs, newest first."""

    data: list[JobView]


routes: Routes[JobDeps] = Routes("jobs")

_STATE: Final = Words("state", "Only jobs in these states", kind=JobState)
FIELDS: Final = Words(
    "include",
    "Show more: `prompt`, its first 160 characters; the whole request or result, and then a page ends after 4 MiB",
    kind=ListField,
)
_SEARCH: Final = Parameter(
    "search",
    "Only jobs with each of these words in id, model, custom_id or the start of the prompt",
)
_SEARCH_CHARS: Final = 256
_WAIT: Final = Seconds("wait", "How long to wait for the end before answering", most=60)
_PARTS: Final = Parameter(
    "include",
    "`request`: show what was asked, too; `timeline`: its life in steps; or both, by comma",
)
LAST_EVENT_ID: Final = Parameter("Last-Event-ID", "Go on after this event", "header")
AFTER_EVENT: Final = Parameter("after", "The same, for clients that cannot set headers")
_RANGE: Final = Parameter("Range", "Some of its bytes: `bytes=0-999`", "header")
_IF_RANGE: Final = Parameter("If-Range", "An `ETag`: the whole, if it has changed since", "header")
_IF_NONE_MATCH: Final = Parameter("If-None-Match", "An `ETag`: 304, if it has not", "header")
JOB_REQUEST: Final = Body("JobRequest", JOB_SCHEMA)


@routes.operation(
    "POST",
    "/v1/jobs",
    Scope.JOBS_WRITE,
    parameters=SUBMIT_HEADERS,
    body=JOB_REQUEST,
    answers={200: JobView, 202: AcceptedJobView},
    refuses=(504,),
)
async def submit_job(call: Call[JobDeps]) -> Response:
    """Submit a job and get its id.

    A 202 is sent only after the job is recorded. With an `Idempotency-Key`, the same body gives the same job again
    (200 once it has ended), another body 409.
    """
    line = await call.read_object()
    options = parse_submit_options(line, call.request.headers)
    job, _ = await submit(call.deps.submission, call.principal, line, options)
    return accepted(job)


@routes.operation(
    "GET",
    "/v1/jobs",
    Scope.JOBS_READ,
    parameters=(_STATE, _SEARCH, LIMIT, CURSOR, FIELDS),
    answers=JobList,
)
async def list_jobs(call: Call[JobDeps]) -> Response:
    """List jobs, newest first.

    Without results, unless `include=result` asks for them. A page reads a bounded number of jobs, so it may have
    fewer than `limit`, or none; while there is a `next_cursor`, there may be more.
    """
    query = call.request.query_params
    include = FIELDS.of(query)
    page = await call.deps.store.list_jobs(
        call.principal.tenant,
        states=_STATE.of(query),
        limit=LIMIT.of(query),
        cursor=query.get(CURSOR.name, ""),
        include=include,
        search=query.get(_SEARCH.name, "")[:_SEARCH_CHARS],
    )
    return json_response(
        {
            "object": "list",
            "data": [
                job_view(
                    job,
                    with_request=ListField.REQUEST in include,
                    with_result=ListField.RESULT in include,
                    with_prompt=ListField.PROMPT in include,
                    with_turns=False,
                )
                for job in page.jobs
            ],
            "next_cursor": page.next_cursor or None,
        }
    )


@routes.operation(
    "GET",
    "/v1/jobs/{id}",
    Scope.JOBS_READ,
    parameters=(_WAIT, _PARTS),
    answers=JobView,
)
async def get_job(call: Call[JobDeps]) -> Response:
    """Retrieve a job.

    With `wait`, the answer is sent when the job has ended, or after that many seconds. While it is queued,
    `waiting` has its place, the expected wait and the starting replicas; between two turns, what is waited for.
    `timeline` has every step with its
    duration, webhooks included.
    """
    query = call.request.query_params
    wait_s = _WAIT.of(query, call.deps.max_wait_s)
    job = await own_job(call.deps.store, call.principal, call.request.path_params["id"])
    if wait_s:
        with naming(job):
            held = wait_for_end(call.deps.live, job, wait_s)
            job = await call.deps.shutdown.cut_off(held)
    outlook = await outlook_of(call.deps.live, job)
    wanted = query.get(_PARTS.name, "").split(",")
    view = job_view(job, outlook, with_request="request" in wanted)
    if "timeline" in wanted:
        view["timeline"] = await _timeline(call.deps, job)
    overhead = await call.deps.ledger.overhead(job.request.model)
    view["cost"] = cost_view(job, call.deps.price, overhead, call.deps.token_prices)
    return json_response(view)


async def _timeline(deps: JobDeps, job: Job) -> TimelineView:
    deliveries = await deps.deliveries.of(job.tenant, subject_of(job))
    replicas = await deps.live.waiting.replicas(job.request.model)
    kept = await deps.past_waking.of(job)
    return timeline(job, replicas, deliveries, deps.clock.wall_ms(), kept)


_EVENTS: Final = Text(
    "Events until the job has ended",
    "text/event-stream",
    'event: state\ndata: {"state":"queued","id":"job_0123456789abcdef01234567"}\n\n'
    'event: waking\ndata: {"position":0,"phase":"weights","replicas":1}\n\n'
    'id: 1764000000000-0\nevent: attempt\ndata: {"attempt":1,"index":0,"is_restart":false,'
    '"state":"in_progress"}\n\n'
    'id: 1764000000100-0\nevent: tokens\ndata: {"attempt":1,"index":0,"count":2,'
    '"delta":[{"index":0,"delta":{"content":"They do"}}]}\n\n',
)


@routes.operation(
    "GET",
    "/v1/jobs/{id}/events",
    Scope.JOBS_READ,
    parameters=(LAST_EVENT_ID, AFTER_EVENT),
    answers={200: _EVENTS, 204: Text("The job has ended and you have seen everything")},
)
async def follow_job(call: Call[JobDeps]) -> Response:
    """Follow a job live (server-sent events).

    `state`, `waking` (without id), `step`, `attempt`, `tokens`, `turn`, `call`, and last `result`.
    `Last-Event-ID` (or `?after=`) resumes a stream; after the last event the answer is 204.
    """
    await call.hold_stream()
    text = call.request.headers.get("last-event-id") or call.request.query_params.get("after", "")
    after = parse_cursor(text)
    job = await own_job(
        call.deps.store, call.principal, call.request.path_params["id"], with_result=False
    )
    if text.endswith(END) and job.state.is_terminal:
        return Response(status_code=204)  # tells a browser's EventSource to stop coming back
    frames = job_frames(call.deps.live, job, after, writer_of(call.request.scope))
    return Stream(frames, keep_alive_s=call.deps.keep_alive_s, shutdown=call.deps.shutdown)


@routes.operation(
    "GET",
    "/v1/jobs/{id}/result",
    Scope.JOBS_READ,
    parameters=(_RANGE, _IF_RANGE, _IF_NONE_MATCH),
    answers={200: ResultView, 206: Text("The bytes that were asked for"), 304: Text("As it was")},
    refuses=(409, 410, 416),
)
async def get_result(call: Call[JobDeps]) -> Response:
    """Read what a job gave, whole or in part.

    The `result` of the job and nothing else, with an `ETag`; `Range` asks for some of its bytes, so
    that a large one can be fetched in pieces and after a broken connection.
    """
    job = await own_job(call.deps.store, call.principal, call.request.path_params["id"])
    if not job.state.is_terminal:
        raise WrongState(f"the job is {job.state}: it has no result yet")
    if job.result is None:
        raise NotFound(f"the job is {job.state} and has no result")
    return partial_response(
        orjson.dumps(shown_result(job)), call.request.headers, "application/json"
    )


@routes.operation("DELETE", "/v1/jobs/{id}", Scope.JOBS_CANCEL, answers=JobView)
async def cancel_job(call: Call[JobDeps]) -> Response:
    """Cancel a job.

    Idempotent; the answer is the job as it is afterwards. A job that ended just before stays `completed`.
    """
    job = await own_job(call.deps.store, call.principal, call.request.path_params["id"])
    return json_response(job_view(await cancelled(call.deps.store, job)))


@contextmanager
def naming(job: Job) -> Iterator[None]:
    """Adds the job's id to a refusal raised inside."""
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


async def own_job(
    store: JobReader, principal: Principal, job_id: str, *, with_result: bool = True
) -> Job:
    """The tenant's job with that id. Raises `NotFound`."""
    known = is_job_id(job_id)
    job = await store.get(JobId(job_id), with_result=with_result) if known else None
    if job is None or job.tenant != principal.tenant:
        raise NotFound("no such job")
    return job


def accepted(job: Job) -> Response:
    """202 with the job's address; 200 when it has ended before (a repeated key)."""
    body = job_view(job) if job.state.is_terminal else accepted_view(job)
    status = 200 if job.state.is_terminal else 202
    headers = {"location": f"/v1/jobs/{job.id}"} | job_headers(job)
    return json_response(body, status=status, headers=headers)


def json_response(
    body: Any, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """`body` as JSON."""
    return Response(
        orjson.dumps(body), status_code=status, media_type="application/json", headers=headers
    )
