"""Filters what readers were already shown out of a continued answer. Pure.

Called by `predictor.generation.generation` and `predictor.generation.checkpoint`. An engine that continues an
answer gives the chunks of the whole of it again, so that its parsers see it completely; a reader must see each
character once. Texts are counted in characters per choice and channel (content, reasoning, completion text,
arguments of a tool call), because a continued answer has the same text in other chunks.

An entry is one element of a token stream's `delta`: `{"index", "delta": {...}}` for chat, `{"index", "text"}` for
completions, with `finish_reason` and `logprobs` if set.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

Entry = dict[str, Any]
_Channel = tuple[int, str]

_REASONING: Final = "reasoning_content"
_EXTRAS: Final = ("logprobs", "token_ids", "prompt_token_ids", "finish_reason", "stop_reason")
_BY_TOKEN: Final = frozenset({"logprobs", "token_ids"})
"""Fields of an entry with one value a token."""
_SPELLINGS: Final = {"reasoning": _REASONING}
"""vLLM renamed the field that most clients know under its older name."""


def entries_of(chunk: Mapping[str, Any], *, has_usage: bool = False) -> Iterator[Entry]:
    """The entries of a stream chunk, each with one channel at most, without empty ones; `has_usage` for a call that
    asked for the usage so far in every chunk.
    """
    for choice in chunk.get("choices", ()):
        index = choice["index"]
        if chunk.get("prompt_token_ids") and "delta" in choice:  # chat has them beside its choices
            choice = {**choice, "prompt_token_ids": chunk["prompt_token_ids"]}
        parts = list(_parts(index, choice))
        extras = {name: choice[name] for name in _EXTRAS if choice.get(name) is not None}
        if has_usage and chunk.get("usage"):
            extras["usage"] = chunk["usage"]
        if extras:
            if not parts:
                parts = [_blank(index, choice)]
            parts[-1] |= extras
        yield from parts


def coalesce(entries: Iterable[Entry]) -> list[Entry]:
    """The same text in as few entries as its order allows."""
    merged: list[Entry] = []
    for entry in entries:
        if not (merged and _join(merged[-1], entry)):
            merged.append(_copy(entry))
    return merged


class ReplayFilter:
    """How much of an answer was shown, and under which ids its tool calls were."""

    def __init__(self) -> None:
        self._counts: dict[_Channel, int] = {}
        self._tool_ids: dict[_Channel, str] = {}
        self._finished: set[int] = set()

    def note(self, entries: Iterable[Entry]) -> None:
        """Count entries that readers were shown."""
        for entry in entries:
            index = entry["index"]
            for channel, text in _texts(entry):
                self._counts[index, channel] = self._counts.get((index, channel), 0) + len(text)
            for call in entry.get("delta", {}).get("tool_calls", ()):
                if call.get("id"):
                    self._tool_ids[index, _tool(call)] = call["id"]
            if entry.get("finish_reason"):
                self._finished.add(index)

    def clear(self) -> None:
        """Readers were told to discard everything."""
        self._counts.clear()
        self._tool_ids.clear()
        self._finished.clear()

    def rename(self, chunk: Mapping[str, Any]) -> Mapping[str, Any]:
        """The chunk with the tool call ids that were shown before; parsers generate new ones each time."""
        if not self._tool_ids:
            return chunk
        for choice in chunk.get("choices", ()):
            for call in (choice.get("delta") or {}).get("tool_calls") or ():
                known = self._tool_ids.get((choice["index"], _tool(call)))
                if known and call.get("id"):
                    call["id"] = known
        return chunk

    def new_deltas(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The entries without the text shown before; call it with each chunk's, in order."""
        if not (self._counts or self._tool_ids or self._finished):
            yield from entries  # a first attempt: nothing was shown
            return
        for entry in entries:
            index = entry["index"]
            shown_something = "logprobs" in entry
            for channel, text in _texts(entry):
                left = self._counts.pop((index, channel), 0)
                if left > len(text):
                    self._counts[index, channel] = left - len(text)
                _put(entry, channel, text[left:])
                shown_something |= len(text) > left
            shown_something |= self._hide_shown_calls(entry)
            if entry.get("finish_reason") and index not in self._finished:
                shown_something = True
            if shown_something:
                yield entry

    def _hide_shown_calls(self, entry: Entry) -> bool:
        """Remove name and id from tool calls shown before; True when a new one is among them."""
        announces = False
        for call in entry.get("delta", {}).get("tool_calls", ()):
            if not call.get("id"):
                continue
            if (entry["index"], _tool(call)) in self._tool_ids:
                for name in ("id", "type"):
                    call.pop(name, None)
                call["function"].pop("name", None)
            else:
                announces = True
        return announces


def _parts(index: int, choice: Mapping[str, Any]) -> Iterator[Entry]:
    if text := choice.get("text"):
        yield {"index": index, "text": text}
    delta = choice.get("delta") or _as_delta(choice.get("message") or {})
    for name in ("reasoning", _REASONING, "content", "refusal"):
        if text := delta.get(name):
            yield {"index": index, "delta": {_SPELLINGS.get(name, name): text}}
    for call in delta.get("tool_calls") or ():
        kept = {k: v for k, v in call.items() if v is not None}
        kept["function"] = {k: v for k, v in (call.get("function") or {}).items() if v is not None}
        yield {"index": index, "delta": {"tool_calls": [kept]}}


def _as_delta(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A whole message as one delta, in which tool calls are numbered."""
    calls = message.get("tool_calls") or ()
    numbered = [{"index": number, **call} for number, call in enumerate(calls)]
    return {**message, "tool_calls": numbered}


def _blank(index: int, choice: Mapping[str, Any]) -> Entry:
    return {"index": index, "text": ""} if "text" in choice else {"index": index, "delta": {}}


def _texts(entry: Entry) -> list[tuple[str, str]]:
    """Channel and text of an entry."""
    found = [("text", entry["text"])] if entry.get("text") else []
    for name, value in entry.get("delta", {}).items():
        if isinstance(value, str):
            found.append((name, value))
        elif name == "tool_calls":
            found += [(_tool(call), call["function"].get("arguments") or "") for call in value]
    return found


def _put(entry: Entry, channel: str, text: str) -> None:
    if channel == "text":
        entry["text"] = text
    elif channel in entry["delta"]:
        entry["delta"][channel] = text
    else:
        for call in entry["delta"]["tool_calls"]:
            if _tool(call) == channel and "arguments" in call["function"]:
                call["function"]["arguments"] = text


def _tool(call: Mapping[str, Any]) -> str:
    return f"tool:{call.get('index', 0)}"


def _join(before: Entry, entry: Entry) -> bool:
    """Append `entry` to the one before it if that keeps their order; False when it does not."""
    if before["index"] != entry["index"] or before.get("finish_reason"):
        return False
    if not _BY_TOKEN.isdisjoint(before) or not _BY_TOKEN.isdisjoint(entry):
        return False
    if "text" in before:
        before["text"] += entry["text"]
    elif not _join_delta(before["delta"], entry["delta"]):
        return False
    before.update({k: v for k, v in entry.items() if k not in ("index", "text", "delta")})
    return True


def _join_delta(before: dict[str, Any], delta: Mapping[str, Any]) -> bool:
    if not delta:
        return True
    (name, value), *_ = delta.items()
    if not before:
        before.update(_copy(dict(delta)))
    elif name not in before:
        return False
    elif isinstance(value, str):
        before[name] += value
    else:
        return _join_call(before[name][-1], value[0])
    return True


def _join_call(before: dict[str, Any], call: Mapping[str, Any]) -> bool:
    if _tool(before) != _tool(call) or call.get("id"):
        return False
    function = before["function"]
    function["arguments"] = function.get("arguments", "") + call["function"].get("arguments", "")
    return True


def _copy(entry: Entry) -> Entry:
    """A copy whose texts can be extended without changing the original."""
    copied = dict(entry)
    if "delta" in copied:
        copied["delta"] = _copy(copied["delta"])
    if "tool_calls" in copied:
        copied["tool_calls"] = [
            {**call, "function": dict(call["function"])} for call in copied["tool_calls"]
        ]
    return copied
