"""Request events: a job that is asked for, or that goes on to its next step.

Called by the api and the outbox, which write them, and by the predictor and the steps, which read them. Event types
are a public contract and carry a version; their JSON Schemas are in `docs/schemas`. Pure: no I/O.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from eventing.cloudevent import request_id
from eventing.cloudevent.event import Event
from eventing.errors import InvalidJob
from eventing.job.cache.cache import directives
from eventing.job.job import (
    DEFAULT_TENANT,
    NO_FALLBACK,
    OUR_SOURCES,
    REQUEST_FIELDS,
    Job,
    JobId,
    JobRequest,
    Lane,
    derive_job_id,
    parse_request,
)
from eventing.job.plan import Plan
from eventing.job.store import NewJob
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

TURN: Final = "turn"
"""The extension with the number of a later turn of a job: its record has the turns before."""

CACHE_CONTROL: Final = "cachecontrol"
"""Extension with the caller's directives, as in the header `Cache-Control`."""
FALLBACK: Final = "fallback"
"""Extension that is `none` where no other model or provider than the one that was asked may answer."""
MINIMAL: Final = "return=minimal"
"""`Prefer` (RFC 7240) of a delivery whose result event no subscriber would take."""

_EXTENSION_BYTES: Final = 1024
_TENANT_BYTES: Final = 64


def request_event(job: Job) -> Event:
    """The event that brings `job` to its next step, or to its predictor. The same job always gives the same
    identity, so a second event in the same queue is a duplicate.
    """
    optional = common_extensions(job) | {"expirytime": rfc3339(job.deadline_ms)}
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
        time=rfc3339(job.created_ms),
        datacontenttype="application/json",
        extensions={"tenant": job.tenant, "priority": job.lane}
        | sendable({"model": job.to_run.model, STEP: job.step} | optional),
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


def common_extensions(job: Job) -> dict[str, str]:
    """Extensions that every event of a job carries, as far as they are set."""
    return {
        "traceparent": followable(job.traceparent),
        CACHE_CONTROL: job.cache_control,
        request_id.EXTENSION: job.metadata.get(request_id.KEPT, ""),
    }


def rfc3339(epoch_ms: int) -> str:
    """The time as events and views write it; empty for 0."""
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


def sendable(extensions: Mapping[str, str]) -> dict[str, str]:
    """The extensions whose value is set and fits into a header. The model is in the data as well."""
    return {k: v for k, v in extensions.items() if v and len(v.encode()) <= _EXTENSION_BYTES}
