"""Reads a KEDA ScaledObject into the settings of `keda.py`.

Called by the local stack, the simulator and the doctor. Must not know brokers. Fields and defaults: KEDA v2.20.2
`apis/keda/v1alpha1/scaledobject_types.go`; trigger metadata: each scaler's own parser.
"""

from collections.abc import Mapping
from typing import Any

from knative.autoscaling.hpa.metric import TargetType
from knative.autoscaling.hpa.spec import read_behavior
from knative.autoscaling.keda import trigger_spec
from knative.autoscaling.keda.formula import Formula, FormulaError, parse
from knative.autoscaling.keda.keda import Fallback, FallbackBehavior, KedaSpec, Modifiers, Pause
from knative.autoscaling.keda.trigger import ScalerTrigger
from knative.autoscaling.quantity import quantity
from knative.autoscaling.setting import RefusedSettingsError, SettingReader

_ANNOTATION = "autoscaling.keda.sh/"
_AVERAGE_OR_VALUE = (TargetType.AVERAGE_VALUE.value, TargetType.VALUE.value)


def read_scaled_object(manifest: Mapping[str, Any]) -> KedaSpec:
    """The settings of a ScaledObject.

    Raises RefusedSettingsError naming every unknown or out-of-range field and trigger setting.
    """
    fields = manifest.get("spec") or {}
    metadata = manifest.get("metadata") or {}
    reader = SettingReader(fields, prefix="spec.")
    reader.ignore("scaleTargetRef", "triggers", "advanced", "fallback")
    advanced = SettingReader(fields.get("advanced") or {}, prefix="spec.advanced.")
    advanced.ignore("scalingModifiers", "horizontalPodAutoscalerConfig")
    advanced.flag("restoreToOriginalReplicaCount", False)
    triggers = _triggers(fields.get("triggers") or [], reader)
    hpa_config = (fields.get("advanced") or {}).get("horizontalPodAutoscalerConfig") or {}
    least, most, idle = _bounds(reader)
    spec = KedaSpec(
        triggers=triggers,
        name=str(metadata.get("name", "")),
        polling_interval_s=reader.integer("pollingInterval", 30, low=1),
        cooldown_s=reader.integer("cooldownPeriod", 300),
        initial_cooldown_s=reader.integer("initialCooldownPeriod", 0),
        min_replicas=least,
        max_replicas=most,
        idle_replicas=idle,
        fallback=_fallback(fields.get("fallback"), reader),
        modifiers=_modifiers(fields, triggers, advanced),
        behavior=read_behavior(
            hpa_config.get("behavior"),
            "spec.advanced.horizontalPodAutoscalerConfig.behavior.",
            advanced,
        ),
        pause=_pause(metadata.get("annotations") or {}, reader),
        is_forced_active=(metadata.get("annotations") or {}).get(f"{_ANNOTATION}force-activation")
        == "true",
    )
    _hand_over(advanced, reader)
    reader.finish()
    return spec


def _triggers(entries: list[Mapping[str, Any]], reader: SettingReader) -> tuple[ScalerTrigger, ...]:
    if not entries:
        reader.refuse("triggers", "none", "at least one trigger")
    triggers: list[ScalerTrigger] = []
    for index, entry in enumerate(entries):
        try:
            triggers.append(trigger_spec.read_trigger(entry, index))
        except RefusedSettingsError as error:
            reader.adopt(error.refusals)
    names = [str(entry["name"]) for entry in entries if entry.get("name")]
    for name in sorted({name for name in names if names.count(name) > 1}):
        reader.refuse("triggers", name, "a name that only one trigger has")
    return tuple(triggers)


def _bounds(reader: SettingReader) -> tuple[int, int, int | None]:
    least = reader.integer("minReplicaCount", 0)
    most = reader.integer("maxReplicaCount", 100, low=1)
    if most < least:
        reader.refuse("maxReplicaCount", most, f"at least minReplicaCount ({least})")
    if not reader.has("idleReplicaCount"):
        return least, most, None
    idle = reader.integer("idleReplicaCount", 0)
    if idle >= least:
        reader.refuse("idleReplicaCount", idle, f"below minReplicaCount ({least})")
    return least, most, idle


def _fallback(fields: Mapping[str, Any] | None, owner: SettingReader) -> Fallback | None:
    if fields is None:
        return None
    reader = SettingReader(fields, prefix="spec.fallback.")
    fallback = Fallback(
        replicas=reader.integer("replicas", 0),
        failure_threshold=reader.integer("failureThreshold", 3),
        behavior=FallbackBehavior(
            reader.choice("behavior", "static", tuple(member.value for member in FallbackBehavior))
        ),
    )
    _hand_over(reader, owner)
    return fallback


def _modifiers(
    fields: Mapping[str, Any], triggers: tuple[ScalerTrigger, ...], owner: SettingReader
) -> Modifiers | None:
    settings = (fields.get("advanced") or {}).get("scalingModifiers") or {}
    if not settings:
        return None
    reader = SettingReader(settings, prefix="spec.advanced.scalingModifiers.")
    text = reader.required("formula", "a formula over trigger names")
    formula = _formula(text, triggers, reader)
    target = reader.required("target", "a number above 0")
    target_type = reader.choice("metricType", _AVERAGE_OR_VALUE[0], _AVERAGE_OR_VALUE)
    activation = reader.number("activationTarget", 0)
    amount = _positive(target, reader)
    _hand_over(reader, owner)
    if formula is None:
        return None
    return Modifiers(formula, amount, activation, TargetType(target_type))


def _formula(
    text: str, triggers: tuple[ScalerTrigger, ...], reader: SettingReader
) -> Formula | None:
    if not text:
        return None
    try:
        formula = parse(text)
    except FormulaError as error:
        reader.refuse("formula", text, f"a formula: {error}")
        return None
    known = {trigger.key for trigger in triggers}
    for name in sorted(formula.names - known):
        reader.refuse("formula", name, "names of triggers: " + ", ".join(sorted(known)))
    return formula


def _positive(text: str, reader: SettingReader) -> float:
    try:
        amount = quantity(text) if text else 0.0
    except ValueError:
        amount = 0.0
    if text and amount <= 0:
        reader.refuse("target", text, "a number above 0")
    return amount or 1.0


def _pause(annotations: Mapping[str, Any], reader: SettingReader) -> Pause:
    own = {
        key.removeprefix(_ANNOTATION): value
        for key, value in annotations.items()
        if key.startswith(_ANNOTATION)
    }
    flags = SettingReader(own, prefix=_ANNOTATION)
    flags.ignore("force-activation")
    flags.ignore(*(key for key in own if not key.startswith("paused")))
    replicas = flags.integer("paused-replicas", 0) if flags.has("paused-replicas") else None
    pause = Pause(
        is_paused=flags.flag("paused", False),
        replicas=replicas,
        is_scale_in_paused=flags.flag("paused-scale-in", False),
        is_scale_out_paused=flags.flag("paused-scale-out", False),
    )
    _hand_over(flags, reader)
    return pause


def _hand_over(reader: SettingReader, owner: SettingReader) -> None:
    try:
        reader.finish()
    except RefusedSettingsError as error:
        owner.adopt(error.refusals)
