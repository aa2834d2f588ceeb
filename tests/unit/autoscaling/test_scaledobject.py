"""ScaledObjects and HPAs are read from YAML, and refused where their webhooks would refuse them."""

from typing import Any

import pytest
import yaml

from knative.autoscaling.hpa.behavior import PolicyType, RatePolicy, SelectPolicy
from knative.autoscaling.hpa.metric import Metric, TargetType
from knative.autoscaling.hpa.spec import read_hpa
from knative.autoscaling.keda.scaledobject import read_scaled_object
from knative.autoscaling.keda.trigger import RabbitMq, RedisStreams, Resource, StreamMode
from knative.autoscaling.quantity import quantity
from knative.autoscaling.setting import RefusedSettingsError
from knative.deploy.doctor.rules.trigger import triggers

COMPOSITE = """
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: thinker, annotations: {autoscaling.keda.sh/paused-scale-in: "true"}}
spec:
  scaleTargetRef: {name: thinker-predictor}
  pollingInterval: 2
  cooldownPeriod: 600
  maxReplicaCount: 10
  fallback: {failureThreshold: 3, replicas: 2, behavior: currentReplicasIfHigher}
  advanced:
    scalingModifiers:
      formula: "(lag > 0 ? lag : 0) + pend"
      target: "4"
      activationTarget: "0"
      metricType: AverageValue
    horizontalPodAutoscalerConfig:
      behavior:
        scaleUp:
          stabilizationWindowSeconds: 0
          policies: [{type: Pods, value: 100, periodSeconds: 15}]
        scaleDown: {stabilizationWindowSeconds: 60, selectPolicy: Min}
  triggers:
    - type: redis-streams
      name: lag
      metadata: {address: "redis:6379", stream: jobs, consumerGroup: g, lagCount: "4"}
    - type: redis-streams
      name: pend
      metadata: {address: "redis:6379", stream: jobs, consumerGroup: g, pendingEntriesCount: "4"}
"""


def manifest(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(COMPOSITE)
    document["spec"] |= changes
    return document


def test_a_scaled_object_is_read_whole() -> None:
    spec = read_scaled_object(manifest())

    assert (spec.name, spec.polling_interval_s, spec.cooldown_s) == ("thinker", 2, 600)
    assert (spec.min_replicas, spec.max_replicas, spec.idle_replicas) == (0, 10, None)
    assert [t.source for t in spec.triggers] == [
        RedisStreams(StreamMode.LAG),
        RedisStreams(StreamMode.PENDING),
    ]
    assert spec.modifiers is not None
    assert spec.modifiers.target == 4
    assert spec.behavior is not None
    assert spec.behavior.up.policies == (RatePolicy(PolicyType.PODS, 100, 15),)
    assert spec.behavior.down.select is SelectPolicy.MIN
    assert spec.pause.is_scale_in_paused


def test_missing_fields_have_kedas_defaults() -> None:
    triggers = [{"type": "redis-streams", "metadata": {"stream": "jobs", "address": "r:1"}}]
    spec = read_scaled_object({"spec": {"triggers": triggers}})
    assert (spec.polling_interval_s, spec.cooldown_s, spec.max_replicas) == (30, 300, 100)
    assert (spec.behavior, spec.modifiers, spec.fallback) == (None, None, None)
    assert spec.triggers[0].target == 5


def test_lag_wins_where_both_modes_are_set() -> None:
    metadata = {"stream": "s", "consumerGroup": "g", "lagCount": "3", "pendingEntriesCount": "9"}
    spec = read_scaled_object(
        manifest(
            triggers=[{"type": "redis-streams", "name": "lag", "metadata": metadata}], advanced={}
        )
    )
    assert (spec.triggers[0].source, spec.triggers[0].target) == (RedisStreams(StreamMode.LAG), 3)


def test_a_trigger_behind_sentinels_counts_and_is_judged_like_one_on_a_server() -> None:
    metadata = {
        "addresses": "a:26379,b:26379",
        "sentinelMaster": "torpor",
        "stream": "s",
        "consumerGroup": "g",
        "lagCount": "3",
    }
    entry = {"type": "redis-sentinel-streams", "name": "lag", "metadata": metadata}
    document = manifest(triggers=[entry], advanced={})

    (read,) = read_scaled_object(document).triggers
    assert (read.source, read.target) == (RedisStreams(StreamMode.LAG), 3)
    assert triggers(document, "redis-streams") == [(0, entry)]


def test_a_rabbitmq_hosts_scheme_gives_its_protocol() -> None:
    def source(host: str) -> object:
        metadata = {"queueName": "q", "host": host, "value": "2"}
        triggers = [{"type": "rabbitmq", "metadata": metadata}]
        return read_scaled_object({"spec": {"triggers": triggers}}).triggers[0].source

    assert isinstance(http := source("https://u@r:15672/"), RabbitMq)
    assert isinstance(amqp := source("amqp://u@r:5672/"), RabbitMq)
    assert (http.is_http, amqp.is_http) == (True, False)


def test_a_cpu_trigger_becomes_a_resource_metric() -> None:
    triggers = [{"type": "cpu", "metricType": "Utilization", "metadata": {"value": "70"}}]
    trigger = read_scaled_object({"spec": {"triggers": triggers}}).triggers[0]
    assert (trigger.source, trigger.target_type) == (Resource("cpu"), TargetType.UTILIZATION)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"pollingInterval": 0}, "spec.pollingInterval"),
        ({"coolDownPeriod": 60}, "spec.coolDownPeriod"),
        ({"minReplicaCount": 11}, "spec.maxReplicaCount"),
        ({"idleReplicaCount": 0}, "spec.idleReplicaCount"),
        ({"triggers": []}, "spec.triggers"),
        ({"triggers": [{"type": "entrails", "metadata": {}}]}, "spec.triggers[0].type"),
        (
            {"triggers": [{"type": "redis-streams", "metadata": {"stream": "s", "lagCount": "1"}}]},
            "spec.triggers[0].metadata.consumerGroup",
        ),
        (
            {"triggers": [{"type": "rabbitmq", "metadata": {"queueName": "q", "qvalue": "1"}}]},
            "spec.triggers[0].metadata.qvalue",
        ),
        ({"advanced": {"scalingModifiers": {"formula": "lag +", "target": "4"}}}, "formula"),
        ({"advanced": {"scalingModifiers": {"formula": "lag + p", "target": "4"}}}, "formula"),
        ({"advanced": {"scalingModifiers": {"formula": "lag + pend", "target": "0"}}}, "target"),
        (
            {
                "advanced": {
                    "horizontalPodAutoscalerConfig": {
                        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 3601}}
                    }
                }
            },
            "scaleDown.stabilizationWindowSeconds",
        ),
        ({"fallback": {"replicas": -1}}, "fallback.replicas"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_field_is_refused_by_name(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(RefusedSettingsError) as refused:
        read_scaled_object(manifest(**changes))
    assert name in str(refused.value)


def test_two_triggers_of_one_name_are_refused() -> None:
    document = manifest()
    document["spec"]["triggers"][1]["name"] = "lag"
    with pytest.raises(RefusedSettingsError, match="only one trigger has"):
        read_scaled_object(document)


HPA = {
    "spec": {
        "scaleTargetRef": {"name": "api"},
        "minReplicas": 3,
        "maxReplicas": 11,
        "metrics": [
            {
                "type": "Resource",
                "resource": {
                    "name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": 70},
                },
            },
            {
                "type": "External",
                "external": {
                    "metric": {"name": "queue"},
                    "target": {"type": "AverageValue", "averageValue": "1500m"},
                },
            },
        ],
    }
}


def test_an_hpa_is_read_whole() -> None:
    spec = read_hpa(HPA)
    assert (spec.min_replicas, spec.max_replicas, spec.behavior) == (3, 11, None)
    assert spec.metrics == (
        Metric("cpu", 70, TargetType.UTILIZATION),
        Metric("queue", 1.5, TargetType.AVERAGE_VALUE),
    )


def test_an_hpa_whose_maximum_is_below_its_minimum_is_refused() -> None:
    with pytest.raises(RefusedSettingsError, match=r"spec\.maxReplicas"):
        read_hpa({"spec": HPA["spec"] | {"maxReplicas": 2}})


@pytest.mark.parametrize(("text", "number"), [("500m", 0.5), ("4", 4), ("2Gi", 2**31)])
def test_quantities_are_read(text: str, number: float) -> None:
    assert quantity(text) == number
