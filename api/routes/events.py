"""CloudEvents in: results from the broker, and requests from producers that cannot reach it. CloudEvents out:
results, as server-sent events.

Called by `api.wiring`. Answers by the Knative data-plane contract: 2xx only once the event is stored.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import orjson
import structlog
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.auth.principal import Scope
from api.http.shutdown import Shutdown
from api.http.sse import KEEP_ALIVE, LINE_LIMIT_BYTES, Stream, frame, last_comment
from api.job.catalog import Catalog
from api.job.result_feed import ResultFeed
from api.job.submission import SubmitDeps, submit_new
from api.openapi.operation import Body, Text
from api.routes.jobs import AFTER_EVENT, LAST_EVENT_ID, accepted
from api.routes.route import Call, Routes
from api.routes.stream import parse_cursor
from api.view.job import AcceptedJobView, JobView
from eventing.cloudevent import request_id
from eventing.cloudevent.event import Event, build_binary, build_structured, parse_http
from eventing.cloudevent.job_event import REQUESTED, attempt_of, job_id_of, job_of, unreadable_job
from eventing.cloudevent.result_event import RESULT_TYPES, ending_of, result_event
from eventing.cloudevent.webhook_handshake import handshake
from eventing.errors import BadRequest, InvalidJob, Unavailable
from eventing.job.job import API_SOURCE, OUR_SOURCES, JobError, JobState
from eventing.job.store import Ending, JobIntake, LeaseStatus
from eventing.job.stream import cursor_order
from eventing.process.body import BodyReader
from eventing.telemetry import trace
from eventing.telemetry.span import followable


@dataclass(frozen=True, slots=True, kw_only=True)
class EventDeps:
    """The dependencies of `/v1/events` and `/internal/events`."""

    submission: SubmitDeps
    store: JobIntake
    catalog: Catalog
    results: ResultFeed
    events: BodyReader
    shutdown: Shutdown
    keep_alive_s: float


routes: Routes[EventDeps] = Routes("events")
_log = structlog.get_logger()

_NOT_EMPTY: Final = {"type": "string", "minLength": 1}
_EVENT: Final = Body(
    "CloudEvent",
    {
        "type": "object",
        "required": ["specversion", "id", "source", "type"],
        "description": "A CloudEvent in structured mode; `data` of a request is a JobRequest",
        "properties": {
            "specversion": {"const": "1.0"},
            "id": _NOT_EMPTY,
            "source": _NOT_EMPTY | {"description": "with `id`, what names the job"},
            "type": _NOT_EMPTY | {"description": REQUESTED},
            "datacontenttype": {"type": "string"},
            "correlationid": {"type": "string", "description": "your own id of it"},
            "data": {},
        },
    },
    "application/cloudevents+json",
)
_RESULTS: Final = Text(
    "Results until you leave; `gap` when some were forgotten",
    "text/event-stream",
    "id: 1764000000000-0\nevent: dev.torpor.inference.completed.v1\n"
    'data: {"specversion":"1.0","id":"job_0123456789abcdef01234567:completed:1",'
    '"source":"/torpor/jobs","type":"dev.torpor.inference.completed.v1",'
    '"subject":"job_0123456789abcdef01234567","data":{"state":"completed"}}\n\n',
)


@routes.operation(
    "POST",
    "/v1/events",
    Scope.EVENTS_WRITE,
    body=_EVENT,
    answers={200: JobView, 202: AcceptedJobView},
    refuses=(504,),
)
async def take_event(call: Call[EventDeps]) -> Response:
    """Submit a job by CloudEvent.

    Binary or structured mode. The same `source` and `id` is the same job. The tenant is the caller's, whatever the
    event says. `correlationid`, or else `X-Request-Id`, is stored as the job's request id.
    """
    event = await _read_event(call)
    if event.type != REQUESTED:
        raise InvalidJob(f"type must be {REQUESTED}", "type")
    if event.source.startswith(OUR_SOURCES):
        raise InvalidJob("this source is reserved; use your own", "source")
    asked_as = {request_id.EXTENSION: call.request.headers.get("x-request-id", "")}
    tenant = {"tenant": call.principal.tenant}
    new = job_of(replace(event, extensions={**asked_as, **event.extensions, **tenant}))
    job, _ = await submit_new(call.deps.submission, call.principal, new)
    return accepted(job)


@routes.operation(
    "GET",
    "/v1/events",
    Scope.JOBS_READ,
    parameters=(LAST_EVENT_ID, AFTER_EVENT),
    answers=_RESULTS,
    refuses=(404,),
)
async def follow_events(call: Call[EventDeps]) -> Response:
    """Follow the results of all your jobs (server-sent events).

    Each is a CloudEvent in structured mode, with its type as the event's name. Starts at the present, or after
    `Last-Event-ID` (or `?after=`; `0-0` for all that are kept). An event can be repeated, with the same `id`.
    """
    await call.hold_stream()
    feed, tenant = call.deps.results, call.principal.tenant
    feed.check_room(tenant)
    request = call.request
    text = request.headers.get("last-event-id") or request.query_params.get("after", "")
    after = parse_cursor(text)
    is_behind = (
        bool(after) and cursor_order(after) > (0, 0) and await feed.has_forgotten(tenant, after)
    )
    frames = _result_frames(feed, tenant, after or await feed.newest(tenant), is_behind=is_behind)
    return Stream(frames, keep_alive_s=call.deps.keep_alive_s, shutdown=call.deps.shutdown)


async def _result_frames(
    feed: ResultFeed, tenant: str, after: str, *, is_behind: bool
) -> AsyncGenerator[bytes, None]:
    """Frames of the results after a cursor, until the reader leaves."""
    if is_behind:
        yield frame("gap", {"after": after})
    try:
        async with feed.reading(tenant):
            yield KEEP_ALIVE  # the head goes out with it
            while True:
                seen = after
                async for ended in feed.page(tenant, after):
                    after = ended.cursor
                    if ended.job is not None:
                        event = result_event(ended.job, inline_bytes=LINE_LIMIT_BYTES)
                        data = orjson.Fragment(build_structured(event)[1])
                        yield frame(event.type, data, cursor=after)
                if after == seen:
                    await feed.grew(tenant, after)
    except Unavailable as error:
        yield last_comment(error.message)  # it comes back with its last id


@routes.operation(
    "POST", "/internal/events", Scope.RESULTS_WRITE, answers={202: Text("")}, is_public=False
)
async def take_result(call: Call[EventDeps]) -> Response:
    """Deliver a result event (the broker's trigger).

    Any 2xx means that it is stored. A job that has ended already, as it has when the predictor shares the store, is
    unchanged: the first terminal state wins.
    """
    event = await _read_event(call)
    parent = followable(call.request.headers.get("traceparent", ""))
    parent = parent or event.extensions.get("traceparent", "")
    with trace.span("result", parent=parent, job_id=event.subject, type=event.type):
        return await _take_result(call.deps, event)


async def _take_result(deps: EventDeps, event: Event) -> Response:
    if event.type == REQUESTED:
        return await _take_stray(deps, event)
    if event.type not in RESULT_TYPES:
        return Response(status_code=202)  # a trigger without a filter; nothing to do
    job_id, ending = ending_of(event)
    hold = await deps.store.conclude(job_id, ending, attempt=attempt_of(event))
    if hold in (LeaseStatus.HELD, LeaseStatus.FENCED):
        # An attempt with a live lease owns the end of this job; one that is over owns nothing.
        _log.warning("result of another attempt", action="result", job_id=job_id, hold=hold)
    return Response(status_code=202)


async def _take_stray(deps: EventDeps, event: Event) -> Response:
    """A request event that matched no model's trigger: its `model` attribute is missing or unknown.

    When its body names a model that is served, the reply is the same event with the attribute set, and the broker
    routes it. An event that already had the attribute would be replied to for ever, so it is not. Otherwise the job
    is recorded as failed, so that nothing is lost silently.
    """
    try:
        new = job_of(event)
        await deps.catalog.check(new.request)
        if event.extensions.get("model") == new.request.model:
            raise InvalidJob("no trigger takes jobs of this model", "body.model")
    except BadRequest as error:
        reason = JobError(code=error.code, message=error.message, field=error.field)
        if event.source == API_SOURCE or not await deps.store.reject(
            unreadable_job(event), reason, event.data
        ):  # recorded before it came here: by our api, or by the broker's ingress
            ending = Ending(state=JobState.FAILED, error=reason, is_dead_letter=True)
            await deps.store.conclude(job_id_of(event), ending)
        return Response(status_code=202)
    extensions = {**event.extensions, "model": new.request.model}
    headers, body = build_binary(replace(event, extensions=extensions))
    return Response(body, headers=headers)


async def _read_event(call: Call[EventDeps]) -> Event:
    return parse_http(call.request.headers, await call.deps.events.read(call.request))


def handshake_router(origins: Sequence[str]) -> APIRouter:
    """OPTIONS for senders that ask for permission first. No key is needed, since it says what may be sent, not by
    whom.
    """
    router = APIRouter(include_in_schema=False)

    @router.options("/v1/events")
    async def ask_to_send(request: Request) -> Response:
        allowed = handshake(request.headers, origins)
        return Response(headers={"allow": "GET, HEAD, OPTIONS, POST", **allowed})

    return router
