"""Tool calls that wait for a person, results that come later, and the tools of a tenant.

Called by `api.wiring`. A decision is taken once by the store's script; what follows from it (the call, the next turn)
is queued there.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from starlette.responses import Response
from typing_extensions import TypedDict

from api.auth.principal import Principal, Scope
from api.http.parameter import CURSOR, LIMIT, Parameter
from api.openapi.operation import Body
from api.routes.jobs import json_response, naming, own_job
from api.routes.route import Call, Routes
from api.view.items.approval import ApprovalView, ToolServerView, approval_view, server_view
from api.view.page import CursorPage
from eventing.broker.tool_calls import ToolCalls
from eventing.errors import BadRequest, Forbidden, NotFound, WrongState
from eventing.job.call.rule import (
    FLAG,
    NAME,
    OBJECT,
    TEXT,
    check,
    check_fields,
    number,
    object_schema,
    one_of,
)
from eventing.job.job import KEY, Job
from eventing.job.tools.call import CallState, ToolCall, call_of_approval, token_hash
from eventing.job.tools.known_list import AcceptStatus, KnownList, address_digest
from eventing.job.tools.limits import DEFAULT_LIMITS
from eventing.job.tools.progress import progress_text
from eventing.job.tools.question import decision_of
from eventing.job.tools.server import ToolConfig, ToolServer
from eventing.job.tools.store import CallEnd, ProgressStatus, ReturnStatus
from eventing.store.steps.redis_tool_lists import RedisToolLists


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalDeps:
    """The dependencies of approvals. With `by_another_key` a call is approved with another key than its job's."""

    calls: ToolCalls
    lists: RedisToolLists
    config: ToolConfig
    by_another_key: bool = False


class ApprovalList(CursorPage):
    """Calls that wait, those whose time ends first before the others."""

    data: list[ApprovalView]


class ToolServerList(TypedDict):
    """The servers of the tenant."""

    object: Literal["list"]
    data: list[ToolServerView]
    urls_allowed: bool


class LateResultView(TypedDict):
    """What became of a result."""

    object: Literal["tool.result"]
    status: str


class ProgressNoteView(TypedDict):
    """Whether readers of the job are shown what a call said of how far it is."""

    object: Literal["tool.progress"]
    is_noted: bool


routes: Routes[ApprovalDeps] = Routes("tools")

_DECISION: Final = Body(
    "ApprovalDecision",
    object_schema(
        {},
        {
            "approve": FLAG,
            "reason": TEXT,
            "decision": one_of("run_again", "it_ran", "give_up"),
            "output": TEXT,
            "action": one_of("accept", "decline", "cancel"),
            "content": OBJECT,
        },
    )
    | {
        "description": "`approve` and `reason` for an approval; `decision`, with `output` beside `it_ran`, for a "
        "call that may have happened; `action`, with `content` beside `accept`, for what a tool asks its user for"
    },
)
_RESULT_FIELDS: Final = {"isError": FLAG, "structuredContent": OBJECT}
_PROGRESS_FIELDS: Final = {"progress": number(0), "total": number(0), "message": TEXT}
_PROGRESS: Final = Body("ToolProgress", object_schema({}, _PROGRESS_FIELDS))
_ACCEPTED: Final = Body("AcceptedTools", object_schema({"digest": NAME.schema}, {}))
_CALL_TOKEN: Final = Parameter(
    "Torpor-Call-Token", "The `calltoken` of the event that the function got", "header"
)
_RESULT: Final = Body(
    "ToolResult",
    object_schema(
        {},
        _RESULT_FIELDS,
        {"content": {"type": "array", "items": {"type": "object", "required": ["type"]}}},
    )
    | {"description": "MCP's form of a result"},
)


@routes.operation(
    "GET", "/v1/approvals", Scope.APPROVALS, parameters=(LIMIT, CURSOR), answers=ApprovalList
)
async def list_approvals(call: Call[ApprovalDeps]) -> Response:
    """List the tool calls that wait for a person.

    Of jobs that wait: a response that asked for an approval has ended, and the next response answers it.
    """
    query = call.request.query_params
    tenant, store = call.principal.tenant, call.deps.calls.store
    page = await store.approvals(tenant, LIMIT.of(query), query.get(CURSOR.name, ""))
    views = [approval_view(each.job_id, each.call) for each in page.calls]
    return json_response({"object": "list", "data": views, "next_cursor": page.next_cursor or None})


@routes.operation(
    "POST",
    "/v1/jobs/{id}/approvals/{approval_id}",
    Scope.APPROVALS,
    body=_DECISION,
    answers=ApprovalView,
    refuses=(404, 409),
)
async def decide_call(call: Call[ApprovalDeps]) -> Response:
    """Decide about a tool call.

    Taken once: a second decision gets the first, as the answer shows. An approved call runs as it was asked for.
    """
    path = call.request.path_params
    body = await call.read_object()
    store = call.deps.calls.store
    job = await own_job(store, call.principal, path["id"], with_result=False)
    with naming(job):
        _check_approver(call.deps, call.principal, job)
        asked = _call_of(job, path["approval_id"])
        if asked.approval_id != path["approval_id"] or not asked.state.is_waiting_for_person:
            return json_response(approval_view(job.id, asked))  # it was decided before
        if job.state.is_terminal:
            raise WrongState(f"the job is {job.state}: its calls are not decided any more")
        approver = call.principal.key_id or "anonymous"
        status, decided = await call.deps.calls.decide(
            job, asked, decision_of(asked, body, approver)
        )
        if status is ReturnStatus.MISSING:
            raise NotFound("no such approval")
        if status is ReturnStatus.TERMINAL:
            raise WrongState("the job has ended: its calls are not decided any more")
    return json_response(approval_view(job.id, decided or asked))


@routes.operation(
    "POST",
    "/v1/jobs/{id}/calls/{place}/result",
    Scope.EVENTS_WRITE,
    parameters=(_CALL_TOKEN,),
    body=_RESULT,
    answers={200: LateResultView},
    refuses=(403, 404, 409),
)
async def take_late_result(call: Call[ApprovalDeps]) -> Response:
    """Give the result of a call that a function had accepted.

    `place` is the event's `callplace`, such as `1.0`. The token is good for one result.
    """
    body, path = await call.read_object(), call.request.path_params
    job = await own_job(call.deps.calls.store, call.principal, path["id"], with_result=False)
    with naming(job):
        asked, end = _call_at(job, path["place"]), _end_of(body)
        _check_token(call, asked)
        end = CallEnd(
            state=end.state,
            output=end.output,
            is_error=end.is_error,
            output_bytes=end.output_bytes,
            token_hash=asked.token_hash,
        )
        status = await call.deps.calls.returned(job, asked, _NO_LEASE, end)
        if status is ReturnStatus.MISSING:
            raise NotFound("no such call")
        if status in (ReturnStatus.TERMINAL, ReturnStatus.LATE):
            raise WrongState("the result came too late, or a second time; it is noted and not used")
    return json_response({"object": "tool.result", "status": status})


@routes.operation(
    "POST",
    "/v1/jobs/{id}/calls/{place}/progress",
    Scope.EVENTS_WRITE,
    parameters=(_CALL_TOKEN,),
    body=_PROGRESS,
    answers={200: ProgressNoteView},
    refuses=(403, 404, 409),
)
async def take_progress(call: Call[ApprovalDeps]) -> Response:
    """Say how far a running call of a function is.

    `place` is the event's `callplace`, such as `1.0`. Readers of the job see it, the model does not. At most one a
    second is noted, the others are dropped; the token stays good for the result.
    """
    body, path = await call.read_object(), call.request.path_params
    job = await own_job(call.deps.calls.store, call.principal, path["id"], with_result=False)
    with naming(job):
        asked = _call_at(job, path["place"])
        _check_token(call, asked)
        check_fields(body, _PROGRESS_FIELDS)
        said = progress_text(body.get("progress"), body.get("total"), body.get("message"))
        if not said:
            raise BadRequest("say progress, a number, or a message", "progress")
        status = await call.deps.calls.store.progress_call(
            job.id, asked.turn, asked.place, _NO_LEASE, said, asked.token_hash
        )
        if status is ProgressStatus.MISSING:
            raise NotFound("no such call")
        if status is ProgressStatus.LATE:
            raise WrongState("the call does not run any more")
    return json_response({"object": "tool.progress", "is_noted": status is ProgressStatus.OK})


@routes.operation("GET", "/v1/tools", Scope.JOBS_READ, answers=ToolServerList)
async def list_tool_servers(call: Call[ApprovalDeps]) -> Response:
    """List the tool servers that your jobs may name by label.

    What an MCP server offers is as the last of your jobs that used it read it: no server is asked by this.
    """
    config, tenant = call.deps.config, call.principal.tenant
    known = await call.deps.lists.of(tenant)
    served = sorted(config.serving(tenant).items())
    servers = [server_view(each, _list_of(each, known)) for _, each in served]
    allowed = config.allows_urls(tenant)
    return json_response({"object": "list", "data": servers, "urls_allowed": allowed})


@routes.operation(
    "POST",
    "/v1/tools/{label}/accept",
    Scope.APPROVALS,
    body=_ACCEPTED,
    answers={200: ToolServerView},
    refuses=(404, 409),
)
async def accept_tools(call: Call[ApprovalDeps]) -> Response:
    """Accept a tool server's list that is not the pinned one any more.

    Jobs do not use it before. `digest` is that of the list that you have seen; where another was read meanwhile, this
    is a conflict.
    """
    body, tenant = await call.read_object(), call.principal.tenant
    server = call.deps.config.serving(tenant).get(call.request.path_params["label"])
    digest = body.get("digest")
    check("", digest, NAME, "digest")
    by = call.principal.key_id or "anonymous"
    known = await call.deps.lists.of(tenant)
    if server is None or _list_of(server, known) is None:
        raise NotFound("no job of yours has read the list of such a tool server")
    if await call.deps.lists.accept(tenant, server.label, str(digest), by) is not AcceptStatus.OK:
        raise WrongState("the server's list has another digest: look at it again")
    known = await call.deps.lists.of(tenant)
    return json_response(server_view(server, _list_of(server, known)))


def _list_of(server: ToolServer, known: Mapping[str, KnownList]) -> KnownList | None:
    """What is known of the server's list, at the address that it has now."""
    found = known.get(server.label)
    return found if found and found.address == address_digest(server.url) else None


_NO_LEASE: Final = -1
"""The number of a send that no process holds: the token alone counts."""


def _check_token(call: Call[ApprovalDeps], asked: ToolCall) -> None:
    """Raises `Forbidden` for a token that is not the call's."""
    given = token_hash(call.request.headers.get("torpor-call-token", ""))
    if not asked.token_hash or not hmac.compare_digest(asked.token_hash, given):
        raise Forbidden("the call token is not that of this call")


def _check_approver(deps: ApprovalDeps, principal: Principal, job: Job) -> None:
    key = job.metadata.get(KEY, "")
    if deps.by_another_key and key and key == principal.key_id:
        raise Forbidden("an approval is given with another key than that which asked for the call")


def _call_of(job: Job, approval_id: str) -> ToolCall:
    """The call that an approval is, or was, asked for. Raises `NotFound`."""
    found = call_of_approval(job.id, approval_id)
    if found is None:
        raise NotFound("no such approval")
    call = _found(job, *found)
    if call is None or not call.approval_id:
        raise NotFound("no such approval")
    return call


def _call_at(job: Job, text: str) -> ToolCall:
    """The call at `TURN.PLACE`. Raises `NotFound`."""
    turn, _, place = text.partition(".")
    is_place = turn.isdecimal() and place.isdecimal() and len(text) < 14
    call = _found(job, int(turn), int(place)) if is_place else None
    if call is None:
        raise NotFound("no such call")
    return call


def _found(job: Job, turn: int, place: int) -> ToolCall | None:
    calls = job.turns[turn - 1].calls if 1 <= turn <= len(job.turns) else ()
    return calls[place] if 0 <= place < len(calls) else None


def _end_of(body: dict[str, Any]) -> CallEnd:
    """The result in MCP's form. Raises `BadRequest`."""
    check_fields(body, _RESULT_FIELDS)
    content = body.get("content")
    if not isinstance(content, list):
        raise BadRequest("content must be a list of parts", "content")
    texts = []
    for place, part in enumerate(content):
        where = f"content[{place}]"
        check("", part, OBJECT, where)
        if part.get("type") == "text":
            check(f"{where}.", part.get("text"), TEXT, "text")
            texts.append(part["text"])
        else:
            texts.append(f"[{part.get('type')!s:.20}: not shown]")
    text = "\n".join(texts)
    if (size := len(text.encode())) > DEFAULT_LIMITS.shown_bytes:
        most = DEFAULT_LIMITS.shown_bytes
        raise BadRequest(
            f"content has {size} bytes of text, of {most} that are taken here", "content"
        )
    is_error = bool(body.get("isError"))
    return CallEnd(state=CallState.RETURNED, output=text, is_error=is_error, output_bytes=size)
