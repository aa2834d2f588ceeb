"""Our own policy weighs work, uses the allowed wait, and keeps an idle replica while that is cheaper."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knative.autoscaling.work import work
from knative.autoscaling.work.work import Observation, WorkSpec, WorkState

SPEC = WorkSpec(
    prefill_tokens_per_s=10_000,
    decode_tokens_per_s=1000,
    slots=8,
    cold_start_s=30,
    p95_wait_s=60,
)
NOTHING = Observation((), 0.0, 0, 0, 0)


def asked(seen: Observation, spec: WorkSpec = SPEC, state: WorkState | None = None) -> int:
    return work.decide(spec, state or WorkState(), seen, now=0.0)[1]


def waiting(count: int, *, each_s: float = 0.3, oldest_s: float, replicas: int = 0) -> Observation:
    return Observation((oldest_s,) * count, count * each_s, 0, replicas, replicas)


@pytest.mark.parametrize(("oldest_s", "replicas"), [(0, 0), (28, 0), (29, 1), (40, 1)])
def test_at_zero_it_wakes_when_the_slack_is_down_to_a_cold_start(
    oldest_s: float, replicas: int
) -> None:
    assert asked(waiting(3, oldest_s=oldest_s)) == replicas


def test_without_slack_it_wakes_at_once() -> None:
    assert asked(waiting(1, oldest_s=0), replace(SPEC, p95_wait_s=10)) == 1


def test_at_zero_it_starts_enough_replicas_for_every_job_that_cannot_wait() -> None:
    assert asked(waiting(400, each_s=1.0, oldest_s=30)) == 50


def test_where_there_is_time_a_replica_takes_one_job_after_the_other() -> None:
    # One is up: 8 places, then 0.85 jobs a second for 270 s. Another has 240 s after its start.
    patient = replace(SPEC, p95_wait_s=300)
    assert asked(waiting(400, each_s=1.0, oldest_s=30, replicas=1), patient) == 2


def test_a_later_job_may_wait_longer_and_needs_no_replica_of_its_own() -> None:
    at_once = Observation((30.0,) * 40, 40 * 0.5, 0, 0, 0)
    one_by_one = Observation(tuple(30.0 - 0.75 * n for n in range(40)), 40 * 0.5, 0, 0, 0)
    assert (asked(at_once), asked(one_by_one)) == (5, 1)


def test_no_second_replica_is_woken_for_those_whom_the_first_takes_before_it_is_up() -> None:
    strict = replace(SPEC, p95_wait_s=30)
    waking = Observation((9.0,) * 20, 20 * 0.5, 0, 1, 0)
    assert asked(waking, strict, WorkState(rose_at=-20.0)) == 1
    assert asked(waking, strict, WorkState(rose_at=0.0)) == 3  # it is up no sooner than new ones


def test_a_requested_replica_is_not_withdrawn_before_it_is_visible() -> None:
    """A node takes minutes to come and shows nothing; jobs that pay for lateness come meanwhile."""
    state, replicas = work.decide(SPEC, WorkState(), waiting(1, oldest_s=29), 0.0)
    for _ in range(100):
        state = work.arrived(SPEC, state, 100, 1.0)
    again = work.decide(SPEC, state, waiting(1, oldest_s=30), 1.0)[1]
    assert (replicas, again) == (1, 1)


def test_a_deadline_wakes_before_the_wait_is_used_up() -> None:
    early = waiting(1, oldest_s=5)
    assert asked(replace(early, deadline_s=40)) == 0
    assert asked(replace(early, deadline_s=31)) == 1


def test_long_jobs_weigh_more_than_short_ones() -> None:
    short = asked(waiting(200, each_s=0.1, oldest_s=10, replicas=1))
    long = asked(waiting(200, each_s=5.0, oldest_s=10, replicas=1))
    assert (short, long) == (1, 18)


def test_arriving_work_that_cannot_be_put_off_keeps_replicas_up() -> None:
    state = WorkState(work_rate=3.0)
    assert asked(Observation((), 0, 0, 5, 5), state=state) == 5
    held = replace(state, less_since=-30.0, less_than=5)
    later = work.decide(SPEC, held, Observation((), 0, 0, 5, 5), 0.0)
    assert later[1] == 4  # 3.0 / 0.85


def test_no_replica_is_drained_while_its_slots_are_needed() -> None:
    busy = Observation((), 0.0, 17, 3, 3)
    held = WorkState(less_since=-1e6, less_than=3)
    assert work.decide(SPEC, held, busy, 0.0)[1] == 3


def test_a_scale_down_decision_stays_until_it_is_followed() -> None:
    """Alternating answers met a poll of every other second only with "as many as there are"."""
    state, answers = WorkState(), []
    for second in range(6):
        state, replicas = work.decide(SPEC, state, Observation((), 0, 0, 1, 1), float(second))
        answers.append(replicas)
    assert answers == [0] * 6


def test_only_the_last_replica_lingers() -> None:
    strict, state = replace(SPEC, p95_wait_s=5), WorkState()
    for second in range(32):
        state, replicas = work.decide(strict, state, Observation((), 0, 0, 4, 4), float(second))
    assert replicas == 1


def test_replicas_stay_between_the_bounds() -> None:
    bounded = replace(SPEC, min_replicas=1, max_replicas=2)
    assert asked(NOTHING, bounded) == 1
    assert asked(waiting(10_000, oldest_s=50), bounded) == 2


def test_answer_lengths_are_learnt_per_prompt_class() -> None:
    state = WorkState()
    for _ in range(50):
        state = work.finished(SPEC, state, 100, 20, 0.0, is_last=False)
        state = work.finished(SPEC, state, 4000, 900, 0.0, is_last=False)
    assert work.expected_output(SPEC, state, 110) == pytest.approx(20)
    assert work.expected_output(SPEC, state, 3500) == pytest.approx(900)
    # A class without data of its own has the mean of all.
    assert work.expected_output(SPEC, state, 10) == pytest.approx(460)


def with_gaps(spec: WorkSpec, gaps: list[float], jobs_per_spell: int = 1) -> WorkState:
    state, now = WorkState(idle_since=0.0), 0.0
    for gap in gaps:
        now += gap
        for _ in range(jobs_per_spell):
            state = work.arrived(spec, state, 100, now)
        now += 1
        state = work.finished(spec, state, 100, 20, now, is_last=True)
    return state


def test_where_a_cold_start_fits_into_the_wait_it_sleeps_at_once() -> None:
    assert work.linger_s(SPEC, with_gaps(SPEC, [17.0] * 50)) == 0


def test_where_it_does_not_fit_it_stays_through_the_usual_gap() -> None:
    strict = replace(SPEC, p95_wait_s=5)
    state = with_gaps(strict, [20.0] * 98 + [2000.0, 2000.0], jobs_per_spell=5)
    assert 20 <= work.linger_s(strict, state) < 60


def test_the_last_replica_outlasts_every_gap_when_too_many_jobs_would_wait() -> None:
    strict = replace(SPEC, p95_wait_s=5)
    assert work.linger_s(strict, with_gaps(strict, [20.0, 100.0] * 20)) > 100


def test_before_it_knows_the_gaps_a_strict_target_keeps_it_awake() -> None:
    strict = replace(SPEC, p95_wait_s=5)
    assert work.linger_s(strict, with_gaps(strict, [20.0] * 30)) == math.inf


@given(
    queued=st.integers(0, 500),
    each=st.floats(0.001, 100),
    oldest=st.floats(0, 1000),
    running=st.integers(0, 500),
    replicas=st.integers(0, 50),
    rate=st.floats(0, 100),
)
def test_the_decision_is_always_within_the_bounds(
    queued: int, each: float, oldest: float, running: int, replicas: int, rate: float
) -> None:
    seen = Observation((oldest,) * queued, queued * each, running, replicas, replicas)
    spec = replace(SPEC, min_replicas=1, max_replicas=40)
    _, replicas = work.decide(spec, WorkState(work_rate=rate), seen, 10.0)
    assert 1 <= replicas <= 40
