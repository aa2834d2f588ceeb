"""Every setting that is read has a value that is refused, by its name and with what is allowed.

The tables are complete: the readers themselves say which settings they know, and a setting that is
in no table fails the test.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from knative.autoscaling.hpa.spec import read_hpa
from knative.autoscaling.keda.scaledobject import read_scaled_object
from knative.autoscaling.kpa.annotations import GROUP, read_knative
from knative.autoscaling.setting import RefusedSettingsError

Manifest = dict[str, Any]

# setting -> (a value that is refused, what the refusal says is allowed)
ANNOTATIONS = {
    "class": ("hpa.autoscaling.knative.dev", "kpa.autoscaling.knative.dev"),
    "metric": ("cpu", "concurrency, rps"),
    "target": ("0.001", "from 0.01"),
    "target-utilization-percentage": ("0.5", "from 1"),
    "target-burst-capacity": ("-2", "-1 (always), 0 (at zero only) or above"),
    "window": ("5s", "from 6s to 3600s"),
    "panic-window-percentage": ("101", "from 1 to 100"),
    "panic-threshold-percentage": ("109", "from 110 to 1000"),
    "scale-down-delay": ("61m", "from 0s to 3600s"),
    "activation-scale": ("1", "from 2"),
    "metric-aggregation-algorithm": ("median", "linear, weighted-exponential"),
    "min-scale": ("-1", "from 0"),
    "max-scale": ("-1", "from 0"),
    "initial-scale": ("0", "from 1"),
    "scale-to-zero-pod-retention-period": ("2h", "from 0s to 3600s"),
}
SCALED_OBJECT = {
    "pollingInterval": (0, "from 1"),
    "cooldownPeriod": (-1, "from 0"),
    "initialCooldownPeriod": (-1, "from 0"),
    "minReplicaCount": (-1, "from 0"),
    "maxReplicaCount": (0, "from 1"),
    "idleReplicaCount": (1, "below minReplicaCount"),
    "triggers": ([], "at least one"),
}
MODIFIERS = {
    "formula": ("lag +", "a formula"),
    "target": ("0", "above 0"),
    "activationTarget": ("many", "a number"),
    "metricType": ("Utilization", "AverageValue, Value"),
}
FALLBACK = {
    "replicas": (-1, "from 0"),
    "failureThreshold": (-1, "from 0"),
    "behavior": ("panic", "static"),
}
PAUSE = {
    "paused": ("maybe", "true, false"),
    "paused-replicas": ("-1", "from 0"),
    "paused-scale-in": ("maybe", "true, false"),
    "paused-scale-out": ("maybe", "true, false"),
}
RULES = {
    "stabilizationWindowSeconds": (3601, "0 to 3600"),
    "selectPolicy": ("Median", "Max, Min, Disabled"),
    "tolerance": ("-1", "from 0"),
}
POLICY = {
    "type": ("Nodes", "Pods, Percent"),
    "value": (0, "from 1"),
    "periodSeconds": (1801, "from 1 to 1800"),
}
HPA = {"minReplicas": (-1, "from 0"), "maxReplicas": (0, "from 1")}
STREAM = {"type": "redis-streams", "metadata": {"stream": "s", "consumerGroup": "g"}}
QUEUE = {"type": "rabbitmq", "metadata": {"queueName": "q", "host": "http://r"}}
TOPIC = {"type": "kafka", "metadata": {"consumerGroup": "g"}}
SERIES = {
    "type": "prometheus",
    "metadata": {"serverAddress": "http://p", "query": "q", "threshold": "1"},
}
OUTSIDE = {"type": "external-push", "metadata": {"scalerAddress": "s:9090"}}
CPU = {"type": "cpu", "metricType": "Utilization", "metadata": {"value": "70"}}
TRIGGERS: dict[str, tuple[Manifest, dict[str, tuple[object, str]]]] = {
    "redis-streams": (
        STREAM,
        {
            "stream": ("", "key"),
            "lagCount": ("0", "from 1"),
            "pendingEntriesCount": ("0", "from 1"),
            "activationLagCount": ("-1", "from 0"),
        },
    ),
    "rabbitmq": (
        QUEUE,
        {
            "queueName": ("", "name"),
            "protocol": ("stomp", "auto, amqp, http"),
            "mode": ("Age", "QueueLength"),
            "value": ("few", "a number"),
            "activationValue": ("few", "a number"),
            "excludeUnacknowledged": ("maybe", "true, false"),
        },
    ),
    "kafka": (
        TOPIC,
        {
            "consumerGroup": ("", "group"),
            "lagThreshold": ("0", "from 1"),
            "activationLagThreshold": ("-1", "from 0"),
            "allowIdleConsumers": ("maybe", "true, false"),
            "limitToPartitionsWithLag": ("maybe", "true, false"),
            "excludePersistentLag": ("maybe", "true, false"),
        },
    ),
    "prometheus": (
        SERIES,
        {
            "serverAddress": ("", "URL"),
            "query": ("", "query"),
            "threshold": ("few", "a number"),
            "activationThreshold": ("few", "a number"),
            "ignoreNullValues": ("maybe", "true, false"),
        },
    ),
    "external-push": (OUTSIDE, {"scalerAddress": ("", "host:port")}),
    "cpu": (CPU, {"value": ("0", "above 0")}),
}


def service(annotations: Mapping[str, object]) -> Manifest:
    own = {GROUP + name: value for name, value in annotations.items()}
    return {"kind": "Service", "spec": {"template": {"metadata": {"annotations": own}}}}


def scaled(trigger: Manifest = STREAM, **spec: object) -> Manifest:
    return {"spec": {"triggers": [trigger], **spec}}


def with_modifiers(fields: Mapping[str, object]) -> Manifest:
    modifiers = {"formula": "lag", "target": "4", **fields}
    return scaled(STREAM | {"name": "lag"}, advanced={"scalingModifiers": modifiers})


def with_rules(fields: Mapping[str, object]) -> Manifest:
    return scaled(
        advanced={"horizontalPodAutoscalerConfig": {"behavior": {"scaleUp": dict(fields)}}}
    )


def with_policy(fields: Mapping[str, object]) -> Manifest:
    return with_rules({"policies": [{"type": "Pods", "value": 1, "periodSeconds": 15, **fields}]})


def paused(annotations: Mapping[str, object]) -> Manifest:
    own = {f"autoscaling.keda.sh/{name}": value for name, value in annotations.items()}
    return scaled() | {"metadata": {"annotations": own}}


def hpa(fields: Mapping[str, object]) -> Manifest:
    return {"spec": {"maxReplicas": 3, **fields}}


Table = tuple[
    str,  # how the settings' names begin in a refusal
    Mapping[str, tuple[object, str]],
    Callable[[Manifest], object],
    Callable[[Mapping[str, object]], Manifest],
]
TABLES: dict[str, Table] = {
    "annotations": (GROUP, ANNOTATIONS, read_knative, service),
    "scaledobject": (
        "spec.",
        SCALED_OBJECT,
        read_scaled_object,
        lambda fields: scaled(**dict(fields)),
    ),
    "modifiers": ("spec.advanced.scalingModifiers.", MODIFIERS, read_scaled_object, with_modifiers),
    "fallback": (
        "spec.fallback.",
        FALLBACK,
        read_scaled_object,
        lambda fields: scaled(fallback=dict(fields)),
    ),
    "pause": ("autoscaling.keda.sh/", PAUSE, read_scaled_object, paused),
    "rules": (
        "spec.advanced.horizontalPodAutoscalerConfig.behavior.scaleUp.",
        RULES,
        read_scaled_object,
        with_rules,
    ),
    "policy": (
        "spec.advanced.horizontalPodAutoscalerConfig.behavior.scaleUp.policies[0].",
        POLICY,
        read_scaled_object,
        with_policy,
    ),
    "hpa": ("spec.", HPA, read_hpa, hpa),
}
CASES = [
    pytest.param(name, setting, id=f"{name} {setting}")
    for name, table in TABLES.items()
    for setting in table[1]
]


def refusals(read: Callable[[Manifest], object], manifest: Manifest) -> dict[str, str]:
    with pytest.raises(RefusedSettingsError) as refused:
        read(manifest)
    return {one.name: one.allowed for one in refused.value.refusals}


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_a_setting_out_of_range_is_refused_by_name_with_its_range(name: str, setting: str) -> None:
    prefix, table, read, manifest = TABLES[name]
    value, allowed = table[setting]
    assert allowed in refusals(read, manifest({setting: value}))[prefix + setting]


# Judged by another table, or by nobody because they change no number.
ELSEWHERE = {"advanced", "fallback", "scaleTargetRef", "metrics", "behavior", "policies"}


@pytest.mark.parametrize("name", TABLES)
def test_an_unknown_setting_is_refused_and_the_table_has_all_known_ones(name: str) -> None:
    prefix, table, read, manifest = TABLES[name]
    if name == "pause":
        return  # annotations of others may stand beside these
    said = refusals(read, manifest({"colour": "blue"}))[f"{prefix}colour"]
    known = said.removeprefix("unknown setting; known: ").split(", ")
    assert set(known) - set(table) <= ELSEWHERE | {"triggers"}
    assert set(table) <= set(known)


TRIGGER_CASES = [
    pytest.param(kind, setting, id=f"{kind} {setting}")
    for kind, (_, table) in TRIGGERS.items()
    for setting in table
]


@pytest.mark.parametrize(("kind", "setting"), TRIGGER_CASES)
def test_a_triggers_setting_out_of_range_is_refused_by_name_with_its_range(
    kind: str, setting: str
) -> None:
    trigger, table = TRIGGERS[kind]
    value, allowed = table[setting]
    changed = trigger | {"metadata": trigger["metadata"] | {setting: value}}
    said = refusals(read_scaled_object, scaled(changed))
    name = "target" if (kind, setting) == ("cpu", "value") else setting
    assert allowed in said[f"spec.triggers[0].metadata.{name}"]


@pytest.mark.parametrize("kind", [kind for kind in TRIGGERS if kind != "external-push"])
def test_a_triggers_unknown_setting_is_refused(kind: str) -> None:
    trigger = TRIGGERS[kind][0]
    changed = trigger | {"metadata": trigger["metadata"] | {"colour": "blue"}}
    assert "spec.triggers[0].metadata.colour" in refusals(read_scaled_object, scaled(changed))


def test_an_hpa_without_a_maximum_is_refused() -> None:
    assert "spec.maxReplicas" in refusals(read_hpa, {"spec": {}})
