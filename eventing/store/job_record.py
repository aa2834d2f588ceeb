"""A job as fields of a Redis hash: the only module with those field names.

Called by both stores. The Lua scripts write the fields that a transition changes, under the same names.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from eventing.errors import ResultTooLarge
from eventing.job.cache import CacheUse, cache_use_of
from eventing.job.job import KEY, AttemptRecord, Job, JobId, JobRequest, JobState, Lane, error_of
from eventing.job.moderation.withheld import without_text
from eventing.job.plan import Hold, Plan, StepRecord, StepStatus, plan_of_json
from eventing.job.prompt import prompt_prefix, prompt_start
from eventing.job.store import ConversationTurn, Ending, ListField, NewJob
from eventing.job.tools.call import turns_of
from eventing.known_fields import check_version, known_fields, known_value
from eventing.redis import keys
from eventing.store.objects.object_ref import ObjectRef

Field = str | bytes | int

MAX_RESULT_BYTES: Final = 32 * 1024 * 1024
"""Largest result. Redis serves no other command while it copies one: 0.4 s for this size, and more than the 2.5 s
after which everything takes the store for gone at 100 MiB on a busy machine (measured).
"""


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
LABELS_BYTES: Final = 16 * 1024
"""Larger metadata may contain a prompt (of a response); its short entries are stored separately for lists."""
_LABEL_CHARS: Final = 512


def new_fields(
    new: NewJob, request: bytes, queues: Sequence[str] = (), after_queues: Sequence[str] = ()
) -> list[Field]:
    """Names and values, in turn, of a job that is being recorded with its event in `queues`; that of its first step
    after the predictor will be in `after_queues`.
    """
    pairs: dict[str, Field] = {
        "request": request,
        **shown_fields(new.request),
        "tenant": new.tenant,
        "lane": new.lane,
        "source": new.source,
        "event_id": new.event_id,
        "deadline_ms": new.deadline_ms,
    }
    if (name := keys.escape(new.tenant)) != new.tenant:
        pairs["tenant_key"] = name
    if queues:
        pairs["queues"] = orjson.dumps(queues)
    optional = {
        "cache_control": new.cache_control,
        "fallback": new.fallback,
        "options_sha": new.options_sha,
        "sealed": new.sealed,
        "traceparent": new.traceparent,
    }
    pairs |= {name: text for name, text in optional.items() if text}
    if new.cache is not None:
        pairs["cache"] = new.cache.use.to_json()
    pairs |= _plan_pairs(new.plan, after_queues)
    pairs |= _prefix_pairs(new)
    if new.carried is not None:
        pairs |= new.carried.to_fields()
    if new.turn:
        pairs["conversation"] = new.turn.id
        pairs["turn"] = orjson.dumps(_turn_items(new.id, new.turn))
    pairs |= _metadata_pairs(new.metadata)
    return [item for pair in pairs.items() for item in pair]


def _metadata_pairs(metadata: Mapping[str, str]) -> dict[str, Field]:
    if not metadata:
        return {}
    pairs: dict[str, Field] = {"metadata": (raw := orjson.dumps(dict(metadata)))}
    if key_id := metadata.get(KEY):
        pairs["key_id"] = key_id
    if len(raw) > LABELS_BYTES:
        short = {n: text for n, text in metadata.items() if len(text) <= _LABEL_CHARS}
        pairs["labels"] = orjson.dumps(short)
    return pairs


def _prefix_pairs(new: NewJob) -> dict[str, Field]:
    prefix = prompt_prefix(new)
    return {"prefix": prefix} if prefix else {}


def _turn_items(job_id: JobId, turn: ConversationTurn) -> list[str]:
    """Ids and items (JSON), in turn, as the script that ends the job appends them."""
    asked = [item for item in turn.items if item["type"] != "compaction"]
    named = [(turn_item_id(job_id, place), item) for place, item in enumerate(asked)]
    compacted = [item for item in turn.items if item["type"] == "compaction"]
    named = [*((compaction_id(job_id), item) for item in compacted), *named]
    return [
        text for name, item in named for text in (name, orjson.dumps({**item, "id": name}).decode())
    ]


def compaction_id(job_id: JobId) -> str:
    """The id of the item that a response was given in place of what was said before."""
    return f"cmp_{job_id.removeprefix('job_')}"


def turn_item_id(job_id: JobId, place: int) -> str:
    """The id of an item that a response was asked."""
    return f"item_{job_id.removeprefix('job_')}_{place}"


def plan_fields(plan: Plan | None, after_queues: Sequence[str] = ()) -> list[Field]:
    """Names and values, in turn, of a job's plan; none without one."""
    return [item for pair in _plan_pairs(plan, after_queues).items() for item in pair]


def _plan_pairs(plan: Plan | None, after_queues: Sequence[str]) -> dict[str, Field]:
    if plan is None:
        return {}
    pairs: dict[str, Field] = {
        "plan": plan.to_json(),
        "plan_version": plan.version,
        "step": plan.first,
    }
    if plan.first_after:
        pairs["after"] = plan.first_after
        if after_queues:
            pairs["after_queues"] = orjson.dumps(after_queues)
    if plan.hold is not Hold.NONE:
        pairs["hold"] = plan.hold
    return pairs


def shown_fields(request: JobRequest) -> dict[str, str]:
    """The fields that lists show of a request in place of the request itself."""
    return {
        "model": request.model,
        "url": request.url,
        "custom_id": request.custom_id or "",
        "prompt": prompt_start(request),
    }


def fingerprint(request: bytes, tenant: str) -> str:
    """A digest by which two equal requests are recognised, whatever the order of their keys."""
    try:
        canonical = orjson.dumps(orjson.loads(request), option=orjson.OPT_SORT_KEYS)
    except orjson.JSONDecodeError:
        canonical = request
    return hashlib.sha256(tenant.encode() + b"\0" + canonical).hexdigest()


def ending_fields(ending: Ending) -> list[Field]:
    """Names and values, in turn, of a job's end. Raises `ResultTooLarge`."""
    pairs: dict[str, Field] = {}
    if ending.incomplete:
        pairs["incomplete"] = ending.incomplete
    kept = stored_result(ending)
    if kept is not None:
        pairs["result"] = result = orjson.dumps(kept)
        if len(result) > MAX_RESULT_BYTES:
            raise ResultTooLarge(
                f"the answer has {len(result) >> 20} MiB, of which at most {MAX_RESULT_BYTES >> 20} are kept; "
                "ask for fewer logprobs, choices or tokens"
            )
    if ending.usage is not None:
        pairs["usage"] = orjson.dumps(ending.usage)
    if ending.error is not None:
        pairs["error"] = orjson.dumps(ending.error.to_dict())
    if ending.cache is not None:
        pairs["cache"] = ending.cache.to_json()
    return [item for pair in pairs.items() for item in pair]


def stored_result(ending: Ending) -> Mapping[str, Any] | None:
    """The result of a job's end: without its text where that is withheld."""
    if ending.result is not None and ending.incomplete:
        return without_text(ending.result)
    return ending.result


def withheld_field(ending: Ending) -> list[Field]:
    """What is kept beside an answer that steps will judge."""
    if ending.result is None:
        return []
    return ["withheld", orjson.dumps(without_text(ending.result))]


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


def parse(job_id: JobId, record: Mapping[bytes, bytes]) -> Job | None:
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
    """The steps that have begun: one line each (`put_step` in `_lib.lua`)."""
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
