"""Whose results a prompt was made of: the labels of tool servers among its messages, also where the results are gone
since a history was made shorter. Pure.

Called by the step `tools`, which asks for approval after results of servers that are not trusted, and by what shortens
histories: it leaves a line that names the servers. A line of any other author can only add a server.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from eventing.job.tools.server import SEPARATOR

_TOLD: Final = "(Results of these tool servers were read before: {labels}.)\n"
_LABEL: Final = r"[A-Za-z][A-Za-z0-9_-]{0,31}"
_LINE: Final = re.compile(
    r"^\(Results of these tool servers were read before: (LABEL(?:, LABEL)*)\.\)$".replace(
        "LABEL", _LABEL
    ),
    re.MULTILINE,
)


def told(labels: Iterable[str]) -> str:
    """The line that names servers in the place of their results; empty for none."""
    named = ", ".join(sorted(set(labels)))
    return _TOLD.format(labels=named) if named else ""


def labels_told(text: Any) -> set[str]:
    """The servers that lines in a text name."""
    if not isinstance(text, str):
        return set()
    return {label for found in _LINE.findall(text) for label in found.split(", ")}


def read_before(
    messages: Iterable[Mapping[str, Any]], own: frozenset[str] = frozenset()
) -> frozenset[str]:
    """The servers whose results stand among messages, or did: earlier responses, or the caller's copy of them. `own`
    are the caller's functions.
    """
    labels: dict[Any, str] = {}
    found = set()
    for message in messages:
        for call in message.get("tool_calls") or ():
            name = str((call.get("function") or {}).get("name") or "")
            label, separator, _ = name.partition(SEPARATOR)
            labels[call.get("id")] = label if separator and name not in own else ""
        if message.get("role") != "tool":
            found |= labels_told(message.get("content"))
        elif label := labels.get(message.get("tool_call_id"), ""):
            found.add(label)
    return frozenset(found)


def own_functions(body: Mapping[str, Any]) -> frozenset[str]:
    """The names of the caller's own functions in a chat body."""
    tools = [each for each in body.get("tools") or () if isinstance(each, Mapping)]
    own = [each.get("function") for each in tools if each.get("type") == "function"]
    return frozenset(each["name"] for each in own if isinstance(each, Mapping) and "name" in each)


def with_told(messages: Sequence[dict[str, Any]], labels: Iterable[str]) -> list[dict[str, Any]]:
    """The messages with a line about those servers that they say nothing of: in front of the first text, since a
    template may want its roles in turn.
    """
    line = told(set(labels) - read_before(messages))
    if not line:
        return list(messages)
    for place, message in enumerate(messages):
        if message.get("role") in ("user", "assistant") and isinstance(message.get("content"), str):
            first = {**message, "content": line + message["content"]}
            return [*messages[:place], first, *messages[place + 1 :]]
    return [{"role": "user", "content": line.rstrip()}, *messages]
