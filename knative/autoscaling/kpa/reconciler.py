"""From a decision to replicas: bounds, initial scale, and the safe way to zero and back.

Called after `kpa.decide` by the local stack and the simulator. Must not know how a replica is started or stopped.
Source: knative/serving knative-v1.23.0 `pkg/reconciler/autoscaling/kpa` (`scaler.go`, `kpa.go`).
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import assert_never

from knative.autoscaling.kpa.activator import PathMode, path_mode
from knative.autoscaling.kpa.kpa import ALWAYS_BUFFER, UNKNOWN_SCALE, ScaleDecision

# On top of the progress deadline: the deployment's own verdict comes first.
_ACTIVATION_SLACK_S = 30.0


class Activity(StrEnum):
    """The Active condition of a revision's autoscaler."""

    ACTIVATING = "activating"  #: pods are wanted and too few are ready
    ACTIVE = "active"  #: enough pods are ready
    INACTIVE = "inactive"  #: no pods are wanted; the activator holds incoming requests


@dataclass(frozen=True, slots=True)
class ScalePolicy:
    """Bounds and delays between a decision and the replicas; `max_scale` 0 means no bound."""

    min_scale: int = 0
    max_scale: int = 0
    initial_scale: int = 1
    stable_window_s: float = 60.0
    target_burst_capacity: float = 211.0
    enable_scale_to_zero: bool = True
    scale_to_zero_grace_s: float = 30.0
    pod_retention_s: float = 0.0
    progress_deadline_s: float = 600.0


@dataclass(frozen=True, slots=True)
class RevisionState:
    """The reconciler's memory: the Active condition and its age, the activator's mode and its age."""

    activity: Activity
    activity_since: float
    mode: PathMode = PathMode.PROXY
    mode_since: float = 0.0
    is_initialized: bool = False


@dataclass(frozen=True, slots=True)
class Pods:
    """`replicas`: requested last; `ready`: able to serve."""

    replicas: int
    ready: int


@dataclass(frozen=True, slots=True)
class ReconcileOutcome:
    """Set the deployment to `replicas` and the activator to `mode`.

    `want` is the intended scale; it is 0 some time before `replicas` is. `check_again_in_s` is when the outcome
    changes by time alone (None: only new input changes it).
    """

    replicas: int
    want: int
    mode: PathMode
    check_again_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Scale:
    """A wanted scale, and whether the deployment may be set to it now."""

    want: int
    is_applied: bool
    check_again_in_s: float | None = None


def start(policy: ScalePolicy, *, now: float) -> RevisionState:
    """The state of a new revision: on the way to its initial scale, asleep when that is 0."""
    activity = Activity.ACTIVATING if policy.initial_scale > 0 else Activity.INACTIVE
    return RevisionState(activity=activity, activity_since=now, mode_since=now)


def bounded(scale: int, min_scale: int, max_scale: int) -> int:
    """`scale` within its bounds; a `max_scale` of 0 bounds nothing."""
    if scale < min_scale:
        return min_scale
    if max_scale != 0 and scale > max_scale:
        return max_scale
    return scale


def reconcile(
    policy: ScalePolicy,
    state: RevisionState,
    decision: ScaleDecision,
    pods: Pods,
    now: float,
    *,
    is_reachable: bool = True,
    is_activator_probed: bool = True,
) -> tuple[RevisionState, ReconcileOutcome]:
    """The replicas to set at `now`.

    Zero is reached in two steps, so that no request finds neither pod nor activator: first the revision is marked
    inactive (the activator takes the path, replicas stay), then, after the grace, replicas go to 0.
    `is_activator_probed` says whether the activator has answered on the revision's path.
    """
    desired = decision.desired if decision.is_valid else UNKNOWN_SCALE
    scale = _scale(policy, state, desired, now, is_reachable, is_activator_probed)
    state = _activity(policy, state, scale.want, pods.ready, now, is_reachable)
    mode = path_mode(
        want=scale.want,
        excess_burst_capacity=decision.excess_burst_capacity,
        is_inactive=state.activity is Activity.INACTIVE,
    )
    if not decision.is_valid:
        mode = state.mode  # without data the path stays as it is, like the scale
    if mode is not state.mode:
        state = replace(state, mode=mode, mode_since=now)
    is_set = scale.is_applied and scale.want >= 0
    replicas = scale.want if is_set else pods.replicas
    return state, ReconcileOutcome(replicas, scale.want, state.mode, scale.check_again_in_s)


def _scale(
    policy: ScalePolicy,
    state: RevisionState,
    desired: int,
    now: float,
    is_reachable: bool,
    is_activator_probed: bool,
) -> _Scale:
    if desired < 0 and state.activity is not Activity.ACTIVATING:
        return _Scale(desired, is_applied=False)
    scale = bounded(desired, _least(policy, state, is_reachable), policy.max_scale)
    if scale != 0:
        return _Scale(scale, is_applied=True)
    if not policy.enable_scale_to_zero:
        return _Scale(1, is_applied=True)
    age = now - state.activity_since
    match state.activity:
        case Activity.ACTIVATING:
            return _zero_while_activating(policy, age)
        case Activity.ACTIVE:
            return _zero_while_active(policy, age)
        case Activity.INACTIVE:
            return _zero_while_inactive(policy, state, now, is_activator_probed)
        case _ as unknown:
            assert_never(unknown)


def _least(policy: ScalePolicy, state: RevisionState, is_reachable: bool) -> int:
    if not is_reachable:
        return 0
    if policy.initial_scale > 1 and not state.is_initialized:
        return max(policy.min_scale, policy.initial_scale)
    return policy.min_scale


def _zero_while_activating(policy: ScalePolicy, age: float) -> _Scale:
    """Starting pods are kept, unless they are past their deadline."""
    timeout = policy.progress_deadline_s + _ACTIVATION_SLACK_S
    if age > timeout:
        return _Scale(0, is_applied=True)
    return _Scale(UNKNOWN_SCALE, is_applied=False, check_again_in_s=timeout - age)


def _zero_while_active(policy: ScalePolicy, age: float) -> _Scale:
    """One pod stays until the revision was active for a stable window; then it becomes inactive."""
    if age >= policy.stable_window_s:
        return _Scale(0, is_applied=False)
    return _Scale(1, is_applied=True, check_again_in_s=policy.stable_window_s - age)


def _zero_while_inactive(
    policy: ScalePolicy, state: RevisionState, now: float, is_activator_probed: bool
) -> _Scale:
    """Zero once the activator is certainly in the path: after the grace and the retention."""
    if policy.target_burst_capacity != ALWAYS_BUFFER and not is_activator_probed:
        return _Scale(0, is_applied=False)
    inactive_for = now - state.activity_since
    longest = max(policy.scale_to_zero_grace_s, policy.pod_retention_s)
    if inactive_for >= longest:
        return _Scale(0, is_applied=True)
    if inactive_for < policy.pod_retention_s:
        return _Scale(0, is_applied=False, check_again_in_s=policy.pod_retention_s - inactive_for)
    proxied_for = now - state.mode_since if state.mode is PathMode.PROXY else 0.0
    if proxied_for >= policy.scale_to_zero_grace_s:
        return _Scale(0, is_applied=True)
    wait = policy.scale_to_zero_grace_s - max(proxied_for, inactive_for)
    return _Scale(0, is_applied=False, check_again_in_s=wait)


def _activity(
    policy: ScalePolicy,
    state: RevisionState,
    want: int,
    ready: int,
    now: float,
    is_reachable: bool,
) -> RevisionState:
    """The Active condition that follows from the wanted scale and the ready pods."""
    threshold = _active_threshold(policy, state, is_reachable)
    if ready >= threshold and not state.is_initialized:
        state = replace(state, is_initialized=True)
    is_wanted = want > 0 or state.activity is not Activity.INACTIVE
    if want == 0 or threshold == 0 or not is_wanted:
        activity = Activity.INACTIVE
    elif ready < threshold:
        activity = Activity.ACTIVATING
    else:
        activity = Activity.ACTIVE
    if activity is state.activity:
        return state
    return replace(state, activity=activity, activity_since=now)


def _active_threshold(policy: ScalePolicy, state: RevisionState, is_reachable: bool) -> int:
    if not state.is_initialized:
        return policy.initial_scale
    return max(1, policy.min_scale if is_reachable else 0)
