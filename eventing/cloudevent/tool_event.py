"""CloudEvents of tool calls: asked, accepted, returned, cancelled; and of approvals.

Called by the steps (which queue, send and settle calls) and by the api (which takes late results). Types are a public
contract and carry a version; their JSON Schemas are in `docs/schemas`. Pure.
"""

from typing import Final

import orjson

from eventing.cloudevent.event import Event
from eventing.job.job import Job
from eventing.job.tools.call import ToolCall, idempotency_key
from eventing.job.tools.server import URLS
from eventing.telemetry.span import followable

CALLED: Final = "dev.torpor.tool.called.v1"
"""A tool is called. In a queue of ours it brings the call to the process that runs it; that process sends the same
event to a tool that is a CloudEvents function.
"""
RETURNED: Final = "dev.torpor.tool.returned.v1"
ACCEPTED: Final = "dev.torpor.tool.accepted.v1"
CALL_CANCELLED: Final = "dev.torpor.tool.cancelled.v1"
APPROVAL_REQUESTED: Final = "dev.torpor.approval.requested.v1"
APPROVAL_ANSWERED: Final = "dev.torpor.approval.answered.v1"
SOURCE: Final = "/torpor/tools"
PLACE: Final = "callplace"
"""The extension with turn and place of a call, as `2.0`."""


def place_of(event: Event) -> tuple[int, int] | None:
    """Turn and place of the call that an event is of; None for an event that names none."""
    turn, _, place = event.extensions.get(PLACE, "").partition(".")
    if not all(each.isascii() and each.isdigit() and len(each) < 7 for each in (turn, place)):
        return None
    return int(turn), int(place)


def called_event(job: Job, epoch: int, call: ToolCall) -> Event:
    """The event of a call: the same on every send, so that a second one in the same queue is a duplicate.

    Data: `{name, arguments, turn}`, with `arguments` the text that the model wrote.
    """
    key = idempotency_key(job.id, call.turn, call.place, epoch)
    extensions = {
        "tenant": job.tenant,
        "priority": str(job.lane),
        "tool": call.tool,
        "toolserver": URLS if call.by_url else call.server,
        "callid": call.call_id,
        "idempotencykey": key,
        PLACE: f"{call.turn}.{call.place}",
        "traceparent": followable(job.traceparent),
    }
    return Event(
        id=key,
        source=SOURCE,
        type=CALLED,
        subject=job.id,
        datacontenttype="application/json",
        extensions={name: value for name, value in extensions.items() if value},
        data=orjson.dumps({"name": call.tool, "arguments": call.arguments, "turn": call.turn}),
    )


def approval_event(job: Job, call: ToolCall, approval_id: str, *, is_answer: bool) -> Event:
    """The event that a person is asked about a call, or has decided: always of the same identity."""
    data = {
        "approval_id": approval_id,
        "job_id": job.id,
        "turn": call.turn,
        "place": call.place,
        "server": call.server,
        "tool": call.tool or call.name,
        "state": call.state,
        "reason": call.reason,
    }
    if is_answer:
        data["approver"] = call.approver
    else:
        data |= {"arguments": call.arguments[:_SHOWN_CHARS], "expires_at": call.expires_ms // 1000}
    return Event(
        id=f"{approval_id}:answered" if is_answer else approval_id,
        source=SOURCE,
        type=APPROVAL_ANSWERED if is_answer else APPROVAL_REQUESTED,
        subject=job.id,
        datacontenttype="application/json",
        extensions={"tenant": job.tenant},
        data=orjson.dumps(data),
    )


_SHOWN_CHARS: Final = 4096
