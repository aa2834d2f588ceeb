"""Compaction of a conversation: a summary by the model, in an item that replaces what was said. Pure.

Called by `api.routes.responses` and `api.job.response_request`. The item's content is opaque to clients, as in the
specification; it is encoded and not encrypted, so that any process can read it.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import orjson
from typing_extensions import TypedDict

from api.view.response import ResponseUsage, response_id, usage_view
from eventing.job.job import Job

_ASKED: Final = (
    "Summarize the conversation above, so that another assistant can go on with it: what was asked, what was found "
    "and decided, names, numbers and open questions. Answer with the summary alone."
)
_MOST_TOKENS: Final = 1024


class CompactionView(TypedDict):
    """The shortened conversation, in OpenAI's form."""

    id: str
    object: Literal["response.compaction"]
    created_at: int
    output: list[dict[str, Any]]
    usage: ResponseUsage | None


def compaction_line(
    model: Any, messages: Sequence[Mapping[str, Any]], context_tokens: int
) -> dict[str, Any]:
    """The job line for a summary of `messages`, of at most a quarter of the context."""
    body = {
        "model": model,
        "messages": [*messages, {"role": "user", "content": _ASKED}],
        "max_completion_tokens": max(1, min(_MOST_TOKENS, context_tokens // 4)),
    }
    return {"url": "/v1/chat/completions", "body": body}


def compaction_view(job: Job) -> CompactionView:
    """OpenAI's object of an ended compaction job: the users' messages, and the summary."""
    tail = job.id.removeprefix("job_")
    said = _user_items(job.request.body["messages"][:-1], tail)
    message = ((job.result or {}).get("choices") or [{}])[0].get("message") or {}
    sealed = orjson.dumps({"summary": message.get("content") or ""})
    item = {
        "id": f"cmp_{tail}",
        "type": "compaction",
        "encrypted_content": base64.urlsafe_b64encode(sealed).decode(),
    }
    return {
        "id": response_id(job.id),
        "object": "response.compaction",
        "created_at": job.created_ms // 1000,
        "output": [*said, item],
        "usage": usage_view(job),
    }


def _user_items(messages: Iterable[Mapping[str, Any]], tail: str) -> list[dict[str, Any]]:
    return [
        {
            "id": f"msg_{tail}_{number}",
            "type": "message",
            "role": "user",
            "status": "completed",
            "content": _parts(message.get("content")),
        }
        for number, message in enumerate(messages)
        if message["role"] == "user"
    ]


def _parts(content: Any) -> list[dict[str, Any]]:
    """The parts of a chat message as those of a response's input."""
    if isinstance(content, str):
        return [{"type": "input_text", "text": content}]
    return [
        {"type": "input_text", "text": part["text"]}
        if part["type"] == "text"
        else {"type": "input_image", "image_url": part["image_url"]["url"], "detail": "auto"}
        for part in content or ()
    ]
