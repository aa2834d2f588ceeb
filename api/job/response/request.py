"""Converts OpenAI Responses calls to chat completions. Pure.

Called by `api.routes.responses`. A response is a chat job that remembers its request. What the engine does not
support (hosted tools, files) is refused by name instead of being ignored.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from api.job.response.tools import (
    FILE_SEARCH,
    tool_options,
    without_hosted_tools,
    without_search,
)
from api.view.conversation import whole_item
from api.view.items.retrieval import RESULTS
from eventing.errors import InvalidJob
from eventing.job.call.fields import PENALTIES, SAMPLING, SHAPING
from eventing.job.call.moderation import MODERATION, MODERATION_SCHEMA, check_moderation
from eventing.job.call.rule import (
    FLAG,
    NAME,
    OBJECT,
    TEXT,
    TEXTS,
    Rules,
    check,
    check_fields,
    nullable,
    object_schema,
    one_of,
    whole,
)
from eventing.job.plan import PlannedStep
from eventing.job.store import ConversationTurn
from eventing.job.tools.asked import MCP, MCP_TOOL_SCHEMA, without_credentials
from eventing.job.tools.carried import Carried
from eventing.store.conversation.conversation import Conversation
from eventing.store.conversation.messages import Message, messages_of

_SAME: Final = (
    *("temperature", "top_p", "parallel_tool_calls", "user", "seed"),
    *("presence_penalty", "frequency_penalty", "stop", "logit_bias"),
    *("top_k", "min_p", "repetition_penalty", "seeded", "tool_limits"),
)
"""Fields that a chat completion has under the same name; the last are vLLM's, the test engine's and ours."""
_LOGPROBS: Final = "message.output_text.logprobs"
_INCLUDED: Final = (_LOGPROBS, "reasoning.encrypted_content")
"""Allowed values of `include`. Reasoning is never encrypted here: it is returned as text, and its encrypted form is
null.
"""
NOT_ADDED: Final = "what is not to be stored can not be added to a conversation"
_UNSUPPORTED: Final = ("prompt",)
_LEAST_THRESHOLD: Final = 1000
_ECHOED: Final = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "previous_response_id",
    "prompt_cache_key",
    "reasoning",
    "safety_identifier",
    "service_tier",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "truncation",
    "user",
    "parallel_tool_calls",
    "presence_penalty",
    "frequency_penalty",
)
"""Fields of the call that the response object repeats."""
_TOOL: Final = {"description": None, "parameters": None, "strict": None}
"""Default fields of a tool in the response object."""

_RULES: Final[Rules] = {
    **SAMPLING,
    **PENALTIES,
    **SHAPING,
    "max_output_tokens": whole(1),
    "max_tool_calls": whole(1),
    "top_logprobs": whole(0, 20),
    "parallel_tool_calls": FLAG,
    "instructions": TEXT,
    "truncation": one_of("auto", "disabled"),
    "include": TEXTS,
    "service_tier": one_of("auto", "default", "flex", "priority"),
    "prompt_cache_key": TEXT,
    "safety_identifier": TEXT,
    "reasoning": OBJECT,
    "text": OBJECT,
}
"""Rules by the call's own field names; the chat fields that they become are validated again as such."""
REQUEST_SCHEMA: Final = object_schema(
    {
        "model": NAME.schema,
        "input": {"type": ["string", "array"], "description": "text, or a list of items"},
    },
    {
        **_RULES,
        "background": FLAG,
        "stream": FLAG,
        "store": FLAG,
        "previous_response_id": TEXT,
        "user": TEXT,
    },
    {
        "conversation": {
            "description": "id of a conversation, or an object with it; what is asked and answered is added there",
            "anyOf": [
                {"type": "string"},
                {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}},
            ],
        },
        "context_management": {
            "type": ["array", "null"],
            "maxItems": 1,
            "items": {
                "type": "object",
                "required": ["type", "compact_threshold"],
                "properties": {
                    "type": {"const": "compaction"},
                    "compact_threshold": whole(_LEAST_THRESHOLD).schema,
                },
            },
        },
        MODERATION: nullable(MODERATION_SCHEMA),
        "tools": {
            "type": "array",
            "items": {
                "anyOf": [MCP_TOOL_SCHEMA, {"type": "object", "required": ["type"]}],
            },
        },
        "tool_choice": {"type": ["string", "object"]},
    },
)


class MutuallyExclusive(InvalidJob):
    """Two fields of the call exclude each other."""

    code = "mutually_exclusive_parameters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A parsed call: its chat body, and the response object's fields that come from it."""

    body: dict[str, Any]
    record: dict[str, Any]
    is_background: bool
    is_stream: bool
    is_stored: bool
    turn: ConversationTurn | None = None
    history: int = 0  #: messages of the body that were said before, behind the instructions
    search: PlannedStep | None = None
    carried: Carried | None = (
        None  #: the turn of the previous response, with the answers to its approvals
    )
    answered_by: str = ""  #: the job that an earlier call with such answers made
    compact_threshold: int = (
        0  #: tokens of a prompt from which on its history is compacted; 0 for none
    )

    @property
    def said_before(self) -> list[Message]:
        """What was said before."""
        begin = self._history_at
        return list(self.body["messages"][begin : begin + self.history])

    def with_history(self, messages: Sequence[Message]) -> "Ask":
        """The call with another history."""
        begin, told = self._history_at, self.body["messages"]
        whole = [*told[:begin], *messages, *told[begin + self.history :]]
        return replace(self, body={**self.body, "messages": whole}, history=len(messages))

    @property
    def _history_at(self) -> int:
        return 1 if self.record.get("instructions") else 0

    def without_history(self) -> "Ask":
        """The call without what was said before: a step puts that into its prompt when it runs."""
        turn = replace(self.turn, seq=None) if self.turn else None
        return replace(self.with_history([]), turn=turn)


def conversation_of(call: Mapping[str, Any]) -> str | None:
    """The id of the conversation that the call names. Raises `InvalidJob`, and `MutuallyExclusive`."""
    named = call.get("conversation")
    if named is None:
        return None
    if call.get("previous_response_id") is not None:
        raise MutuallyExclusive(
            "Mutually exclusive parameters: ensure you are only providing one of: "
            "'previous_response_id' or 'conversation'.",
            "conversation",
        )
    found = named.get("id") if isinstance(named, Mapping) else named
    if not isinstance(found, str):
        raise InvalidJob("conversation must be an id, or an object with it", "conversation")
    if call.get("store") is False:
        raise InvalidJob(NOT_ADDED, "store")
    return found


def parse_ask(
    call: Mapping[str, Any],
    history: Sequence[Message],
    *,
    drops_tools: bool = False,
    conversation: Conversation | None = None,
    has_answers: bool = False,
) -> Ask:
    """The chat job of `call`, after the messages of earlier responses, or of `conversation`. Hosted tools, which
    cannot run here, are left out with `drops_tools`, else refused. With `has_answers` its input goes on inside the
    last turn of the response before, which is no part of `history`.

    Raises `InvalidJob` naming the field of the call.
    """
    if drops_tools:
        call = without_hosted_tools(call)
    for name in _UNSUPPORTED:
        if call.get(name) is not None:
            raise InvalidJob(f"{name} is not supported here", name)
    is_background, is_stream = flag(call, "background"), flag(call, "stream")
    is_stored = flag(call, "store", default=True)
    if is_background and not is_stored:
        raise InvalidJob("background responses must be stored; leave store out", "store")
    check_fields(call, _RULES)
    call, search = without_search(call)
    _check_include(call.get("include") or (), (RESULTS,) if search else ())
    instructions = call.get("instructions")
    is_bare = conversation is not None and bool(history) and call.get("input") is None
    items = [] if is_bare else input_items(call.get("input"))
    system = [{"role": "system", "content": instructions}] if instructions else []
    messages = [*system, *history, *([] if has_answers else messages_of(items))]
    _check_call_ids(messages)
    body: dict[str, Any] = {"model": call.get("model"), "messages": messages}
    body |= {name: call[name] for name in _SAME if call.get(name) is not None}
    body |= _options(call)
    if (moderation := call.get(MODERATION)) is not None:
        check_moderation(moderation, MODERATION)
        body[MODERATION] = moderation
    record = _echoed(call, search) | {
        "input": items,
        "background": is_background,
        "stream": is_stream,
        "store": is_stored,
    }
    turn = None
    if conversation is not None:
        record["conversation"] = {"id": conversation.id}
        turn = _turn_in(conversation, items)
    return Ask(
        body=body,
        record=record,
        is_background=is_background,
        is_stream=is_stream,
        is_stored=is_stored,
        turn=turn,
        history=len(history),
        search=search,
        compact_threshold=_compact_threshold(call.get("context_management")),
    )


def _echoed(call: Mapping[str, Any], search: PlannedStep | None) -> dict[str, Any]:
    """The fields of the call that its response shows again."""
    record = {name: call[name] for name in _ECHOED if call.get(name) is not None}
    if record.get("tools") is not None:
        record["tools"] = [_shown_tool(tool) for tool in without_credentials(record["tools"])]
    if search is not None:
        record["tools"] = [*record.get("tools", ()), {"type": FILE_SEARCH, **search.settings}]
        record["include"] = list(call.get("include") or ())
    return record


def _turn_in(conversation: Conversation, items: Sequence[Any]) -> ConversationTurn:
    whole = tuple(whole_item(item) for item in items)
    return ConversationTurn(id=conversation.id, items=whole, seq=conversation.seq)


def _shown_tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool of the call as the response object repeats it."""
    if tool.get("type") == MCP:
        return {"require_approval": None, "allowed_tools": None, "headers": None, **tool}
    return {**_TOOL, **tool}


def _compact_threshold(given: Any) -> int:
    """The threshold of a `context_management`; 0 without one. Raises `InvalidJob`."""
    name = "context_management"
    if given is None:
        return 0
    if not isinstance(given, list) or len(given) != 1 or not isinstance(given[0], Mapping):
        raise InvalidJob(f"{name} must be a list of one object", name)
    if given[0].get("type") != "compaction":
        raise InvalidJob(f"{name}[0].type must be compaction", f"{name}[0].type")
    threshold = given[0].get("compact_threshold")
    check(f"{name}[0].", threshold, whole(_LEAST_THRESHOLD), "compact_threshold")
    return int(threshold or 0)


def flag(call: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    """A boolean field of the call. Raises `InvalidJob` naming it."""
    value = call.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidJob(f"{name} must be true or false", name)
    return value


def input_items(value: Any) -> list[dict[str, Any]]:
    """`input` as a list of items, whichever short form it has."""
    if isinstance(value, str) and value:
        content = [{"type": "input_text", "text": value}]
        return [{"type": "message", "role": "user", "content": content}]
    if not isinstance(value, list) or not value:
        raise InvalidJob("input must be non-empty text or a non-empty list of items", "input")
    items = []
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise InvalidJob(f"input[{index}] must be an object", f"input[{index}]")
        items.append({"type": "message", **item} if "role" in item else item)
    return items


def _check_call_ids(messages: Iterable[Message]) -> None:
    """Raises `InvalidJob` for a function output without its call."""
    called: set[str] = set()
    for message in messages:
        called |= {call["id"] for call in message.get("tool_calls") or ()}
        if message["role"] == "tool" and (name := message["tool_call_id"]) not in called:
            raise InvalidJob(
                f"No tool call found for function call output with call_id {name:.64}.", "input"
            )


def _options(call: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that chat completions have under another name or in another form."""
    options: dict[str, Any] = {}
    if call.get("max_output_tokens") is not None:
        options["max_completion_tokens"] = call["max_output_tokens"]
    top = call.get("top_logprobs")
    if top is not None or _LOGPROBS in (call.get("include") or ()):
        options |= {"logprobs": True, "top_logprobs": top or 0}
    if (effort := (call.get("reasoning") or {}).get("effort")) is not None:
        check("reasoning.", effort, NAME, "effort")
        options["reasoning_effort"] = effort
    if response_format := _response_format((call.get("text") or {}).get("format")):
        options["response_format"] = response_format
    return options | tool_options(call)


def _response_format(form: Any) -> dict[str, Any] | None:
    kind = form.get("type") if isinstance(form, Mapping) else form
    match kind:
        case None | "text":
            return None
        case "json_object":
            return {"type": "json_object"}
        case "json_schema":
            check("text.format.", form.get("name"), NAME, "name")
            check("text.format.", form.get("schema"), OBJECT, "schema")
            names = ("name", "schema", "strict", "description")
            inner = {name: form[name] for name in names if form.get(name) is not None}
            return {"type": "json_schema", "json_schema": inner}
        case _:
            message = "text.format.type must be text, json_object or json_schema"
            raise InvalidJob(message, "text.format.type")


def _check_include(include: Iterable[str], more: Sequence[str]) -> None:
    allowed = (*_INCLUDED, *more)
    for index, name in enumerate(include):
        if name not in allowed:
            message = f"include[{index}] {name!r:.60} is not served; it may be {', '.join(allowed)}"
            raise InvalidJob(message, f"include[{index}]")
