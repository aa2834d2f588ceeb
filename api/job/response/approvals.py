"""Answers to the approvals that an earlier response asked for: read from the input of the next one, and checked against
the calls that wait. Pure.

Called by `api.job.conversation`. What is approved is a call of that response as its record has it, never what the
caller repeats of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from eventing.errors import ApprovalAnswered, BadRequest, InvalidJob
from eventing.job.call.rule import FLAG, TEXT, check
from eventing.job.job import Job
from eventing.job.plan import LIST_TOOLS_STEP, Plan
from eventing.job.tools.asked import asked_servers, recorded_urls
from eventing.job.tools.call import CallState, ToolCall, Turn, call_of_approval
from eventing.job.tools.carried import Answer, Carried, carried_turn
from eventing.job.tools.request import SERVERS
from eventing.store.conversation.messages import APPROVAL_RESPONSE, Message, item_field, messages_of

RESPONSE: Final = APPROVAL_RESPONSE
REQUEST: Final = "mcp_approval_request"
_REASON_CHARS: Final = 4096


class ApprovalNotFound(InvalidJob):
    """The previous response asked for no approval of this id."""

    code = "approval_not_found"


class ApprovalExpired(InvalidJob):
    """The time for an answer has passed."""

    code = "approval_expired"


class ApprovalChanged(InvalidJob):
    """What is to run is not what the approval was asked for."""

    code = "approval_changed"


class ApprovalMissing(InvalidJob):
    """The previous response asks for more than was answered."""

    code = "approval_missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The answers in the input of a call, and the other items of it, each with its place."""

    by_id: Mapping[str, Answer]
    places: Mapping[str, str]
    others: Sequence[tuple[str, Mapping[str, Any]]]


def read_answers(given: Any) -> Answers | None:
    """The answers in `input`; None for one without any. Raises `InvalidJob` naming the item."""
    items = [
        (f"input[{place}]", item)
        for place, item in enumerate(given if isinstance(given, list) else ())
        if isinstance(item, Mapping)
    ]
    if not any(item.get("type") == RESPONSE for _, item in items):
        return None
    by_id: dict[str, Answer] = {}
    places: dict[str, str] = {}
    for where, item in items:
        if item.get("type") != RESPONSE:
            continue
        name = item_field(item, "approval_request_id", where)
        check(f"{where}.", item.get("approve"), FLAG, "approve")
        reason = item.get("reason") or ""
        check(f"{where}.", reason, TEXT, "reason")
        if len(reason) > _REASON_CHARS:
            message = f"{where}.reason may have {_REASON_CHARS} characters"
            raise InvalidJob(message, f"{where}.reason")
        if name in by_id:
            raise InvalidJob(f"{where}: {name:.80} is answered twice", where)
        by_id[name], places[name] = Answer(approve=item["approve"], reason=reason), where
    others = [(where, item) for where, item in items if item.get("type") != RESPONSE]
    return Answers(by_id=by_id, places=places, others=others)


def check_repeated(answers: Answers, taken: Any) -> None:
    """Raises where these are not the answers in `taken`, the input of the response that took the turn over:
    `ApprovalAnswered` for one that says otherwise, `ApprovalNotFound`, `ApprovalMissing`.
    """
    first = read_answers(taken)
    before = first.by_id if first else {}
    for name, where in answers.places.items():
        if name not in before:
            raise _not_found(name, where)
        if answers.by_id[name].approve is not before[name].approve:
            said = "approved" if before[name].approve else "denied"
            raise ApprovalAnswered(f"{where}: {name:.80} was {said} before, and that holds", where)
    _check_all_answered(answers, before)


def _not_found(name: str, where: str) -> ApprovalNotFound:
    return ApprovalNotFound(f"Approval request with id '{name:.80}' not found.", where)


def _check_all_answered(answers: Answers, asked: Iterable[str]) -> None:
    if left := [name for name in asked if name not in answers.by_id]:
        raise ApprovalMissing(f"No approval response found for {', '.join(left)}.", "input")


def carried_by(
    answers: Answers,
    job: Job,
    tools: Any,
    plan: Plan | None,
    now_ms: int,
    approver: str,
    said_since: Sequence[Message] = (),
) -> Carried:
    """The turn that `job` left, with these answers; `tools` and `plan` are those of the call that answers, `said_since`
    is what the conversation has behind that turn. Raises `ApprovalNotFound`, `ApprovalExpired`, `ApprovalChanged`,
    `ApprovalMissing`, and `InvalidJob` for an output that is missing.
    """
    turn = job.turns[-1] if job.turns and job.turns[-1].ends else None
    waiting = {
        call.approval_id: call
        for call in (turn.calls if turn else ())
        if call.state.is_waiting_for_person
    }
    for name, where in answers.places.items():
        call = waiting.get(name)
        if call is None or call_of_approval(job.id, name) is None:
            raise _not_found(name, where)
        if call.expires_ms and now_ms >= call.expires_ms:
            raise ApprovalExpired(f"the time for an answer to {name:.80} has passed", where)
        if answers.by_id[name].approve and call.state is CallState.AWAITING_INPUT:
            raise InvalidJob(
                f"{where}: {name:.80} asks for input, which can not be given here", where
            )
    assert turn is not None  # noqa: S101 (an answer was found in it)
    _check_all_answered(answers, waiting)
    _check_sent_along(answers, waiting)
    for name, call in waiting.items():
        if answers.by_id[name].approve:
            _check_target(call, job, tools, plan)
    outputs, after = _outputs(answers, turn)
    own = carried_turn(turn, answers.by_id, outputs, [*said_since, *after], approver=approver)
    return Carried(
        turn=own,
        job_id=job.id,
        number=turn.number,
        approvals={call.place: name for name, call in waiting.items()},
    )


def _check_sent_along(answers: Answers, waiting: Mapping[str, ToolCall]) -> None:
    """Raises `ApprovalChanged` for a request for approval that the caller sends along and that is not as it was."""
    for where, item in answers.others:
        call = waiting.get(str(item.get("id"))) if item.get("type") == REQUEST else None
        if call is None:
            continue
        asked = (call.server, call.tool or call.name, call.arguments)
        if asked != tuple(item.get(name) for name in ("server_label", "name", "arguments")):
            raise ApprovalChanged(
                f"{where} is not the call that the approval was asked for; it would run as it was asked",
                where,
            )


def _check_target(call: ToolCall, job: Job, tools: Any, plan: Plan | None) -> None:
    """Raises `ApprovalChanged` where the server of an approved call is not in this call, or is another one."""
    asked = {each.label: each.url for each in asked_servers(tools, "tools")}
    before = _url(call.server, recorded_urls(job.request.body.get("tools")), job.plan)
    now = _url(call.server, asked, plan)
    if now is None:
        raise ApprovalChanged(
            f"tools must have the server {call.server} of the approved call", "tools"
        )
    if before != now:
        raise ApprovalChanged(
            f"tools: {call.server} is not the server that the approval was asked for", "tools"
        )


def _url(label: str, asked: Mapping[str, str], plan: Plan | None) -> str | None:
    """The address of a server; empty for the operator's, None for one that is not there."""
    step = plan.step(LIST_TOOLS_STEP) if plan else None
    if step is not None and label in step.settings.get(SERVERS, ()):
        return ""
    return asked.get(label)


def _outputs(answers: Answers, turn: Turn) -> tuple[dict[str, str], list[Message]]:
    """The outputs of the caller's own functions, and the messages after them. Raises `InvalidJob` for one without."""
    own = {call.call_id for call in turn.calls if call.state is CallState.CLIENT}
    outputs: dict[str, str] = {}
    after: list[Mapping[str, Any]] = []
    for where, item in answers.others:
        call_id = item.get("call_id")
        if item.get("type") == "function_call_output" and call_id in own:
            (message,) = messages_of([item], where)
            content = message["content"]
            if not isinstance(content, str):
                raise BadRequest(f"{where}.output must be text beside approvals", f"{where}.output")
            outputs[str(call_id)] = content
        else:
            after.append(item if "type" in item else {"type": "message", **item})
    for call_id in own - outputs.keys():
        raise InvalidJob(f"No tool output found for function call {call_id:.64}.", "input")
    return outputs, messages_of(after)
