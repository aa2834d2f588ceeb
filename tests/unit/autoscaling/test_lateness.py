"""The share of jobs that a percentile leaves is spent where it puts a wake-up off for long."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knative.autoscaling.work import lateness
from knative.autoscaling.work.lateness import Account, Patience

HOUR_S = 3600.0
PATIENCE = Patience(allowed_s=60, longest_s=600, late_share=0.05, lead_s=31)


def is_time(waits_s: tuple[float, ...], left: float, **learnt: float) -> bool:
    return lateness.is_time(PATIENCE, Account(left=left, **learnt), waits_s)[1]  # type: ignore[arg-type]


def test_with_nothing_to_spend_the_oldest_job_wakes_in_time() -> None:
    assert [is_time((wait,), 0) for wait in (28.0, 29.0)] == [False, True]


def test_a_lonely_job_is_passed_over_once_twenty_jobs_have_paid() -> None:
    account = Account()
    for _ in range(19):
        account = lateness.paid_in(PATIENCE, account)
    assert lateness.is_time(PATIENCE, account, (29.0,))[1]
    account = lateness.paid_in(PATIENCE, account)
    assert not lateness.is_time(PATIENCE, account, (29.0,))[1]


def test_each_job_passed_over_takes_a_whole_one_from_the_account() -> None:
    account, woken = lateness.is_time(PATIENCE, Account(left=2.5), (80.0, 54.0, 29.0))
    # The first is late already and was charged for: two more are promised, and there is no third.
    assert (account.passed_over, woken) == (3, False)
    assert is_time((105.0, 80.0, 54.0, 29.0), 1.5)


def test_it_is_not_spent_where_the_next_job_needs_the_same_wake_up_at_once() -> None:
    assert is_time((29.0, 27.0), 5)
    assert not is_time((29.0, 2.0), 5)


def test_where_wake_ups_can_usually_be_put_off_for_long_a_short_while_is_not_worth_it() -> None:
    patient = replace(PATIENCE, allowed_s=120)
    seldom, often = Account(5, usual_gain_s=10), Account(5, usual_gain_s=30)
    waits = (89.0, 69.0)
    assert not lateness.is_time(patient, seldom, waits)[1]
    assert lateness.is_time(patient, often, waits)[1]


def test_nobody_waits_longer_than_the_longest_wait() -> None:
    assert [is_time((wait, 1.0), 9) for wait in (568.0, 569.0)] == [False, True]


def test_after_a_wake_up_nobody_is_promised_anything() -> None:
    account, _ = lateness.is_time(PATIENCE, Account(left=1.5), (80.0, 29.0))
    account, woken = lateness.is_time(PATIENCE, account, (90.0, 39.0, 29.0))
    assert (woken, account.passed_over) == (True, 0)


def test_a_late_job_is_charged_once() -> None:
    account = Account(left=3.0)
    for now in range(50, 80):
        account = lateness.charged(PATIENCE, account, (float(now), 5.0), float(now))
    assert account.left == 2.0


def test_a_quiet_year_does_not_save_up_for_a_bad_day() -> None:
    account = Account()
    for _ in range(10_000):
        account = lateness.paid_in(PATIENCE, account)
    assert account.left == 20


@given(
    gaps=st.lists(st.floats(0.1, 300), min_size=1, max_size=150),
    allowed=st.floats(35, 200),
)
def test_it_never_passes_over_more_than_the_share(gaps: list[float], allowed: float) -> None:
    """Jobs come and everybody who waits is served a lead after the wake-up, second by second."""
    patience = replace(PATIENCE, allowed_s=allowed, longest_s=HOUR_S)
    account, coming, queue = Account(), list(gaps), list[float]()
    at = came = late = 0.0
    up_at: float | None = None
    following = coming.pop(0)
    while coming or queue:
        while following <= at:
            queue.append(following)
            came += 1
            account = lateness.paid_in(patience, account)
            following = following + coming.pop(0) if coming else float("inf")
        waits = tuple(at - one for one in queue)
        account = lateness.charged(patience, account, waits, at)
        if up_at is None:
            account, woken = lateness.is_time(patience, account, waits)
            up_at = at + patience.lead_s - 1 if woken else None
        elif at >= up_at:
            late += sum(wait > allowed for wait in waits)
            queue, up_at = [], None
        at += 1
        if not coming and at > 2 * HOUR_S + sum(gaps):
            break
    assert late <= 0.05 * came + 1e-6


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_without_a_share_nobody_is_passed_over(share: float) -> None:
    patience, account = replace(PATIENCE, late_share=share), Account()
    for _ in range(100):
        account = lateness.paid_in(patience, account)
    assert lateness.is_time(patience, account, (29.0,))[1] is (share == 0)
