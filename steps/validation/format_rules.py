"""Whether an answer has the form that was asked for: JSON, a JSON schema, a length.

Called by the step `validate-output`. A schema may be a caller's: it is applied in a process of its own with little
memory and time (`steps.validation.schema_process`), since a pattern or a nest of references can take for ever.
"""

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from eventing.errors import BadRequest
from steps.handler import StepCall, not_installed
from steps.validation.schema_process import NO_VALIDATOR
from steps.validation.verdict import Verdict

SETTING: Final = "format"
_FIELDS: Final = frozenset({"schema", "max_characters"})
_SCHEMA_S: Final = 10.0
"""Wall clock; the process limits its own CPU time to less."""
_MOST_ERROR_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatRules:
    """The form of an answer. `schema` is a JSON schema, or None; `max_characters` is 0 for any length."""

    is_json: bool = False
    schema: Mapping[str, Any] | None = None
    max_characters: int = 0


def parse_format(setting: Any) -> FormatRules:
    """The rules in the setting `format`. Raises `BadRequest` naming the field."""
    if setting is None:
        return FormatRules()
    if not isinstance(setting, Mapping):
        raise BadRequest("format must be an object", "format")
    for name in setting.keys() - _FIELDS:
        raise BadRequest(f"format.{name} is not supported", f"format.{name}")
    schema, most = setting.get("schema"), setting.get("max_characters", 0)
    if schema is not None and not isinstance(schema, Mapping):
        raise BadRequest("format.schema must be an object", "format.schema")
    if isinstance(most, bool) or not isinstance(most, int) or most < 0:
        raise BadRequest("format.max_characters must be a whole number", "format.max_characters")
    return FormatRules(is_json=schema is not None, schema=schema, max_characters=most)


def asked_format(body: Mapping[str, Any]) -> FormatRules:
    """The rules in a request's `response_format`."""
    form = body.get("response_format")
    kind = form.get("type") if isinstance(form, Mapping) else None
    if not isinstance(form, Mapping) or kind not in ("json_object", "json_schema"):
        return FormatRules()
    inner = form.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    return FormatRules(is_json=True, schema=schema if isinstance(schema, Mapping) else None)


async def check_format(call: StepCall) -> Verdict:
    """Every choice of the answer, by the step's setting and by what the request asks."""
    rules = [parse_format(call.settings.get(SETTING)), asked_format(call.job.request.body)]
    problems: list[str] = []
    for text in answer_texts(call.candidate or {}):
        for each in rules:
            problems += await _problems(each, text)
    return Verdict(problems=tuple(dict.fromkeys(problems)))


def answer_texts(result: Mapping[str, Any]) -> list[str]:
    """The text of each choice that gives one; a choice of tool calls has its form by its tools."""
    found: list[str] = []
    choices = result.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, Mapping):
            continue
        message = choice.get("message")
        if isinstance(message, Mapping):
            if not message.get("tool_calls"):
                content = message.get("content")
                found.append(content if isinstance(content, str) else "")
        elif isinstance(text := choice.get("text"), str):
            found.append(text)
    return found


async def _problems(rules: FormatRules, text: str) -> list[str]:
    found: list[str] = []
    if rules.max_characters and len(text) > rules.max_characters:
        found.append(f"it has {len(text)} characters, of which at most {rules.max_characters} are")
    if not rules.is_json:
        return found
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return [*found, f"it is not JSON: {error.msg} at {error.pos}"]
    if rules.schema is not None:
        return [*found, *await schema_problems(rules.schema, value)]
    return found if isinstance(value, dict) else [*found, "it is no JSON object"]


async def schema_problems(schema: Mapping[str, Any], value: Any) -> list[str]:
    """Where the value does not fit the schema. Raises `NotInstalled`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "steps.validation.schema_process"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_SCHEMA_S):
            out, _ = await process.communicate(orjson.dumps({"schema": schema, "value": value}))
    except TimeoutError:
        out = b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == NO_VALIDATOR:
        raise not_installed("jsonschema")
    if process.returncode != 0 or len(out) > _MOST_ERROR_BYTES:
        return ["it could not be checked against the schema, which takes too long or is none"]
    found: list[str] = orjson.loads(out)
    return found
