"""vLLM's errors name the field of the body, contain no values, and say what to change."""

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from predictor.engine.engine import EngineRequest
from predictor.engine.vllm.errors import bad_fields, from_response, start_failure
from predictor.errors import BadRequest, EngineRequestError


class Message(BaseModel):
    role: str


class Body(BaseModel):
    messages: list[Message] = []
    stop: str | list[str] | None = None


def chat(**body: Any) -> EngineRequest:
    return EngineRequest("r", "/v1/chat/completions", {"messages": [], **body})


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param({"messages": 3}, "messages", id="top level"),
        pytest.param({"messages": [{"role": 1}]}, "messages.0.role", id="inside a list"),
        pytest.param({"stop": 3}, "stop", id="a union has no branch in its path"),
    ],
)
def test_a_schema_error_names_its_path(body: Mapping[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Body.model_validate(body)
    found = bad_fields(caught.value)
    assert found.field == field
    assert found.message.startswith(f"{field}: ")


def test_a_schema_error_does_not_repeat_what_was_sent() -> None:
    with pytest.raises(ValidationError) as caught:
        Body.model_validate({"messages": "a secret prompt"})
    assert "secret" not in str(bad_fields(caught.value))


def error(message: str, param: str | None = None, code: int = 400) -> Mapping[str, Any]:
    return {"message": message, "type": "SomeError", "param": param, "code": code}


@pytest.mark.parametrize(
    ("given", "request_", "field"),
    [
        pytest.param(error("too long", "input_text"), chat(), "messages", id="too long a chat"),
        pytest.param(
            error("too long", "input_tokens"),
            EngineRequest("r", "/v1/completions", {"prompt": "x"}),
            "prompt",
            id="too long a prompt",
        ),
        pytest.param(error("too many", "max_tokens"), chat(), "max_tokens", id="vLLM says"),
        pytest.param(error("n must be at least 1"), chat(n=0), "n", id="the message says"),
        pytest.param(
            error('"auto" tool choice requires a flag'),
            chat(tool_choice="auto"),
            "tool_choice",
            id="the message says it in words",
        ),
        pytest.param(
            error("Grammar error: unclosed"),
            chat(structured_outputs={}),
            "structured_outputs",
            id="a grammar",
        ),
        pytest.param(error("something else"), chat(), "", id="nobody says"),
    ],
)
def test_a_refusal_names_its_field(
    given: Mapping[str, Any], request_: EngineRequest, field: str
) -> None:
    refusal = from_response(given, request_)
    assert isinstance(refusal, BadRequest)
    assert refusal.field == field


def test_an_internal_error_is_no_bad_request() -> None:
    failure = from_response(error("secret prompt", code=500), chat())
    assert isinstance(failure, EngineRequestError)
    assert "secret" not in str(failure)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("RuntimeError: CUDA out of memory. Tried to allocate", id="GPU"),
        pytest.param("DefaultCPUAllocator: can't allocate memory", id="CPU"),
        pytest.param("ValueError: 2.1 GiB KV cache is needed, which is larger", id="KV cache"),
        pytest.param("Failed core proc(s): {'EngineCore': -9}", id="killed by the kernel"),
        pytest.param(
            "ValueError: Available memory on node 0 (18.3/23.54 GiB) on kv cache allocation is "
            "less than requested memory for kv (20480.0 GiB).",
            id="a KV cache larger than the machine",
        ),
        pytest.param(
            "ValueError: Free memory on device cuda:0 (0.9/23.6 GiB) on startup is less than "
            "desired GPU memory utilization (0.9, 21.3 GiB).",
            id="a GPU that others use",
        ),
    ],
)
def test_too_little_memory_says_what_to_lower(text: str) -> None:
    message = str(start_failure(RuntimeError("it ended"), text))
    assert "--kv-cache-memory-bytes" in message
    assert "--max-model-len" in message


def test_another_failure_to_start_says_why_in_one_line() -> None:
    message = str(start_failure(RuntimeError("no\n such file")))
    assert message == "the engine did not start: RuntimeError: no such file"


def test_a_prompt_longer_than_the_context_has_the_code_that_clients_look_for() -> None:
    refusal = from_response(error("too long", "input_tokens"), chat())
    assert isinstance(refusal, BadRequest)
    assert refusal.code == "context_length_exceeded"
