"""The replicas that one HPA metric asks for.

Called by `hpa.py`. Must not know other metrics, bounds or history. Source: Kubernetes 1.36
`pkg/controller/podautoscaler/replica_calculator.go`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

# Quantities are compared in thousandths, cut off, as the API carries them.
_MILLI = 1000
# CPU samples of a pod this young and not ready say more about its start than about its load.
_CPU_INITIALISATION_S = 300.0
_INITIAL_READINESS_S = 30.0


class TargetType(StrEnum):
    """The meaning of a metric's target."""

    AVERAGE_VALUE = "AverageValue"  #: the sum divided by the replicas (KEDA's default)
    VALUE = "Value"  #: the value as it is
    UTILIZATION = "Utilization"  #: usage in percent of what the pods request


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric with its target; `name` is its key in readings."""

    name: str
    target: float
    target_type: TargetType = TargetType.AVERAGE_VALUE


@dataclass(frozen=True, slots=True)
class Replicas:
    """`current`: the workload's spec; `status`: existing pods; `ready`: serving pods."""

    current: int
    status: int
    ready: int


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The deviation of a ratio below which nothing changes."""

    up: float
    down: float

    def covers(self, ratio: float) -> bool:
        """Whether `ratio` is close enough to one; both edges included."""
        return 1.0 - self.down <= ratio <= 1.0 + self.up


@dataclass(frozen=True, slots=True)
class PodSample:
    """One pod's usage (None: no sample) against its request, in the same unit.

    `ready_changed_at` is when it last became or ceased to be ready.
    """

    usage: float | None
    request: float
    is_ready: bool = True
    started_at: float = -math.inf
    ready_changed_at: float = -math.inf


def replicas_for(
    metric: Metric,
    value: float | None,
    pods: tuple[PodSample, ...],
    replicas: Replicas,
    *,
    tolerance: Tolerance,
    now: float,
) -> int | None:
    """The proposal of one metric, or None when it could not be read."""
    match metric.target_type:
        case TargetType.UTILIZATION:
            return _by_utilization(metric.target, pods, replicas.current, tolerance, now)
        case TargetType.AVERAGE_VALUE:
            return None if value is None else _by_average(metric, value, replicas, tolerance)
        case TargetType.VALUE:
            return None if value is None else _by_value(metric, value, replicas, tolerance)
        case _ as unknown:
            assert_never(unknown)


def _by_average(metric: Metric, value: float, replicas: Replicas, tolerance: Tolerance) -> int:
    usage, target = _milli(value), _milli(metric.target)
    if replicas.status > 0 and tolerance.covers(usage / (target * replicas.status)):
        return replicas.status
    return math.ceil(usage / target)


def _by_value(metric: Metric, value: float, replicas: Replicas, tolerance: Tolerance) -> int:
    ratio = _milli(value) / _milli(metric.target)
    if replicas.current == 0:
        return math.ceil(ratio)
    if tolerance.covers(ratio):
        return replicas.current
    return math.ceil(ratio * replicas.ready)


def _by_utilization(
    target: float,
    pods: tuple[PodSample, ...],
    current: int,
    tolerance: Tolerance,
    now: float,
) -> int | None:
    missing = [pod for pod in pods if pod.usage is None]
    sampled = [pod for pod in pods if pod.usage is not None]
    unready = [pod for pod in sampled if _is_set_aside(pod, now)]
    counted = [pod for pod in sampled if not _is_set_aside(pod, now)]
    if not counted:
        return None
    ratio = _utilization(_usages(counted), target)
    does_grow_with_unready = bool(unready) and ratio > 1.0
    if not does_grow_with_unready and not missing:
        return current if tolerance.covers(ratio) else math.ceil(ratio * len(counted))
    if ratio == 1.0:
        return current  # no pod is unready or without sample: the source adds none, and 1.0 is within tolerance
    # Missing samples count against the change: full usage when scaling down, none when scaling up.
    doubtful = max(100.0, target) / 100 if ratio < 1.0 else 0.0
    usages = [*_usages(counted), *((pod.request * doubtful, pod.request) for pod in missing)]
    if does_grow_with_unready:
        usages += [(0.0, pod.request) for pod in unready]
    again = _utilization(usages, target)
    if tolerance.covers(again) or (ratio < 1.0 < again) or (again < 1.0 < ratio):
        return current
    proposal = math.ceil(again * len(usages))
    does_turn = (again < 1.0 and proposal > current) or (again > 1.0 and proposal < current)
    return current if does_turn else proposal


def _usages(pods: Iterable[PodSample]) -> list[tuple[float, float]]:
    return [(pod.usage or 0.0, pod.request) for pod in pods]


def _utilization(usages: list[tuple[float, float]], target: float) -> float:
    """Used share of the requests in whole percent, divided by the target percentage."""
    used = sum(usage for usage, _ in usages)
    requested = sum(request for _, request in usages)
    return math.trunc(used * 100 / requested) / target


def _is_set_aside(pod: PodSample, now: float) -> bool:
    """Whether a pod is still starting, so that its CPU says nothing about load."""
    if pod.started_at + _CPU_INITIALISATION_S > now:
        return not pod.is_ready
    never_was_ready = pod.started_at + _INITIAL_READINESS_S > pod.ready_changed_at
    return not pod.is_ready and never_was_ready


def _milli(value: float) -> int:
    return int(value * _MILLI)
