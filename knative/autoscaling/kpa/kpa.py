"""The Knative Pod Autoscaler's decision: from measured concurrency to a number of pods.

Called by the local stack's autoscaler loop and by the simulator, which both own the clock. Must not know how pods
start, how they are measured, or HTTP. Source: knative/serving knative-v1.23.0
`pkg/autoscaler/scaling/autoscaler.go`; the numbers are checked against vectors recorded from it
(`tests/unit/autoscaling/test_kpa_vectors.py`).

`reconciler.py` turns a decision into replicas (bounds, zero, grace).
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from knative.autoscaling.kpa import window as w
from knative.autoscaling.kpa.window import Aggregation, MaxWindow, MetricWindow

# The autoscaler decides every 2 s, and at once when a value comes in at scale zero ("poke").
TICK_S = 2
# One value a second and revision is recorded.
SCRAPE_S = 1
TARGET_MIN = 0.01
UNKNOWN_SCALE = -1
# Target burst capacity with which the activator never leaves the path.
ALWAYS_BUFFER = -1.0


class ScaleMetric(StrEnum):
    """What is measured per pod."""

    CONCURRENCY = "concurrency"  #: requests in flight
    RPS = "rps"  #: requests a second


@dataclass(frozen=True, slots=True)
class KpaSpec:
    """The parameters of a decision; times in seconds.

    `target` is the intended load of one pod, `total` its capacity (target <= total). `panic_threshold` is a factor
    (200 % is 2.0). `activation_scale` applies above 1.
    """

    target: float
    total: float
    metric: ScaleMetric = ScaleMetric.CONCURRENCY
    target_burst_capacity: float = 211.0
    panic_threshold: float = 2.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0
    stable_window_s: int = 60
    panic_window_s: int = 6
    scale_down_delay_s: float = 0.0
    activation_scale: int = 1
    aggregation: Aggregation = Aggregation.LINEAR

    @property
    def has_scrape_target(self) -> bool:
        """True when pods are scraped; not needed while the activator is always in the path."""
        return self.target_burst_capacity != ALWAYS_BUFFER


@dataclass(frozen=True, slots=True)
class KpaState:
    """The autoscaler's memory of one revision between two decisions."""

    spec: KpaSpec
    stable: MetricWindow
    panic: MetricWindow
    delay: MaxWindow
    panic_since: float | None = None
    max_panic_pods: int = 0


@dataclass(frozen=True, slots=True)
class ScaleDecision:
    """The wanted scale; keep the previous scale unless `is_valid`."""

    desired: int
    is_valid: bool
    is_panicking: bool
    excess_burst_capacity: int
    stable_average: float = 0.0
    panic_average: float = 0.0


def start(spec: KpaSpec, *, ready_pods: int, now: float) -> KpaState:
    """The state of an autoscaler that finds `ready_pods` running.

    With more than one pod it starts in panic, so that a restart drops none for one stable window.
    """
    return KpaState(
        spec=spec,
        stable=w.empty_window(spec.stable_window_s),
        panic=w.empty_window(spec.panic_window_s),
        delay=w.max_window(spec.scale_down_delay_s, TICK_S),
        panic_since=now if ready_pods > 1 else None,
        max_panic_pods=ready_pods,
    )


def record(state: KpaState, t: float, value: float) -> KpaState:
    """The state with one measurement, the sum over all pods and the activator, at second `t`.

    Record once a second, zeros too while a pod is ready; with neither pod nor request record nothing, because
    nothing is scraped then. Values of the same second add up.
    """
    return replace(
        state,
        stable=w.record(state.stable, t, value),
        panic=w.record(state.panic, t, value),
    )


def decide(
    state: KpaState, ready_pods: int, now: float, *, is_reachable: bool = True
) -> tuple[KpaState, ScaleDecision]:
    """The decision at `now`; not valid after a whole stable window without data."""
    spec = state.spec
    if w.is_empty(state.stable, now) and spec.has_scrape_target:
        return state, ScaleDecision(0, False, state.panic_since is not None, 0)
    stable = w.average(state.stable, now, spec.aggregation)
    panic = w.average(state.panic, now, spec.aggregation)
    return step(state, stable, panic, ready_pods=ready_pods, now=now, is_reachable=is_reachable)


def step(
    state: KpaState,
    stable_average: float,
    panic_average: float,
    *,
    ready_pods: int,
    now: float,
    is_reachable: bool = True,
) -> tuple[KpaState, ScaleDecision]:
    """The decision for two given averages."""
    spec = state.spec
    ready = max(1, ready_pods)
    wanted_by_panic = math.ceil(panic_average / spec.target)
    stable = _limited(spec, math.ceil(stable_average / spec.target), ready, is_reachable)
    panic = _limited(spec, wanted_by_panic, ready, is_reachable)

    state = _panic_clock(state, is_over=wanted_by_panic / ready >= spec.panic_threshold, now=now)
    desired = stable
    if state.panic_since is not None:
        # Never down in panic: what was wanted once is wanted until the panic ends.
        desired = max(stable, panic, state.max_panic_pods)
        state = replace(state, max_panic_pods=desired)
    if is_reachable and spec.scale_down_delay_s > 0:
        delay, desired = w.record_max(state.delay, now, desired)
        state = replace(state, delay=delay)
    return state, ScaleDecision(
        desired=desired,
        is_valid=True,
        is_panicking=state.panic_since is not None,
        excess_burst_capacity=excess_burst_capacity(spec, ready_pods, panic_average),
        stable_average=stable_average,
        panic_average=panic_average,
    )


def excess_burst_capacity(spec: KpaSpec, ready_pods: int, panic_average: float) -> int:
    """How many more requests would find capacity; negative keeps the activator in the path."""
    burst = spec.target_burst_capacity
    if burst <= 0:
        return int(burst)
    return math.floor(ready_pods * spec.total - burst - panic_average)


def resolve_target(
    *,
    metric: ScaleMetric,
    container_concurrency: int,
    annotation_target: float | None,
    utilization: float,
    default_total: float,
) -> tuple[float, float]:
    """(target, total) of one pod from its settings; `utilization` is a fraction.

    `default_total` applies when neither the pod nor the annotation gives a capacity.
    """
    total = default_total
    if metric is ScaleMetric.CONCURRENCY and container_concurrency:
        total = float(container_concurrency)
    if annotation_target is not None:
        is_capped = metric is ScaleMetric.CONCURRENCY and container_concurrency
        total = min(annotation_target, total) if is_capped else annotation_target
    return max(TARGET_MIN, total * utilization), total


def panic_window_s(stable_window_s: int, percentage: float) -> int:
    """The panic window in whole seconds, at least one; halves round up."""
    return max(1, math.floor(stable_window_s * percentage / 100 + 0.5))


def _limited(spec: KpaSpec, wanted: int, ready: int, is_reachable: bool) -> int:
    """`wanted` within the rate limits, then raised to the activation scale (without limit)."""
    most = math.ceil(spec.max_scale_up_rate * ready)
    least = math.floor(ready / spec.max_scale_down_rate) if is_reachable else 0
    limited = min(max(wanted, least), most)
    if spec.activation_scale > 1 and wanted > 0:
        return max(limited, spec.activation_scale)
    return limited


def _panic_clock(state: KpaState, *, is_over: bool, now: float) -> KpaState:
    """Enter or extend the panic; end it a whole stable window after it was last extended."""
    if is_over:
        return replace(state, panic_since=now)
    since = state.panic_since
    if since is not None and since + state.spec.stable_window_s < now:
        return replace(state, panic_since=None, max_panic_pods=0)
    return state
