"""The outcome of one request, as its client saw it.

Written by `client` and `run`, read by `summary`. Times are seconds from the start of the run, on one clock.
"""

from dataclasses import dataclass
from enum import StrEnum

from torpor.load.schedule import ClientKind


class SampleOutcome(StrEnum):
    """How a request ended."""

    COMPLETED = "completed"  #: an answer
    FAILED = "failed"  #: the job ended without an answer
    REFUSED = "refused"  #: not accepted: 4xx or 5xx, nothing promised
    UNREACHED = "unreached"  #: no connection, or cut before it was accepted
    UNSENT = "unsent"  #: not sent: the generator had too many open requests
    LOST = "lost"  #: accepted, and no end was seen in time


@dataclass(slots=True, kw_only=True)
class LoadSample:
    """One request. `due_s` is when it should have been sent: all waits are counted from there, so that a late
    generator or server does not hide them.
    """

    kind: ClientKind
    due_s: float
    sent_s: float = 0.0
    accepted_s: float = 0.0
    first_token_s: float = 0.0
    ended_s: float = 0.0
    outcome: SampleOutcome = SampleOutcome.LOST
    status: int = 0
    job_id: str = ""
    queued_s: float | None = None
    output_tokens: int = 0
    attempts: int = 0
    gpu_s: float = 0.0

    @property
    def lag_s(self) -> float:
        """How late the generator sent it."""
        return max(self.sent_s - self.due_s, 0.0)

    @property
    def total_s(self) -> float:
        return self.ended_s - self.due_s

    @property
    def ttft_s(self) -> float | None:
        return self.first_token_s - self.due_s if self.first_token_s else None
