"""Responses as chat jobs, with the conversation that came before.

Called by `api.routes.responses` and the batch runner. Must not know HTTP.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import orjson

from api.auth.principal import Principal, Scope
from api.job.context_fit import fitted
from api.job.response.approvals import (
    REQUEST,
    Answers,
    ApprovalNotFound,
    carried_by,
    check_repeated,
    read_answers,
)
from api.job.response.request import (
    NOT_ADDED,
    Ask,
    conversation_of,
    input_items,
    parse_ask,
)
from api.job.submission import SubmitDeps, keyed_job_id, submit
from api.job.submit_options import SubmitOptions, parse_submit_options, skip_steps_of
from api.view.response import (
    RECORD,
    answer_messages,
    job_id_of,
    output_items,
    record_of,
    response_id,
)
from eventing.errors import ApprovalAnswered, BadRequest, Forbidden, InvalidJob, NotFound
from eventing.job.cache.cache import directives, parse_cache_control
from eventing.job.job import KEY, Job, JobId, JobState, Lane, is_job_id
from eventing.job.plan import TOOLS_STEP
from eventing.job.store import JobIntake
from eventing.job.tools.call import job_of_approval
from eventing.job.tools.prompt import turn_messages
from eventing.job.tools.request import OnApproval
from eventing.job.tools.taint import with_told
from eventing.store.conversation.conversation import Conversation
from eventing.store.conversation.messages import Message, labels_of, messages_in, messages_of
from eventing.store.conversation.policy import STEP as MEMORY
from eventing.store.conversation.store import Conversations, full
from eventing.store.job_record.fields import turn_item_id


class PreviousNotFound(InvalidJob):
    """There is no such previous response."""

    code = "previous_response_not_found"


class ItemNotFound(InvalidJob):
    """An `item_reference` names no item of a stored response."""

    code = "item_not_found"


_NO_HEADERS: Final[Mapping[str, str]] = {}
_ITEM_ID: Final = re.compile(
    r"(?:msg|rs|fc|item|cmp|mcp|mcpl|mcpr)_([0-9a-f]{24})(?:_[0-9]+){0,3}\Z"
)


async def stored_response(
    store: JobIntake, principal: Principal, response: str, *, with_result: bool = True
) -> tuple[Job, dict[str, Any]]:
    """The tenant's response with that id, and its request. Raises `NotFound`."""
    job_id = job_id_of(response)
    job = await store.get(job_id, with_result=with_result) if is_job_id(job_id) else None
    try:
        if job is None or job.tenant != principal.tenant:
            raise NotFound("no such job")
        return job, record_of(job)
    except NotFound as error:
        raise NotFound(f"Response with id '{response:.64}' not found.") from error


async def history_of(store: JobIntake, principal: Principal, previous: Any) -> Sequence[Message]:
    """The conversation up to and including an earlier response, without its instructions."""
    if previous is None:
        return []
    if not isinstance(previous, str):
        raise InvalidJob("previous_response_id must be text", "previous_response_id")
    return said_in(*await _previous(store, principal, previous))


async def _previous(
    store: JobIntake, principal: Principal, previous: str, field: str = "previous_response_id"
) -> tuple[Job, dict[str, Any]]:
    """The response that a call goes on from. Raises `PreviousNotFound`, and `InvalidJob` for one that is not over."""
    try:
        job, record = await stored_response(store, principal, previous)
    except NotFound as error:
        raise PreviousNotFound(
            f"Previous response with id '{previous:.64}' not found.", field
        ) from error
    if job.state not in (JobState.COMPLETED, JobState.INCOMPLETE):
        raise InvalidJob(
            f"the previous response is {job.state}; only a completed one can be continued",
            field,
        )
    return job, record


async def read_ask(
    deps: SubmitDeps,
    store: JobIntake,
    principal: Principal,
    body: Mapping[str, Any],
    history: Sequence[Message] | None = None,
    headers: Mapping[str, str] = _NO_HEADERS,
) -> Ask:
    """The call of a response, with what it refers to read from the store, and made to fit; `history` where the caller
    knows what was said before. Raises `InvalidJob` and its kin, `NotFound` for a conversation that is not the tenant's.
    """
    if (answers := read_answers(body.get("input"))) is not None:
        return await _read_answering(deps, store, principal, body, answers)
    conversation = None
    if (named := conversation_of(body)) is not None:
        conversation = await deps.conversations.get(principal.tenant, named)
        if await deps.conversations.is_full(conversation):
            raise full()
        history = await _said_before(deps.conversations, conversation)
    elif history is None:
        history = await history_of(store, principal, body.get("previous_response_id"))
    given = await with_stored_items(store, principal, body.get("input"))
    ask = parse_ask(
        {**body, "input": given},
        history,
        drops_tools=deps.drops_unsupported_tools,
        conversation=conversation,
    )
    plan = deps.intake.plan_of(str(ask.body.get("model")), skip_steps_of({}, headers))
    if (limit := ask.record.get("max_tool_calls")) and plan and plan.step(TOOLS_STEP):
        ask.body["max_tool_calls"] = limit  # of the tools that the model has of its operator
    if ask.turn is not None and plan is not None and plan.step(MEMORY) is not None:
        ask = ask.without_history()
        if not ask.body["messages"]:
            raise InvalidJob("input is needed where a plan gives the conversation", "input")
        return ask
    return await fitted(deps.catalog, ask)


async def _read_answering(
    deps: SubmitDeps,
    store: JobIntake,
    principal: Principal,
    body: Mapping[str, Any],
    answers: Answers,
) -> Ask:
    """As `read_ask`, of a call that answers the approvals of the response before it: its job takes over the turn that
    asked for them. The same answers again are the same response.
    """
    principal.require(Scope.APPROVALS)
    conversation, since = None, list[Message]()
    if (named := conversation_of(body)) is not None:
        conversation = await deps.conversations.get(principal.tenant, named)
        job, record = await _asking(store, principal, conversation, answers)
    else:
        previous = body.get("previous_response_id")
        if not isinstance(previous, str):
            raise InvalidJob(
                "previous_response_id must name the response that asked for the approvals, or conversation the one "
                "that it is in",
                "previous_response_id",
            )
        job, record = await _previous(store, principal, previous)
    key = job.metadata.get(KEY, "")
    if deps.approves_with_other_key and key and key == principal.key_id:
        raise Forbidden("an approval is given with another key than that which asked for the call")
    given = input_items(await with_stored_items(store, principal, body.get("input")))
    call, drops = {**body, "input": given}, deps.drops_unsupported_tools
    if job.carried_by:
        first = await store.get(JobId(job.carried_by), with_result=False)
        if first is None:
            raise NotFound("these approvals were answered before, and that response is gone")
        taken = record_of(first)
        check_repeated(answers, taken["input"])
        ask = parse_ask(call, [], drops_tools=drops, has_answers=True)
        return replace(ask, record=taken, answered_by=first.id)
    plan = deps.intake.plan_of(str(body.get("model")))
    if conversation is not None:
        if plan is not None and plan.step(MEMORY) is not None:
            message = (
                "the steps of this model give the conversation: answer with previous_response_id"
            )
            raise InvalidJob(message, "conversation")
        since = await _said_since(deps.conversations, conversation, job)
    now_ms = deps.clock.wall_ms()
    carried = carried_by(answers, job, body.get("tools"), plan, now_ms, principal.key_id, since)
    ask = parse_ask(
        call,
        said_before(job, record),
        drops_tools=drops,
        conversation=conversation,
        has_answers=True,
    )
    if ask.turn is not None:  # it has the questions already
        said = tuple(item for item in ask.turn.items if item["type"] != REQUEST)
        ask = replace(ask, turn=replace(ask.turn, items=said))
    return await fitted(deps.catalog, replace(ask, carried=carried))


async def _asking(
    store: JobIntake, principal: Principal, conversation: Conversation, answers: Answers
) -> tuple[Job, dict[str, Any]]:
    """The response in a conversation that asked for the approvals. Raises `ApprovalNotFound`, and `InvalidJob` for one
    that is not over.
    """
    name, where = next(iter(answers.places.items()))
    asking = job_of_approval(name)
    with suppress(PreviousNotFound):
        job, record = await _previous(store, principal, response_id(JobId(asking)), where)
        if job.conversation == conversation.id:
            return job, record
    raise ApprovalNotFound(f"Approval request with id '{name:.80}' not found.", where)


async def _said_since(
    conversations: Conversations, conversation: Conversation, job: Job
) -> list[Message]:
    """What a conversation has behind the items of a response."""
    if await conversations.is_full(conversation):
        raise full()
    items = [numbered.item for numbered in await conversations.items(conversation)]
    tail = job.id.removeprefix("job_")
    own = [place for place, item in enumerate(items) if tail in item["id"].split("_")]
    return messages_in(items[own[-1] + 1 :] if own else ())


async def _said_before(conversations: Conversations, found: Conversation) -> Sequence[Message]:
    """The messages of a conversation, from its newest compaction on."""
    items = [numbered.item for numbered in await conversations.items(found)]
    compactions = [place for place, item in enumerate(items) if item["type"] == "compaction"]
    start = compactions[-1] if compactions else 0
    return with_told(messages_in(items[start:]), labels_of(items[:start]))


async def submit_response(
    deps: SubmitDeps,
    store: JobIntake,
    principal: Principal,
    ask: Ask,
    metadata: Any,
    headers: Mapping[str, str],
) -> Job:
    """The job of a response, its refusals told in the words of the call. Raises `ConversationLocked` and
    `ConversationMoved` while another response adds to its conversation, `InvalidJob` for one that adds to a
    conversation what its `Cache-Control` says is not to be stored.
    """
    if ask.answered_by and (first := await store.get(JobId(ask.answered_by))) is not None:
        return first
    lane = Lane.DEFAULT if ask.is_background else Lane.INTERACTIVE
    options = parse_submit_options({"metadata": metadata}, headers, lane=lane)
    own_steps = (ask.search,) if ask.search else ()
    options = options.in_tier(ask.record.get("service_tier"), "service_tier")
    options = options.with_metadata(record_metadata(ask))
    control = directives(options.cache_control, {"store": ask.is_stored})
    if ask.turn is not None and parse_cache_control(control).no_store:
        raise InvalidJob(NOT_ADDED, "Cache-Control")
    options = replace(options, turn=ask.turn, own_steps=own_steps, cache_control=control)
    options = replace(options, on_approval=OnApproval.END, carried=ask.carried)
    if ask.turn is not None and (repeated := await _repeated(store, principal, ask, options)):
        return repeated
    try:
        job, _ = await submit(deps, principal, chat_line(ask), options)
    except ApprovalAnswered:
        if ask.carried is None or (first := await _taken_by(store, ask.carried.job_id)) is None:
            raise
        if (answers := read_answers(ask.record["input"])) is not None:
            check_repeated(answers, record_of(first)["input"])
        return first  # the same answers came a moment before
    except BadRequest as error:
        error.field = field_of_call(error.field)
        raise
    return job


async def _taken_by(store: JobIntake, asking: str) -> Job | None:
    """The job that took over what another asked."""
    job = await store.get(JobId(asking), with_result=False)
    return await store.get(JobId(job.carried_by)) if job and job.carried_by else None


async def _repeated(
    store: JobIntake, principal: Principal, ask: Ask, options: SubmitOptions
) -> Job | None:
    """The job of the same call under the same Idempotency-Key. Its prompt need not be the same: the conversation has
    grown since, by this very job.
    """
    if not options.idempotency_key:
        return None
    job = await store.get(keyed_job_id(principal.tenant, options.idempotency_key))
    is_same = job is not None and job.metadata.get(RECORD) == record_metadata(ask)[RECORD]
    return job if is_same else None


def said_before(job: Job, record: Mapping[str, Any]) -> list[Message]:
    """What was said up to the last turn of a response, which is left out, as are its instructions."""
    said = list(job.request.body["messages"])
    if record.get("instructions"):
        said = said[1:]
    for turn in job.turns[:-1]:
        said += turn_messages(turn)
    return said


def said_in(job: Job, record: Mapping[str, Any]) -> list[Message]:
    """What was said up to and including an ended response, its instructions left out."""
    said = said_before(job, record)
    for turn in job.turns[-1:]:
        said += turn_messages(turn)
    return [*said, *messages_of(answer_messages(job))]


async def with_stored_items(store: JobIntake, principal: Principal, given: Any) -> Any:
    """The input with each `item_reference` replaced by the stored item that it names. Raises `ItemNotFound`."""
    if not isinstance(given, list):
        return given
    return [
        await _stored_item(store, principal, item.get("id"), f"input[{index}].id")
        if isinstance(item, dict) and item.get("type") == "item_reference"
        else item
        for index, item in enumerate(given)
    ]


async def _stored_item(
    store: JobIntake, principal: Principal, item_id: Any, where: str
) -> Mapping[str, Any]:
    found = _ITEM_ID.match(item_id) if isinstance(item_id, str) else None
    if found is not None:
        with suppress(NotFound):
            job, record = await stored_response(store, principal, f"resp_{found[1]}")
            for item in [*named_items(job, record), *output_items(job, record)]:
                if item["id"] == item_id:
                    return item
    raise ItemNotFound(f"Item with id '{item_id!s:.64}' not found.", where)


def named_items(job: Job, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The input items of a response, each with an id."""
    named = [(turn_item_id(job.id, n), item) for n, item in enumerate(record["input"])]
    if record.get("conversation"):
        return [{**item, "id": item_id} for item_id, item in named]
    return [{"id": item_id, **item} for item_id, item in named]


def chat_line(ask: Ask) -> dict[str, Any]:
    """The job line of a response."""
    return {"url": "/v1/chat/completions", "body": ask.body}


def record_metadata(ask: Ask) -> Mapping[str, str]:
    """The metadata by which the job remembers the response's request."""
    return {RECORD: orjson.dumps(ask.record).decode()}


def field_of_call(field: str) -> str:
    """The field of the response's call that corresponds to a field of its chat body."""
    if field.startswith("body.messages"):
        return "input"
    if field.startswith(("body.tools", "body.tool_choice")):
        return field.removeprefix("body.")
    return "max_output_tokens" if field == "body.max_completion_tokens" else field
