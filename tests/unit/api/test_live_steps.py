"""Which step a reader's job is at, by its stream: its wait is looked up in the queue of that step."""

from dataclasses import replace

from api.job.live import _Reading, last_state
from api.job.stream_position import StreamPosition
from eventing.job.job import JobState
from eventing.job.plan import LIST_TOOLS_STEP, TOOLS_STEP, Plan, PlannedStep, StepStatus
from eventing.job.stream import EntryKind, StreamEntry
from eventing.job.tools.call import CallState
from tests.unit.api.test_turn_views import WAITING

JOB = replace(
    WAITING,
    state=JobState.QUEUED,
    step=LIST_TOOLS_STEP,
    turns=(),
    plan=Plan(steps=(PlannedStep(name=LIST_TOOLS_STEP), PlannedStep(name=TOOLS_STEP))),
)


def step(name: str, status: StepStatus) -> StreamEntry:
    return StreamEntry("1-0", EntryKind.STEP, 1, step=name, step_status=status)


def test_a_job_waits_for_its_predictor_again_when_its_calls_have_ended() -> None:
    reading = _Reading(None, JOB, StreamPosition(is_start=True), with_result=False)  # type: ignore[arg-type]
    queued = StreamEntry("1-0", EntryKind.STATE, 1, state=JobState.QUEUED)
    running = StreamEntry("1-0", EntryKind.STATE, 1, state=JobState.IN_PROGRESS)
    told = [
        (step(LIST_TOOLS_STEP, StepStatus.IN_PROGRESS), LIST_TOOLS_STEP),
        (step(LIST_TOOLS_STEP, StepStatus.COMPLETED), ""),
        (running, ""),
        (step(TOOLS_STEP, StepStatus.IN_PROGRESS), TOOLS_STEP),
        (StreamEntry("1-0", EntryKind.TURN, 1, 4, turn=1), TOOLS_STEP),
        (StreamEntry("1-0", EntryKind.CALL, 0, turn=1, call_state=CallState.SENT), TOOLS_STEP),
        (queued, ""),
    ]

    for entry, expected in told:
        reading._follow_plan(entry)
        assert reading.job.step == expected, entry


def test_a_job_between_two_turns_is_in_progress() -> None:
    call = StreamEntry("1-0", EntryKind.CALL, 0, turn=1, call_state=CallState.RETURNED)

    assert last_state([call]) is JobState.IN_PROGRESS
    assert last_state([call, call._replace(kind=EntryKind.STATE, state=JobState.QUEUED)]) is (
        JobState.QUEUED
    )
