"""The newest items of a conversation that a prompt has as they are. Pure."""

from collections.abc import Collection, Sequence

from eventing.store.conversation.conversation import NumberedItem, item_text
from eventing.store.conversation.summary import VERBATIM

BYTES_PER_TOKEN = 4
_ITEM_TOKENS = 4
"""What a chat template adds to a message."""


def tokens_of(text: str) -> int:
    """An estimate: no tokenizer of the model is at hand here."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def window_start(
    items: Sequence[NumberedItem], window_tokens: int, calls: Collection[str] = ()
) -> int:
    """Where the window begins: as many of the newest items as fit, at least `VERBATIM`, and those whose call the new
    input answers (`calls`). A function's output is never parted from its call; and a window that has something
    before it begins with an answer where it can, since templates want user and assistant in turn, and what is
    before it is told by the user.
    """
    start, left = len(items), window_tokens
    while start > 0:
        left -= tokens_of(item_text(items[start - 1].item)) + _ITEM_TOKENS
        if left < 0 and len(items) - start >= VERBATIM:
            break
        start -= 1
    start = min([start, *_places_of_calls(items, calls)])
    start = _with_calls(items, start)
    if start > 0 and _is_users(items[start]) and not _is_users(items[start - 1]):
        start = _with_calls(items, start - 1)
    return start


def _with_calls(items: Sequence[NumberedItem], start: int) -> int:
    """The start, moved back to the call of every output in the window, and to the message that made the call."""
    moved = min([start, *_places_of_calls(items, _answered(items[start:]))])
    while 0 < moved < len(items) and items[moved].item.get("type") in _AFTER_MESSAGE:
        moved -= 1
    # What came into the window on the way may hold another output.
    return moved if moved == start else _with_calls(items, moved)


def _answered(window: Sequence[NumberedItem]) -> set[object]:
    """The calls whose output is in the window."""
    outputs = (each.item for each in window if each.item.get("type") == "function_call_output")
    return {output.get("call_id") for output in outputs}


_AFTER_MESSAGE = ("function_call", "function_call_output")


def _places_of_calls(items: Sequence[NumberedItem], calls: Collection[object]) -> list[int]:
    return [
        place
        for place, each in enumerate(items)
        if each.item.get("type") == "function_call" and each.item.get("call_id") in calls
    ]


def _is_users(numbered: NumberedItem) -> bool:
    return numbered.item.get("role") == "user"
