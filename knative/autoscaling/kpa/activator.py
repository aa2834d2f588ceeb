"""The activator's arithmetic: when it stays in the path, how many there are, whom a scrape asks.

Called by `knative.autoscaling.kpa.reconciler`; the two counts are for a cluster of many activators and
pods, and are held to the real code's vectors with the rest. It must not know how a request is held
or forwarded. Source: knative/serving `pkg/reconciler/autoscaling`, `pkg/autoscaler/metrics`.
"""

import math
from enum import StrEnum

# Fewer than two activators would make one of them a single point of failure.
_LEAST_ACTIVATORS = 2
# 95 % confidence, +-5 %, at a guessed spread of 10 (variance 100): (1.96² * 100) / 5².
_SAMPLE_LIMIT = 1.96**2 * 100 / 5**2
_ASK_ALL_UP_TO = 3


class PathMode(StrEnum):
    """Who stands before the pods."""

    PROXY = "proxy"
    """The activator: it holds requests while there is no room."""
    SERVE = "serve"
    """Nobody: requests go straight to the pods."""


def path_mode(*, want: int, excess_burst_capacity: int, is_inactive: bool) -> PathMode:
    """Whether the activator is in the path: at zero, when a burst would not fit, in doubt."""
    if want == 0 or excess_burst_capacity < 0 or (want < 0 and is_inactive):
        return PathMode.PROXY
    return PathMode.SERVE


def activators_for(
    ready_pods: int, total: float, target_burst_capacity: float, *, capacity: float = 100.0
) -> int:
    """How many activators stand before one revision; `capacity` is what one of them holds."""
    if target_burst_capacity == 0:
        return _LEAST_ACTIVATORS
    held = ready_pods * total + max(target_burst_capacity, 0)
    return max(_LEAST_ACTIVATORS, math.ceil(held / capacity))


def scrape_sample_size(pods: int) -> int:
    """How many of `pods` are asked each second; their mean stands for all."""
    if pods <= _ASK_ALL_UP_TO:
        return pods
    return math.ceil(pods * _SAMPLE_LIMIT / (pods + _SAMPLE_LIMIT - 1))
