"""How fast the HPA may follow its metrics: stabilisation windows and rate policies.

Called by `hpa.py`. Must not know metrics. Source: Kubernetes 1.36 `pkg/controller/podautoscaler/horizontal.go`
(`stabilizeRecommendation...`, `convertDesiredReplicas...`).
"""

import math
from dataclasses import dataclass
from enum import StrEnum

# (second, number): what was recommended, or by how much the scale was changed.
Recommendation = tuple[float, int]
Changes = tuple[tuple[float, int], ...]

# Without `behavior` a single sync may double, or reach this, whichever is more.
_LEAST_UP_LIMIT = 4


class PolicyType(StrEnum):
    """The unit of a rate policy."""

    PODS = "Pods"  #: pods a period
    PERCENT = "Percent"  #: percent of the pods at the period's start


class SelectPolicy(StrEnum):
    """Which of several policies applies."""

    MAX = "Max"  #: the one that allows the largest change (the default)
    MIN = "Min"  #: the one that allows the smallest change
    DISABLED = "Disabled"  #: none: no scaling in this direction


@dataclass(frozen=True, slots=True)
class RatePolicy:
    """At most `value` pods or percent in `period_s`."""

    type: PolicyType
    value: int
    period_s: float


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """One direction; None in `stabilization_s` or `tolerance` takes the default."""

    policies: tuple[RatePolicy, ...]
    stabilization_s: float | None = None
    select: SelectPolicy = SelectPolicy.MAX
    tolerance: float | None = None


DEFAULT_UP = ScalingRules(
    policies=(RatePolicy(PolicyType.PODS, 4, 15), RatePolicy(PolicyType.PERCENT, 100, 15)),
    stabilization_s=0,
)
DEFAULT_DOWN = ScalingRules(policies=(RatePolicy(PolicyType.PERCENT, 100, 15),))


@dataclass(frozen=True, slots=True)
class Behavior:
    """Both directions; fields missing in the manifest have these defaults."""

    up: ScalingRules = DEFAULT_UP
    down: ScalingRules = DEFAULT_DOWN

    def longest_window_s(self, downscale_window_s: float) -> float:
        """How long a recommendation can matter."""
        return max(_up_window_s(self), _down_window_s(self, downscale_window_s))


def stabilised_without_behavior(
    past: tuple[Recommendation, ...], wanted: int, window_s: float, now: float
) -> int:
    """The highest recommendation of the window, so that scale-down needs a whole window of lower ones."""
    return max([wanted, *(replicas for t, replicas in past if t >= now - window_s)])


def limited_without_behavior(current: int, desired: int) -> int:
    """Up to twice the pods, or four; down without limit."""
    return min(desired, max(2 * current, _LEAST_UP_LIMIT))


def stabilised(
    past: tuple[Recommendation, ...],
    current: int,
    wanted: int,
    behavior: Behavior,
    downscale_window_s: float,
    now: float,
) -> int:
    """`current`, moved only as far as every recommendation of the direction's window agrees."""
    up_s = _up_window_s(behavior)
    down_s = _down_window_s(behavior, downscale_window_s)
    lowest = min([wanted, *(replicas for t, replicas in past if t > now - up_s)])
    highest = max([wanted, *(replicas for t, replicas in past if t > now - down_s)])
    return min(max(current, lowest), highest)


def rate_limited(
    current: int, desired: int, behavior: Behavior, up: Changes, down: Changes, now: float
) -> int:
    """`desired`, limited by what the policies allow from `current` now."""
    if desired > current:
        limit = _up_limit(current, behavior.up, up, down, now)
        return min(desired, max(limit, current))
    if desired < current:
        limit = _down_limit(current, behavior.down, up, down, now)
        return max(desired, min(limit, current))
    return desired


def remembered(
    past: tuple[Recommendation, ...], wanted: int, keep_s: float, now: float
) -> tuple[Recommendation, ...]:
    """The recommendations that can still matter, with the newest."""
    return (*((t, n) for t, n in past if t >= now - keep_s), (now, wanted))


def stored_change(changes: Changes, amount: int, rules: ScalingRules, now: float) -> Changes:
    """The changes that can still matter for a policy of `rules`, with the newest."""
    longest_s = max((policy.period_s for policy in rules.policies), default=0.0)
    return (*((t, n) for t, n in changes if t > now - longest_s), (now, amount))


def _up_window_s(behavior: Behavior) -> float:
    return behavior.up.stabilization_s or 0.0


def _down_window_s(behavior: Behavior, downscale_window_s: float) -> float:
    own = behavior.down.stabilization_s
    return downscale_window_s if own is None else own


def _up_limit(current: int, rules: ScalingRules, up: Changes, down: Changes, now: float) -> int:
    if rules.select is SelectPolicy.DISABLED:
        return current
    limits: list[int] = []
    for policy in rules.policies:
        start = _period_start(current, policy, up, down, now)
        if policy.type is PolicyType.PODS:
            limits.append(start + policy.value)
        else:
            # Rounded up: from a few pods a small percentage would otherwise never allow one more.
            limits.append(math.ceil(start * (1 + policy.value / 100)))
    return min(limits) if rules.select is SelectPolicy.MIN else max(limits)


def _down_limit(current: int, rules: ScalingRules, up: Changes, down: Changes, now: float) -> int:
    if rules.select is SelectPolicy.DISABLED:
        return current
    limits: list[int] = []
    for policy in rules.policies:
        start = _period_start(current, policy, up, down, now)
        if policy.type is PolicyType.PODS:
            limits.append(start - policy.value)
        else:
            limits.append(int(start * (1 - policy.value / 100)))
    return max(limits) if rules.select is SelectPolicy.MIN else min(limits)


def _period_start(current: int, policy: RatePolicy, up: Changes, down: Changes, now: float) -> int:
    """The replicas at the start of the policy's period, from the changes since."""
    since = now - policy.period_s
    added = sum(n for t, n in up if t > since)
    deleted = sum(n for t, n in down if t > since)
    return current - added + deleted
