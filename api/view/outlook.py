"""The state of a queued job's wait, as shown to its owner.

Called by the jobs' handlers and streams, and by `api.job.waiting`, which reads it. Pure.
"""

from dataclasses import dataclass

from typing_extensions import TypedDict

from api.http.described import described
from eventing.job.job import Job
from eventing.job.tools.call import ToolPhase


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Place, expected wait and starting replicas; or what a job waits for between two turns. Empty fields are not
    known.
    """

    position: int | None = None
    expected_wait_s: float | None = None
    phase: str = ""
    phase_since_ms: int = 0
    replicas: int | None = None
    reason: str = ""
    """Why no replica starts."""


@described
class OutlookView(TypedDict, total=False):
    """What is known of a wait; what is not is left out."""

    position: int
    """Jobs before it"""
    expected_wait_s: float
    phase: str
    """The phase of the starting replica; between two turns `tool`, `approval` or `input`"""
    phase_since_ms: int
    replicas: int
    reason: str
    """Why no replica starts; between two turns, what is waited for"""


def tool_outlook(job: Job) -> Outlook | None:
    """What a job waits for between two turns; None where it does not."""
    if (phase := job.tool_phase) is None:
        return None
    turn = job.turns[-1]
    left = [call for call in turn.calls if not call.state.is_final]
    names = ", ".join(dict.fromkeys(f"{call.server}.{call.tool}" for call in left))
    what = {
        ToolPhase.TOOL: "calls of",
        ToolPhase.APPROVAL: "a decision about",
        ToolPhase.INPUT: "what its user is asked by",
    }[phase]
    return Outlook(
        phase=phase, phase_since_ms=max(job.created_ms, turn.committed_ms), reason=f"{what} {names}"
    )


def outlook_view(outlook: Outlook) -> OutlookView:
    """The known fields of a wait."""
    view: OutlookView = {}
    if outlook.position is not None:
        view["position"] = outlook.position
    if outlook.expected_wait_s is not None:
        view["expected_wait_s"] = outlook.expected_wait_s
    if outlook.phase:
        view["phase"] = outlook.phase
    if outlook.phase_since_ms:
        view["phase_since_ms"] = outlook.phase_since_ms
    if outlook.replicas is not None:
        view["replicas"] = outlook.replicas
    if outlook.reason:
        view["reason"] = outlook.reason
    return view
