"""Whether the activator stays in the path of requests.

Called by `knative.autoscaling.kpa.reconciler`. It must not know how a request is held or forwarded.
Source: knative/serving `pkg/reconciler/autoscaling`.
"""

from enum import StrEnum


class PathMode(StrEnum):
    """Who stands before the pods."""

    PROXY = "proxy"  #: in the path: it holds requests without a free pod
    SERVE = "serve"  #: not in the path: requests go straight to the pods


def path_mode(*, want: int, excess_burst_capacity: int, is_inactive: bool) -> PathMode:
    """Whether the activator is in the path: at zero, when a burst would not fit, in doubt."""
    if want == 0 or excess_burst_capacity < 0 or (want < 0 and is_inactive):
        return PathMode.PROXY
    return PathMode.SERVE
