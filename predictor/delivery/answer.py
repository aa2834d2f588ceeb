"""The outcomes of a delivery, and the response to each. Pure.

Called by `predictor.delivery.delivery`. The table stands in docs/adr/0015.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, assert_never

from eventing.cloudevent import job_event
from eventing.cloudevent.event import Event
from eventing.cloudevent.result_event import DATAREF_ABOVE_BYTES, result_event
from eventing.errors import BadRequest
from eventing.job.job import Job, JobId

RETRY_SOON_S: Final = 1.0
"""Retry-After when there is no better estimate."""


@dataclass(frozen=True, slots=True)
class DeliveryResponse:
    """A status, its headers, and an event if there is one to reply."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    event: Event | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Malformed:
    """Not a valid CloudEvent."""

    error: BadRequest


@dataclass(frozen=True, slots=True)
class Ignored:
    """An event of a type that needs no action. Answered without an event: with one, a Trigger without a filter
    would send events round for ever.
    """


@dataclass(frozen=True, slots=True)
class Rejected:
    """An event that is not a valid job: recorded as failed, as a dead letter."""

    job: Job | None


@dataclass(frozen=True, slots=True)
class Ended:
    """The job has ended, in this delivery or before. `job` is its record; without one the delivery is
    answered without a result event.
    """

    job_id: JobId
    job: Job | None = None


@dataclass(frozen=True, slots=True)
class Validating:
    """The answer is kept for the steps after the predictor. `job` is its record, whose next event a broker is replied
    that takes replies; without one the delivery is answered without an event, which `is_queued` makes needless.
    """

    job_id: JobId
    job: Job | None = None
    is_queued: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """The job runs elsewhere under a live lease."""

    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was done, or everything was given back: deliver again. Costs no attempt."""

    reason: str
    retry_after_s: float = RETRY_SOON_S


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """This attempt failed and is counted; the job waits for the next one."""

    reason: str


Outcome = Malformed | Ignored | Rejected | Ended | Validating | Held | Refused | AttemptFailed


def answer_for(outcome: Outcome, *, inline_bytes: int = DATAREF_ABOVE_BYTES) -> DeliveryResponse:
    """The response for each outcome. An event can only be replied with a 200: the data plane ignores the body of a
    202. Results above `inline_bytes` stay in the store.
    """
    match outcome:
        case Malformed(error):
            return DeliveryResponse(error.status, problem=error.message)
        case Ignored():
            return DeliveryResponse(202)
        case Rejected(job):
            return DeliveryResponse(202) if job is None else _result_response(job, inline_bytes)
        case Ended(_, job):
            return DeliveryResponse(200) if job is None else _result_response(job, inline_bytes)
        case Validating(job=job):
            return DeliveryResponse(200, event=job_event.request_event(job) if job else None)
        case Held(retry_after_s):
            return DeliveryResponse(
                409, _retry_after(retry_after_s), problem="the job runs elsewhere"
            )
        case Refused(reason, retry_after_s):
            return DeliveryResponse(503, _retry_after(retry_after_s), problem=reason)
        case AttemptFailed(reason):
            return DeliveryResponse(500, _retry_after(RETRY_SOON_S), problem=reason)
        case _:
            assert_never(outcome)


def _result_response(job: Job, inline_bytes: int) -> DeliveryResponse:
    return DeliveryResponse(200, event=result_event(job, inline_bytes=inline_bytes))


def _retry_after(seconds: float) -> Mapping[str, str]:
    """HTTP's `Retry-After` has whole seconds only."""
    return {"retry-after": str(max(1, math.ceil(seconds)))}
