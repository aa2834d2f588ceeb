"""Batch jobs wait for room, cause replicas only for their deadline, and do not count in the wait objective."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knative.autoscaling.work import work
from knative.autoscaling.work.batch import BatchJob, more_replicas
from knative.autoscaling.work.work import Observation, WorkSpec, WorkState
from knative.external_scaler.scaler import QueueSnapshot, Scaler, WaitingJob, read_metadata

SPEC = WorkSpec(
    prefill_tokens_per_s=10_000,
    decode_tokens_per_s=1000,
    slots=8,
    cold_start_s=30,
    p95_wait_s=60,
    batch_wait_s=3600,
)
LEAD_S = SPEC.lead_s


def more(jobs: list[BatchJob], spare: float = 0.0) -> int:
    return more_replicas(jobs, spare=spare, lead_s=LEAD_S, max_utilisation=0.85)


@pytest.mark.parametrize(("left_s", "replicas"), [(3600, 0), (150, 0), (131, 1), (40, 1), (0, 1)])
def test_no_replica_starts_while_one_that_starts_later_would_do(
    left_s: float, replicas: int
) -> None:
    # 85 seconds of work at 85 % take 100 s, after a start of 31 s. With 40 s left one replica would come too late for
    # most, and twelve are needed; with none left one is, since the jobs must run all the same.
    expected = math.ceil(100 / (left_s - LEAD_S)) if left_s == 40 else replicas
    assert more([BatchJob(85.0, left_s)]) == expected


def test_each_deadline_counts_what_is_due_before_it() -> None:
    early, late = BatchJob(8.5, 100), BatchJob(85.0, 145)
    assert more([late]) == 0
    # 110 s of work are due within 145 s, of which 114 come after a start.
    assert more([late, early]) == 0
    assert more([late, early, BatchJob(8.5, 140)]) == 2


def test_running_replicas_room_is_used_first() -> None:
    jobs = [BatchJob(85.0, 100)]
    assert more(jobs, spare=0.85) == 0
    assert (
        more(jobs, spare=0.1) == 2
    )  # 11.8 s of 100 are done by others, 69 s are left after a start
    assert more([BatchJob(1e6, 10)], spare=0.1) == 0  # a new one would not be up in time


def test_at_zero_batch_jobs_are_held_and_then_started_for() -> None:
    held = Observation((), 0.0, 0, 0, 0, batch=(BatchJob(85.0, 3600),))
    due = replace(held, batch=(BatchJob(85.0, 130),))
    assert work.decide(SPEC, WorkState(), held, 0.0)[1] == 0
    assert work.decide(SPEC, WorkState(), due, 0.0)[1] == 2


def test_a_replica_that_was_requested_for_batch_jobs_is_not_withdrawn_while_it_starts() -> None:
    job = BatchJob(8.5, 41)
    state, replicas = work.decide(SPEC, WorkState(), Observation((), 0, 0, 0, 0, batch=(job,)), 0.0)
    assert replicas == 1
    for second in range(1, 30):
        shown = int(second > 10)  # a node comes first
        waking = Observation((), 0, 0, shown, 0, batch=(replace(job, left_s=41 - second),))
        state, replicas = work.decide(SPEC, state, waking, float(second))
        assert replicas == 1


@given(
    works=st.lists(st.tuples(st.floats(0.01, 500), st.floats(-100, 5000)), max_size=30),
    spare=st.floats(0, 20),
)
def test_what_is_asked_for_does_all_the_work_that_a_new_replica_can_do(
    works: list[tuple[float, float]], spare: float
) -> None:
    jobs = [BatchJob(*each) for each in works]
    replicas = more(jobs, spare)
    due = 0.0
    for job in sorted(jobs, key=lambda each: each.left_s):
        due += job.work_s / 0.85
        usable = job.left_s - LEAD_S
        if usable > 0:
            room = spare * job.left_s / 0.85
            # Either what is asked for does it, or one more replica that starts later would.
            assert due <= room + max(replicas, 1) * usable + 1e-6 * (1 + due)


def look(*waiting: WaitingJob, arrived: int = 0, batch: int = 0) -> QueueSnapshot:
    return QueueSnapshot(waiting, 0, 0, 0, (100,) * arrived, (), (100,) * batch)


def scaler(**metadata: str) -> Scaler:
    return Scaler(read_metadata({"coldStartSeconds": "30", **metadata}, queue="jobs", model="m"))


def test_the_scaler_holds_jobs_of_the_batch_lane_only_where_it_may() -> None:
    old = WaitingJob(100, 50.0, is_batch=True)
    assert scaler().see(look(old), 0.0) == 1
    assert scaler(batchWaitSeconds="3600").see(look(old), 0.0) == 0
    assert scaler(batchWaitSeconds="3600").see(look(replace(old, deadline_s=35)), 0.0) == 1
    assert scaler(batchWaitSeconds="60").see(look(old), 0.0) == 1
    other = WaitingJob(100, 50.0)
    assert scaler(batchWaitSeconds="3600").see(look(old, other), 0.0) == 1


def test_batch_jobs_earn_no_late_jobs_for_the_others() -> None:
    """Files of batch jobs filled the error budget, and single jobs waited for fifteen minutes on it."""
    single = WaitingJob(100, 28.0)
    for metadata, replicas in (({}, 0), ({"batchWaitSeconds": "3600"}, 1)):
        one = scaler(**metadata)
        one.see(look(batch=100), 0.0)
        for second in range(120):  # the work that arrived is forgotten
            one.see(look(), float(second))
        assert one.see(look(single), 120.0) == replicas
