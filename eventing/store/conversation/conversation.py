"""Conversations: what the api and the memory step share of them. Pure.

Called by `eventing.store.conversation.store`, the api's routes and the memory step. An item is one of OpenAI's
Responses (a message, a function call, its output, ...), with an id that is its own within the conversation.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Item = Mapping[str, Any]

MOST_ITEMS: Final = 4_000
"""A conversation with as many takes no more."""
MOST_BYTES: Final = 8 * 1024 * 1024
"""JSON of all its items. The answer that reaches it still gets in."""
_ID: Final = re.compile(r"conv_[0-9a-f]{24}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What was said up to the item of number `seq`, in a model's words."""

    id: str
    text: str
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A conversation without its items. `seq` is the number of its newest item, numbers of deleted ones included;
    `job` the id of the response that is adding to it, if one is.
    """

    id: str
    tenant: str
    created_ms: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    seq: int = 0
    size_bytes: int = 0
    job: str = ""
    summary: Summary | None = None


@dataclass(frozen=True, slots=True)
class NumberedItem:
    """An item with its number in the conversation."""

    seq: int
    item: Item

    @property
    def id(self) -> str:
        return str(self.item["id"])


def is_conversation_id(text: str) -> bool:
    """True for an id in the form that conversations have."""
    return _ID.match(text) is not None


def item_text(item: Item) -> str:
    """What was said in an item, as one text; empty for an item without words."""
    match item.get("type"):
        case "message":
            return _content_text(item.get("content"))
        case "function_call":
            return f"{item.get('name', '')}({item.get('arguments', '')})"
        case "function_call_output":
            return _content_text(item.get("output"))
        case "mcp_call":
            called = f"{item.get('server_label', '')}.{item.get('name', '')}"
            return f"{called}({item.get('arguments', '')}): {item.get('output') or 'failed'}"
        case _:
            return ""


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part for part in content if isinstance(part, Mapping)]
    return "".join(str(part.get("text") or part.get("refusal") or "") for part in parts)
