"""A tool call that waits for a person, and the tool servers of a tenant, as the api shows them. Pure.

Called by `api.routes.approvals`. No address and no credential is in them.
"""

from collections.abc import Mapping
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from api.http.described import described
from eventing.job.job import JobId
from eventing.job.tools.call import ToolCall
from eventing.job.tools.known_list import KnownList
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
class ListedToolView(TypedDict):
    """A tool that a server offers."""

    name: str
    description: str
    """The first 500 characters"""
    digest: str
    effect: str
    approval: str


class ToolChangesView(TypedDict):
    """The names of tools, by what became of them since the list was pinned."""

    added: list[str]
    changed: list[str]
    removed: list[str]


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
    tools: list[ListedToolView] | None
    """What an MCP server offers, as the last job of yours that used it read it; null where none has"""
    digest: str | None
    """Of that list"""
    read_ms: int | None
    """When it was read; one that stays the same is noted once a minute"""
    pinned_digest: str | None
    """Of the list that is pinned: another is not used until it is accepted"""
    accepted_by: str | None
    """Who accepted the pinned one; null for the first that was read"""
    changes: ToolChangesView | None
    """Between the pinned list and the last one; null where they are the same"""


def server_view(server: ToolServer, known: KnownList | None = None) -> ToolServerView:
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
        "tools": _listed(server, known) if known else None,
        "digest": known.digest if known else None,
        "read_ms": known.read_ms if known else None,
        "pinned_digest": (known.pinned or None) if known else None,
        "accepted_by": (known.accepted_by or None) if known else None,
        "changes": _changes(known) if known else None,
    }


def _listed(server: ToolServer, known: KnownList) -> list[ListedToolView]:
    return [
        {
            "name": tool.name,
            "description": tool.description,
            "digest": tool.digest,
            "effect": tool.effect,
            "approval": server.approval,
        }
        for tool in known.tools
    ]


def _changes(known: KnownList) -> ToolChangesView | None:
    if not known.is_changed:
        return None
    said = known.changes
    return {
        "added": list(said["added"]),
        "changed": list(said["changed"]),
        "removed": list(said["removed"]),
    }
