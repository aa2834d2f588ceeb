"""What an outcome may be where its step stands, and what follows from it.

Called by `steps.runner.runner`.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson
import structlog

from eventing.errors import InvalidJob, TorporError
from eventing.job.job import REJECTED, Job, JobRequest
from eventing.job.plan import TOOLS_STEP, Hold, PlannedStep
from eventing.job.step import AdvanceStatus, StepRun
from steps.handler import (
    Again,
    Answer,
    CommitTurn,
    Continue,
    QueueCalls,
    Refuse,
    Skip,
    StepOutcome,
    Withhold,
)

_DETAIL_BYTES: Final = 32 * 1024
_PREPARED_BYTES: Final = 8 * 1024 * 1024
"""Longest request that a step may make; the largest event that the ingress takes."""
_log = structlog.get_logger()
MOST_AGAIN: Final = 8
"""Of one job, whatever its steps say."""


class RunFailed(TorporError):
    """The run failed; it counts as a try."""

    code = "step_failed"
    is_retryable = True


def goes_on(job: Job, run: StepRun, status: AdvanceStatus) -> bool:
    """False for a job that has ended: with the last of the steps that judged its answer, or some other way."""
    is_last = job.is_validating and job.plan is not None and not job.plan.next_after(run.step)
    return status is AdvanceStatus.OK and not is_last


def check_place(job: Job, planned: PlannedStep, outcome: StepOutcome) -> None:
    """Raises `RunFailed` for an outcome that the step may not give where it stands: a text that readers were shown is
    not taken back, and no step ends a job with an answer that those after it did not judge.
    """
    is_judging = isinstance(outcome, Withhold | Again)
    if isinstance(outcome, Answer) and planned.is_after:
        raise RunFailed("a step after the predictor changes its answer, and gives no other")
    if is_judging and not (planned.is_after and job.is_validating):
        raise RunFailed("there is no answer yet")
    if isinstance(outcome, CommitTurn | QueueCalls) and planned.name != TOOLS_STEP:
        raise RunFailed(f"only the step {TOOLS_STEP} commits turns")
    if isinstance(outcome, Again):
        if job.hold is not Hold.WHOLE:
            raise RunFailed("the answer was shown already")
        if sum(each.outcome == REJECTED for each in job.history) >= MOST_AGAIN:
            raise RunFailed(f"the answer was made again {MOST_AGAIN} times")


def fitting(request: JobRequest | None) -> JobRequest | None:
    """The request, if it is not too long for an event. Raises `InvalidJob`."""
    if request is not None and len(request.to_json()) > _PREPARED_BYTES:
        raise InvalidJob(f"with its steps the request is over {_PREPARED_BYTES} bytes", "body")
    return request


def checked_detail(detail: Mapping[str, Any], step: str) -> Mapping[str, Any]:
    """The detail, unless it is longer than a record should hold for each step."""
    if len(orjson.dumps(dict(detail))) <= _DETAIL_BYTES:
        return detail
    _log.error("detail is too long", action="step", step=step)
    return {}


OUTCOME_NAMES: Final[Mapping[type[object], str]] = {
    Continue: "completed",
    Answer: "answered",
    Skip: "skipped",
    Refuse: "refused",
    Withhold: "withheld",
    Again: "again",
    CommitTurn: "turn",
    QueueCalls: "queued",
}
