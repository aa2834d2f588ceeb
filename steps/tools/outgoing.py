"""One call as it leaves, and what a tool asks its user before it answers. Pure.

Called by `steps.tools.caller`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import orjson

from eventing.broker.tool_calls import epoch_of
from eventing.cloudevent.event import Event
from eventing.cloudevent.tool_event import called_event
from eventing.job.job import Job
from eventing.job.tools.call import CallState, ToolCall, idempotency_key
from eventing.job.tools.server import Pin, ToolServer
from eventing.job.tools.store import CallEnd
from eventing.telemetry import trace
from steps.tools.client.answer import Outgoing


def outgoing_call(
    job: Job, call: ToolCall, server: ToolServer | None, list_digest: str = ""
) -> Outgoing:
    """The call with its key, and with what a person answered; `list_digest` is that of its server's pinned list."""
    key = idempotency_key(job.id, call.turn, call.place, epoch_of(job, call))
    arguments: dict[str, Any] = orjson.loads(call.arguments or "{}")
    if server is not None and server.key_argument:
        arguments[server.key_argument] = key
    question = orjson.loads(call.question or "{}")
    answers = orjson.loads(call.answer) if call.answer else None
    return Outgoing(
        tool=call.tool,
        arguments=arguments,
        key=key,
        timeout_s=call.timeout_ms / 1000,
        digest=call.tool_digest,
        list_digest=list_digest if server is not None and server.pin is Pin.STRICT else "",
        answers=_answers(question, answers),
        state=question.get("state"),
        traceparent=trace.headers().get("traceparent", job.traceparent),
    )


def _answers(question: Mapping[str, Any], said: Any) -> Mapping[str, Any] | None:
    """What a person said, by the keys of the tool's requests: given so, or as the content of a single one."""
    requests = question.get("requests") or {}
    if said is None or not requests:
        return None
    if isinstance(said, Mapping) and said.keys() <= requests.keys() and said:
        return {
            key: each if isinstance(each, Mapping) and "action" in each else _accepted(each)
            for key, each in said.items()
        }
    return dict.fromkeys(requests, _accepted(said))


def _accepted(content: Any) -> dict[str, Any]:
    said = content if isinstance(content, Mapping) else {}
    return {"action": "accept", "content": dict(said)}


def asked_of_user(
    call: ToolCall, requests: Mapping[str, Any], state: str | None, *, task: str
) -> CallEnd:
    """The call waits for what its tool asked the user. What is not a question to a person is not offered."""
    others = [
        key
        for key, each in requests.items()
        if not isinstance(each, Mapping) or each.get("method") != "elicitation/create"
    ]
    if others or not requests:
        text = "The tool asks for something that is not offered here."
        return CallEnd(state=CallState.RETURNED, output=text, is_error=True, reason="not_offered")
    question = {"requests": dict(requests), "state": state, "task": task}
    text = orjson.dumps({name: each for name, each in question.items() if each}).decode()
    return CallEnd(state=CallState.AWAITING_INPUT, question=text, reason="input")


def function_event(job: Job, call: ToolCall, token: str) -> Event:
    """The event as a function gets it: with the token that a later result must carry."""
    event = called_event(job, epoch_of(job, call), call)
    return replace(event, extensions={**event.extensions, "calltoken": token})


_SOONEST_MS: Final = 10_000
_LATEST_MS: Final = 300_000


def asked_again_ms(waited_ms: int) -> int:
    """After how long a task is asked for again that has taken so long already: a tenth of that, within bounds."""
    return min(max(_SOONEST_MS, waited_ms // 10), _LATEST_MS)
