"""The job in a record's fields, whole or as lists show it.

Called by both stores. Fields that a newer version wrote are left out.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Final

import orjson

from eventing.job.cache.cache import CacheUse, cache_use_of
from eventing.job.job import AttemptRecord, Job, JobId, JobRequest, JobState, Lane, error_of
from eventing.job.plan import StepRecord, StepStatus, plan_of_json
from eventing.job.prompt import prompt_start
from eventing.job.store import ListField, NewJob
from eventing.job.tools.call import turns_of
from eventing.known_fields import check_version, known_fields, known_value
from eventing.store.objects.object_ref import ObjectRef

LIST_FIELDS: Final = (
    "state",
    "tenant",
    "lane",
    "model",
    "url",
    "custom_id",
    "source",
    "event_id",
    "attempt",
    "token_count",
    "created_ms",
    "started_ms",
    "first_token_ms",
    "finished_ms",
    "deadline_ms",
    "usage",
    "error",
    "dead",
    "gpu_ms",
    "history",
    "labels",
    "traceparent",
    "lease_owner",
    "lease_until_ms",
    "announced",
    "fenced",
    "object",
    "cache",
    "follows",
    "plan",
    "step",
    "pipeline",
    "incomplete",
    "candidate_state",
    "fallback",
    "routing",
)
"""Fields that lists read: neither prompt nor answer."""


def fresh(new: NewJob, created_ms: int) -> Job:
    """The job just recorded, without reading it back."""
    return Job(
        id=new.id,
        state=JobState.QUEUED,
        request=new.request,
        tenant=new.tenant,
        lane=new.lane,
        source=new.source,
        event_id=new.event_id,
        traceparent=new.traceparent,
        created_ms=created_ms,
        deadline_ms=new.deadline_ms,
        metadata=new.metadata,
        conversation=new.turn.id if new.turn else "",
        prompt=prompt_start(new.request),
        cache_control=new.cache_control,
        fallback=new.fallback,
        cache=new.cache.use if new.cache else None,
        plan=new.plan,
        step=new.plan.first if new.plan else "",
        turns=(new.carried.turn,) if new.carried else (),
    )


_LANES: Final = {str(lane): lane for lane in Lane}


_TEXTS: Final = (
    *("tenant", "source", "event_id", "traceparent", "lease_owner", "conversation"),
    *(
        "cache_control",
        "fallback",
        "follows",
        "prompt",
        "step",
        "incomplete",
        "tool_list",
        "sealed",
        "carried_by",
    ),
)
"""Texts of a record that the job has under the same name."""


_NUMBERS: Final = (
    *("attempt", "token_count", "created_ms", "started_ms", "first_token_ms", "finished_ms"),
    *("deadline_ms", "lease_until_ms", "gpu_ms", "turn_begin", "epoch"),
)
"""Numbers of a record that the job has under the same name."""
_RAW_NAMES: Final = {name: name.encode() for name in (*_TEXTS, *_NUMBERS)}


def parse_job(job_id: JobId, record: Mapping[bytes, bytes]) -> Job | None:
    """The job in a hash; None when the hash is empty or incomplete because the job has expired."""
    if b"state" not in record:
        return None
    check_version(record.get(b"v"))

    def value(name: bytes) -> Any:
        return orjson.loads(record[name]) if name in record else None

    plain: dict[str, Any] = {name: _text(record, _RAW_NAMES[name]) for name in _TEXTS}
    plain |= {name: int(record.get(_RAW_NAMES[name]) or 0) for name in _NUMBERS}
    if (calling := value(b"calling")) and calling.get("paused_ms"):
        plain["deadline_ms"] = 0  # it stands still while only people are awaited
    cache = cache_use_of(record[b"cache"]) if b"cache" in record else None
    usage = value(b"usage")
    return Job(
        **plain,
        id=job_id,
        state=known_value(JobState, _text(record, b"state")),
        request=request_of(record[b"request"]) if b"request" in record else _listed_request(record),
        lane=_LANES.get(_text(record, b"lane"), Lane.DEFAULT),
        result=served_again(job_id, value(b"result"), usage, plain["created_ms"], cache),
        archived_bytes=archived_bytes(record),
        usage=usage,
        error=error_of(value(b"error")) if b"error" in record else None,
        is_dead_letter=record.get(b"dead") == b"1",
        refused_writes=int(record.get(b"fenced") or 0),
        history=_history(record.get(b"history", b"[]")),
        metadata=value(b"metadata") or value(b"labels") or {},
        cache=cache,
        routing=value(b"routing"),
        plan=plan_of_json(record[b"plan"]) if b"plan" in record else None,
        pipeline=_pipeline(record.get(b"pipeline", b"")),
        prepared=request_of(record[b"prepared"]) if b"prepared" in record else None,
        turns=turns_of(record),
        late_results=value(b"late_results") or (),
        candidate=value(b"candidate"),
        candidate_state=known_value(JobState, _text(record, b"candidate_state"))
        if b"candidate_state" in record
        else None,
    )


def _text(record: Mapping[bytes, bytes], name: bytes) -> str:
    return record.get(name, b"").decode("utf-8", "replace")


def served_again(
    job_id: JobId, result: Any, usage: Any, created_ms: int, cache: CacheUse | None
) -> Any:
    """The result as the job's own: a kept answer has the id and the time of the job that gave it, and cost this one
    no tokens.
    """
    if cache is None or not cache.is_hit or not isinstance(result, dict):
        return result
    kind = str(result.get("id", "")).partition("-")[0]
    own = {
        "id": f"{kind}-{job_id.removeprefix('job_')}",
        "created": created_ms // 1000,
        "usage": usage,
    }
    return result | {name: each for name, each in own.items() if name in result}


def archived_bytes(record: Mapping[bytes, bytes]) -> int:
    """How much of a result is in the object store; 0 where it is in the record."""
    ref = ObjectRef.parse(record[b"object"]) if b"object" in record else None
    return ref.result_bytes if ref else 0


def listed(job: Job, include: Collection[ListField]) -> Job:
    """The job as it appears in a list: without the fields not in `include`."""
    request = JobRequest(
        url=job.request.url, body={"model": job.request.model}, custom_id=job.request.custom_id
    )
    return replace(
        job,
        request=job.request if ListField.REQUEST in include else request,
        result=job.result if ListField.RESULT in include else None,
        prompt=job.prompt if ListField.PROMPT in include else "",
    )


def _listed_request(record: Mapping[bytes, bytes]) -> JobRequest:
    model, url, custom_id = (record.get(n, b"").decode() for n in (b"model", b"url", b"custom_id"))
    return JobRequest(url=url, body={"model": model}, custom_id=custom_id or None)


def request_of(raw: bytes) -> JobRequest:
    """The request as recorded; that of an invalid event (a dead letter) as far as it can be parsed."""
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return JobRequest(url="", body={"raw": raw.decode("utf-8", "replace")})
    if not isinstance(line, dict) or not isinstance(line.get("body"), dict):
        return JobRequest(url="", body={"raw": line})
    return JobRequest(
        url=str(line.get("url", "")), body=line["body"], custom_id=line.get("custom_id")
    )


def _pipeline(text: bytes) -> tuple[StepRecord, ...]:
    """The steps that have begun: one line each (`put_step` in `_job.lua`)."""
    records = []
    for line in text.splitlines():
        name, status, started, ended, runs, detail = line.split(b" ", 5)
        records.append(
            StepRecord(
                step=name.decode(),
                status=known_value(StepStatus, status.decode()),
                started_ms=int(started),
                ended_ms=int(ended),
                attempts=int(runs),
                detail=orjson.loads(detail),
            )
        )
    return tuple(records)


def _history(text: bytes) -> tuple[AttemptRecord, ...]:
    attempts = orjson.loads(text)
    return (
        tuple(AttemptRecord(**known_fields(AttemptRecord, attempt)) for attempt in attempts)
        if isinstance(attempts, list)
        else ()
    )
