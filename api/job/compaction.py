"""Compaction of a conversation: an item that replaces what was said, with a summary by the model, or without a model
what was said word for word. Pure.

Called by `api.routes.response_input` and `api.job.context_fit`. The item's content is opaque to clients, as in the
specification; it is encoded and not encrypted, so that any process can read it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from typing_extensions import TypedDict

from api.view.outcome import CallFailed
from api.view.response import ResponseUsage, response_id, usage_view
from eventing.job.job import Job
from eventing.job.tools.taint import read_before, told
from eventing.store.conversation.conversation import NumberedItem, item_text
from eventing.store.conversation.facts import Fact, facts_of, within
from eventing.store.conversation.messages import GIVEN, Message, compaction_item
from eventing.store.conversation.summary import VERBATIM
from eventing.store.job_record.fields import compaction_id

_ASKED: Final = (
    "Summarize the conversation above, so that another assistant can go on with it: what was asked, what was found "
    "and decided, names, numbers and open questions. Answer with the summary alone."
)
_MOST_TOKENS: Final = 1024
_FACTS_BYTES: Final = 4000
_SAID: Final = re.compile(r"^- (user|assistant) said: (.*(?:\n  .*)*)", re.MULTILINE)


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
    """OpenAI's object of an ended compaction job: the users' messages, and the summary. Raises `CallFailed` for an
    empty one, which would replace the conversation by nothing.
    """
    tail = job.id.removeprefix("job_")
    said = _user_items(job.request.body["messages"][:-1], tail)
    message = ((job.result or {}).get("choices") or [{}])[0].get("message") or {}
    summary = str(message.get("content") or "").strip()
    if not summary:
        raise CallFailed("the model gave no summary; nothing was compacted", 500, "no_answer")
    # What users said goes on as it is; of the answers, what a summary may lose.
    facts = [
        fact
        for fact in facts_of(_numbered(job.request.body["messages"][:-1]))
        if fact.role == "assistant"
    ]
    text = "\n".join([summary, *_lines(within(facts, _FACTS_BYTES))])
    text = told(read_before(job.request.body["messages"])) + text
    item = compaction_item(compaction_id(job.id), text)
    return {
        "id": response_id(job.id),
        "object": "response.compaction",
        "created_at": job.created_ms // 1000,
        "output": [*said, item],
        "usage": usage_view(job),
    }


def compacted(
    messages: Sequence[Message], most_bytes: int, own: frozenset[str] = frozenset()
) -> str:
    """What was said, made short without a model: facts word for word, those of an earlier compaction among them, and
    the newest messages. `own` are the caller's functions.
    """
    rows = _numbered(message for message in messages if not _is_compaction(message))
    carried = [
        fact for message in messages if _is_compaction(message) for fact in _carried(message)
    ]
    newest = _newest(rows, most_bytes // 2)
    left = most_bytes - sum(len(fact.text.encode()) for fact in newest)
    facts = within([*carried, *facts_of(rows[: len(rows) - len(newest)])], left)
    said = "\n".join(["Said word for word:", *_lines([*facts, *newest])])
    return told(read_before(messages, own)) + said


def _newest(rows: Sequence[NumberedItem], most_bytes: int) -> list[Fact]:
    """As many of the newest messages as fit, at most `VERBATIM`."""
    found: list[Fact] = []
    for row in reversed(rows[-VERBATIM:]):
        text = item_text(row.item)
        most_bytes -= len(text.encode())
        if most_bytes < 0:
            break
        found.insert(0, Fact(row.seq, str(row.item["role"]), text, is_value=True))
    return found


def _carried(message: Message) -> list[Fact]:
    """The facts in what an earlier compaction told."""
    found = []
    for role, text in _SAID.findall(str(message["content"])):
        row = NumberedItem(0, {"type": "message", "role": role, "content": text})
        if facts := facts_of([row]):
            found.append(Fact(0, role, text, any(fact.is_value for fact in facts)))
    return found


def _is_compaction(message: Message) -> bool:
    return message["role"] == "assistant" and str(message.get("content")).startswith(GIVEN)


def _numbered(messages: Iterable[Mapping[str, Any]]) -> list[NumberedItem]:
    """The messages of users and assistants that have text, as items."""
    return [
        NumberedItem(place, {**message, "type": "message"})
        for place, message in enumerate(messages)
        if message["role"] in ("user", "assistant") and message.get("content")
    ]


def _lines(facts: Iterable[Fact]) -> list[str]:
    return [f"- {fact.role} said: " + fact.text.replace("\n", "\n  ") for fact in facts]


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
