"""KEDA's two decisions: its own poll for 0 <-> 1, and the HPA that it creates for 1 <-> N.

Called by the local stack (`--autoscaler keda`) and the simulator, with the triggers' readings (`trigger.measured`).
Must not know brokers or pods. Source: KEDA v2.20.2 `pkg/scaling` (`executor/scale_scaledobjects.go`, `fallback`,
`modifiers`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from knative.autoscaling.hpa import hpa
from knative.autoscaling.hpa.behavior import Behavior, SelectPolicy
from knative.autoscaling.hpa.hpa import HpaReading, HpaSpec, HpaState
from knative.autoscaling.hpa.metric import Metric, PodSample, Replicas, TargetType
from knative.autoscaling.keda.formula import Formula, FormulaError
from knative.autoscaling.keda.trigger import Resource, ScalerTrigger

# The one metric that a formula makes of all triggers.
COMPOSITE = "composite"


class FallbackBehavior(StrEnum):
    """The replicas while a trigger fails."""

    STATIC = "static"  #: the configured number
    CURRENT = "currentReplicas"  #: the current number
    IF_HIGHER = "currentReplicasIfHigher"  #: the higher of current and configured number
    IF_LOWER = "currentReplicasIfLower"  #: the lower of current and configured number


@dataclass(frozen=True, slots=True)
class Fallback:
    """Applies after more than `failure_threshold` failed readings."""

    replicas: int
    failure_threshold: int
    behavior: FallbackBehavior = FallbackBehavior.STATIC


@dataclass(frozen=True, slots=True)
class Modifiers:
    """One formula over all triggers, with its own target and activation."""

    formula: Formula
    target: float
    activation_target: float = 0.0
    target_type: TargetType = TargetType.AVERAGE_VALUE


@dataclass(frozen=True, slots=True)
class Pause:
    """The pausing annotations: everything, at a number of replicas, or one direction."""

    is_paused: bool = False
    replicas: int | None = None
    is_scale_in_paused: bool = False
    is_scale_out_paused: bool = False


@dataclass(frozen=True, slots=True)
class KedaSpec:
    """A ScaledObject's settings with KEDA's defaults; times in seconds."""

    triggers: tuple[ScalerTrigger, ...]
    name: str = ""
    polling_interval_s: float = 30.0
    cooldown_s: float = 300.0
    initial_cooldown_s: float = 0.0
    min_replicas: int = 0
    max_replicas: int = 100
    idle_replicas: int | None = None
    fallback: Fallback | None = None
    modifiers: Modifiers | None = None
    behavior: Behavior | None = None
    pause: Pause = field(default_factory=Pause)
    is_forced_active: bool = False


class KedaReadiness(StrEnum):
    """The Ready condition of a ScaledObject."""

    READY = "ready"  #: all triggers can be read
    UNKNOWN = "unknown"  #: some fail while others are active
    FAILED = "failed"  #: some fail and none is active: nothing is scaled


@dataclass(frozen=True, slots=True)
class KedaState:
    """The memory of operator and HPA; times are seconds of the caller's clock."""

    created: float
    next_poll: float
    next_sync: float
    last_active: float | None = None
    failures: tuple[tuple[str, int], ...] = ()
    hpa: HpaState = field(default_factory=HpaState)


@dataclass(frozen=True, slots=True)
class KedaDecision:
    """The replicas to set (unchanged when nothing is due)."""

    replicas: int
    is_active: bool | None = None
    readiness: KedaReadiness | None = None


def start(spec: KedaSpec, *, now: float) -> KedaState:
    """The state of a ScaledObject created at `now`: it polls at once."""
    return KedaState(created=now, next_poll=now, next_sync=now + hpa.SYNC_S)


def decide(
    spec: KedaSpec,
    state: KedaState,
    values: Mapping[str, float | None],
    replicas: Replicas,
    now: float,
    *,
    pods: tuple[PodSample, ...] = (),
) -> tuple[KedaState, KedaDecision]:
    """The decision of the poll and the HPA sync that are due at `now`; call it about once a second.

    `values` are by trigger key; None is a trigger that failed.
    """
    decision = KedaDecision(replicas.current)
    if now >= state.next_poll:
        state, decision = poll(spec, state, values, replicas.current, now)
        state = replace(state, next_poll=_next_due(state.next_poll, spec.polling_interval_s, now))
        replicas = replace(replicas, current=decision.replicas)
    if now >= state.next_sync:
        state, synced = sync(spec, state, values, replicas, now, pods=pods)
        state = replace(state, next_sync=_next_due(state.next_sync, hpa.SYNC_S, now))
        decision = replace(decision, replicas=synced)
    return state, decision


def poll(
    spec: KedaSpec,
    state: KedaState,
    values: Mapping[str, float | None],
    current: int,
    now: float,
) -> tuple[KedaState, KedaDecision]:
    """The operator's decision: wake from zero, keep awake, or go to zero after the cooldown."""
    if spec.pause.replicas is not None:
        return state, KedaDecision(spec.pause.replicas)
    if spec.pause.is_paused:
        return state, KedaDecision(current)
    is_error = any(
        values.get(trigger.key) is None
        for trigger in spec.triggers
        if not isinstance(trigger.source, Resource)
    )
    if spec.is_forced_active or is_active(spec, values):
        return _while_active(spec, state, current, is_error, now)
    return _while_inactive(spec, state, current, is_error, now)


def is_active(spec: KedaSpec, values: Mapping[str, float | None]) -> bool:
    """True when a trigger, or the formula, is strictly above its activation threshold."""
    if spec.modifiers is not None:
        value = _composite(spec.modifiers, values)
        return value is not None and value > spec.modifiers.activation_target
    return any(
        value is not None and value > trigger.activation
        for trigger in spec.triggers
        if (value := values.get(trigger.key)) is not None
    )


def sync(
    spec: KedaSpec,
    state: KedaState,
    values: Mapping[str, float | None],
    replicas: Replicas,
    now: float,
    *,
    pods: tuple[PodSample, ...] = (),
) -> tuple[KedaState, int]:
    """The replicas that KEDA's HPA wants at `now`."""
    if spec.pause.is_paused or spec.pause.replicas is not None:
        return state, replicas.current
    failures = _counted_failures(spec, state, values)
    state = replace(state, failures=tuple(sorted(failures.items())))
    seen = {
        trigger.key: _with_fallback(spec, trigger, values.get(trigger.key), failures, replicas)
        for trigger in spec.triggers
    }
    if spec.modifiers is not None:
        seen = {COMPOSITE: _composite(spec.modifiers, seen)}
    reading = HpaReading(replicas, seen, pods)
    hpa_state, decision = hpa.decide(hpa_spec(spec), state.hpa, reading, now)
    return replace(state, hpa=hpa_state), decision.replicas


def hpa_spec(spec: KedaSpec) -> HpaSpec:
    """The HPA that KEDA creates for a ScaledObject."""
    if spec.modifiers is not None:
        modifiers = spec.modifiers
        metrics = [Metric(COMPOSITE, modifiers.target, modifiers.target_type)]
    else:
        metrics = [Metric(t.key, t.target, t.target_type) for t in spec.triggers]
    return HpaSpec(
        metrics=tuple(metrics),
        min_replicas=max(1, spec.min_replicas),
        max_replicas=spec.max_replicas,
        behavior=_paused_behavior(spec),
    )


def _while_active(
    spec: KedaSpec, state: KedaState, current: int, is_error: bool, now: float
) -> tuple[KedaState, KedaDecision]:
    is_idle = spec.idle_replicas is not None and current < spec.min_replicas
    if current == 0 or is_idle:
        if spec.pause.is_scale_out_paused:
            return state, KedaDecision(current, True, KedaReadiness.READY)
        woken = max(1, spec.min_replicas)
        return replace(state, last_active=now), KedaDecision(woken, True, KedaReadiness.READY)
    if is_error:
        # An error among active triggers does not count as activity: the cooldown's clock stands.
        return state, KedaDecision(current, True, KedaReadiness.UNKNOWN)
    return replace(state, last_active=now), KedaDecision(current, True, KedaReadiness.READY)


def _while_inactive(
    spec: KedaSpec, state: KedaState, current: int, is_error: bool, now: float
) -> tuple[KedaState, KedaDecision]:
    if is_error and spec.fallback is None:
        return state, KedaDecision(current, False, KedaReadiness.FAILED)
    if is_error and spec.fallback is not None and spec.fallback.replicas != 0:
        return state, KedaDecision(spec.fallback.replicas, False, KedaReadiness.FAILED)
    readiness = KedaReadiness.FAILED if is_error else KedaReadiness.READY
    rest = spec.min_replicas if spec.idle_replicas is None else spec.idle_replicas
    is_idle_allowed = spec.idle_replicas is not None or spec.min_replicas == 0
    if is_idle_allowed and current > rest:
        is_down = _is_cool(spec, state, now) and not spec.pause.is_scale_in_paused
        return state, KedaDecision(rest if is_down else current, False, readiness)
    if current < spec.min_replicas and spec.idle_replicas is None:
        return state, KedaDecision(spec.min_replicas, False, readiness)
    return state, KedaDecision(current, False, readiness)


def _is_cool(spec: KedaSpec, state: KedaState, now: float) -> bool:
    if state.last_active is None:
        return state.created + spec.initial_cooldown_s < now
    return state.last_active + spec.cooldown_s < now


def _composite(modifiers: Modifiers, values: Mapping[str, float | None]) -> float | None:
    try:
        return modifiers.formula.value(values)
    except FormulaError:
        return None  # a failed trigger without `??`: the metric as a whole cannot be read


def _counted_failures(
    spec: KedaSpec, state: KedaState, values: Mapping[str, float | None]
) -> dict[str, int]:
    before = dict(state.failures)
    return {
        trigger.key: 0 if values.get(trigger.key) is not None else before.get(trigger.key, 0) + 1
        for trigger in spec.triggers
    }


def _with_fallback(
    spec: KedaSpec,
    trigger: ScalerTrigger,
    value: float | None,
    failures: Mapping[str, int],
    replicas: Replicas,
) -> float | None:
    """`value`, or, after too many failures, the value that makes the HPA ask for the fallback's replicas."""
    fallback = spec.fallback
    if value is not None or fallback is None or isinstance(trigger.source, Resource):
        return value
    if failures[trigger.key] <= fallback.failure_threshold:
        return None
    wanted = _fallback_replicas(fallback, replicas.current)
    if trigger.target_type is TargetType.VALUE:
        return trigger.target * wanted / max(1, replicas.ready)
    return trigger.target * wanted


def _fallback_replicas(fallback: Fallback, current: int) -> int:
    match fallback.behavior:
        case FallbackBehavior.STATIC:
            return fallback.replicas
        case FallbackBehavior.CURRENT:
            return current
        case FallbackBehavior.IF_HIGHER:
            return max(current, fallback.replicas)
        case FallbackBehavior.IF_LOWER:
            return min(current, fallback.replicas)


def _paused_behavior(spec: KedaSpec) -> Behavior | None:
    behavior = spec.behavior
    if spec.pause.is_scale_in_paused:
        behavior = behavior or Behavior()
        behavior = replace(behavior, down=replace(behavior.down, select=SelectPolicy.DISABLED))
    if spec.pause.is_scale_out_paused:
        behavior = behavior or Behavior()
        behavior = replace(behavior, up=replace(behavior.up, select=SelectPolicy.DISABLED))
    return behavior


def _next_due(due: float, interval_s: float, now: float) -> float:
    """The next beat after `now`; missed beats are skipped."""
    return due + interval_s if due + interval_s > now else now + interval_s
