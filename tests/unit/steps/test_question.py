"""Twins: requests with the same words that differ in one other thing never share a partition."""

import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from steps.semantic_cache.question import Question, question_of

Twin = dict[str, Any]
URL = "/v1/chat/completions"


def request(draw: random.Random) -> Twin:
    """What a question is looked up with."""
    words = " ".join(draw.choice(("how", "why", "pay", "rent", "late", "fee")) for _ in range(6))
    system = [{"role": "system", "content": f"Rule {draw.randrange(9)}"}] * draw.randrange(2)
    body = {
        "model": f"m{draw.randrange(5)}",
        "temperature": draw.choice([0, 0.5, 1]),
        "messages": [*system, {"role": "user", "content": words}],
    }
    if draw.random() < 0.5:
        body["tools"] = [{"type": "function", "function": {"name": f"f{draw.randrange(5)}"}}]
    if draw.random() < 0.3:
        body["response_format"] = {"type": "json_object"}
    return {
        "body": body,
        "tenant": f"t{draw.randrange(5)}",
        "plan_version": f"p{draw.randrange(3)}",
        "api": draw.choice(["", "responses"]),
        "revision": f"r{draw.randrange(2)}",
    }


def with_body(twin: Twin, **fields: Any) -> Twin:
    return {**twin, "body": {**twin["body"], **fields}}


def other_system(twin: Twin) -> Twin:
    messages = [{"role": "system", "content": "Be brief."}, *twin["body"]["messages"]]
    return with_body(twin, messages=messages)


MUTATIONS: Mapping[str, Callable[[Twin], Twin]] = {
    "tenant": lambda t: {**t, "tenant": t["tenant"] + "x"},
    "plan": lambda t: {**t, "plan_version": "p9"},
    "api": lambda t: {**t, "api": "other"},
    "embedder": lambda t: {**t, "revision": "r9"},
    "model": lambda t: with_body(t, model="m9"),
    "temperature": lambda t: with_body(t, temperature=0.25),
    "top_p": lambda t: with_body(t, top_p=0.5),
    "seed": lambda t: with_body(t, seed=1),
    "system": other_system,
    "tools": lambda t: with_body(t, tools=[{"type": "function", "function": {"name": "g"}}]),
    "tool_choice": lambda t: with_body(t, tool_choice="required"),
    "format": lambda t: with_body(t, response_format={"type": "json_schema", "json_schema": {}}),
    "max_tokens": lambda t: with_body(t, max_tokens=5),
    "n": lambda t: with_body(t, n=2),
    "stop": lambda t: with_body(t, stop=["."]),
    "logit_bias": lambda t: with_body(t, logit_bias={"5": 1}),
    "reasoning": lambda t: with_body(t, reasoning_effort="high"),
    "unknown field": lambda t: with_body(t, of_tomorrow=True),
}


def partition(twin: Twin) -> str:
    asked = question_of(URL, **twin)
    assert isinstance(asked, Question)
    return asked.partition


def test_ten_thousand_twins_share_no_partition_with_their_request() -> None:
    draw = random.Random(17)
    shared = []
    for number in range(10_000):
        twin = request(draw)
        name = draw.choice(list(MUTATIONS))
        if partition(twin) == partition(MUTATIONS[name](twin)):
            shared.append((number, name))

    assert shared == []


def test_the_same_request_in_other_words_shares_its_partition() -> None:
    draw = random.Random(3)
    for _ in range(500):
        twin = request(draw)
        before = twin["body"]["messages"][:-1]
        other = with_body(twin, messages=[*before, {"role": "user", "content": "other words"}])
        reordered = {**twin, "body": dict(reversed(other["body"].items()))}
        assert partition(twin) == partition(other) == partition(reordered)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "api"),
        ([{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}], "first turn"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "first turn"),
        ([{"role": "tool", "content": "a"}, {"role": "user", "content": "b"}], "first turn"),
        ([{"role": "system", "content": "a"}], "first turn"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "text"),
        ([{"role": "user", "content": ""}], "text"),
        ([{"role": "user", "content": "a" * 3000}], "text"),
    ],
    ids=["none", "answer", "two", "tool", "system", "image", "empty", "long"],
)
def test_what_is_no_single_question_is_not_looked_up(
    messages: list[dict[str, Any]], reason: str
) -> None:
    asked = question_of(
        URL, {"model": "m", "messages": messages}, tenant="t", plan_version="", api="", revision=""
    )

    assert isinstance(asked, str)
    assert reason in asked
