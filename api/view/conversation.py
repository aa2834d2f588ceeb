"""Conversations and their items in OpenAI's form. Pure.

Called by `api.routes.conversations` and `api.job.conversation`.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

from typing_extensions import TypedDict

from api.http.described import described
from eventing.store.conversation.conversation import Conversation

_PREFIXES: Final = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
_WITH_STATUS: Final = ("message", "function_call", "function_call_output")


@described
class ConversationView(TypedDict):
    """A conversation. Its items are listed apart."""

    id: str
    object: Literal["conversation"]
    created_at: int
    """Seconds since 1970"""
    metadata: Mapping[str, str]


def conversation_view(found: Conversation) -> ConversationView:
    return {
        "id": found.id,
        "object": "conversation",
        "created_at": found.created_ms // 1000,
        "metadata": found.metadata,
    }


def new_item_id(item: Mapping[str, Any], call: str, place: int) -> str:
    """An id for an item that a caller puts into a conversation: the one at `place` of those that a call has."""
    return f"{_PREFIXES.get(item['type'], 'item')}_{call}_{place}"


def whole_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """The item as conversations show it: a message's content in parts, and what has a status with one."""
    made = dict(item)
    if made["type"] == "message" and isinstance(made.get("content"), str):
        kind = "output_text" if made.get("role") == "assistant" else "input_text"
        made["content"] = [_text_part(kind, made["content"])]
    if made["type"] in _WITH_STATUS:
        made["status"] = made.get("status") or "completed"
    return made


def _text_part(kind: str, text: str) -> dict[str, Any]:
    extra: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    return {"type": kind, "text": text, **extra}
