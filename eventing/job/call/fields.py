"""Validation of an OpenAI call's fields without a model: types and plain bounds.

Called by `eventing.job.job` for every request, and by the api for calls of another form, so that an invalid call is
refused at submit and wakes no predictor. Fields that are not listed here are left to the engine, which knows more
fields and values than OpenAI does. Pure.
"""

from collections.abc import Mapping
from typing import Any, Final

from eventing.errors import InvalidJob
from eventing.job.call.json_schema import check_parameters, schema_fault
from eventing.job.call.moderation import (
    JUDGED_SCHEMA,
    MODERATION,
    MODERATION_SCHEMA,
    check_judged,
    check_moderation,
)
from eventing.job.call.rule import (
    FLAG,
    NAME,
    OBJECT,
    TEXT,
    TEXT_SCHEMA,
    TEXTS,
    FieldRule,
    Rules,
    Schema,
    above,
    check,
    check_fields,
    is_number,
    is_whole,
    number,
    object_schema,
    one_of,
    whole,
)

CHAT_BATCH_URL: Final = "/v1/chat/completions/batch"
"""vLLM's call of several conversations, answered by one choice each."""

_FLAG_OR_WORD: Final = FieldRule(
    "true or false", lambda v: isinstance(v, bool) or v in ("true", "false"), {"type": "boolean"}
)
"""As vLLM reads it."""
_STOP: Final = FieldRule(
    "text or a list of texts, none of them empty",
    lambda v: NAME.is_kept_by(v) or (TEXTS.is_kept_by(v) and all(v)),
    {"type": ["string", "array"], "minLength": 1, "items": NAME.schema},
)
_BIAS: Final = FieldRule(
    "an object of numbers by token id",
    lambda v: (
        isinstance(v, Mapping) and all(k.isdecimal() and is_number(one) for k, one in v.items())
    ),
    {
        "type": "object",
        "propertyNames": {"pattern": "^[0-9]+$"},
        "additionalProperties": {"type": "number"},
    },
)
_IDS: Final = FieldRule(
    "a list of token ids",
    lambda v: isinstance(v, list) and all(is_whole(one) and one >= 0 for one in v),
    {"type": "array", "items": {"type": "integer", "minimum": 0}},
)
_TOOL_CHOICE: Final = FieldRule(
    "none, auto, required or an object",
    lambda v: isinstance(v, Mapping) or v in ("none", "auto", "required"),
    {"anyOf": [{"enum": ["none", "auto", "required"]}, {"type": "object"}]},
)
_ROLE: Final = one_of("system", "developer", "user", "assistant", "tool", "function", "ipython")
_PART: Final = one_of(
    *("text", "refusal", "thinking", "file"),
    *("image_url", "image_embeds", "image_pil", "input_image"),
    *("input_audio", "audio_url", "audio_embeds", "video_url", "video_embeds"),
    *("input_text", "prompt_embeds", "tool_reference"),
)
"""Content part types that OpenAI or one of our engines supports; `output_text` belongs to responses, not to chats.
"""
_INT64: Final = 2**63

_ABSENT: Final = FieldRule(
    "absent: this call is not moderated inline", lambda _: False, {"type": "null"}
)
_MAX_CHATS: Final = 128
"""As many answers as `n` may ask for."""

SAMPLING: Final[Rules] = {
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "user": TEXT,
    "seed": whole(-_INT64, _INT64 - 1),
}
SHAPING: Final[Rules] = {"stop": _STOP, "logit_bias": _BIAS}
PENALTIES: Final[Rules] = {
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
}
_OF_ENGINES: Final[Rules] = {
    "top_k": whole(-1),
    "min_p": number(0, 1),
    "repetition_penalty": above(0),
    "min_tokens": whole(0),
    "stop_token_ids": _IDS,
}
"""Fields of vLLM and its kin that OpenAI does not have."""
_GENERATING: Final[Rules] = {
    **SAMPLING,
    **_OF_ENGINES,
    "n": whole(1, 128),
    **PENALTIES,
    **SHAPING,
    "max_tokens": whole(1),
}
_CHAT: Final[Rules] = {
    **_GENERATING,
    "max_completion_tokens": whole(1),
    "logprobs": _FLAG_OR_WORD,
    "top_logprobs": whole(-1),
    "prompt_logprobs": whole(-1),
    "parallel_tool_calls": FLAG,
    "max_tool_calls": whole(1),
    "reasoning_effort": TEXT,
    "tool_choice": _TOOL_CHOICE,
}
_COMPLETION: Final[Rules] = {
    **_GENERATING,
    "max_tokens": whole(0),  # with `echo`: logprobs of the prompt only
    "logprobs": whole(-1),
    "prompt_logprobs": whole(-1),
    "best_of": whole(1, 128),
    "suffix": TEXT,
    "echo": FLAG,
    MODERATION: _ABSENT,
}
_EMBEDDING: Final[Rules] = {
    "dimensions": whole(1),
    "encoding_format": one_of("float", "base64", "bytes", "bytes_only"),
    "user": TEXT,
}
_HOLDERS: Final[Schema] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "type": TEXT_SCHEMA,
            "function": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": NAME.schema},
            },
        },
    },
}
"""Tools, and calls of them: each holds a function."""
_MESSAGES: Final[Schema] = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": _ROLE.schema,
            "content": {
                "type": ["string", "array", "null"],
                "description": "text, or a list of parts",
                "items": {
                    "type": ["object", "string"],
                    "required": ["type"],
                    "properties": {"type": _PART.schema, "text": TEXT_SCHEMA},
                },
            },
            "tool_calls": _HOLDERS,
        },
    },
}
_FORMAT: Final[Schema] = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": TEXT_SCHEMA,
        "json_schema": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": NAME.schema, "schema": {"type": "object"}},
        },
    },
}
_PROMPT: Final[Schema] = {
    "type": ["string", "array"],
    "minLength": 1,
    "minItems": 1,
    "description": "text, token ids, or a list of either",
}


def request_schema(url: str) -> dict[str, Any]:
    """What `check_body` judges at `url`, as JSON Schema; other fields are the engine's."""
    match url:
        case "/v1/chat/completions":
            needed = {"model": NAME.schema, "messages": _MESSAGES}
            more = {"tools": {**_HOLDERS, "minItems": 1}, "response_format": _FORMAT}
            more |= {MODERATION: MODERATION_SCHEMA}
            return object_schema(needed, _CHAT, more)
        case "/v1/chat/completions/batch":
            several = {"type": "array", "minItems": 1, "maxItems": _MAX_CHATS, "items": _MESSAGES}
            needed = {"model": NAME.schema, "messages": several}
            return object_schema(needed, _CHAT, {"response_format": _FORMAT})
        case "/v1/completions":
            return object_schema({"model": NAME.schema, "prompt": _PROMPT}, _COMPLETION)
        case "/v1/moderations":
            return object_schema({"model": NAME.schema, "input": JUDGED_SCHEMA}, {})
        case _:
            return object_schema({"model": NAME.schema, "input": _PROMPT}, _EMBEDDING)


def check_body(url: str, body: Mapping[str, Any]) -> None:
    """Raises `InvalidJob` naming the first field of `body` that `url` does not accept."""
    check("body.", body.get("model") or "", NAME, "model")
    match url:
        case "/v1/chat/completions":
            _check_messages(body.get("messages"), "body.messages")
            check_fields(body, _CHAT, "body.")
            _check_tools(body.get("tools"))
            _check_pairs(body)
            _check_format(body.get("response_format"))
            check_moderation(body.get(MODERATION), f"body.{MODERATION}")
        case "/v1/chat/completions/batch":
            _check_chats(body)
            check_fields(body, _CHAT, "body.")
            _check_pairs(body)
            _check_format(body.get("response_format"))
        case "/v1/completions":
            _check_prompt(body.get("prompt"), "body.prompt")
            check_fields(body, _COMPLETION, "body.")
        case "/v1/moderations":
            check_judged(body.get("input"))
        case _:
            _check_prompt(body.get("input"), "body.input")
            check_fields(body, _EMBEDDING, "body.")


def _check_chats(body: Mapping[str, Any]) -> None:
    """Several conversations, without what vLLM's batch has no answer for."""
    chats = body.get("messages")
    if not isinstance(chats, list) or not 0 < len(chats) <= _MAX_CHATS:
        raise InvalidJob(
            f"body.messages must be a list of 1 to {_MAX_CHATS} conversations", "body.messages"
        )
    for index, messages in enumerate(chats):
        _check_messages(messages, f"body.messages[{index}]")
    for name in ("stream", "tools", "use_beam_search"):
        if body.get(name):
            raise InvalidJob(
                f"body.{name} can not be used for several conversations", f"body.{name}"
            )
    check_fields(body, {MODERATION: _ABSENT}, "body.")
    if body.get("n") not in (None, 1):
        raise InvalidJob("body.n must be 1 for several conversations", "body.n")


def _check_messages(messages: Any, place: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise InvalidJob(f"{place} must be a non-empty list", place)
    for index, message in enumerate(messages):
        where = f"{place}[{index}]"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidJob(f"{where} must be an object with a role", where)
        check(f"{where}.", message["role"], _ROLE, "role")
        _check_content(message.get("content"), f"{where}.content")
        _check_calls(message.get("tool_calls"), f"{where}.tool_calls")
    last = messages[-1]
    if last["role"] == "user" and not last.get("content"):
        where = f"{place}[{len(messages) - 1}].content"
        raise InvalidJob(f"{where} must not be empty", where)


def _check_content(content: Any, where: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise InvalidJob(f"{where} must be text or a list of parts", where)
    for index, part in enumerate(content):
        if isinstance(part, str):
            continue  # engines accept it, though OpenAI does not
        part_where = f"{where}[{index}]"
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            raise InvalidJob(f"{part_where} must be an object with a type", part_where)
        check(f"{part_where}.", part["type"], _PART, "type")
        if part["type"] == "text":
            check(f"{part_where}.", part.get("text"), TEXT, "text")


def _check_calls(calls: Any, where: str) -> None:
    for call_where, call in _objects(calls, where):
        _check_function(call, call_where)


def _check_tools(tools: Any) -> None:
    if tools == []:
        raise InvalidJob("body.tools must not be empty; leave it out", "body.tools")
    for where, tool in _objects(tools, "body.tools"):
        check(f"{where}.", tool.get("type"), TEXT, "type")
        if tool["type"] == "function":
            _check_function(tool, where)
            if (parameters := tool["function"].get("parameters")) is not None:
                check_parameters(parameters, f"{where}.function.parameters")


def _check_pairs(body: Mapping[str, Any]) -> None:
    """Fields that mean nothing without another; `check_fields` has judged their types."""
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise InvalidJob("body.top_logprobs must stand beside logprobs: true", "body.top_logprobs")
    choice = body.get("tool_choice")
    if choice is None or choice == "none":
        return
    if not body.get("tools"):
        raise InvalidJob("body.tool_choice must stand beside tools", "body.tool_choice")
    if isinstance(choice, Mapping) and choice.get("type", "function") == "function":
        name = _inner(choice, "function", "body.tool_choice").get("name")
        if name not in [(tool.get("function") or {}).get("name") for tool in body["tools"]]:
            raise InvalidJob("body.tool_choice must name one of tools", "body.tool_choice")


def _objects(value: Any, where: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The objects of a list, each with its path."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidJob(f"{where} must be a list", where)
    found = []
    for index, item in enumerate(value):
        check("", item, OBJECT, f"{where}[{index}]")
        found.append((f"{where}[{index}]", item))
    return found


def _check_function(holder: Mapping[str, Any], where: str) -> None:
    function = _inner(holder, "function", where)
    check(f"{where}.function.", function.get("name"), NAME, "name")


def _inner(holder: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    """An object inside an object."""
    check(f"{where}.", holder.get(name), OBJECT, name)
    inner: Mapping[str, Any] = holder[name]
    return inner


def _check_format(form: Any) -> None:
    if form is None:
        return
    where = "body.response_format"
    check("body.", form, OBJECT, "response_format")
    check(f"{where}.", form.get("type"), TEXT, "type")
    if form["type"] == "json_schema":
        inner = _inner(form, "json_schema", where)
        check(f"{where}.json_schema.", inner.get("name"), NAME, "name")
        if inner.get("schema") is not None:
            check(f"{where}.json_schema.", inner["schema"], OBJECT, "schema")
            if fault := schema_fault(inner["schema"], f"{where}.json_schema.schema"):
                raise InvalidJob(f"{fault[0]} {fault[1]}", fault[0])


def _check_prompt(value: Any, where: str) -> None:
    """Text, token ids, or a list of either."""
    if not isinstance(value, str | list) or not value:
        raise InvalidJob(f"{where} must be non-empty text, or a non-empty list", where)
    if isinstance(value, str) or TEXTS.is_kept_by(value) or _are_ids(value):
        return
    if not all(_are_ids(one) for one in value):
        raise InvalidJob(f"{where} must hold texts, or token ids, or lists of token ids", where)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(is_whole(v) and v >= 0 for v in value)
