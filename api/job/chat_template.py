"""A model's chat template, which gives exactly the text that the engine makes of a conversation.

Called by `api.job.catalog`. Must not know jobs.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NoReturn, Self

import orjson
from jinja2 import Template, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from eventing.errors import InvalidJob

_CONFIG: Final = "tokenizer_config.json"
_FILE: Final = "chat_template.jinja"


class ChatTemplate:
    """One model's compiled template, in transformers' own environment for templates."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        extensions: list[type[Extension]] = [loopcontrols]
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=extensions
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._template: Template = environment.from_string(source)
        self._tokens = tokens

    @classmethod
    def beside(cls, tokenizer_file: Path) -> Self | None:
        """The template in the folder of a tokenizer's file; None when there is none."""
        config: dict[str, Any] = {}
        if (path := tokenizer_file.with_name(_CONFIG)).exists():
            config = orjson.loads(path.read_bytes())
        source = config.get("chat_template")
        if (path := tokenizer_file.with_name(_FILE)).exists():
            source = path.read_text(encoding="utf-8")
        if not isinstance(source, str):
            return None
        return cls(
            source, {name: _text(config[name]) for name in config if name.endswith("_token")}
        )

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> str:
        """The prompt up to the beginning of the answer. Raises `InvalidJob` for messages that the template refuses."""
        try:
            return self._template.render(
                messages=[_plain(message) for message in messages],
                tools=tools,
                add_generation_prompt=True,
                **self._tokens,
            )
        except TemplateError as error:
            message = f"the chat template refuses the messages: {error.message}"
            raise InvalidJob(message, "body.messages") from error


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message in the form that templates expect: text parts joined, arguments of calls as objects."""
    plain = dict(message)
    if isinstance(content := message.get("content"), list):
        plain["content"] = "\n".join(part["text"] for part in content if part.get("type") == "text")
    if calls := message.get("tool_calls"):
        plain["tool_calls"] = [
            {**call, "function": call["function"] | {"arguments": _arguments(call["function"])}}
            for call in calls
        ]
    return plain


def _arguments(function: Mapping[str, Any]) -> Any:
    text = function.get("arguments") or "{}"
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, Mapping) else str(token or "")


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    """With `json`'s whitespace, which templates rely on."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
