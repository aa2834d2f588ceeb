"""Validation at submit: every mistake is named by its field, and values that an engine might accept pass."""

from typing import Any

import pytest

from eventing.errors import InvalidJob
from eventing.job.call.fields import check_body

CHAT, TEXT, VECTORS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": [{"role": "user", "content": "why?"}]},
    TEXT: {"model": "m", "prompt": "why?"},
    VECTORS: {"model": "m", "input": "why?"},
}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}


def said(content: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content, **more}]


WRONG: list[tuple[str, str, list[Any]]] = [
    (CHAT, "model", [7, "", [], None]),
    (CHAT, "temperature", ["hot", "0.5", -1, True, [1], 2.1]),
    (CHAT, "top_k", ["x", -2, 1.5, True]),
    (CHAT, "min_p", ["x", -0.1, 1.1]),
    (CHAT, "repetition_penalty", ["x", 0, -1]),
    (TEXT, "min_tokens", ["x", -1, 1.5]),
    (TEXT, "stop_token_ids", [7, ["x"], [-1], [True]]),
    (CHAT, "top_p", ["x", -0.1, 1.1, False]),
    (CHAT, "n", ["2", 0, 1.5, True, 129]),
    (CHAT, "stop", [7, {}, [1], "", ["a", ""]]),
    (CHAT, "seed", ["x", 1.5, True, 1e400, 2**63]),
    (CHAT, "max_tokens", ["3", 0, 1.5, True, {}]),
    (CHAT, "max_completion_tokens", ["3", 0]),
    (CHAT, "presence_penalty", ["x", 2.1]),
    (CHAT, "frequency_penalty", ["x", -2.1]),
    (CHAT, "logit_bias", ["x", [1], {"1": "x"}, {"word": 1}, {"-1": 1}]),
    (CHAT, "logprobs", ["x", 7]),
    (CHAT, "top_logprobs", ["x", -2, True, 1, -1]),
    (CHAT, "user", [7]),
    (CHAT, "parallel_tool_calls", ["x"]),
    (CHAT, "reasoning_effort", [7]),
    (CHAT, "tools", [7, {}, "x", []]),
    (CHAT, "tools[0]", [["x"], [None]]),
    (CHAT, "tools[0].type", [[{}], [{"type": 7}]]),
    (CHAT, "tools[0].function", [[{"type": "function"}], [{"type": "function", "function": 7}]]),
    (CHAT, "tools[1].function.name", [[FUNCTION, {"type": "function", "function": {}}]]),
    (CHAT, "tool_choice", [7, "maybe", ["auto"], "auto", "required"]),
    (CHAT, "prompt_logprobs", ["x", -2, True]),
    (TEXT, "prompt_logprobs", ["x", -2]),
    (CHAT, "response_format", [7, "json"]),
    (CHAT, "response_format.type", [{}, {"type": 7}]),
    (CHAT, "response_format.json_schema", [{"type": "json_schema"}]),
    (CHAT, "response_format.json_schema.name", [{"type": "json_schema", "json_schema": {}}]),
    (
        CHAT,
        "response_format.json_schema.schema",
        [{"type": "json_schema", "json_schema": {"name": "s", "schema": 7}}],
    ),
    (CHAT, "messages", [None, [], {}, "x"]),
    (CHAT, "messages[0]", [[7], [{}], [{"role": 7}]]),
    (CHAT, "messages[0].role", [[{"role": "wizard", "content": "x"}]]),
    (CHAT, "messages[0].content[0].type", [said([{"type": "output_text", "text": "x"}])]),
    (CHAT, "messages[0].content", [said(7), said(""), said(None), said([])]),
    (CHAT, "messages[0].content[0]", [said([7]), said([{}]), said([{"type": 7}])]),
    (CHAT, "messages[0].content[1].text", [said(["x", {"type": "text"}])]),
    (CHAT, "messages[0].tool_calls", [said("x", tool_calls=7)]),
    (CHAT, "messages[0].tool_calls[0].function", [said("x", tool_calls=[{}])]),
    (TEXT, "prompt", [None, "", [], 7, {}, [7, "a"], [[]], [["a"]], [-1], [True], [[1.5]]]),
    (TEXT, "logprobs", [True, "x", -2]),
    (TEXT, "best_of", ["x", 0]),
    (TEXT, "suffix", [7]),
    (TEXT, "echo", ["x", 1]),
    (VECTORS, "input", [None, "", [], 7, [[]], [[1.5]]]),
    (VECTORS, "dimensions", ["x", 0, True]),
    (VECTORS, "encoding_format", ["x", 7, []]),
]


@pytest.mark.parametrize(
    ("url", "field", "value"),
    [
        pytest.param(url, field, value, id=f"{url} {field} {value!r:.40}")
        for url, field, values in WRONG
        for value in values
    ],
)
def test_a_mistake_is_refused_by_its_field(url: str, field: str, value: Any) -> None:
    name = field.partition(".")[0].partition("[")[0]

    with pytest.raises(InvalidJob) as refusal:
        check_body(url, BODIES[url] | {name: value})

    assert refusal.value.field == f"body.{field}"
    assert refusal.value.message.startswith(f"body.{field} must ")


RIGHT: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"temperature": 0, "top_p": 1, "n": 2, "seed": -5, "stop": "x", "max_tokens": 1}),
    (CHAT, {"stop": ["a"] * 9, "temperature": 2, "logit_bias": {"7": -100}, "user": ""}),
    (CHAT, {"logprobs": True, "top_logprobs": -1, "reasoning_effort": "extreme"}),
    (CHAT, {"tools": [FUNCTION, {"type": "of an engine"}], "tool_choice": "required"}),
    (CHAT, {"tool_choice": "none", "top_logprobs": 0, "prompt_logprobs": -1}),
    (CHAT, {"tool_choice": {"type": "function", "function": {"name": "f"}}, "tools": [FUNCTION]}),
    (CHAT, {"response_format": SCHEMA}),
    (CHAT, {"response_format": {"type": "structural_tag", "format": {}}}),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "s"}}}),
    (CHAT, {"top_k": -1, "min_p": 0, "repetition_penalty": 0.1, "stop_token_ids": [0]}),
    (CHAT, {"bad_words": "an engine's own", "typical_p": [], "priority": "now"}),
    (
        CHAT,
        {"messages": [*said("x"), {"role": "ipython", "content": ["a", {"type": "audio_url"}]}]},
    ),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": [FUNCTION]}]}),
    (CHAT, dict.fromkeys([field for url, field, _ in WRONG[1:18] if url == CHAT])),
    (TEXT, {"prompt": ["a", ""], "logprobs": 0, "echo": False, "best_of": 3, "suffix": "x"}),
    (TEXT, {"prompt": [[1, 2], [3]]}),
    (VECTORS, {"input": [1, 2], "dimensions": 8, "encoding_format": "base64"}),
]


@pytest.mark.parametrize(("url", "fields"), RIGHT)
def test_values_that_an_engine_might_accept_pass(url: str, fields: dict[str, Any]) -> None:
    check_body(url, BODIES[url] | fields)


def test_a_choice_of_a_tool_that_is_not_there_names_the_choice() -> None:
    choice = {"type": "function", "function": {"name": "other"}}
    body = BODIES[CHAT] | {"tools": [FUNCTION], "tool_choice": choice}

    with pytest.raises(InvalidJob) as refusal:
        check_body(CHAT, body)

    assert refusal.value.field == "body.tool_choice"
