"""A turn that one job left to its caller, and that another takes over with the caller's decisions. Pure.

Made by the api for a response that answers the approvals of the one before it. The store takes it once, in the script
that records the new job; that job runs the approved calls and then asks its model, which is not asked again for the
calls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from eventing.job.tools.call import CallState, ToolCall, Turn, call_field, turn_field

DENIED = "The call was not approved."


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was decided about one call."""

    approve: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """The turn as the new job begins with it, and where it was: `approvals` are the ids that were asked there, by the
    places of their calls.
    """

    turn: Turn
    job_id: str
    number: int
    approvals: Mapping[int, str]

    @property
    def taken(self) -> dict[str, Any]:
        """The turn and its open approvals, as the script that takes them compares them with the earlier job."""
        calls = [{"place": place, "id": name} for place, name in self.approvals.items()]
        return {"job": self.job_id, "turn": self.number, "calls": calls}

    def to_fields(self) -> dict[str, bytes | int]:
        """The fields of the new job's record."""
        calls = self.turn.calls
        return {
            "carried_from": orjson.dumps(self.taken),
            "turns": 1,
            turn_field(1): self.turn.to_json(),
            **{call_field(1, call.place): call.to_json() for call in calls},
        }


def carried_turn(
    turn: Turn,
    answers: Mapping[str, Answer],
    outputs: Mapping[str, str],
    after: Sequence[Mapping[str, Any]] = (),
    *,
    approver: str = "",
) -> Turn:
    """The turn as the next job has it: its calls decided by `answers` (by approval id), the caller's own functions
    answered by `outputs` (by call id), and what the caller said after it. Its tokens were counted where they were made.
    """
    calls = tuple(_carried_call(call, answers, outputs, approver) for call in turn.calls)
    return replace(
        turn,
        number=1,
        attempt=0,
        begin=0,
        end=0,
        usage={},
        ends=0,
        epoch=0,
        stopped_by="",
        read_again_ms=0,
        carried=1,
        after=tuple(after),
        calls=calls,
    )


def _carried_call(
    call: ToolCall, answers: Mapping[str, Answer], outputs: Mapping[str, str], approver: str
) -> ToolCall:
    own = replace(call, turn=1, owner="", lease_number=0, lease_until_ms=0, expires_ms=0, asked=0)
    if call.state is CallState.CLIENT and call.call_id in outputs:
        return replace(own, state=CallState.RETURNED, output=outputs[call.call_id], carried=1)
    if not call.state.is_waiting_for_person:
        return replace(own, carried=1)
    answer = answers[call.approval_id]
    if answer.approve:
        return replace(own, state=CallState.PENDING, reason="", handle="", approver=approver)
    if call.state is CallState.IN_DOUBT:
        return replace(own, state=CallState.UNKNOWN, approver=approver)
    text, state = answer.reason or DENIED, CallState.DENIED
    return replace(own, state=state, output=text, is_error=1, reason="denied", approver=approver)
