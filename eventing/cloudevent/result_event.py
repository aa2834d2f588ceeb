"""Result events: how a job ended, written from its record and read back.

Called by the predictor, which replies with them, and by the api, which reads them and shows the same views. Event types
are a public contract and carry a version; their JSON Schemas are in `docs/schemas`. Pure: no I/O.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson
from typing_extensions import TypedDict

from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import common_extensions, rfc3339, sendable
from eventing.errors import InvalidJob
from eventing.job.answer_links import shown_result
from eventing.job.cache.cache import CacheUse
from eventing.job.call.reasoning import body_with_both_names
from eventing.job.job import Job, JobError, JobId, JobState, is_job_id
from eventing.job.store import Ending

COMPLETED: Final = "dev.torpor.inference.completed.v1"
FAILED: Final = "dev.torpor.inference.failed.v1"
CANCELLED: Final = "dev.torpor.inference.cancelled.v1"
RESULT_TYPES: Final = (COMPLETED, FAILED, CANCELLED)
RESULT_SOURCE: Final = "/torpor/jobs"
DATAREF_ABOVE_BYTES: Final = 64 * 1024
"""A larger result travels as `dataref`, to keep events small (Kafka's broker limits an event to 1 MiB)."""
_TOKEN_COUNTS: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
_MOST_TOKENS: Final = 2**40
"""Largest token count accepted; exact in every JSON reader."""


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
    extensions |= sendable({"model": job.request.model} | common_extensions(job))
    encoded = orjson.dumps(data)
    if len(encoded) > inline_bytes or job.archived_bytes:
        extensions["dataref"] = f"/v1/jobs/{job.id}/result"
        encoded = orjson.dumps(data | {"response": None})
    return Event(
        id=f"{job.id}:{job.state}:{job.attempt}",
        source=RESULT_SOURCE,
        type=_RESULT_TYPE[job.state],
        subject=job.id,
        time=rfc3339(job.finished_ms),
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
        for turn in job.told_turns
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
