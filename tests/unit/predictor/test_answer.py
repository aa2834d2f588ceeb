"""Every row of the table of delivery outcomes and their responses."""

import pytest

from eventing.errors import NotACloudEvent, UnsupportedMode
from eventing.job.job import Job, JobError, JobId, JobRequest, JobState
from predictor.delivery.answer import (
    AttemptFailed,
    Ended,
    Held,
    Ignored,
    Malformed,
    Outcome,
    Refused,
    Rejected,
    answer_for,
)


def job(state: JobState) -> Job:
    error = JobError(code="expired", message="too late") if state is JobState.FAILED else None
    request = JobRequest(url="/v1/completions", body={"model": "m", "prompt": "x"})
    return Job(id=JobId("job_1"), state=state, request=request, attempt=2, error=error)


def ended(state: JobState) -> Ended:
    return Ended(JobId("job_1"), job(state))


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        pytest.param(ended(JobState.COMPLETED), 200, id="done"),
        pytest.param(ended(JobState.FAILED), 200, id="recorded-as-failed"),
        pytest.param(ended(JobState.CANCELLED), 200, id="cancelled-before"),
        pytest.param(Ended(JobId("job_1")), 200, id="done-and-nobody-wants-the-event"),
        pytest.param(Held(3), 409, id="running-elsewhere"),
        pytest.param(Malformed(NotACloudEvent("no id")), 400, id="not-an-event"),
        pytest.param(Malformed(UnsupportedMode("a batch")), 415, id="a-batch-of-events"),
        pytest.param(Rejected(None), 202, id="invalid-job"),
        pytest.param(Ignored(), 202, id="an-event-that-asks-for-nothing"),
        pytest.param(Refused("full"), 503, id="no-room"),
        pytest.param(AttemptFailed("broken"), 500, id="the-attempt-went-wrong"),
    ],
)
def test_each_outcome_has_its_status(outcome: Outcome, status: int) -> None:
    assert answer_for(outcome).status == status


@pytest.mark.parametrize(
    ("outcome", "type_"),
    [
        (ended(JobState.COMPLETED), "dev.torpor.inference.completed.v1"),
        (ended(JobState.INCOMPLETE), "dev.torpor.inference.completed.v1"),
        (ended(JobState.FAILED), "dev.torpor.inference.failed.v1"),
        (ended(JobState.CANCELLED), "dev.torpor.inference.cancelled.v1"),
        (Rejected(job(JobState.FAILED)), "dev.torpor.inference.failed.v1"),
    ],
    ids=["completed", "incomplete", "failed", "cancelled", "rejected-without-a-sweep"],
)
def test_an_ended_job_is_answered_200_because_a_202_carries_no_reply(
    outcome: Outcome, type_: str
) -> None:
    answer = answer_for(outcome)

    assert answer.status == 200
    assert answer.event is not None
    assert answer.event.type == type_


def test_a_duplicate_delivery_gets_the_same_result_event() -> None:
    first, second = (answer_for(ended(JobState.COMPLETED)).event for _ in range(2))

    assert first == second


@pytest.mark.parametrize(
    ("outcome", "header"),
    [(Held(0.2), "1"), (Held(2.1), "3"), (Refused("full", 7), "7"), (AttemptFailed("x"), "1")],
    ids=["held-briefly", "held", "refused", "failed"],
)
def test_retry_after_is_in_whole_seconds(outcome: Outcome, header: str) -> None:
    assert answer_for(outcome).headers == {"retry-after": header}


@pytest.mark.parametrize("outcome", [Ignored(), Rejected(None), Held(1), Refused("full")])
def test_only_an_ended_job_is_answered_with_an_event(outcome: Outcome) -> None:
    assert answer_for(outcome).event is None
