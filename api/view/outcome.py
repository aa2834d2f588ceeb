"""The result of an ended job as the response to a call that waited for it.

Called by OpenAI's endpoints. Pure.
"""

from collections.abc import Mapping
from typing import Any, Final

from api.limit.service_tier import used_tier
from api.view.items.chat_turns import with_turns
from eventing.errors import BadRequest, TorporError
from eventing.job.answer_links import shown_result
from eventing.job.call.moderation import MODERATION, MODERATION_URL
from eventing.job.call.reasoning import choice_with_both_names
from eventing.job.job import CHAT_URLS, Job, JobState
from eventing.job.moderation.inline import moderation_of
from eventing.job.plan import GROUND_STEP, TOOLS_STEP

_CALLERS_FAULT: Final = frozenset(
    {
        *("bad_request", "invalid_job", "invalid_request", "model_not_found"),
        *("context_length_exceeded", "result_too_large", "approval_required"),
    }
)
_UNASKED: Final = {"prompt_logprobs": None, "prompt_token_ids": None}
"""What vLLM's whole answers say of the prompt: null unless it was asked for."""


class CallRefused(BadRequest):
    """The engine refused the request, with its own error code."""

    def __init__(self, message: str, field: str, code: str) -> None:
        super().__init__(message, field)
        self.code = code  # type: ignore[misc]


class CallFailed(TorporError):
    """The job ended without an answer."""

    def __init__(self, message: str, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status  # type: ignore[misc]
        self.code = code  # type: ignore[misc]


_ONCE: Final = {"x-should-retry": "false"}
"""To OpenAI's clients, which ask again by themselves after a 5xx: a new job would call its tools another time."""


def failure_of(job: Job) -> TorporError | None:
    """Why the ended `job` has no answer; None when it has one."""
    failure = _failure_of(job)
    if failure is not None and any(call.sends for turn in job.turns for call in turn.calls):
        failure.headers = _ONCE
    return failure


def _failure_of(job: Job) -> TorporError | None:
    if job.state in (JobState.COMPLETED, JobState.INCOMPLETE) and job.result is not None:
        return None
    if job.state is JobState.CANCELLED:
        return CallFailed(f"{job.id} was cancelled", 409, "cancelled")
    error = job.error
    if error is None:
        return CallFailed(f"{job.id} ended without an answer", 500, "no_answer")
    if error.field or error.code in _CALLERS_FAULT:
        return CallRefused(error.message, error.field, error.code)
    if error.code == "expired":
        return CallFailed(error.message, 504, error.code)
    return CallFailed(error.message, 500, error.code)


def still_running(job: Job) -> CallFailed:
    """The call was held for the longest time allowed; the job goes on."""
    failure = CallFailed(f"still running; see /v1/jobs/{job.id}", 504, "still_running")
    if job.plan is not None and job.plan.step(TOOLS_STEP) is not None:
        failure.headers = _ONCE
    return failure


def answer_of(job: Job) -> Mapping[str, Any]:
    """The OpenAI body of an answered job, with our id, time and model name."""
    body = dict(shown_result(job) or {})
    if body.get("object") == "list":  # embeddings have no id
        return body | {"model": job.answered_by}
    if job.request.url == MODERATION_URL:
        return body | {"id": answer_id(job), "model": job.answered_by}
    tier = {"service_tier": used} if (used := used_tier(job)) else {}
    own = tier | {"id": answer_id(job), "created": job.created_ms // 1000, "model": job.answered_by}
    if isinstance(choices := body.get("choices"), list):
        body["choices"] = [_whole(choice_with_both_names(each)) for each in choices]
    if found := moderation_in(job):
        body[MODERATION] = found
    if verdict := grounding_in(job):
        body["grounding"] = verdict
    if body.get("object") == "chat.completion":
        body = {**_UNASKED, **with_turns(job, body)}
    return body | own


def moderation_in(job: Job) -> Mapping[str, Any] | None:
    """What was found in an ended job's request and answer, where its call asked for that: as its answer says, or, of
    one that was withheld, its steps.
    """
    if not job.state.is_terminal or MODERATION not in job.request.body:
        return None
    said = (job.result or {}).get(MODERATION)
    return said if isinstance(said, Mapping) else moderation_of(job.pipeline)


def grounding_in(job: Job) -> Mapping[str, Any] | None:
    """How far the passages support an ended job's answer, where its plan has that checked: the verdict with the places
    of what they do not, or the reason why there is none. None for other jobs, and for an answer that was withheld.
    """
    has_answer = job.state in (JobState.COMPLETED, JobState.INCOMPLETE) and not job.incomplete
    if not has_answer or job.plan is None or job.plan.step(GROUND_STEP) is None:
        return None
    detail = next((each.detail for each in job.pipeline if each.step == GROUND_STEP), {})
    verdict = detail.get("grounding")
    if isinstance(verdict, Mapping):
        return verdict
    return {"score": None, "reason": str(detail.get("reason") or "not checked")}


def _whole(choice: Any) -> Any:
    """OpenAI's messages have a `refusal` field, null for none; vLLM's choices of a text tell of its prompt."""
    if not isinstance(choice, dict):
        return choice
    if "text" in choice:
        return {**_UNASKED, **choice}
    message = choice.get("message")
    return choice | {"message": {"refusal": None, **message}} if message else choice


def answer_id(job: Job) -> str:
    """The id of the job's answer in OpenAI's form."""
    prefix = "cmpl"
    if job.request.url in CHAT_URLS:
        prefix = "chatcmpl"
    elif job.request.url == MODERATION_URL:
        prefix = "modr"
    return f"{prefix}-{job.id.removeprefix('job_')}"
