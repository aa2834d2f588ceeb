"""Reads a HorizontalPodAutoscaler (autoscaling/v2), and the same behaviour inside a ScaledObject.

Called by the simulator and by `scaledobject.py`. Ranges as in Kubernetes' validation
(`pkg/apis/autoscaling/validation`).
"""

from collections.abc import Mapping
from typing import Any

from knative.autoscaling.hpa.behavior import (
    DEFAULT_DOWN,
    DEFAULT_UP,
    Behavior,
    PolicyType,
    RatePolicy,
    ScalingRules,
    SelectPolicy,
)
from knative.autoscaling.hpa.hpa import HpaSpec
from knative.autoscaling.hpa.metric import Metric, TargetType
from knative.autoscaling.quantity import quantity
from knative.autoscaling.setting import RefusedSettingsError, SettingReader

_TARGET_FIELDS = {
    "AverageValue": "averageValue",
    "Value": "value",
    "Utilization": "averageUtilization",
}
# The key of a metric source in its entry, by its `type`.
_SOURCES = {
    "External": "external",
    "Resource": "resource",
    "Pods": "pods",
    "Object": "object",
    "ContainerResource": "containerResource",
}


def read_hpa(manifest: Mapping[str, Any]) -> HpaSpec:
    """The settings of an HPA manifest.

    Raises RefusedSettingsError naming every unknown or out-of-range field.
    """
    fields = manifest.get("spec") or {}
    reader = SettingReader(fields, prefix="spec.")
    reader.ignore("scaleTargetRef")
    least = reader.integer("minReplicas", 1)
    reader.required("maxReplicas", "a whole number from 1")
    most = reader.integer("maxReplicas", least, low=1)
    if most < least:
        reader.refuse("maxReplicas", most, f"at least minReplicas ({least})")
    entries = fields.get("metrics") or []
    reader.ignore("metrics", "behavior")
    metrics = tuple(
        _metric(entry, f"spec.metrics[{i}].", reader) for i, entry in enumerate(entries)
    )
    behavior = read_behavior(fields.get("behavior"), "spec.behavior.", reader)
    reader.finish()
    return HpaSpec(metrics=metrics, min_replicas=least, max_replicas=most, behavior=behavior)


def read_behavior(
    fields: Mapping[str, Any] | None, prefix: str, owner: SettingReader
) -> Behavior | None:
    """The behaviour in a `behavior` field; None stays None, which differs from the defaults.

    Refusals are added to `owner`.
    """
    if not fields:
        return None
    for key in sorted(set(fields) - {"scaleUp", "scaleDown"}):
        owner.refuse(key, fields[key], "scaleUp, scaleDown")
    return Behavior(
        up=_rules(fields.get("scaleUp"), DEFAULT_UP, f"{prefix}scaleUp.", owner),
        down=_rules(fields.get("scaleDown"), DEFAULT_DOWN, f"{prefix}scaleDown.", owner),
    )


def _metric(entry: Mapping[str, Any], prefix: str, owner: SettingReader) -> Metric:
    kind = str(entry.get("type"))
    source = entry.get(_SOURCES.get(kind, "")) or {}
    name = str(source.get("name") or (source.get("metric") or {}).get("name") or "")
    if kind not in _SOURCES or not name:
        owner.refuse(f"{prefix}type", kind, "one of " + ", ".join(_SOURCES) + ", with a name")
    target = source.get("target") or {}
    target_type = str(target.get("type"))
    field = _TARGET_FIELDS.get(target_type)
    if field is None:
        owner.refuse(f"{prefix}target.type", target_type, "one of " + ", ".join(_TARGET_FIELDS))
        return Metric(name, 1.0)
    value = _amount(target.get(field), f"{prefix}target.{field}", owner)
    return Metric(name, value, TargetType(target_type))


def _amount(value: object, name: str, owner: SettingReader) -> float:
    try:
        amount = quantity(str(value))
    except ValueError:
        amount = 0.0
    if amount <= 0:
        owner.refuse(name, value, "a quantity above 0")
        return 1.0
    return amount


def _rules(
    fields: Mapping[str, Any] | None, default: ScalingRules, prefix: str, owner: SettingReader
) -> ScalingRules:
    if not fields:
        return default
    reader = SettingReader(fields, prefix=prefix)
    window_s = reader.maybe_number("stabilizationWindowSeconds", low=0)
    if window_s is not None and window_s > 3600:
        reader.refuse("stabilizationWindowSeconds", window_s, "0 to 3600 seconds")
    select = reader.choice("selectPolicy", "Max", tuple(m.value for m in SelectPolicy))
    tolerance = None
    if reader.has("tolerance"):
        tolerance = _tolerance(fields["tolerance"], reader)
    entries = fields.get("policies") or []
    reader.ignore("policies")
    policies = tuple(
        _policy(entry, f"{prefix}policies[{i}].", reader) for i, entry in enumerate(entries)
    )
    _hand_over(reader, owner)
    return ScalingRules(
        policies=policies or default.policies,
        stabilization_s=default.stabilization_s if window_s is None else window_s,
        select=SelectPolicy(select),
        tolerance=tolerance,
    )


def _policy(entry: Mapping[str, Any], prefix: str, owner: SettingReader) -> RatePolicy:
    reader = SettingReader(entry, prefix=prefix)
    policy = RatePolicy(
        PolicyType(reader.choice("type", "Pods", tuple(m.value for m in PolicyType))),
        reader.integer("value", 1, low=1),
        reader.integer("periodSeconds", 15, low=1, high=1800),
    )
    _hand_over(reader, owner)
    return policy


def _tolerance(value: object, reader: SettingReader) -> float | None:
    try:
        tolerance = quantity(str(value))
    except ValueError:
        tolerance = -1.0
    if tolerance < 0:
        reader.refuse("tolerance", value, "a quantity from 0")
        return None
    return tolerance


def _hand_over(reader: SettingReader, owner: SettingReader) -> None:
    try:
        reader.finish()
    except RefusedSettingsError as error:
        owner.adopt(error.refusals)
