"""Both names of a model's reasoning text: vLLM uses `reasoning`, most clients read `reasoning_content`.

Called by the predictor, which builds answers, and by the api, which shows them: every stream, body, job and result
event has both fields. Pure.
"""

from collections.abc import Mapping
from typing import Any

import orjson


def with_both_names(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message or a delta with its reasoning under both names."""
    thought = part.get("reasoning") or part.get("reasoning_content")
    if not thought:
        return part
    return {**part, "reasoning": thought, "reasoning_content": thought}


def choice_with_both_names(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    """A choice of a whole body or of a chunk, with both names."""
    for name in ("message", "delta"):
        if isinstance(part := choice.get(name), Mapping):
            choice = {**choice, name: with_both_names(part)}
    return choice


def body_with_both_names(body: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A whole body as the store keeps it, likewise. Records of an older version have one name."""
    choices = (body or {}).get("choices")
    if body is None or not isinstance(choices, list):
        return body
    return {**body, "choices": [choice_with_both_names(each) for each in choices]}


def entries_with_both_names(delta: str) -> str:
    """The `delta` of a token stream's entry (JSON, as stored), with both names."""
    if '"reasoning' not in delta:
        return delta
    return orjson.dumps([choice_with_both_names(each) for each in orjson.loads(delta)]).decode()
