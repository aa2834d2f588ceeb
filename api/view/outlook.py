"""What can be said to somebody whose job waits.

Called by the jobs' handlers and streams, and by `api.job.waiting`, which finds it out. Pure.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Place, expected wait and what is waking. Empty fields are not known."""

    position: int | None = None
    expected_wait_s: float | None = None
    phase: str = ""
    phase_since_ms: int = 0
    replicas: int | None = None
    reason: str = ""
    """Why no replica starts."""


def outlook_view(outlook: Outlook) -> dict[str, Any]:
    """What is known of a wait; unknown fields are left out."""
    fields = {
        "position": outlook.position,
        "expected_wait_s": outlook.expected_wait_s,
        "phase": outlook.phase or None,
        "phase_since_ms": outlook.phase_since_ms or None,
        "replicas": outlook.replicas,
        "reason": outlook.reason or None,
    }
    return {name: value for name, value in fields.items() if value is not None}
