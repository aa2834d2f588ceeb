"""What the OpenAPI document says of OpenAI's calls. Their bodies are OpenAI's own; only what we
look at is described.

Called by `api.routes.openai`.
"""

from typing import Any

import orjson

from api.openapi import examples
from api.openapi.doc import IDEMPOTENCY_KEY, Doc
from api.openapi.examples import Example
from api.openapi.operation import Schema, answer, body, come_back, parameter

OPENAI_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_MODEL = "smollm2-135m-instruct"


def errors(*statuses: int) -> dict[int, Schema]:
    """OpenAI's error body for these statuses."""
    return {
        status: answer("An error in OpenAI's form", OPENAI_ERROR) | come_back(status)
        for status in {*statuses, 429, 503}
    }


_FAILURES = (400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503, 504)
_HEADERS = (
    parameter("Prefer", {"type": "string"}, "`respond-async`: 202 and the job", where="header"),
    IDEMPOTENCY_KEY,
)


def _call(
    schema: Schema, example: dict[str, Any], shown: Example, *, chunk: Example | None = None
) -> Doc:
    done = answer("The answer", None, shown)
    if chunk is not None:
        stream = f"data: {orjson.dumps(chunk).decode()}\n\ndata: [DONE]\n\n"
        done["content"]["text/event-stream"] = {"schema": {"type": "string"}, "example": stream}
    return Doc(
        tag="openai",
        parameters=_HEADERS,
        body=body(schema, example=example),
        answers={
            200: done,
            202: answer("The job; `Location` is where to look", None, examples.ACCEPTED),
            **errors(*_FAILURES),
        },
    )


def _object(required: list[str], **properties: Schema) -> Schema:
    return {
        "type": "object",
        "required": required,
        "properties": {"model": {"type": "string"}, "stream": {"type": ["boolean", "null"]}}
        | properties,
    }


CHAT_COMPLETIONS = _call(
    _object(
        ["model", "messages"],
        messages={
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role"],
                "properties": {"role": {"type": "string"}},
            },
        },
    ),
    {"model": _MODEL, "messages": [{"role": "user", "content": "Say hello."}], "stream": True},
    examples.CHAT,
    chunk={
        **{"id": "chatcmpl-0123456789abcdef01234567", "object": "chat.completion.chunk"},
        **{"created": 1_764_000_000, "model": _MODEL},
        "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hello"}}],
    },
)
COMPLETIONS = _call(
    _object(["model", "prompt"], prompt={"type": ["string", "array"]}),
    {"model": _MODEL, "prompt": "A hummingbird", "max_tokens": 16},
    examples.COMPLETION,
    chunk={
        **{"id": "cmpl-0123456789abcdef01234567", "object": "text_completion"},
        **{"created": 1_764_000_000, "model": _MODEL},
        "choices": [{"index": 0, "text": " hovers"}],
    },
)
EMBEDDINGS = _call(
    _object(["model", "input"], input={"type": ["string", "array"]}),
    {"model": _MODEL, "input": ["a text", "another"]},
    examples.EMBEDDING,
)
LIST_MODELS = Doc(
    tag="openai",
    answers={
        200: answer("Model cards", None, {"object": "list", "data": [examples.MODEL]}),
        **errors(401, 403),
    },
)
GET_MODEL = Doc(
    tag="openai",
    parameters=(parameter("model", {"type": "string"}, "Its name", where="path", required=True),),
    answers={
        200: answer("Its card", None, {**examples.MODEL, "max_model_len": 2048}),
        **errors(401, 403, 404),
    },
)

_RESPONSE_ID = parameter(
    "id", {"type": "string"}, "Id of the response", where="path", required=True
)
_RESPONSE: Schema = {
    "type": "object",
    "required": ["id", "object", "status", "output"],
    "properties": {
        "id": {"type": "string", "example": "resp_0123456789abcdef01234567"},
        "object": {"const": "response"},
        "status": {
            "enum": ["queued", "in_progress", "completed", "failed", "cancelled", "incomplete"]
        },
        "output": {"type": "array", "items": {"type": "object"}},
    },
}
_CREATE = _call(
    _object(
        ["model", "input"],
        input={"type": ["string", "array"]},
        background={"type": ["boolean", "null"]},
        store={"type": ["boolean", "null"]},
        instructions={"type": ["string", "null"]},
        previous_response_id={"type": ["string", "null"]},
    ),
    {"model": _MODEL, "input": "Why is the sky blue?", "background": True},
    examples.RESPONSE,
)
CREATE_RESPONSE = Doc(
    tag="openai",
    parameters=_CREATE.parameters,
    body=_CREATE.body,
    answers={**_CREATE.answers, 200: answer("The response", _RESPONSE, examples.RESPONSE)},
)
COMPACT_RESPONSE = _call(
    {
        "type": "object",
        "required": ["model"],
        "properties": {
            "model": {"type": "string"},
            "input": {"type": ["string", "array", "null"]},
            "instructions": {"type": ["string", "null"]},
            "previous_response_id": {"type": ["string", "null"]},
        },
    },
    {"model": _MODEL, "input": "We agreed to launch on Tuesday."},
    examples.COMPACTION,
)
COUNT_INPUT_TOKENS = Doc(
    tag="openai",
    body=_CREATE.body,
    answers={
        200: answer("The count", None, {"object": "response.input_tokens", "input_tokens": 12}),
        **errors(*_FAILURES),
    },
)
GET_RESPONSE = Doc(
    tag="openai",
    parameters=(
        _RESPONSE_ID,
        parameter("stream", {"enum": ["true", "false"]}, "Send the events"),
        parameter("starting_after", {"type": "integer", "minimum": 0}, "Only events after this"),
    ),
    answers={
        200: answer("The response", _RESPONSE, examples.RESPONSE),
        **errors(400, 401, 403, 404, 503),
    },
)
CANCEL_RESPONSE = Doc(
    tag="openai",
    parameters=(_RESPONSE_ID,),
    answers={
        200: answer("The response", _RESPONSE, examples.RESPONSE),
        **errors(400, 401, 403, 404, 503),
    },
)
DELETE_RESPONSE = Doc(
    tag="openai",
    parameters=(_RESPONSE_ID,),
    answers={
        200: answer("It is gone", None, examples.deleted(examples.RESPONSE)),
        **errors(401, 403, 404, 503),
    },
)
INPUT_ITEMS = Doc(
    tag="openai",
    parameters=(
        _RESPONSE_ID,
        parameter("limit", {"type": "integer", "minimum": 1, "maximum": 100}, "Items a page"),
        parameter("order", {"enum": ["asc", "desc"]}, "Newest first is desc"),
        parameter("after", {"type": "string"}, "Go on after this item"),
    ),
    answers={
        200: answer("A page of items", None, examples.listed(examples.INPUT_ITEM)),
        **errors(400, 401, 403, 404, 503),
    },
)
