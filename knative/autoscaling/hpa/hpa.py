"""The Horizontal Pod Autoscaler's decision (autoscaling/v2), every 15 s.

Called by the KEDA policy for 1 <-> N and by the simulator for a plain CPU autoscaler. Must not know where readings
come from. Source: Kubernetes 1.36 `pkg/controller/podautoscaler/horizontal.go`. `metric.py` has the proposal of one
metric, `behavior.py` how fast it may be followed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from knative.autoscaling.hpa.behavior import (
    Behavior,
    Changes,
    Recommendation,
    limited_without_behavior,
    rate_limited,
    remembered,
    stabilised,
    stabilised_without_behavior,
    stored_change,
)
from knative.autoscaling.hpa.metric import Metric, PodSample, Replicas, Tolerance, replicas_for

SYNC_S = 15.0
_DEFAULT_TOLERANCE = 0.1
_DOWNSCALE_WINDOW_S = 300.0


@dataclass(frozen=True, slots=True)
class HpaSpec:
    """Bounds, metrics and behaviour; `behavior` None differs from its defaults."""

    metrics: tuple[Metric, ...]
    min_replicas: int = 1
    max_replicas: int = 100
    behavior: Behavior | None = None
    tolerance: float = _DEFAULT_TOLERANCE
    downscale_window_s: float = _DOWNSCALE_WINDOW_S


@dataclass(frozen=True, slots=True)
class HpaState:
    """The controller's memory: recommendations and its own changes of scale."""

    recommendations: tuple[Recommendation, ...] = ()
    up: Changes = ()
    down: Changes = ()


@dataclass(frozen=True, slots=True)
class HpaReading:
    """The input of one sync: replicas, and for each metric its sum or its pods' samples.

    A metric that is missing in `values`, or None there, has failed.
    """

    replicas: Replicas
    values: Mapping[str, float | None] = field(default_factory=dict)
    pods: tuple[PodSample, ...] = ()


@dataclass(frozen=True, slots=True)
class HpaDecision:
    """The replicas to set; with `is_scaling_active` false the controller does nothing."""

    replicas: int
    is_scaling_active: bool = True
    failed_metrics: tuple[str, ...] = ()


def decide(
    spec: HpaSpec, state: HpaState, reading: HpaReading, now: float
) -> tuple[HpaState, HpaDecision]:
    """The replicas at `now`, within minimum and maximum.

    At zero replicas (with a minimum above) it does nothing: something else must wake the workload.
    """
    current = reading.replicas.current
    if current == 0 and spec.min_replicas != 0:
        return state, HpaDecision(0, is_scaling_active=False)
    if current > spec.max_replicas:
        return _changed(spec, state, current, spec.max_replicas, now)
    if current < spec.min_replicas:
        return _changed(spec, state, current, spec.min_replicas, now)
    wanted, failed = _wanted(spec, reading, now)
    if wanted is None:
        return state, HpaDecision(current, is_scaling_active=False, failed_metrics=failed)
    state, desired = _normalised(spec, state, current, wanted, now)
    state, decision = _changed(spec, state, current, desired, now)
    return state, replace(decision, failed_metrics=failed)


def _wanted(spec: HpaSpec, reading: HpaReading, now: float) -> tuple[int | None, tuple[str, ...]]:
    """The largest proposal; None when all failed, or one did and the rest would scale down."""
    tolerance = _tolerance(spec)
    proposals: list[int] = []
    failed: list[str] = []
    for metric in spec.metrics:
        proposal = replicas_for(
            metric,
            reading.values.get(metric.name),
            reading.pods,
            reading.replicas,
            tolerance=tolerance,
            now=now,
        )
        if proposal is None:
            failed.append(metric.name)
        else:
            proposals.append(proposal)
    if not proposals or (failed and max(proposals) < reading.replicas.current):
        return None, tuple(failed)
    return max(proposals), tuple(failed)


def _tolerance(spec: HpaSpec) -> Tolerance:
    up = down = spec.tolerance
    if spec.behavior is not None:
        up = spec.tolerance if spec.behavior.up.tolerance is None else spec.behavior.up.tolerance
        down_rules = spec.behavior.down
        down = spec.tolerance if down_rules.tolerance is None else down_rules.tolerance
    return Tolerance(up=up, down=down)


def _normalised(
    spec: HpaSpec, state: HpaState, current: int, wanted: int, now: float
) -> tuple[HpaState, int]:
    """`wanted` after stabilisation, rate limits and bounds; the raw value is remembered."""
    past = state.recommendations
    if spec.behavior is None:
        desired = stabilised_without_behavior(past, wanted, spec.downscale_window_s, now)
        desired = limited_without_behavior(current, desired)
        keep_s = spec.downscale_window_s
    else:
        behavior = spec.behavior
        desired = stabilised(past, current, wanted, behavior, spec.downscale_window_s, now)
        desired = rate_limited(current, desired, behavior, state.up, state.down, now)
        keep_s = behavior.longest_window_s(spec.downscale_window_s)
    desired = min(max(desired, spec.min_replicas), spec.max_replicas)
    return replace(state, recommendations=remembered(past, wanted, keep_s, now)), desired


def _changed(
    spec: HpaSpec, state: HpaState, current: int, desired: int, now: float
) -> tuple[HpaState, HpaDecision]:
    if spec.behavior is not None and desired > current:
        up = stored_change(state.up, desired - current, spec.behavior.up, now)
        state = replace(state, up=up)
    elif spec.behavior is not None and desired < current:
        down = stored_change(state.down, current - desired, spec.behavior.down, now)
        state = replace(state, down=down)
    return state, HpaDecision(desired)
