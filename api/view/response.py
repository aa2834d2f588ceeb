"""The response object of OpenAI's Responses, from a job. Pure.

Called by `api.routes.responses` and `api.view.response_stream`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NotRequired

import orjson
from typing_extensions import TypedDict

from api.http.described import described
from api.limit.service_tier import used_tier
from api.view.items.retrieval import annotations, search_item
from api.view.items.tools import (
    list_items,
    open_questions,
    own_calls,
    turn_calls,
    turn_suffix,
)
from api.view.job import public_metadata
from api.view.outcome import grounding_in, moderation_in
from eventing.errors import NotFound
from eventing.job.answer_links import shown_text
from eventing.job.job import CONTENT_FILTER, Job, JobId, JobState
from eventing.job.moderation.inline import single_result
from eventing.store.job_record.fields import compaction_id
from eventing.telemetry.cost import cached_tokens

RECORD: Final = "torpor.response"
"""Metadata key of a job that is a response; its value is the response's request."""

Item = dict[str, Any]


def response_id(job_id: JobId) -> str:
    return f"resp_{job_id.removeprefix('job_')}"


def job_id_of(response: str) -> JobId:
    """The job id behind a response's id. Any other text gives an id that no job has."""
    return JobId(f"job_{response.removeprefix('resp_')}" if response.startswith("resp_") else "")


def record_of(job: Job) -> dict[str, Any]:
    """The response's request. Raises `NotFound` for a job that is not a response, or was not to be stored."""
    record: dict[str, Any] = orjson.loads(job.metadata.get(RECORD, "{}"))
    if not record.get("store"):
        raise NotFound("no such response")
    return record


class CachedTokens(TypedDict):
    """Tokens of the input that were known already."""

    cached_tokens: int
    cache_write_tokens: NotRequired[int]


class ReasoningTokens(TypedDict):
    """Tokens of the output that were thoughts."""

    reasoning_tokens: int


class ResponseUsage(TypedDict):
    """Tokens, in the words of Responses."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


@described
class ResponseView(TypedDict):
    """The response as it is now, in OpenAI's form."""

    id: str
    object: Literal["response"]
    created_at: int
    """Times are seconds since 1970"""
    completed_at: int | None
    status: str
    """queued, in_progress, completed, incomplete, failed or cancelled"""
    background: bool
    error: dict[str, str] | None
    incomplete_details: dict[str, str] | None
    output: list[Item]
    """Reasoning, message, function calls, in this order"""
    usage: ResponseUsage | None
    store: bool
    model: str
    metadata: dict[str, str]
    instructions: str | None
    """From here on what the call said, or the default"""
    previous_response_id: str | None
    conversation: dict[str, str] | None
    moderation: NotRequired[dict[str, Any]]
    """What was found in the request and its answer, where the call asked for it"""
    grounding: NotRequired[Mapping[str, Any]]
    """How far the passages support the answer, where the model's plan has that checked"""
    max_output_tokens: int | None
    max_tool_calls: int | None
    parallel_tool_calls: bool
    presence_penalty: float
    frequency_penalty: float
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: str
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[Item]
    top_logprobs: int
    top_p: float
    truncation: str
    user: str | None


def response_view(
    job: Job, record: Mapping[str, Any], *, output: Sequence[Item] | None = None
) -> ResponseView:
    """The response object as the job is now; `output` when the caller has newer items."""
    status = status_of(job)
    error = None
    if job.state is JobState.FAILED:
        reason = job.error
        message = reason.message if reason else "the job failed"
        error = {"code": reason.code if reason else "server_error", "message": message}
    view: ResponseView = {
        "id": response_id(job.id),
        "object": "response",
        "created_at": job.created_ms // 1000,
        "completed_at": job.finished_ms // 1000 if status == "completed" else None,
        "status": status,
        "background": record["background"],
        "conversation": record.get("conversation"),
        "error": error,
        "incomplete_details": {"reason": cut} if (cut := _cut_by(job)) else None,
        "instructions": record.get("instructions"),
        "max_output_tokens": record.get("max_output_tokens"),
        "max_tool_calls": record.get("max_tool_calls"),
        "model": job.answered_by,
        "output": list(output_items(job, record) if output is None else output),
        "parallel_tool_calls": record.get("parallel_tool_calls", True),
        "previous_response_id": record.get("previous_response_id"),
        "presence_penalty": record.get("presence_penalty", 0.0),
        "frequency_penalty": record.get("frequency_penalty", 0.0),
        "prompt_cache_key": record.get("prompt_cache_key"),
        "reasoning": {"effort": None, "summary": None} | record.get("reasoning", {}),
        "safety_identifier": record.get("safety_identifier"),
        "service_tier": used_tier(job) or "default",
        "store": record["store"],
        "temperature": record.get("temperature", 1.0),
        "text": {"format": {"type": "text"}} | record.get("text", {}),
        "tool_choice": record.get("tool_choice", "auto"),
        "tools": record.get("tools", []),
        "top_logprobs": record.get("top_logprobs", 0),
        "top_p": record.get("top_p", 1.0),
        "truncation": record.get("truncation", "disabled"),
        "usage": usage_view(job),
        "user": record.get("user"),
        "metadata": public_metadata(job),
    }
    if found := moderation_in(job):
        view["moderation"] = single_result(found)
    if verdict := grounding_in(job):
        view["grounding"] = verdict
    return view


def _cut_by(job: Job) -> str | None:
    """OpenAI's word for what cut the answer short."""
    return CONTENT_FILTER if job.incomplete else job.incomplete_reason


def status_of(job: Job) -> str:
    """OpenAI's status. An answer cut off by a limit is incomplete, whatever finish reason the engine gave."""
    if job.state is JobState.COMPLETED and job.incomplete_reason is not None:
        return "incomplete"
    return str(job.state)


def compaction_of(job: Job, record: Mapping[str, Any]) -> list[Item]:
    """The item in place of what was said before; none where nothing was compacted."""
    if not record.get("compaction"):
        return []
    sealed = record["compaction"]
    return [{"id": compaction_id(job.id), "type": "compaction", "encrypted_content": sealed}]


def output_items(job: Job, record: Mapping[str, Any] | None = None) -> list[Item]:
    """The output: the search of files if `record` says that one was asked for, the lists of its servers, and then, turn
    by turn, the model's reasoning, message, calls of the caller's functions, and calls that were run here.
    """
    message = _choice(job).get("message") or {}
    items: list[Item] = []
    if record is not None and "include" in record:  # only a search puts it there
        items.append(search_item(job, record))
    if record is not None and job.plan is not None:
        items += list_items(job)
    if record is not None and message:
        items += compaction_of(job, record)
    for turn in job.told_turns:
        if not turn.carried:
            items += message_items(job, turn.message, turn.number)
        items += turn_calls(job, turn)
    if ends_with_turn(job):
        return [*items, *open_questions(job)]
    return items + message_items(job, message, len(job.turns) + 1, is_last=True)


def ends_with_turn(job: Job) -> bool:
    """True for a job that ended where only its caller can go on: its answer is its last turn."""
    return bool(job.turns) and bool(job.turns[-1].ends) and job.state.is_terminal


def message_items(
    job: Job, message: Mapping[str, Any], number: int, *, is_last: bool = False
) -> list[Item]:
    """The model's reasoning, message and calls of the caller's functions, of the turn of this number."""
    tail = f"{job.id.removeprefix('job_')}{turn_suffix(number)}"
    is_cut = is_last and job.incomplete_reason is not None
    status = "incomplete" if is_cut else "completed"
    items: list[Item] = []
    if thought := message.get("reasoning") or message.get("reasoning_content"):
        items.append(reasoning_item(f"rs_{tail}", thought, "completed"))
    if message.get("content"):
        logprobs = logprobs_of(_choice(job)) if is_last else []
        text = shown_text(job, message["content"])
        item = message_item(f"msg_{tail}", text, status, logprobs)
        item["content"][0]["annotations"] = annotations(job, text)
        items.append(item)
    for index, call in own_calls(job, message):
        items.append(call_item(f"fc_{tail}_{index}", call, "completed"))
    return items


def answer_messages(job: Job) -> list[Item]:
    """The items of an ended job's last answer: what came before stands in its turns."""
    if ends_with_turn(job):
        return []
    return message_items(job, _choice(job).get("message") or {}, len(job.turns) + 1, is_last=True)


def reasoning_item(item_id: str, text: str, status: str) -> Item:
    content = [{"type": "reasoning_text", "text": text}] if text else []
    return {
        "id": item_id,
        "type": "reasoning",
        "summary": [],
        "content": content,
        "status": status,
    }


def message_item(
    item_id: str, text: str | None, status: str, logprobs: Sequence[Item] = ()
) -> Item:
    content = [] if text is None else [text_part(text, logprobs)]
    return {
        "id": item_id,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def text_part(text: str, logprobs: Sequence[Item] = ()) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def logprobs_of(choice: Mapping[str, Any]) -> list[Item]:
    """The log probabilities of the tokens of a choice or a delta; empty when none were requested."""
    return list((choice.get("logprobs") or {}).get("content") or ())


def call_item(item_id: str, call: Mapping[str, Any], status: str) -> Item:
    function = call.get("function") or {}
    return {
        "id": item_id,
        "type": "function_call",
        "call_id": call.get("id") or item_id,
        "name": function.get("name") or "",
        "arguments": function.get("arguments") or "",
        "status": status,
    }


def _choice(job: Job) -> Mapping[str, Any]:
    choices = (job.result or {}).get("choices") or [{}]
    first: Mapping[str, Any] = choices[0]
    return first


def usage_view(job: Job) -> ResponseUsage | None:
    """The tokens of a job in the words of Responses; None while they are not known."""
    usage = job.usage or (job.result or {}).get("usage")
    if not usage:
        return None
    completion = usage.get("completion_tokens_details") or {}
    return {
        "input_tokens": usage.get("prompt_tokens", 0),
        "input_tokens_details": {
            "cached_tokens": cached_tokens(usage),
            "cache_write_tokens": 0,
        },
        "output_tokens": usage.get("completion_tokens", 0),
        "output_tokens_details": {"reasoning_tokens": completion.get("reasoning_tokens") or 0},
        "total_tokens": usage.get("total_tokens", 0),
    }
