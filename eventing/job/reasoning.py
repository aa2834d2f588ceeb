"""The two names of what a model thought: vLLM says `reasoning`, most clients read `reasoning_content`.

Called by the predictor, where an answer is put together, and by the api, where one is shown: whoever
reads an answer of ours finds both, in a stream, a whole body, a job and its result event. Pure.
"""

from collections.abc import Mapping
from typing import Any

import orjson


def with_both_names(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message or a delta that has its thought under both names."""
    thought = part.get("reasoning") or part.get("reasoning_content")
    if not thought:
        return part
    return {**part, "reasoning": thought, "reasoning_content": thought}


def choice_with_both_names(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    """A choice of a whole body or of a chunk, likewise."""
    for name in ("message", "delta"):
        if isinstance(part := choice.get(name), Mapping):
            choice = {**choice, name: with_both_names(part)}
    return choice


def entries_with_both_names(delta: str) -> str:
    """The `delta` of a token stream's entry (JSON, as the store keeps it), likewise."""
    if '"reasoning' not in delta:
        return delta
    return orjson.dumps([choice_with_both_names(each) for each in orjson.loads(delta)]).decode()
