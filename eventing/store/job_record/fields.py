"""The fields that are written of a job: when it is recorded, and when it ends.

Called by both stores. The Lua scripts write the fields that a transition changes, under the same names.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from eventing.errors import ResultTooLarge
from eventing.job.job import KEY, JobId, JobRequest
from eventing.job.moderation.withheld import without_text
from eventing.job.plan import Hold, Plan
from eventing.job.prompt import prompt_prefix, prompt_start
from eventing.job.store import ConversationTurn, Ending, NewJob
from eventing.redis import keys

Field = str | bytes | int

MAX_RESULT_BYTES: Final = 32 * 1024 * 1024
"""Largest result. Redis serves no other command while it copies one: 0.4 s for this size, and more than the 2.5 s
after which everything takes the store for gone at 100 MiB on a busy machine (measured).
"""
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
