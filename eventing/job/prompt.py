"""The start of a job's prompt, as lists show it and searches read it, and the match of a search. Pure.

Called by `eventing.store`. A prompt can be a megabyte; its start is stored beside it when the job is recorded.
"""

from collections.abc import Iterator
from typing import Any, Final

from eventing.job.job import JobRequest

PROMPT_CHARS: Final = 160


def prompt_start(request: JobRequest) -> str:
    """The first characters of what the caller asked last, on one line; empty for token ids and images."""
    body = request.body
    asked = body.get("prompt") or body.get("input") or ""
    messages = body.get("messages")
    if isinstance(messages, list):
        asked = _last_of_user(messages)
    taken, left = [], 4 * PROMPT_CHARS
    for text in _texts(asked):
        taken.append(text[:left])
        left -= len(text)
        if left <= 0:
            break
    return " ".join(" ".join(taken).split())[:PROMPT_CHARS]


def is_match(words: str, *texts: str) -> bool:
    """Whether each of the words is in one of the texts, whatever its case."""
    where = "\n".join(texts).casefold()
    return all(word in where for word in words.casefold().split())


def _last_of_user(messages: list[Any]) -> Any:
    asked = [m for m in messages if isinstance(m, dict)]
    of_user = [m for m in asked if m.get("role") == "user"] or asked
    return of_user[-1].get("content") or "" if of_user else ""


def _texts(value: Any) -> Iterator[str]:
    """The texts in a prompt; parts of other kinds have none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, dict):
        yield from _texts(value.get("text") or "")
