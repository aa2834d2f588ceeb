"""What a person is asked about a call, and what may be answered. Pure.

Called by the api. A call that needs approval is approved or denied; of one that may have happened it is said whether it
is run again; what a tool asks its user for (MCP's elicitation, form mode) is a flat object whose fields are checked
here, so that a tool is never sent what its own schema refuses.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import orjson

from eventing.errors import BadRequest
from eventing.job.call.rule import FLAG, TEXT, check, one_of
from eventing.job.tools.call import CallState, ToolCall
from eventing.job.tools.store import Decision

_TEXT_BYTES: Final = 32 * 1024
_DOUBTS: Final = {
    "run_again": CallState.PENDING,
    "it_ran": CallState.RETURNED,
    "give_up": CallState.UNKNOWN,
}
_ACTIONS: Final = ("accept", "decline", "cancel")


class QuestionKind(StrEnum):
    """The kinds of question about a call."""

    APPROVAL = "approval"  #: whether the call is run
    DOUBT = "doubt"  #: it may have happened: whether it is run again
    INPUT = "input"  #: what the tool asks its user for


_KINDS: Final = {
    CallState.AWAITING_APPROVAL: QuestionKind.APPROVAL,
    CallState.IN_DOUBT: QuestionKind.DOUBT,
    CallState.AWAITING_INPUT: QuestionKind.INPUT,
}


def kind_of(call: ToolCall) -> QuestionKind | None:
    """What is asked about the call, or was asked last; None for one that no person was asked about."""
    if (kind := _KINDS.get(call.state)) is not None or not call.approval_id:
        return kind
    asked = _KINDS.get(CallState(call.question_of)) if call.question_of in list(CallState) else None
    return asked or QuestionKind.APPROVAL  # a record of before this was noted


def requests_of(call: ToolCall) -> dict[str, Mapping[str, Any]]:
    """What the tool asks for: message and schema of each request, by its key."""
    asked = orjson.loads(call.question or "{}").get("requests")
    found = {}
    for key, request in (asked if isinstance(asked, Mapping) else {}).items():
        params = request.get("params") if isinstance(request, Mapping) else None
        found[str(key)] = params if isinstance(params, Mapping) else {}
    return found


def decision_of(call: ToolCall, body: Mapping[str, Any], approver: str) -> Decision:
    """The decision that `body` is about a call that waits. Raises `BadRequest` naming the field."""
    match kind_of(call):
        case QuestionKind.APPROVAL:
            return _approval(body, approver)
        case QuestionKind.DOUBT:
            return _doubt(body, approver)
        case _:
            return _input(call, body, approver)


def _approval(body: Mapping[str, Any], approver: str) -> Decision:
    _only(body, {"approve", "reason"})
    check("", body.get("approve"), FLAG, "approve")
    reason = _text(body, "reason")
    state = CallState.PENDING if body["approve"] else CallState.DENIED
    return Decision(state=state, text=reason, approver=approver)


def _doubt(body: Mapping[str, Any], approver: str) -> Decision:
    _only(body, {"decision", "output"})
    check("", body.get("decision"), one_of(*_DOUBTS), "decision")
    output = _text(body, "output")
    if (body["decision"] == "it_ran") != bool(output):
        raise BadRequest("output must stand beside it_ran, and there alone", "output")
    return Decision(state=_DOUBTS[body["decision"]], text=output, approver=approver)


def _input(call: ToolCall, body: Mapping[str, Any], approver: str) -> Decision:
    _only(body, {"action", "content"})
    check("", body.get("action"), one_of(*_ACTIONS), "action")
    requests, action = requests_of(call), body["action"]
    if action != "accept":
        answers: dict[str, Any] = {key: {"action": action} for key in requests}
    else:
        content = body.get("content", {})
        if not isinstance(content, Mapping):
            raise BadRequest("content must be an object", "content")
        given = {key: content for key in requests} if len(requests) == 1 else content
        answers = {}
        for key, params in requests.items():
            where = "content" if len(requests) == 1 else f"content.{key:.60}"
            own = check_content(given.get(key), params.get("requestedSchema"), where)
            answers[key] = {"action": "accept", "content": own}
    text = orjson.dumps(answers).decode()
    if len(text) > _TEXT_BYTES:
        raise BadRequest(f"content may have {_TEXT_BYTES} bytes", "content")
    return Decision(state=CallState.PENDING, text=text, approver=approver)


def check_content(content: Any, schema: Any, where: str) -> dict[str, Any]:
    """The content, as the flat schema of a question allows it. Raises `BadRequest` naming the field."""
    if not isinstance(content, Mapping):
        raise BadRequest(f"{where} must be an object", where)
    known = schema.get("properties") if isinstance(schema, Mapping) else None
    fields = known if isinstance(known, Mapping) else {}
    needed = schema.get("required") if isinstance(schema, Mapping) else ()
    for name in _list(needed):
        if isinstance(name, str) and name not in content:
            raise BadRequest(f"{where}.{name:.60} is required", f"{where}.{name:.60}")
    for name, value in content.items():
        place = f"{where}.{name:.60}"
        if name not in fields:
            raise BadRequest(f"{place} was not asked for", place)
        rule = fields[name] if isinstance(fields[name], Mapping) else {}
        if why := _broken(value, rule):
            raise BadRequest(f"{place} {why}", place)
    return dict(content)


def _broken(value: Any, rule: Mapping[str, Any]) -> str:
    """The part of a field's rule that the value breaks; empty where it breaks none."""
    kind = rule.get("type")
    if not _TYPES.get(str(kind), lambda _: True)(value):
        return f"must be of type {kind!s:.20}"
    words = _list(rule.get("enum")) or [
        one.get("const")
        for one in _list(rule.get("oneOf")) or _list(rule.get("anyOf"))
        if isinstance(one, Mapping)
    ]
    if words and kind != "array" and value not in words:
        return "must be one of what was offered"
    size = len(value) if isinstance(value, str | list) else value
    if not isinstance(size, int | float):
        return ""  # no bound is of an object or of null
    for least, most in (
        ("minimum", "maximum"),
        ("minLength", "maxLength"),
        ("minItems", "maxItems"),
    ):
        low, high = rule.get(least), rule.get(most)
        if isinstance(low, int | float) and size < low:
            return f"must be at least {low:g}"
        if isinstance(high, int | float) and size > high:
            return f"must be at most {high:g}"
    return ""


def _list(value: Any) -> list[Any]:
    """The value as a list; empty for anything else, since a tool wrote the schema."""
    return value if isinstance(value, list) else []


_TYPES: Final = {
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "array": lambda v: isinstance(v, list) and all(isinstance(each, str) for each in v),
}


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name) or ""
    check("", value, TEXT, name)
    if len(value.encode()) > _TEXT_BYTES:
        raise BadRequest(f"{name} may have {_TEXT_BYTES} bytes", name)
    return str(value)


def _only(body: Mapping[str, Any], known: set[str]) -> None:
    for name in body.keys() - known:
        raise BadRequest(
            f"{name:.60} is no answer to this; there are {', '.join(sorted(known))}", name[:60]
        )
