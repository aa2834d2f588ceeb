"""KEDA wakes, keeps awake, cools down and scales as its operator and its HPA do."""

from dataclasses import replace

import pytest

from knative.autoscaling.hpa.behavior import Behavior, PolicyType, RatePolicy, ScalingRules
from knative.autoscaling.hpa.metric import Replicas
from knative.autoscaling.keda import keda
from knative.autoscaling.keda.formula import parse
from knative.autoscaling.keda.keda import (
    Fallback,
    KedaReadiness,
    KedaSpec,
    KedaState,
    Modifiers,
    Pause,
)
from knative.autoscaling.keda.trigger import Prometheus, RedisStreams, ScalerTrigger, StreamMode

LAG = ScalerTrigger("lag", RedisStreams(StreamMode.LAG), target=4)
PENDING = ScalerTrigger("pend", RedisStreams(StreamMode.PENDING), target=4)
BOTH = Modifiers(parse("(lag > 0 ? lag : 0) + pend"), target=4)
COMPOSITE = KedaSpec((LAG, PENDING), modifiers=BOTH, polling_interval_s=2, cooldown_s=6)


def polled(
    spec: KedaSpec, values: dict[str, float | None], current: int, last_active: float | None = 0.0
) -> keda.KedaDecision:
    state = replace(keda.start(spec, now=0.0), last_active=last_active)
    return keda.poll(spec, state, values, current, now=1000.0)[1]


@pytest.mark.parametrize(
    ("value", "activation", "is_active"), [(0, 0, False), (5, 5, False), (6, 5, True)]
)
def test_a_trigger_is_active_strictly_above_its_threshold(
    value: float, activation: float, is_active: bool
) -> None:
    spec = KedaSpec((replace(LAG, activation=activation),))
    assert keda.is_active(spec, {"lag": value}) is is_active


def test_activation_beats_the_target() -> None:
    spec = KedaSpec((replace(LAG, target=10, activation=50),))
    assert polled(spec, {"lag": 40}, 0).replicas == 0


def test_any_active_trigger_wakes_the_workload() -> None:
    assert polled(KedaSpec((LAG, PENDING)), {"lag": 0, "pend": 1}, 0).replicas == 1


def test_waking_reaches_the_minimum_at_once() -> None:
    assert polled(KedaSpec((LAG,), min_replicas=3), {"lag": 1}, 0).replicas == 3


def test_idle_replicas_wake_to_the_minimum_too() -> None:
    spec = KedaSpec((LAG,), min_replicas=3, idle_replicas=0)
    assert polled(spec, {"lag": 1}, 1).replicas == 3
    assert polled(spec, {"lag": 0}, 3).replicas == 0


@pytest.mark.parametrize(("idle_s", "replicas"), [(300, 5), (301, 0)])
def test_zero_comes_strictly_after_the_cooldown(idle_s: float, replicas: int) -> None:
    decision = polled(KedaSpec((LAG,)), {"lag": 0}, 5, last_active=1000.0 - idle_s)
    assert decision.replicas == replicas


def test_a_workload_that_was_never_active_goes_to_zero_after_the_initial_cooldown() -> None:
    assert polled(KedaSpec((LAG,)), {"lag": 0}, 1, last_active=None).replicas == 0
    patient = KedaSpec((LAG,), initial_cooldown_s=1000)
    assert polled(patient, {"lag": 0}, 1, last_active=None).replicas == 1


def test_a_minimum_above_zero_never_goes_to_zero() -> None:
    assert polled(KedaSpec((LAG,), min_replicas=2), {"lag": 0}, 5).replicas == 5
    assert polled(KedaSpec((LAG,), min_replicas=2), {"lag": 0}, 1).replicas == 2


def test_a_failing_trigger_keeps_the_workload_from_zero() -> None:
    decision = polled(KedaSpec((LAG, PENDING)), {"lag": 0, "pend": None}, 2)
    assert (decision.replicas, decision.readiness) == (2, KedaReadiness.FAILED)


def test_an_error_among_active_triggers_does_not_renew_the_activity() -> None:
    spec = KedaSpec((LAG, PENDING))
    state, decision = keda.poll(
        spec, keda.start(spec, now=0.0), {"lag": 1, "pend": None}, 1, now=50.0
    )
    assert (state.last_active, decision.readiness) == (None, KedaReadiness.UNKNOWN)


@pytest.mark.parametrize(("fallback", "expected"), [(4, 4), (0, 0)])
def test_a_fallback_above_zero_holds_its_replicas(fallback: int, expected: int) -> None:
    spec = KedaSpec((LAG,), fallback=Fallback(fallback, failure_threshold=3))
    assert polled(spec, {"lag": None}, 2).replicas == expected


def test_the_hpa_sees_the_fallback_only_after_more_failures_than_the_threshold() -> None:
    spec = KedaSpec((LAG,), fallback=Fallback(4, failure_threshold=2))
    state, seen = keda.start(spec, now=0.0), []
    for sync in range(3):
        state, replicas = keda.sync(spec, state, {"lag": None}, Replicas(2, 2, 2), sync * 15.0)
        seen.append(replicas)
    assert seen == [2, 2, 4]


def test_an_unknown_lag_never_activates() -> None:
    assert polled(KedaSpec((LAG,)), {"lag": -1.0}, 0).replicas == 0


@pytest.mark.parametrize(
    ("pause", "current", "values", "expected"),
    [
        (Pause(is_paused=True), 0, {"lag": 9.0}, 0),
        (Pause(replicas=7), 2, {"lag": 0.0}, 7),
        (Pause(is_scale_out_paused=True), 0, {"lag": 9.0}, 0),
        (Pause(is_scale_in_paused=True), 3, {"lag": 0.0}, 3),
    ],
    ids=["all", "at a number", "no way up", "no way down"],
)
def test_pausing_holds_the_scale(
    pause: Pause, current: int, values: dict[str, float | None], expected: int
) -> None:
    assert polled(KedaSpec((LAG,), pause=pause), values, current).replicas == expected


def test_a_paused_direction_holds_for_the_hpa_too() -> None:
    spec = KedaSpec((LAG,), pause=Pause(is_scale_out_paused=True))
    _, replicas = keda.sync(spec, keda.start(spec, now=0), {"lag": 40}, Replicas(2, 2, 2), 15)
    assert replicas == 2


def test_forced_activation_wakes_without_work() -> None:
    assert polled(KedaSpec((LAG,), is_forced_active=True), {"lag": 0}, 0).replicas == 1


def lived(
    spec: KedaSpec, state: KedaState, lag: float, pend: float, current: int, start: int, end: int
) -> tuple[KedaState, list[tuple[int, int]]]:
    """The changes of scale, second by second, while the queue stands still."""
    changes = []
    for now in range(start, end):
        seen = Replicas(current, current, current)
        state, decision = keda.decide(spec, state, {"lag": lag, "pend": pend}, seen, float(now))
        if decision.replicas != current:
            current = decision.replicas
            changes.append((now, current))
    return state, changes


def test_the_run_that_was_watched_on_a_real_cluster() -> None:
    """Poll 2 s, cooldown 6 s, HPA 15 s: 0, 1, 4, 6 in two syncs, and to 0 straight from 6."""
    state, woken = lived(COMPOSITE, keda.start(COMPOSITE, now=0.0), 1, 0, 0, 0, 3)
    state, kept = lived(COMPOSITE, state, 0, 1, 1, 3, 27)
    state, grown = lived(COMPOSITE, state, 22, 1, 1, 27, 62)
    state, held = lived(COMPOSITE, state, 0, 23, 6, 62, 80)
    state, ended = lived(COMPOSITE, state, 0, 0, 6, 80, 95)

    assert (woken, kept) == ([(0, 1)], [])
    assert grown == [(30, 4), (45, 6)]
    assert held == []
    # Last active at the poll of 78 s; strictly more than 6 s later is the poll of 86 s.
    assert ended == [(86, 0)]


def test_a_scale_up_policy_reaches_the_goal_in_one_sync() -> None:
    up = ScalingRules((RatePolicy(PolicyType.PODS, 100, 15),), stabilization_s=0)
    spec = replace(COMPOSITE, behavior=Behavior(up=up))
    _, grown = lived(spec, keda.start(spec, now=0.0), 22, 1, 0, 0, 20)
    assert grown == [(0, 1), (15, 6)]


def test_lag_alone_ends_the_pod_of_a_running_job() -> None:
    spec = KedaSpec((LAG,), polling_interval_s=2, cooldown_s=6)
    state, _ = lived(spec, keda.start(spec, now=0.0), 1, 0, 0, 0, 2)
    _, ended = lived(spec, state, 0, 1, 1, 2, 20)
    assert ended == [(8, 0)]


def test_a_failing_trigger_with_a_default_in_the_formula_still_counts() -> None:
    spec = KedaSpec(
        (LAG, ScalerTrigger("p95", Prometheus("q", ignores_null=False), target=1)),
        modifiers=Modifiers(parse("lag + (p95 ?? 0)"), target=4),
    )
    assert polled(spec, {"lag": 3, "p95": None}, 0).replicas == 1
