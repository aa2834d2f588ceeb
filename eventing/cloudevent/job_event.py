"""Conversion between CloudEvents and jobs: request events and result events.

Called by the api and the outbox (request events), the predictor (reads requests, replies with results) and the api
again (reads results). Event types are a public contract and carry a version; their JSON Schemas are in
`docs/schemas`. Pure: no I/O.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from typing_extensions import TypedDict

from eventing.cloudevent import request_id
from eventing.cloudevent.event import Event
from eventing.errors import InvalidJob
from eventing.job.answer_links import shown_result
from eventing.job.cache import CacheUse, directives
from eventing.job.call.reasoning import body_with_both_names
from eventing.job.job import (
    DEFAULT_TENANT,
    NO_FALLBACK,
    OUR_SOURCES,
    REQUEST_FIELDS,
    Job,
    JobError,
    JobId,
    JobRequest,
    JobState,
    Lane,
    derive_job_id,
    is_job_id,
    parse_request,
)
from eventing.job.plan import Plan
from eventing.job.store import Ending, NewJob
from eventing.telemetry.span import followable

REQUESTED: Final = "dev.torpor.inference.requested.v1"
"""A job is asked for. Where its model has steps, their plan is still to be made."""
PLANNED: Final = "dev.torpor.inference.planned.v1"
"""A step of a job is next: the one that the extension `step` names (docs/adr/0210)."""
PREPARED: Final = "dev.torpor.inference.prepared.v1"
"""A job whose steps are done, or that needs none where others do: its predictor is next."""
REQUEST_TYPES: Final = (REQUESTED, PLANNED, PREPARED)
"""The types of the events that bring a job to its next station. All events of a job have one identity."""
STEP: Final = "step"
"""The extension with the name of the next step."""
COMPLETED: Final = "dev.torpor.inference.completed.v1"
FAILED: Final = "dev.torpor.inference.failed.v1"
CANCELLED: Final = "dev.torpor.inference.cancelled.v1"
RESULT_TYPES: Final = (COMPLETED, FAILED, CANCELLED)

CACHE_CONTROL: Final = "cachecontrol"
"""Extension with the caller's directives, as in the header `Cache-Control`."""
FALLBACK: Final = "fallback"
"""Extension that is `none` where no other model or provider than the one that was asked may answer."""
RESULT_SOURCE: Final = "/torpor/jobs"
MINIMAL: Final = "return=minimal"
"""`Prefer` (RFC 7240) of a delivery whose result event no subscriber would take."""
DATAREF_ABOVE_BYTES: Final = 64 * 1024
"""A larger result travels as `dataref`, to keep events small (Kafka's broker limits an event to 1 MiB)."""

_EXTENSION_BYTES: Final = 1024
_TENANT_BYTES: Final = 64
_TOKEN_COUNTS: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
_MOST_TOKENS: Final = 2**40
"""Largest token count accepted; exact in every JSON reader."""


def request_event(job: Job) -> Event:
    """The event that brings `job` to its next step, or to its predictor. The same job always gives the same
    identity, so a second event in the same queue is a duplicate.
    """
    optional = _carried(job) | {"expirytime": _rfc3339(job.deadline_ms)}
    if not job.allows_fallback:
        optional[FALLBACK] = NO_FALLBACK
    if (
        job.attempt
    ):  # a predictor with another store would otherwise treat a redriven job as a duplicate
        optional["attempt"] = str(job.attempt)
    return Event(
        id=job.event_id or job.id,
        source=job.source,
        type=_request_type(job),
        subject=job.id,
        time=_rfc3339(job.created_ms),
        datacontenttype="application/json",
        extensions={"tenant": job.tenant, "priority": job.lane}
        | _sendable({"model": job.to_run.model, STEP: job.step} | optional),
        data=job.to_run.to_json(),
    )


def planned_event(event: Event, plan: Plan | None) -> Event:
    """A request event as it goes on under the plan that was made for it."""
    if plan is None:
        return event
    if not plan.first:
        return replace(event, type=PREPARED)
    return replace(event, type=PLANNED, extensions={**event.extensions, STEP: plan.first})


def _request_type(job: Job) -> str:
    if job.plan is None:
        return REQUESTED
    return PLANNED if job.step else PREPARED


def job_id_of(event: Event) -> JobId:
    """The id of the job that a request event asks for, whether it can be one or not."""
    return derive_job_id(event.source, event.id, event.extensions.get("tenant", ""))


def job_of(event: Event) -> NewJob:
    """The job that a request event asks for. Raises `InvalidJob` naming the field; of an event of ours, fields of
    a newer version are left out.
    """
    is_ours = event.source.startswith(OUR_SOURCES)
    request = parse_request(event.data, known=() if is_ours else REQUEST_FIELDS)
    asked_as = request_id.checked(event.extensions.get(request_id.EXTENSION, ""))
    lane = event.extensions.get("priority", Lane.DEFAULT)
    if lane not in list(Lane):
        raise InvalidJob(f"priority must be one of {', '.join(Lane)}", "priority")
    fallback = event.extensions.get(FALLBACK, "")
    if fallback not in ("", NO_FALLBACK):
        raise InvalidJob(f"{FALLBACK} must be {NO_FALLBACK}", FALLBACK)
    return NewJob(
        id=job_id_of(event),
        request=request,
        source=event.source,
        event_id=event.id,
        tenant=tenant_of(event),
        lane=Lane(lane),
        deadline_ms=_deadline_ms(event.extensions.get("expirytime", "")),
        traceparent=followable(event.extensions.get("traceparent", "")),
        metadata={request_id.KEPT: asked_as} if asked_as else {},
        cache_control=directives(event.extensions.get(CACHE_CONTROL, ""), request.body),
        fallback=fallback,
        attempt=attempt_of(event) or 0,
    )


def attempt_of(event: Event) -> int | None:
    """The attempt number in an event; None when it is not set."""
    text = event.extensions.get("attempt", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 7 else None


def unreadable_job(event: Event) -> NewJob:
    """The record of a request event that is not a valid job: under the derived id, owned by the tenant that it
    names.
    """
    try:
        tenant = tenant_of(event)
    except InvalidJob:
        tenant = DEFAULT_TENANT
    return NewJob(
        id=job_id_of(event),
        request=JobRequest(url="", body={}),
        source=event.source,
        event_id=event.id,
        tenant=tenant,
    )


def tenant_of(event: Event) -> str:
    """The tenant of an event. Raises `InvalidJob` for an invalid name."""
    tenant = event.extensions.get("tenant", DEFAULT_TENANT)
    if not tenant or len(tenant.encode()) > _TENANT_BYTES or not tenant.isprintable():
        raise InvalidJob(f"tenant must be 1 to {_TENANT_BYTES} printable bytes", "tenant")
    return tenant


def result_event(job: Job, *, inline_bytes: int = DATAREF_ABOVE_BYTES) -> Event:
    """The result event of an ended `job`; the same ending always gives the same identity.

    Data: `{id, state, attempt, model, custom_id, response, usage, error, timings, attempts}`, and `tools` of a job that
    called some; above `inline_bytes` the `response` is left out, and `dataref` is its address.
    """
    data: dict[str, Any] = {
        "id": job.id,
        "state": job.state,
        "attempt": job.attempt,
        "model": job.request.model,
        "custom_id": job.request.custom_id,
        "response": body_with_both_names(shown_result(job)),
        "usage": job.usage,
        "error": job.error.to_dict() if job.error else None,
        "timings": timings(job),
        "attempts": [
            {
                "attempt": a.attempt,
                "outcome": a.outcome,
                "started_ms": a.started_ms,
                "ended_ms": a.ended_ms,
            }
            for a in job.history
        ],
    }
    if job.cache is not None:
        data |= {"cache": cache_view(job.cache), "saved_usage": job.cache.saved_usage}
    if job.turns:
        data["tools"] = tools_used(job)
    extensions = {"tenant": job.tenant, "attempt": str(job.attempt)}
    extensions |= _sendable({"model": job.request.model} | _carried(job))
    encoded = orjson.dumps(data)
    if len(encoded) > inline_bytes or job.archived_bytes:
        extensions["dataref"] = f"/v1/jobs/{job.id}/result"
        encoded = orjson.dumps(data | {"response": None})
    return Event(
        id=f"{job.id}:{job.state}:{job.attempt}",
        source=RESULT_SOURCE,
        type=_RESULT_TYPE[job.state],
        subject=job.id,
        time=_rfc3339(job.finished_ms),
        datacontenttype="application/json",
        extensions=extensions,
        data=encoded,
    )


class ToolsUsed(TypedDict):
    """The tools that a job called, without arguments and results: an event goes to each subscriber."""

    turns: int
    calls: list[dict[str, Any]]
    stopped_by: str | None
    calls_in_doubt: int


def tools_used(job: Job) -> ToolsUsed:
    """What an ended job called, and how many calls may have happened of which no result is known."""
    calls = [
        call
        for turn in job.turns
        for call in turn.calls
        if not (turn.carried and call.carried)  # it ran in the job that left it
    ]
    return {
        "turns": len(job.turns),
        "calls": [
            {
                "turn": call.turn,
                "place": call.place,
                "name": call.name,
                "server": call.server or None,
                "tool": call.tool or None,
                "state": call.state,
                "is_error": bool(call.is_error),
                "sends": call.sends,
                "ms": call.ended_ms - call.sent_ms if call.sent_ms and call.ended_ms else None,
            }
            for call in calls
        ],
        "stopped_by": job.turns[-1].stopped_by or None,
        "calls_in_doubt": sum(call.state.may_have_run for call in calls),
    }


class CacheView(TypedDict):
    """How the exact cache served a job."""

    status: str
    kind: str | None
    key: str | None
    age_s: int | None
    source_job: str | None
    similarity: float | None
    reason: str | None


def cache_view(use: CacheUse) -> CacheView:
    """The same as events and the api tell it."""
    return {
        "status": use.status,
        "kind": use.kind,
        "key": use.key or None,
        "age_s": use.age_s if use.is_hit else None,
        "source_job": use.source_job or None,
        "similarity": use.similarity,
        "reason": use.reason or None,
    }


def _carried(job: Job) -> dict[str, str]:
    """Extensions that every event of a job carries, as far as they are set."""
    return {
        "traceparent": followable(job.traceparent),
        CACHE_CONTROL: job.cache_control,
        request_id.EXTENSION: job.metadata.get(request_id.KEPT, ""),
    }


def ending_of(event: Event) -> tuple[JobId, Ending]:
    """The job id and the ending in a result event. Raises `InvalidJob` naming the first invalid field; all fields
    are checked, since the ending is stored and read for as long as the job is kept.
    """
    if not is_job_id(event.subject):
        raise InvalidJob("subject must be a job id", "subject")
    try:
        data = orjson.loads(event.data)
    except orjson.JSONDecodeError as cause:
        raise InvalidJob(f"data is not JSON: {cause.msg} at {cause.pos}", "data") from cause
    if not isinstance(data, dict):
        raise InvalidJob("data must be a JSON object", "data")
    if data.get("id", event.subject) != event.subject:
        raise InvalidJob("data.id must be the subject", "data.id")
    state = _ended_state(event.type, data.get("state"))
    ending = Ending(
        state=state,
        result=_object_or_none(data, "response"),
        usage=_usage(data),
        error=_error(data, is_needed=state is JobState.FAILED),
    )
    return JobId(event.subject), ending


def _ended_state(type_: str, state: Any) -> JobState:
    ends = [str(each) for each, told_by in _RESULT_TYPE.items() if told_by == type_]
    if state not in ends:
        raise InvalidJob(f"data.state must be {' or '.join(ends)} with this type", "data.state")
    return JobState(state)


def _object_or_none(data: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    value = data.get(name)
    if value is not None and not isinstance(value, dict):
        raise InvalidJob(f"data.{name} must be an object or null", f"data.{name}")
    return value


def _usage(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    usage = _object_or_none(data, "usage")
    for name in _TOKEN_COUNTS:
        count = (usage or {}).get(name, 0)
        if type(count) is not int or not 0 <= count <= _MOST_TOKENS:
            raise InvalidJob(f"data.usage.{name} must be a number of tokens", f"data.usage.{name}")
    return usage


def _error(data: Mapping[str, Any], *, is_needed: bool) -> JobError | None:
    error = _object_or_none(data, "error")
    if error is None:
        if is_needed:
            raise InvalidJob("data.error must be set for a failed job", "data.error")
        return None
    found = {name: error.get(name, "") for name in ("code", "message", "field")}
    for name, value in found.items():
        if not isinstance(value, str):
            raise InvalidJob(f"data.error.{name} must be a string", f"data.error.{name}")
    if not found["code"]:
        raise InvalidJob("data.error.code must not be empty", "data.error.code")
    return JobError(**found)


class Timings(TypedDict, total=False):
    """The duration of each phase in milliseconds of store time; those that have not ended are left out."""

    queued_ms: int
    first_token_ms: int
    total_ms: int


def timings(job: Job) -> Timings:
    """The duration of each phase so far."""
    spans: Timings = {}
    if job.started_ms:
        spans["queued_ms"] = job.started_ms - job.created_ms
    if job.first_token_ms:
        spans["first_token_ms"] = job.first_token_ms - job.created_ms
    if job.finished_ms:
        spans["total_ms"] = job.finished_ms - job.created_ms
    return spans


_RESULT_TYPE: Final = {
    JobState.COMPLETED: COMPLETED,
    JobState.INCOMPLETE: COMPLETED,
    JobState.FAILED: FAILED,
    JobState.CANCELLED: CANCELLED,
}


def _rfc3339(epoch_ms: int) -> str:
    if not epoch_ms:
        return ""
    return (
        datetime.fromtimestamp(epoch_ms / 1000, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def _deadline_ms(expirytime: str) -> int:
    if not expirytime:
        return 0
    try:
        moment = datetime.fromisoformat(expirytime)
    except ValueError as error:
        raise InvalidJob("expirytime must be an RFC 3339 time", "expirytime") from error
    if moment.tzinfo is None:
        raise InvalidJob("expirytime must carry a time zone", "expirytime")
    try:
        epoch_ms = int(moment.astimezone(UTC).timestamp() * 1000)
    except OverflowError as error:  # within a day of the years 1 or 9999
        raise InvalidJob(
            "expirytime must be a time between the years 1 and 9999", "expirytime"
        ) from error
    return max(epoch_ms, 1)  # 0 means no deadline


def _sendable(extensions: Mapping[str, str]) -> dict[str, str]:
    """The extensions whose value is set and fits into a header. The model is in the data as well."""
    return {k: v for k, v in extensions.items() if v and len(v.encode()) <= _EXTENSION_BYTES}
