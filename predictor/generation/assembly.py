"""Assembles stream chunks into the body of a call that did not stream.

Called by `predictor.generation.generation` and `predictor.serving.direct_call`: every answer is made as a stream,
so that it can be checkpointed, and becomes a `chat.completion` or `text_completion` here. Pure. Knows OpenAI's two
forms with vLLM's additions (`reasoning`, `stop_reason`, `token_ids`), and no engine. A whole body, from a call that
the engine cannot stream, passes unchanged.
"""

from collections.abc import Mapping
from typing import Any, Final

from eventing.job.call.reasoning import choice_with_both_names, with_both_names
from predictor.engine.engine import EXTRA_USAGE, PREFIX

_FULL_NAME: Final = {
    "chat.completion.chunk": "chat.completion",
    "text_completion": "text_completion",
}
_TOP_LEVEL: Final = (
    "system_fingerprint",
    "service_tier",
    "usage",
    "prompt_token_ids",
    "prompt_text",
    "metrics",
    "kv_transfer_params",
    "routing",
    EXTRA_USAGE,
    PREFIX,
    "ec_transfer_params",
)
"""Fields of a chunk that belong to the whole answer; the last value set counts."""
_OF_CHOICE: Final = ("prompt_token_ids", "prompt_logprobs", "routed_experts")
"""Fields that a choice has once."""


class Assembler:
    """The body so far; chunks themselves are not kept."""

    def __init__(self) -> None:
        self._body: dict[str, Any] | None = None
        self._choices: dict[int, _Choice] = {}
        self._whole: Mapping[str, Any] | None = None
        self._is_chat = False

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Add the next chunk. A body that is not a chunk (`embeddings`) is the whole answer."""
        # A text's whole body has the object of its chunks; none of these alone holds choices and usage.
        is_first = self._body is None
        is_whole = is_first and chunk.get("choices") and chunk.get("usage")
        self._whole = chunk if is_whole and chunk.get("object") != "chat.completion.chunk" else None
        if self._body is None:
            self._body = self._frame(chunk)
        if chunk.get("object") not in _FULL_NAME:
            return
        self._body |= {name: chunk[name] for name in _TOP_LEVEL if chunk.get(name) is not None}
        for part in chunk["choices"]:
            choice = self._choices.setdefault(part["index"], _Choice())
            choice.add(part)

    def body(self) -> dict[str, Any]:
        """The assembled body. Raises ValueError without any chunk."""
        if self._body is None:
            raise ValueError("no chunk to assemble")
        if self._whole is not None:
            self._body = dict(self._whole)
        if self._whole is not None or not self._choices:
            return self._as_is()
        choices = [
            {"index": index, **(choice.as_chat() if self._is_chat else choice.as_text())}
            for index, choice in sorted(self._choices.items())
        ]
        return {**self._body, "choices": choices}

    def _as_is(self) -> dict[str, Any]:
        """A body that was not a chunk."""
        body = dict(self._body or {})
        if body.get("object") == "chat.completion":
            body["choices"] = [choice_with_both_names(each) for each in body["choices"]]
        return body

    def _frame(self, chunk: Mapping[str, Any]) -> dict[str, Any]:
        kind = str(chunk.get("object"))
        if kind not in _FULL_NAME:
            return dict(chunk)
        self._is_chat = kind == "chat.completion.chunk"
        return {
            "id": chunk["id"],
            "object": _FULL_NAME[kind],
            "created": chunk["created"],
            "model": chunk["model"],
            "choices": [],
            "usage": None,
        }


class _Choice:
    """One of the `n` answers, growing."""

    def __init__(self) -> None:
        self._role = "assistant"
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._tool_calls: dict[int, dict[str, Any]] = {}
        self._logprobs: dict[str, list[Any]] | None = None
        self._token_ids: list[int] | None = None
        self._once: dict[str, Any] = {}
        self._ending: dict[str, Any] = {"finish_reason": None}

    def add(self, part: Mapping[str, Any]) -> None:
        delta = part.get("delta") or {}
        self._role = delta.get("role") or self._role
        self._content.append(delta.get("content") or part.get("text") or "")
        self._reasoning.append(delta.get("reasoning") or delta.get("reasoning_content") or "")
        for call in delta.get("tool_calls") or ():
            self._add_tool_call(call)
        if (logprobs := part.get("logprobs")) is not None:
            self._logprobs = _joined(self._logprobs or {}, logprobs)
        if (token_ids := part.get("token_ids")) is not None:
            self._token_ids = [*(self._token_ids or ()), *token_ids]
        self._once |= {name: part[name] for name in _OF_CHOICE if part.get(name) is not None}
        if part.get("finish_reason") is not None:
            self._ending = {"finish_reason": part["finish_reason"]}
            if "stop_reason" in part:
                self._ending["stop_reason"] = part["stop_reason"]

    def _add_tool_call(self, call: Mapping[str, Any]) -> None:
        known = self._tool_calls.setdefault(
            call.get("index", 0),
            {"id": None, "type": "function", "function": {"name": "", "arguments": ""}},
        )
        known["id"] = call.get("id") or known["id"]
        known["type"] = call.get("type") or known["type"]
        function = call.get("function") or {}
        known["function"]["name"] += function.get("name") or ""
        known["function"]["arguments"] += function.get("arguments") or ""

    def as_chat(self) -> dict[str, Any]:
        content, reasoning = "".join(self._content), "".join(self._reasoning)
        is_only_other = not content and (reasoning or self._tool_calls)
        message: dict[str, Any] = {
            "role": self._role,
            "content": None if is_only_other else content,
        }
        if reasoning:
            message |= with_both_names({"reasoning": reasoning})
        if self._tool_calls:
            message["tool_calls"] = [call for _, call in sorted(self._tool_calls.items())]
        return {"message": message, **self._rest()}

    def as_text(self) -> dict[str, Any]:
        return {"text": "".join(self._content), **self._rest()}

    def _rest(self) -> dict[str, Any]:
        ids = {} if self._token_ids is None else {"token_ids": self._token_ids}
        return {"logprobs": self._logprobs, **self._ending, **ids, **self._once}


def _joined(so_far: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Both forms of logprobs are objects of lists with one entry a token."""
    names = so_far.keys() | more.keys()
    return {name: [*(so_far.get(name) or ()), *(more.get(name) or ())] for name in names}
