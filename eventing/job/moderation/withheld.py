"""What is left of an answer that steps withheld, and what is shown of one that they changed. Pure.

Called by the stores: an answer that steps judge is kept with this beside it, so that any end, also of a deadline that a
script finds, can be written without the text.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from eventing.job.job import CONTENT_FILTER, Job
from eventing.job.plan import Hold
from eventing.job.store import TokenBatch

_KEPT: Final = ("id", "object", "created", "model", "usage", "service_tier", "system_fingerprint")


def without_text(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result with empty choices that say `content_filter`; nothing that a model wrote is in it."""
    shell = {name: result[name] for name in _KEPT if name in result}
    choices = result.get("choices")
    if not isinstance(choices, list):
        return shell
    shell["choices"] = [_empty(place, choice) for place, choice in enumerate(choices)]
    return shell


def _empty(place: int, choice: Any) -> dict[str, Any]:
    shell: dict[str, Any] = {"index": place, "finish_reason": CONTENT_FILTER, "logprobs": None}
    if isinstance(choice, Mapping) and "message" in choice:
        return shell | {"message": {"role": "assistant", "content": ""}}
    return shell | {"text": ""}


def shown_anew(job: Job, result: Mapping[str, Any]) -> tuple[TokenBatch, ...]:
    """What takes the place of the stream's tokens when a step changed the answer of `job`: nothing where its text is
    the same, or was shown before.
    """
    choices = _choices(result)
    if job.hold is Hold.NONE or choices == _choices(job.candidate or {}):
        return ()
    return (TokenBatch(index=0, token_ids=(), delta=orjson.dumps(choices).decode()),)


def _choices(result: Mapping[str, Any]) -> list[Any]:
    """The choices as a stream's entry has them: a chat's messages are deltas there."""
    choices = result.get("choices")
    return [_streamed(each) for each in choices] if isinstance(choices, list) else []


def _streamed(choice: Any) -> Any:
    if not isinstance(choice, Mapping) or not isinstance(message := choice.get("message"), Mapping):
        return choice
    calls = message.get("tool_calls")
    numbered = [{"index": place, **call} for place, call in enumerate(calls or ())]
    delta = {**message, "tool_calls": numbered} if calls else dict(message)
    return {name: each for name, each in choice.items() if name != "message"} | {"delta": delta}
