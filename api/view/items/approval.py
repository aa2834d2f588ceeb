"""A tool call that waits for a person, and the tool servers of a tenant, as the api shows them. Pure.

Called by `api.routes.approvals`. No address and no credential is in them.
"""

from collections.abc import Mapping
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from api.http.described import described
from eventing.job.job import JobId
from eventing.job.tools.call import ToolCall
from eventing.job.tools.question import QuestionKind, kind_of, requests_of
from eventing.job.tools.server import ToolServer


class QuestionView(TypedDict):
    """What a tool asks its user for."""

    key: str
    message: str
    schema: Mapping[str, Any] | None
    url: str | None


@described
class ApprovalView(TypedDict):
    """A tool call that a person decides about."""

    id: str
    object: Literal["approval"]
    job_id: str
    turn: int
    place: int
    kind: str | None
    """approval: is it run? doubt: it may have happened; is it run again? input: what the tool asks for"""
    state: str
    server: str
    tool: str
    arguments: str
    """As the model wrote them, whole: what is approved is what is shown"""
    reason: str
    """Why it is asked"""
    effect: str
    """What a second send can do: read, keyed, repeatable, once"""
    questions: NotRequired[list[QuestionView]]
    approver: str | None
    expires_at: int | None
    """Seconds since 1970"""


def approval_view(job_id: JobId, call: ToolCall) -> ApprovalView:
    kind = kind_of(call)
    view: ApprovalView = {
        "id": call.approval_id,
        "object": "approval",
        "job_id": job_id,
        "turn": call.turn,
        "place": call.place,
        "kind": kind,
        "state": call.state,
        "server": call.server,
        "tool": call.tool or call.name,
        "arguments": call.arguments,
        "reason": call.reason,
        "effect": call.effect,
        "approver": call.approver or None,
        "expires_at": call.expires_ms // 1000 or None,
    }
    if kind is QuestionKind.INPUT:
        view["questions"] = [_question(key, each) for key, each in requests_of(call).items()]
    return view


def _question(key: str, params: Mapping[str, Any]) -> QuestionView:
    schema, url = params.get("requestedSchema"), params.get("url")
    return {
        "key": key,
        "message": str(params.get("message") or ""),
        "schema": schema if isinstance(schema, Mapping) else None,
        "url": url if isinstance(url, str) else None,
    }


@described
class ToolServerView(TypedDict):
    """A server whose tools the tenant's jobs may call."""

    label: str
    object: Literal["tool_server"]
    kind: str
    """mcp, or function: a single tool"""
    description: str
    approval: str
    """When its calls need a person's decision: always or never"""
    effect: str
    effects: dict[str, str]
    """Effect classes of single tools"""
    trusted: bool
    parameters: Mapping[str, Any] | None
    """JSON Schema of a function; an MCP server lists its tools to each job"""
    timeout_ms: int


def server_view(server: ToolServer) -> ToolServerView:
    return {
        "label": server.label,
        "object": "tool_server",
        "kind": server.kind,
        "description": server.description,
        "approval": server.approval,
        "effect": server.effect,
        "effects": {name: str(each) for name, each in server.effects.items()},
        "trusted": server.is_trusted,
        "parameters": dict(server.parameters) or None,
        "timeout_ms": server.timeout_ms,
    }
