"""The body put together from chunks is the body of the call that did not stream."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from predictor.generation.assembly import Assembler

FRAME = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m"}


def delta(index: int = 0, reason: str | None = None, **fields: Any) -> Mapping[str, Any]:
    choice = {"index": index, "delta": fields, "logprobs": None, "finish_reason": reason}
    return {**FRAME, "choices": [choice]}


def assemble(chunks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    assembler = Assembler()
    for chunk in chunks:
        assembler.add(chunk)
    return assembler.body()


def text(part: str, reason: str | None = None, **fields: Any) -> Mapping[str, Any]:
    choice = {"index": 0, "text": part, "logprobs": None, "finish_reason": reason, **fields}
    return {**FRAME, "object": "text_completion", "choices": [choice]}


USAGE = {**FRAME, "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}


def test_a_chat_answer_is_one_message() -> None:
    chunks = [delta(role="assistant", content=""), delta(content="He"), delta(content="llo")]
    assert assemble([*chunks, delta(content="", reason="stop"), USAGE]) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }


def test_a_thought_is_kept_apart_from_the_answer() -> None:
    body = assemble([delta(reasoning="hm"), delta(reasoning="m"), delta(content="4")])
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": "4",
        "reasoning": "hmm",
        "reasoning_content": "hmm",
    }


def test_a_thought_without_an_answer_has_no_content() -> None:
    body = assemble([delta(reasoning="hm", reason="length")])
    assert body["choices"][0]["message"]["content"] is None


def test_tool_calls_grow_by_their_index() -> None:
    def call(index: int, arguments: str, **named: Any) -> Mapping[str, Any]:
        function = {"arguments": arguments, **({"name": "f"} if named else {})}
        return delta(tool_calls=[{"index": index, "function": function, **named}])

    body = assemble(
        [
            call(0, '{"a"', id="c0", type="function"),
            call(0, ": 1}"),
            call(1, "{}", id="c1", type="function"),
        ]
    )
    assert body["choices"][0]["message"]["tool_calls"] == [
        {"id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
    ]


def test_interleaved_choices_stay_apart_and_in_order() -> None:
    body = assemble([delta(1, content="b"), delta(0, content="a"), delta(1, content="b")])
    assert [(c["index"], c["message"]["content"]) for c in body["choices"]] == [(0, "a"), (1, "bb")]


def test_chat_logprobs_run_on() -> None:
    chunks = [delta(content="x"), delta(content="y")]
    for number, chunk in enumerate(chunks):
        chunk["choices"][0]["logprobs"] = {"content": [{"token": str(number)}]}
    assert assemble(chunks)["choices"][0]["logprobs"] == {
        "content": [{"token": "0"}, {"token": "1"}]
    }


def test_text_and_its_logprobs_run_on() -> None:
    logprobs = {
        "tokens": ["a"],
        "text_offset": [0],
        "token_logprobs": [-1.0],
        "top_logprobs": [None],
    }
    body = assemble([text("a", logprobs=logprobs), text("b", "stop", stop_reason="b")])
    assert body["object"] == "text_completion"
    assert body["choices"] == [
        {
            "index": 0,
            "text": "ab",
            "logprobs": {
                "tokens": ["a"],
                "text_offset": [0],
                "token_logprobs": [-1.0],
                "top_logprobs": [None],
            },
            "finish_reason": "stop",
            "stop_reason": "b",
        }
    ]


def test_token_ids_run_on_when_they_were_asked_for() -> None:
    body = assemble([text("a", token_ids=[1]), text("b", token_ids=[2, 3])])
    assert body["choices"][0]["token_ids"] == [1, 2, 3]


def test_a_whole_body_stays_as_it_is() -> None:
    embeddings = {"object": "list", "data": [{"embedding": [0.5]}], "usage": {"total_tokens": 1}}
    assert assemble([embeddings]) == embeddings


def test_nothing_makes_no_body() -> None:
    with pytest.raises(ValueError, match="no chunk"):
        assemble([])


def test_a_whole_answer_passes_through_with_its_thought_under_both_names() -> None:
    message = {"role": "assistant", "content": "4", "reasoning": "hmm", "refusal": None}
    whole = {**FRAME, "object": "chat.completion", "choices": [{"index": 0, "message": message}]}
    whole |= {"prompt_logprobs": [None, {"1": {"logprob": -0.5}}]}

    body = assemble([whole])

    assert body["prompt_logprobs"] == whole["prompt_logprobs"]
    assert body["choices"][0]["message"] == {**message, "reasoning_content": "hmm"}


def test_a_whole_completion_keeps_what_no_chunk_has() -> None:
    body = assemble([text("x", "stop", prompt_logprobs=[None], prompt_token_ids=[1, 2])])

    assert body["choices"][0]["prompt_logprobs"] == [None]
    assert body["choices"][0]["prompt_token_ids"] == [1, 2]


def test_a_whole_text_answer_keeps_its_nulls() -> None:
    """vLLM's whole text has the object of its chunks; clients look for fields that are null."""
    whole = {
        **text("x", "stop", prompt_logprobs=None, prompt_token_ids=None, stop_reason=None),
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
        "kv_transfer_params": None,
    }

    assert assemble([whole]) == whole


def test_chunks_that_carry_usage_are_still_assembled() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    chunks = [{**text("a"), "usage": usage}, {**text("b", "stop"), "usage": usage}]

    assert assemble(chunks)["choices"][0]["text"] == "ab"
