"""OpenAI's Responses as chat completions: what is carried over, what is refused by name."""

from typing import Any

import pytest

from api.job.response.request import input_items, parse_ask
from eventing.errors import InvalidJob
from eventing.store.conversation.messages import messages_of

CALL = {"model": "m", "input": "hi"}


def body(**call: Any) -> dict[str, Any]:
    return parse_ask(CALL | call, []).body


@pytest.mark.parametrize(
    ("call", "option"),
    [
        pytest.param({"max_output_tokens": 5}, {"max_completion_tokens": 5}, id="limit"),
        pytest.param({"temperature": 0.5}, {"temperature": 0.5}, id="temperature"),
        pytest.param({"reasoning": {"effort": "low"}}, {"reasoning_effort": "low"}, id="effort"),
        pytest.param({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}, id="logprobs"),
        pytest.param(
            {"text": {"format": {"type": "json_object"}}},
            {"response_format": {"type": "json_object"}},
            id="json",
        ),
    ],
)
def test_options_are_carried_over(call: dict[str, Any], option: dict[str, Any]) -> None:
    assert body(**call).items() >= option.items()


@pytest.mark.parametrize(
    ("choice", "chat"),
    [
        pytest.param("required", "required", id="word"),
        pytest.param(
            {"type": "function", "name": "f"},
            {"type": "function", "function": {"name": "f"}},
            id="function",
        ),
    ],
)
def test_a_tool_choice_is_carried_over(choice: Any, chat: Any) -> None:
    tools = [{"type": "function", "name": "f", "parameters": {}}]

    assert body(tools=tools, tool_choice=choice)["tool_choice"] == chat


def test_plain_text_needs_no_format() -> None:
    assert "response_format" not in body(text={"format": {"type": "text"}})


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        pytest.param(
            [{"role": "developer", "content": "x"}],
            [{"role": "system", "content": "x"}],
            id="developer is system",
        ),
        pytest.param(
            [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}],
            [{"role": "user", "content": "a"}],
            id="text parts are text",
        ),
        pytest.param(
            [{"role": "user", "content": [{"type": "input_image", "image_url": "data:x"}]}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}],
            id="pictures stay parts",
        ),
        pytest.param(
            [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}],
            [{"role": "assistant", "content": "no"}],
            id="a refusal is text",
        ),
        pytest.param([{"type": "reasoning", "summary": []}], [], id="old thoughts are not shown"),
        pytest.param(
            [
                {"role": "assistant", "content": "calling"},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            ],
            [
                {
                    "role": "assistant",
                    "content": "calling",
                    "tool_calls": [
                        {
                            "id": "c",
                            "type": "function",
                            "function": {"name": "f", "arguments": "{}"},
                        }
                    ],
                }
            ],
            id="a call goes with its message",
        ),
    ],
)
def test_items_become_messages(items: list[Any], messages: list[Any]) -> None:
    assert messages_of(input_items(items)) == messages


@pytest.mark.parametrize(
    ("call", "field"),
    [
        pytest.param({"instructions": 7}, "instructions", id="instructions"),
        pytest.param({"prompt": {"id": "p"}}, "prompt", id="prompt template"),
        pytest.param({"input": [7]}, "input[0]", id="item"),
        pytest.param({"input": [{"role": "king", "content": "x"}]}, "input[0]", id="role"),
        pytest.param({"input": [{"role": "user", "content": 7}]}, "input[0].content", id="content"),
        pytest.param(
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input[0].content[0].type",
            id="file",
        ),
        pytest.param(
            {"input": [{"type": "function_call_output", "output": "x"}]},
            "input[0].call_id",
            id="call id",
        ),
        pytest.param({"reasoning": "hard"}, "reasoning", id="reasoning"),
        pytest.param({"tools": {}}, "tools", id="tools"),
        pytest.param({"tools": [{"type": "function"}]}, "tools[0].name", id="tool name"),
        pytest.param(
            {"tools": [{"type": "function", "name": "f"}], "tool_choice": 7},
            "tool_choice",
            id="tool choice",
        ),
        pytest.param({"stream": 1}, "stream", id="stream"),
    ],
)
def test_an_unsupported_call_names_its_field(call: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        parse_ask(CALL | call, [])

    assert caught.value.field == field


@pytest.mark.parametrize(
    ("call", "field"),
    [
        pytest.param({"max_output_tokens": 0}, "max_output_tokens", id="its own limit's name"),
        pytest.param({"temperature": "hot"}, "temperature", id="temperature"),
        pytest.param({"top_logprobs": 21}, "top_logprobs", id="logprobs"),
        pytest.param({"truncation": "maybe"}, "truncation", id="truncation"),
        pytest.param({"include": "all"}, "include", id="include"),
        pytest.param({"max_tool_calls": "x"}, "max_tool_calls", id="tool calls"),
        pytest.param({"reasoning": 7}, "reasoning", id="reasoning"),
        pytest.param({"reasoning": {"effort": 7}}, "reasoning.effort", id="effort"),
        pytest.param({"text": []}, "text", id="text"),
        pytest.param({"tool_choice": "maybe"}, "tool_choice", id="a choice without tools"),
        pytest.param({"tool_choice": "required"}, "tool_choice", id="a call without tools"),
        pytest.param(
            {"tool_choice": {"type": "function", "name": "f"}}, "tool_choice", id="a named one"
        ),
        pytest.param({"text": {"format": {"type": "json_schema"}}}, "text.format.name", id="name"),
        pytest.param(
            {"text": {"format": {"type": "json_schema", "name": "s"}}},
            "text.format.schema",
            id="schema",
        ),
    ],
)
def test_a_mistake_is_named_as_its_caller_knows_it(call: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidJob) as refusal:
        body(**call)

    assert refusal.value.field == field


MAIL = {"type": "mcp", "server_label": "mail", "require_approval": "never"}
FILES = {"type": "mcp", "server_label": "files", "allowed_tools": ["read", "list"]}
OWN = {"type": "function", "name": "own"}
OWN_CHAT = {"type": "function", "function": {"name": "own"}}


def test_servers_stand_among_the_tools_of_the_chat_as_the_call_has_them() -> None:
    chat = body(tools=[MAIL | {"headers": None}, OWN], max_tool_calls=3)

    assert chat["tools"] == [MAIL, OWN_CHAT]
    assert chat["max_tool_calls"] == 3
    assert "max_tool_calls" not in body(tools=[OWN], max_tool_calls=3)


@pytest.mark.parametrize(
    ("choice", "tools", "chosen"),
    [
        pytest.param(
            {"type": "mcp", "server_label": "mail"},
            [MAIL, FILES, OWN_CHAT],
            {"type": "mcp", "server_label": "mail"},
            id="server",
        ),
        pytest.param(
            {"type": "mcp", "server_label": "files", "name": "read"},
            [MAIL, FILES, OWN_CHAT],
            {"type": "mcp", "server_label": "files", "name": "read"},
            id="tool",
        ),
        pytest.param(
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [
                    {"type": "mcp", "server_label": "files", "name": "read"},
                    {"type": "mcp", "server_label": "files", "name": "write"},
                    {"type": "function", "name": "own"},
                ],
            },
            [OWN_CHAT, FILES | {"allowed_tools": {"tool_names": ["read"]}}],
            "required",
            id="allowed-tools",
        ),
        pytest.param(
            {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [
                    {"type": "mcp", "server_label": "mail"},
                    {"type": "mcp", "server_label": "mail", "name": "send"},
                ],
            },
            [MAIL],
            "auto",
            id="allowed-server",
        ),
    ],
)
def test_a_choice_may_name_a_server_or_a_tool_of_it(
    choice: dict[str, Any], tools: list[Any], chosen: Any
) -> None:
    chat = body(tools=[MAIL, FILES, OWN], tool_choice=choice)

    assert (chat["tools"], chat["tool_choice"]) == (tools, chosen)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ({"tools": [MAIL | {"connector_id": "c"}]}, "tools[0].connector_id"),
        ({"tools": [OWN, MAIL | {"server_url": "x"}]}, "tools[1].server_url"),
        ({"tools": [MAIL, MAIL]}, "tools[1].server_label"),
        ({"tools": [MAIL, OWN | {"name": "mail__send"}]}, "tools[1]"),
        (
            {"tools": [MAIL], "tool_choice": {"type": "mcp", "server_label": "x"}},
            "tool_choice.server_label",
        ),
        (
            {"tools": [MAIL], "tool_choice": {"type": "mcp", "server_label": "mail", "name": ""}},
            "tool_choice.name",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ],
)
def test_what_is_wrong_with_a_server_is_refused_by_the_name_of_its_field(
    call: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidJob) as refused:
        body(**call)
    assert refused.value.field == field


def test_a_response_repeats_its_servers_without_their_credentials() -> None:
    secret = {"authorization": "canary-1", "headers": {"x": "canary-2"}}
    ask = parse_ask(CALL | {"tools": [MAIL | secret]}, [])

    (tool,) = ask.record["tools"]
    assert "canary" not in str(ask.record)
    assert tool["server_label"] == "mail"
