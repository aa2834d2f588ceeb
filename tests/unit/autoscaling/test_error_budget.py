"""The error budget is spent on jobs whose deferral delays a start for long."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knative.autoscaling.work import error_budget
from knative.autoscaling.work.error_budget import ErrorBudget, WaitObjective

HOUR_S = 3600.0
OBJECTIVE = WaitObjective(allowed_s=60, longest_s=600, late_share=0.05, lead_s=31)


def must_start(waits_s: tuple[float, ...], left: float, **learnt: float) -> bool:
    return error_budget.must_start(OBJECTIVE, ErrorBudget(left=left, **learnt), waits_s)[1]  # type: ignore[arg-type]


def test_without_budget_a_replica_starts_in_time_for_the_oldest_job() -> None:
    assert [must_start((wait,), 0) for wait in (28.0, 29.0)] == [False, True]


def test_a_lone_job_is_deferred_once_twenty_jobs_have_added_to_the_budget() -> None:
    budget = ErrorBudget()
    for _ in range(19):
        budget = error_budget.credited(OBJECTIVE, budget)
    assert error_budget.must_start(OBJECTIVE, budget, (29.0,))[1]
    budget = error_budget.credited(OBJECTIVE, budget)
    assert not error_budget.must_start(OBJECTIVE, budget, (29.0,))[1]


def test_each_deferred_job_needs_a_whole_job_of_budget() -> None:
    budget, woken = error_budget.must_start(OBJECTIVE, ErrorBudget(left=2.5), (80.0, 54.0, 29.0))
    # The first is late already and was debited for: two more are deferred, and there is no third.
    assert (budget.deferred, woken) == (3, False)
    assert must_start((105.0, 80.0, 54.0, 29.0), 1.5)


def test_no_job_is_deferred_when_the_next_one_needs_the_same_start_at_once() -> None:
    assert must_start((29.0, 27.0), 5)
    assert not must_start((29.0, 2.0), 5)


def test_a_short_delay_of_the_start_is_not_worth_the_budget_where_longer_ones_are_usual() -> None:
    patient = replace(OBJECTIVE, allowed_s=120)
    seldom, often = ErrorBudget(5, usual_gain_s=10), ErrorBudget(5, usual_gain_s=30)
    waits = (89.0, 69.0)
    assert not error_budget.must_start(patient, seldom, waits)[1]
    assert error_budget.must_start(patient, often, waits)[1]


def test_no_job_waits_longer_than_the_longest_wait() -> None:
    assert [must_start((wait, 1.0), 9) for wait in (568.0, 569.0)] == [False, True]


def test_after_a_start_no_job_is_deferred() -> None:
    budget, _ = error_budget.must_start(OBJECTIVE, ErrorBudget(left=1.5), (80.0, 29.0))
    budget, woken = error_budget.must_start(OBJECTIVE, budget, (90.0, 39.0, 29.0))
    assert (woken, budget.deferred) == (True, 0)


def test_a_late_job_is_debited_once() -> None:
    budget = ErrorBudget(left=3.0)
    for now in range(50, 80):
        budget = error_budget.debited(OBJECTIVE, budget, (float(now), 5.0), float(now))
    assert budget.left == 2.0


def test_a_quiet_year_does_not_save_up_for_a_bad_day() -> None:
    budget = ErrorBudget()
    for _ in range(10_000):
        budget = error_budget.credited(OBJECTIVE, budget)
    assert budget.left == 20


@given(
    gaps=st.lists(st.floats(0.1, 300), min_size=1, max_size=150),
    allowed=st.floats(35, 200),
)
def test_no_more_than_the_share_of_jobs_is_late(gaps: list[float], allowed: float) -> None:
    """Simulates arriving jobs by the second; all waiting jobs are served one lead after the start."""
    objective = replace(OBJECTIVE, allowed_s=allowed, longest_s=HOUR_S)
    budget, coming, queue = ErrorBudget(), list(gaps), list[float]()
    at = came = late = 0.0
    up_at: float | None = None
    following = coming.pop(0)
    while coming or queue:
        while following <= at:
            queue.append(following)
            came += 1
            budget = error_budget.credited(objective, budget)
            following = following + coming.pop(0) if coming else float("inf")
        waits = tuple(at - one for one in queue)
        budget = error_budget.debited(objective, budget, waits, at)
        if up_at is None:
            budget, woken = error_budget.must_start(objective, budget, waits)
            up_at = at + objective.lead_s - 1 if woken else None
        elif at >= up_at:
            late += sum(wait > allowed for wait in waits)
            queue, up_at = [], None
        at += 1
        if not coming and at > 2 * HOUR_S + sum(gaps):
            break
    assert late <= 0.05 * came + 1e-6


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_without_a_share_no_job_is_deferred(share: float) -> None:
    objective, budget = replace(OBJECTIVE, late_share=share), ErrorBudget()
    for _ in range(100):
        budget = error_budget.credited(objective, budget)
    assert error_budget.must_start(objective, budget, (29.0,))[1] is (share == 0)
