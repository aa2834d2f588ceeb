"""The running summary of a conversation: when one is due, how a model is asked for it, and what is accepted. Pure.

Called by the api when a job of a conversation has ended.
"""

from collections.abc import Sequence
from typing import Any, Final

from eventing.store.conversation.conversation import NumberedItem, Summary, item_text
from eventing.store.conversation.facts import Fact, numbers_in

SUMMARY: Final = "torpor.summary"
"""Metadata key of a job that summarises: conversation, and the items that the summary before and this one end at."""
VERBATIM: Final = 6
"""The newest messages, which are never summarised: the model is given them as they are."""
_MOST_TOKENS: Final = 512
_MOST_BYTES: Final = 24 * 1024
"""Of what was said, in one request; a longer conversation is summarised in several."""
_ITEM_BYTES: Final = 2000
_FEWEST_LETTERS: Final = 20
_ASKED: Final = (
    "Write a running summary of this conversation, in the past tense and about the user and the assistant in the third "
    "person: what was asked, what was found and decided, and what is open. Keep every name, number, date, id and path "
    "exactly as it was said. Answer with the summary alone."
)


def due(items: Sequence[NumberedItem], every_messages: int) -> list[NumberedItem]:
    """The items for the next summary, of those after the last one; none while there are too few. `items` are in
    order, and a request holds as many as fit.
    """
    old = list(items[:-VERBATIM])
    if not every_messages or len(old) < every_messages:
        return []
    chosen, left = list[NumberedItem](), _MOST_BYTES
    for numbered in old:
        left -= min(len(item_text(numbered.item).encode()), _ITEM_BYTES)
        if left < 0 and chosen:
            break
        chosen.append(numbered)
    return chosen


def summary_body(
    model: str, before: Summary | None, items: Sequence[NumberedItem]
) -> dict[str, Any]:
    """The chat call that asks for the next summary."""
    said = "\n".join(f"{_speaker(each)}: {_shortened(item_text(each.item))}" for each in items)
    told = f"Summary of what was said before:\n{before.text}\n\n" if before else ""
    content = f"{told}Conversation:\n{said}\n\n{_ASKED}"
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_completion_tokens": _MOST_TOKENS,
        "temperature": 0,
    }


def refusal(before: Summary | None, text: str, facts: Sequence[Fact]) -> str:
    """Why a new summary is not taken, in one word; empty when it is. A number of the summary before must be in the
    new one, or in the facts, which every prompt has.
    """
    if sum(map(str.isalnum, text)) < _FEWEST_LETTERS:
        return "empty"
    if before is not None:
        kept = numbers_in(text).union(*(numbers_in(fact.text) for fact in facts))
        if not numbers_in(before.text) <= kept:
            return "lost_number"
    return ""


def _speaker(numbered: NumberedItem) -> str:
    match numbered.item.get("type"):
        case "message":
            return str(numbered.item.get("role", "user"))
        case "function_call":
            return "assistant calls"
        case _:
            return "tool"


def _shortened(text: str) -> str:
    return text if len(text) <= _ITEM_BYTES else f"{text[:_ITEM_BYTES]} [...]"
