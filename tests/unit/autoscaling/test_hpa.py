"""The HPA proposes, stabilises and limits as the real controller does."""

import pytest

from knative.autoscaling.hpa import hpa
from knative.autoscaling.hpa.behavior import (
    Behavior,
    PolicyType,
    RatePolicy,
    ScalingRules,
    SelectPolicy,
)
from knative.autoscaling.hpa.hpa import HpaReading, HpaSpec, HpaState
from knative.autoscaling.hpa.metric import Metric, PodSample, Replicas, TargetType

QUEUE = Metric("queue", target=4)
CPU = Metric("cpu", target=70, target_type=TargetType.UTILIZATION)


def seen(current: int, value: float | None, ready: int | None = None) -> HpaReading:
    return HpaReading(
        Replicas(current, current, current if ready is None else ready), {"queue": value}
    )


def asked(spec: HpaSpec, current: int, value: float | None, ready: int | None = None) -> int:
    _, decision = hpa.decide(spec, HpaState(), seen(current, value, ready), now=1000.0)
    return decision.replicas


@pytest.mark.parametrize(
    ("pods", "total", "replicas"),
    [(1, 10, 3), (3, 13, 3), (3, 13.3, 4), (10, 36, 10), (10, 35.9, 9)],
    ids=["grows", "within tolerance", "just outside", "edge of tolerance", "shrinks"],
)
def test_average_value_follows_the_worked_numbers(pods: int, total: float, replicas: int) -> None:
    assert asked(HpaSpec((QUEUE,)), pods, total) == replicas


def test_average_value_counts_existing_pods_and_value_counts_ready_ones() -> None:
    by_value = HpaSpec((Metric("queue", 4, TargetType.VALUE),))
    assert asked(by_value, 2, 8, ready=1) == 2  # ceil(2.0 * 1 ready), current is 2
    assert asked(by_value, 2, 8, ready=2) == 4


def test_without_behavior_one_sync_at_most_doubles_or_reaches_four() -> None:
    spec, state, current, steps = HpaSpec((QUEUE,)), HpaState(), 1, []
    for sync in range(5):
        state, decision = hpa.decide(spec, state, seen(current, 200), now=sync * 15.0)
        current = decision.replicas
        steps.append(current)
    assert steps == [4, 8, 16, 32, 50]


def test_default_policies_add_four_pods_or_double_per_period() -> None:
    spec, state, current, steps = HpaSpec((QUEUE,), behavior=Behavior()), HpaState(), 1, []
    for sync in range(4):
        state, decision = hpa.decide(spec, state, seen(current, 200), now=sync * 15.0)
        current = decision.replicas
        steps.append(current)
    assert steps == [5, 10, 20, 40]


@pytest.mark.parametrize("behavior", [None, Behavior()], ids=["nil", "defaults"])
def test_from_ten_pods_both_ways_allow_twenty(behavior: Behavior | None) -> None:
    assert asked(HpaSpec((QUEUE,), behavior=behavior), 10, 200) == 20


@pytest.mark.parametrize(("current", "expected"), [(10, 9), (5, 4)])
def test_a_percentage_down_is_cut_off(current: int, expected: int) -> None:
    down = ScalingRules((RatePolicy(PolicyType.PERCENT, 10, 60),), stabilization_s=0)
    assert asked(HpaSpec((QUEUE,), behavior=Behavior(down=down)), current, 4) == expected


def test_changes_within_the_period_count_against_the_policy() -> None:
    down = ScalingRules((RatePolicy(PolicyType.PODS, 2, 60),), stabilization_s=0)
    spec = HpaSpec((QUEUE,), behavior=Behavior(down=down))
    state, first = hpa.decide(spec, HpaState(), seen(10, 4), now=0.0)
    state, second = hpa.decide(spec, state, seen(first.replicas, 4), now=30.0)
    _, third = hpa.decide(spec, state, seen(second.replicas, 4), now=61.0)
    assert (first.replicas, second.replicas, third.replicas) == (8, 8, 6)


def test_the_smallest_change_wins_when_asked_for() -> None:
    up = ScalingRules(
        (RatePolicy(PolicyType.PODS, 1, 15), RatePolicy(PolicyType.PERCENT, 100, 15)),
        stabilization_s=0,
        select=SelectPolicy.MIN,
    )
    assert asked(HpaSpec((QUEUE,), behavior=Behavior(up=up)), 10, 200) == 11


def test_a_disabled_direction_stays_closed() -> None:
    down = ScalingRules((), stabilization_s=0, select=SelectPolicy.DISABLED)
    assert asked(HpaSpec((QUEUE,), behavior=Behavior(down=down)), 10, 0) == 10


def test_scaling_down_waits_until_the_whole_window_wanted_less() -> None:
    spec, state = HpaSpec((QUEUE,)), HpaState()
    state, _ = hpa.decide(spec, state, seen(10, 40), now=0.0)
    state, early = hpa.decide(spec, state, seen(10, 4), now=300.0)
    _, later = hpa.decide(spec, state, seen(10, 4), now=301.0)
    assert (early.replicas, later.replicas) == (10, 1)


def test_an_up_window_takes_the_lowest_recommendation_in_it() -> None:
    up = ScalingRules((RatePolicy(PolicyType.PODS, 100, 15),), stabilization_s=60)
    spec, state = HpaSpec((QUEUE,), behavior=Behavior(up=up)), HpaState()
    state, _ = hpa.decide(spec, state, seen(2, 8), now=0.0)
    state, early = hpa.decide(spec, state, seen(2, 40), now=45.0)
    _, later = hpa.decide(spec, state, seen(2, 40), now=61.0)
    assert (early.replicas, later.replicas) == (2, 10)


def test_a_direction_may_have_its_own_tolerance() -> None:
    up = ScalingRules((RatePolicy(PolicyType.PODS, 9, 15),), stabilization_s=0, tolerance=0.5)
    assert asked(HpaSpec((QUEUE,), behavior=Behavior(up=up)), 2, 11) == 2


def test_at_zero_replicas_the_hpa_does_nothing() -> None:
    _, decision = hpa.decide(HpaSpec((QUEUE,)), HpaState(), seen(0, 100), now=0.0)
    assert (decision.replicas, decision.is_scaling_active) == (0, False)


def test_outside_its_bounds_no_metric_is_read() -> None:
    spec = HpaSpec((QUEUE,), min_replicas=2, max_replicas=5)
    assert (asked(spec, 1, None), asked(spec, 9, None)) == (2, 5)


def test_the_largest_of_several_metrics_wins() -> None:
    spec = HpaSpec((QUEUE, Metric("lag", 10)))
    reading = HpaReading(Replicas(2, 2, 2), {"queue": 4, "lag": 35})
    assert hpa.decide(spec, HpaState(), reading, 0.0)[1].replicas == 4


@pytest.mark.parametrize(
    ("queue", "replicas"), [(4, 4), (24, 6)], ids=["blocks down", "lets up through"]
)
def test_a_failed_metric_blocks_only_the_way_down(queue: float, replicas: int) -> None:
    spec = HpaSpec((QUEUE, Metric("lag", 10)))
    reading = HpaReading(Replicas(4, 4, 4), {"queue": queue, "lag": None})
    decision = hpa.decide(spec, HpaState(), reading, 0.0)[1]
    assert (decision.replicas, decision.failed_metrics) == (replicas, ("lag",))


def cpu(*pods: PodSample, current: int) -> int:
    reading = HpaReading(Replicas(current, current, current), pods=pods)
    return hpa.decide(HpaSpec((CPU,)), HpaState(), reading, now=1000.0)[1].replicas


@pytest.mark.parametrize(
    ("usage", "replicas"), [(55, 3), (70, 3), (76, 3), (78, 4), (140, 6)], ids=str
)
def test_cpu_utilisation_scales_the_ready_pods(usage: float, replicas: int) -> None:
    # 55 % against 70 %: 0.786 * 3 = 2.36 rounds up to 3, so a third of headroom changes nothing.
    assert cpu(*[PodSample(usage, 100)] * 3, current=3) == replicas


def test_a_pod_without_a_sample_counts_full_when_shrinking() -> None:
    assert cpu(*[PodSample(10, 100)] * 3, PodSample(None, 100), current=4) == 2


def test_a_pod_without_a_sample_counts_idle_when_growing() -> None:
    # 2.0 over three pods would ask for 6; with the missing one at 0 it is 1.5 over four.
    assert cpu(*[PodSample(140, 100)] * 3, PodSample(None, 100), current=4) == 6
    assert cpu(PodSample(90, 100), PodSample(None, 100), current=2) == 2


def test_a_starting_pod_is_set_aside() -> None:
    starting = PodSample(500, 100, is_ready=False, started_at=990, ready_changed_at=990)
    assert cpu(PodSample(30, 100), starting, current=2) == 1


def test_without_any_usable_sample_nothing_changes() -> None:
    assert cpu(PodSample(None, 100), current=5) == 5


def test_a_missing_pod_counts_its_request_not_the_target() -> None:
    # (60 + 100) / 400 is 40 %, and 0.571 * 4 rounds up to 3; with 70 for the missing it were 2.
    assert cpu(*[PodSample(20, 100)] * 3, PodSample(None, 100), current=4) == 3


def test_a_missing_pod_counts_the_target_where_that_is_above_its_request() -> None:
    # Target 200 %: (3 * 100 + 200) / 400 is 125 %, and 0.625 * 4 rounds up to 3; with 100 it were
    # 2.
    generous = HpaSpec((Metric("cpu", target=200, target_type=TargetType.UTILIZATION),))
    pods = (*[PodSample(100, 100)] * 3, PodSample(None, 100))
    reading = HpaReading(Replicas(4, 4, 4), pods=pods)
    assert hpa.decide(generous, HpaState(), reading, now=1000.0)[1].replicas == 3


def test_exactly_on_target_a_missing_pod_changes_nothing() -> None:
    """The source fills in no sample when the ratio is exactly one; a zero would have shrunk it."""
    assert cpu(PodSample(70, 100), PodSample(None, 100), current=2) == 2


def test_a_percentage_up_is_rounded_up() -> None:
    up = ScalingRules((RatePolicy(PolicyType.PERCENT, 10, 15),), stabilization_s=0)
    assert asked(HpaSpec((QUEUE,), behavior=Behavior(up=up)), 1, 200) == 2


@pytest.mark.parametrize(("select", "replicas"), [(SelectPolicy.MAX, 5), (SelectPolicy.MIN, 9)])
def test_going_down_the_selected_policy_is_the_larger_or_smaller_change(
    select: SelectPolicy, replicas: int
) -> None:
    policies = (RatePolicy(PolicyType.PODS, 1, 15), RatePolicy(PolicyType.PERCENT, 50, 15))
    down = ScalingRules(policies, stabilization_s=0, select=select)
    assert asked(HpaSpec((QUEUE,), behavior=Behavior(down=down)), 10, 0) == replicas
