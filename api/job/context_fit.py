"""The history of a call made to fit: compacted from a threshold on, or cut at its beginning.

Called by `api.job.conversation`. Both happen before the job is recorded, so that a process that dies leaves nothing
half done, and neither wakes a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from api.job.catalog import Catalog
from api.job.compaction import compacted
from api.job.response.request import Ask
from eventing.job.tools.taint import own_functions, read_before, with_told
from eventing.store.conversation.messages import Message, compaction_item, messages_of

_MESSAGE_TOKENS: Final = 4
"""What a chat template adds to a message."""
_ANSWER_SHARE: Final = 4
"""The part of the context that is left to an answer whose length the caller does not limit."""
_BYTES_PER_TOKEN: Final = 4


async def fitted(catalog: Catalog, ask: Ask) -> Ask:
    """The call with a history as long as it asks for. Raises `ModelNotFound`."""
    is_cut = ask.record.get("truncation") == "auto"
    if not ask.history or not (is_cut or ask.compact_threshold):
        return ask
    name = str(ask.body.get("model"))
    messages: Sequence[Message] = ask.body["messages"]
    counts = await catalog.count_texts(name, [_text(message) for message in messages])
    total = sum(counts) + _MESSAGE_TOKENS * len(counts)
    if ask.compact_threshold and total >= ask.compact_threshold:
        return _compacted(ask)
    card = catalog.card(name)
    if not is_cut or card is None:
        return ask
    answer = int(ask.body.get("max_completion_tokens") or card.context_tokens // _ANSWER_SHARE)
    over = total + min(answer, card.context_tokens // 2) - card.context_tokens
    kept = _cut(ask.said_before, _history_counts(ask, counts), over)
    labels = read_before(ask.said_before, own_functions(ask.body))
    return ask.with_history(with_told(kept, labels))


def _compacted(ask: Ask) -> Ask:
    """The call with an item in place of what was said before. The item is part of the response, and of the
    conversation.
    """
    most_bytes = ask.compact_threshold * _BYTES_PER_TOKEN // 2
    text = compacted(ask.said_before, most_bytes, own_functions(ask.body))
    item = compaction_item("", text)
    record = {**ask.record, "compaction": item["encrypted_content"]}
    turn = replace(ask.turn, items=(item, *ask.turn.items)) if ask.turn else None
    return replace(ask.with_history(messages_of([item])), record=record, turn=turn)


def _cut(history: list[Message], counts: Sequence[int], over: int) -> list[Message]:
    """The history without its oldest messages, at least `over` tokens of them. It does not begin with the output of
    a function.
    """
    start = 0
    while start < len(history) and (over > 0 or (start and history[start]["role"] == "tool")):
        over -= counts[start] + _MESSAGE_TOKENS
        start += 1
    return history[start:]


def _history_counts(ask: Ask, counts: Sequence[int]) -> Sequence[int]:
    begin = 1 if ask.record.get("instructions") else 0
    return counts[begin : begin + ask.history]


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content)
    calls = "".join(str(call.get("function")) for call in message.get("tool_calls") or ())
    return f"{content or ''}{calls}"
