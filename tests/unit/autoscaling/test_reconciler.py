"""Replicas follow a decision carefully: up at once, to zero in two steps, never while in doubt."""

import pytest

from knative.autoscaling.kpa import kpa, reconciler
from knative.autoscaling.kpa.activator import PathMode, path_mode
from knative.autoscaling.kpa.kpa import ScaleDecision
from knative.autoscaling.kpa.reconciler import Activity, Pods, RevisionState, ScalePolicy

POLICY = ScalePolicy()


def wanted(desired: int, *, is_valid: bool = True, spare: int = -1) -> ScaleDecision:
    return ScaleDecision(desired, is_valid, False, spare)


def revision(activity: Activity, since: float, mode_since: float = 0.0) -> RevisionState:
    return RevisionState(activity, since, PathMode.PROXY, mode_since, is_initialized=True)


def replicas(
    state: RevisionState, desired: int, pods: int, now: float, policy: ScalePolicy = POLICY
) -> int:
    seen = Pods(pods, pods)
    return reconciler.reconcile(policy, state, wanted(desired), seen, now)[1].replicas


def test_an_active_revision_follows_its_decision_within_bounds() -> None:
    state = revision(Activity.ACTIVE, 0)
    assert replicas(state, 5, 2, 100) == 5
    assert replicas(state, 50, 2, 100, ScalePolicy(max_scale=8)) == 8
    assert replicas(state, 0, 2, 100, ScalePolicy(min_scale=1)) == 1


def test_a_decision_without_data_changes_nothing() -> None:
    state = revision(Activity.ACTIVE, 0)
    seen = reconciler.reconcile(POLICY, state, wanted(0, is_valid=False), Pods(3, 3), 100)
    assert (seen[1].replicas, seen[0].activity) == (3, Activity.ACTIVE)


def test_one_pod_stays_until_a_stable_window_of_activity_is_over() -> None:
    _, outcome = reconciler.reconcile(
        POLICY, revision(Activity.ACTIVE, 50), wanted(0), Pods(3, 3), 100
    )
    assert (outcome.replicas, outcome.check_again_in_s) == (1, 10)


def test_going_to_zero_first_marks_inactive_then_waits_out_the_grace() -> None:
    state, first = reconciler.reconcile(
        POLICY, revision(Activity.ACTIVE, 0, mode_since=100), wanted(0), Pods(1, 1), 100
    )
    _, waiting = reconciler.reconcile(POLICY, state, wanted(0), Pods(1, 1), 129)
    _, done = reconciler.reconcile(POLICY, state, wanted(0), Pods(1, 1), 130)

    assert (state.activity, first.replicas, first.mode) == (Activity.INACTIVE, 1, PathMode.PROXY)
    assert (waiting.replicas, waiting.check_again_in_s) == (1, 1)
    assert done.replicas == 0


def test_a_path_that_was_proxied_for_long_shortens_the_grace() -> None:
    state = revision(Activity.INACTIVE, 100, mode_since=0)
    assert replicas(state, 0, 1, 101) == 0


def test_the_retention_period_is_a_hard_minimum() -> None:
    policy = ScalePolicy(pod_retention_s=300)
    state = revision(Activity.INACTIVE, 100, mode_since=0)
    assert (replicas(state, 0, 1, 399, policy), replicas(state, 0, 1, 400, policy)) == (1, 0)


def test_without_an_answering_activator_there_is_no_zero() -> None:
    state = revision(Activity.INACTIVE, 0)
    _, outcome = reconciler.reconcile(
        POLICY, state, wanted(0), Pods(1, 1), 1000, is_activator_probed=False
    )
    assert outcome.replicas == 1


def test_zero_can_be_switched_off() -> None:
    policy = ScalePolicy(enable_scale_to_zero=False)
    assert replicas(revision(Activity.INACTIVE, 0), 0, 2, 1000, policy) == 1


@pytest.mark.parametrize(("age", "expected"), [(630, 2), (631, 0)])
def test_a_stuck_activation_is_given_up_after_its_deadline(age: float, expected: int) -> None:
    seen = Pods(2, 0)
    state = revision(Activity.ACTIVATING, 0)
    assert reconciler.reconcile(POLICY, state, wanted(0), seen, age)[1].replicas == expected


def test_an_initial_scale_holds_until_it_was_reached_once() -> None:
    policy = ScalePolicy(initial_scale=3)
    state = reconciler.start(policy, now=0)
    state, first = reconciler.reconcile(policy, state, wanted(1), Pods(0, 0), 2)
    state, second = reconciler.reconcile(policy, state, wanted(1), Pods(3, 3), 4)
    _, third = reconciler.reconcile(policy, state, wanted(1), Pods(3, 3), 6)
    assert (first.replicas, second.replicas, third.replicas) == (3, 3, 1)


def test_work_wakes_an_inactive_revision_at_once() -> None:
    state, outcome = reconciler.reconcile(
        POLICY, revision(Activity.INACTIVE, 0), wanted(2), Pods(0, 0), 500
    )
    assert (outcome.replicas, state.activity) == (2, Activity.ACTIVATING)


@pytest.mark.parametrize(
    ("want", "spare", "mode"),
    [(0, 5, PathMode.PROXY), (2, -1, PathMode.PROXY), (2, 0, PathMode.SERVE)],
)
def test_the_activator_leaves_only_when_a_burst_fits(want: int, spare: int, mode: PathMode) -> None:
    assert path_mode(want=want, excess_burst_capacity=spare, is_inactive=False) is mode


def test_a_restarted_autoscaler_keeps_what_sleeps_asleep() -> None:
    unknown, state = wanted(kpa.UNKNOWN_SCALE), revision(Activity.INACTIVE, 0)
    state, outcome = reconciler.reconcile(POLICY, state, unknown, Pods(0, 0), 10)
    assert (outcome.replicas, state.activity, outcome.mode) == (
        0,
        Activity.INACTIVE,
        PathMode.PROXY,
    )


def test_an_unreachable_revision_needs_no_minimum() -> None:
    policy = ScalePolicy(min_scale=2)
    state = revision(Activity.INACTIVE, 0)
    _, outcome = reconciler.reconcile(
        policy, state, wanted(0), Pods(2, 2), 1000, is_reachable=False
    )
    assert outcome.replicas == 0


@pytest.mark.parametrize(("age", "activity"), [(59.9, Activity.ACTIVE), (60, Activity.INACTIVE)])
def test_activity_ends_after_exactly_a_stable_window(age: float, activity: Activity) -> None:
    state, _ = reconciler.reconcile(
        POLICY, revision(Activity.ACTIVE, 0), wanted(0), Pods(1, 1), age
    )
    assert state.activity is activity
