"""Examples of tools and approvals in the OpenAPI document."""

from collections.abc import Mapping
from typing import Any, Final

_APPROVAL: Final = {
    "id": "mcpr_0123456789abcdef01234567_1_0",
    "object": "approval",
    "job_id": "job_0123456789abcdef01234567",
    "turn": 1,
    "place": 0,
    "kind": "approval",
    "state": "awaiting_approval",
    "server": "refund",
    "tool": "refund",
    "arguments": '{"order_id": "A7", "amount": 12.5}',
    "reason": "approval",
    "effect": "keyed",
    "approver": None,
    "expires_at": 1_764_604_800,
}
_SERVER: Final = {
    "label": "refund",
    "object": "tool_server",
    "kind": "function",
    "description": "Pays money back for an order.",
    "approval": "always",
    "effect": "keyed",
    "effects": {},
    "trusted": False,
    "parameters": {"type": "object", "properties": {"order_id": {"type": "string"}}},
    "timeout_ms": 60_000,
    "tools": None,
    "digest": None,
    "read_ms": None,
    "pinned_digest": None,
    "accepted_by": None,
    "changes": None,
}

TOOL_EXAMPLES: Final[Mapping[str, Mapping[str, Any]]] = {
    "Approval": _APPROVAL,
    "ApprovalDecision": {"approve": False, "reason": "too dear"},
    "ApprovalList": {"object": "list", "data": [_APPROVAL], "next_cursor": None},
    "ToolServer": _SERVER,
    "ToolServerList": {"object": "list", "data": [_SERVER], "urls_allowed": False},
    "AcceptedTools": {"digest": "3f" * 32},
    "ToolResult": {"content": [{"type": "text", "text": "refunded as R-7"}]},
    "LateResult": {"object": "tool.result", "status": "next"},
    "ToolProgress": {"progress": 3, "total": 10, "message": "page 3"},
    "ProgressNote": {"object": "tool.progress", "is_noted": True},
}
