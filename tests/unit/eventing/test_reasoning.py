"""Reasoning text has both names wherever it is shown."""

import orjson
import pytest

from eventing.job.call.reasoning import (
    choice_with_both_names,
    entries_with_both_names,
    with_both_names,
)


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_either_name_gives_both(name: str) -> None:
    both = {"reasoning": "hm", "reasoning_content": "hm"}

    assert with_both_names({name: "hm", "content": "4"}) == {"content": "4", **both}
    assert choice_with_both_names({"index": 0, "delta": {name: "hm"}})["delta"] == both
    entries = entries_with_both_names(orjson.dumps([{"index": 0, "delta": {name: "hm"}}]).decode())
    assert orjson.loads(entries) == [{"index": 0, "delta": both}]


@pytest.mark.parametrize("delta", ["", "[]", '[{"index":0,"delta":{"content":"the reasoning"}}]'])
def test_a_message_without_reasoning_is_unchanged(delta: str) -> None:
    assert entries_with_both_names(delta) == delta


def test_null_is_no_thought() -> None:
    message = {"content": "4", "reasoning": None}

    assert with_both_names(message) == message
