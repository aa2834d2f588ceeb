"""Every manifest is accepted by strict schema validation, and wrong ones are refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import kubernetes_validate
import pytest

from knative.deploy.render.tree import finished
from knative.deploy.values import Values
from tests.manifests.conftest import Resources
from tests.manifests.crd import Crds
from tests.manifests.test_deployed_tools import GIVEN as DEPLOYED_TOOLS

KUBERNETES = "1.36"


def faults(resource: dict[str, Any], crds: Crds) -> list[str]:
    """Give what is wrong with a resource of any kind."""
    if crds.knows(resource):
        return [f"{fault.path}: {fault.message}" for fault in crds.faults(resource)]
    try:
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [error.message]
    return []


@pytest.mark.parametrize("overlay", ["queue", "serverless"])
def test_every_resource_of_a_deployed_tool_is_accepted(crds: Crds, overlay: str) -> None:
    values = Values.model_validate({**DEPLOYED_TOOLS, "store": {"replicas": 3}})
    own = [r for r in finished(overlay, values) if "tool" in str(r["metadata"])]

    refused = {
        f"{r['kind']}/{r['metadata']['name']}": found for r in own if (found := faults(r, crds))
    }
    assert refused == {}
    kinds = {r["kind"] for r in own if r["metadata"]["name"].startswith("torpor-tool-")}
    assert kinds == ({"Deployment", "ScaledObject"} if overlay == "queue" else {"Service"})


def changed(resource: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Give a copy with one field set; `list.0.field` walks into lists."""
    made = copy.deepcopy(resource)
    node: Any = made
    *steps, last = path.split(">")
    for step in steps:
        node = node[int(step)] if isinstance(node, list) else node[step]
    node[int(last) if isinstance(node, list) else last] = value
    return made


def test_every_resource_of_every_overlay_is_accepted(
    overlays: dict[str, Resources], crds: Crds
) -> None:
    different = {json.dumps(r, sort_keys=True): r for rs in overlays.values() for r in rs}

    refused = {
        f"{r['kind']}/{r['metadata']['name']}": found
        for r in different.values()
        if (found := faults(r, crds))
    }

    assert refused == {}


POD = "spec>template>spec"
NEGATIVES = [
    # kind, field, value that must be refused: an unknown field, a wrong type, out of range
    ("InferenceService", "spec>predictor>maxReplica", 3),
    ("InferenceService", "spec>predictor>timeout", "3600s"),
    ("InferenceService", "spec>predictor>maxReplicas", 2**40),
    ("InferenceService", "spec>predictor>scaleMetric", "gpu"),
    ("InferenceService", "spec>predictor>containers>0>image", 7),
    ("ScaledObject", "spec>cooldownSeconds", 300),
    ("ScaledObject", "spec>pollingInterval", "5s"),
    ("ScaledObject", "spec>minReplicaCount", 9),
    ("ScaledObject", "spec>triggers>0>metadata>lagCount", 16),
    ("ScaledObject", "spec>triggers>0>type", None),
    ("TriggerAuthentication", "spec>secretTargetRefs", []),
    ("TriggerAuthentication", "spec>secretTargetRef>0>key", 1),
    ("TriggerAuthentication", "spec>secretTargetRef>0", {"parameter": "password"}),
    ("Broker", "spec>delivery>retries", 3),
    ("Broker", "spec>delivery>retry", "ten"),
    ("Broker", "spec>delivery>retry", 2**31),
    ("Trigger", "spec>subscribers", []),
    ("Trigger", "spec>filter>attributes", "type"),
    ("Trigger", "spec>delivery>retry", 2**31),
    ("Trigger", "spec>delivery>backoffDelay", 2),
    ("RabbitmqBrokerConfig", "spec>queue", "quorum"),
    ("RabbitmqBrokerConfig", "spec>queueType", "mirrored"),
    ("RabbitmqBrokerConfig", "spec>rabbitmqClusterReference>name", 1),
    ("RabbitmqCluster", "spec>replica", 3),
    ("RabbitmqCluster", "spec>replicas", "3"),
    ("RabbitmqCluster", "spec>replicas", -1),
    ("NodePool", "spec>disruption>consolidateWhen", "1m"),
    ("NodePool", "spec>disruption>consolidateAfter", 300),
    ("NodePool", "spec>disruption>consolidationPolicy", "WhenIdle"),
    ("NodePool", "spec>weight", 101),
    ("NodePool", "spec>template>spec>requirements>0>operator", "Is"),
    ("NodePool", "spec>template>spec>terminationGracePeriod", "an hour"),
    ("LocalModelCache", "spec>uri", "hf://a/b"),
    ("LocalModelCache", "spec>modelSize", "large"),
    ("LocalModelCache", "spec>nodeGroups", []),
    ("LocalModelNodeGroup", "spec>storage", "1Gi"),
    ("LocalModelNodeGroup", "spec>storageLimit", True),
    ("LocalModelNodeGroup", "spec>persistentVolumeSpec>accessModes", "ReadWriteOnce"),
    ("ServiceMonitor", "spec>endpoint", []),
    ("ServiceMonitor", "spec>endpoints>0>interval", "15 seconds"),
    ("ServiceMonitor", "spec>selector>matchLabels>app", 1),
    ("PodMonitor", "spec>podMetricsEndpoints>0>portNumber", 70000),
    ("PodMonitor", "spec>podMetricsEndpoints>0>portNumbr", 80),
    ("PodMonitor", "spec>podMetricsEndpoints>0>scheme", "ftp"),
    ("PrometheusRule", "spec>groups>0>rules>0>expression", "up"),
    ("PrometheusRule", "spec>groups>0>rules>0>for", "soon"),
    ("PrometheusRule", "spec>groups>0>rules>0>labels>severity", 1),
    ("EventPolicy", "spec>form", []),
    ("EventPolicy", "spec>from>0>sub", 1),
    ("EventPolicy", "spec>to", {"ref": {}}),
    ("KnativeService", "spec>template>spec>timeout", 5),
    ("KnativeService", "spec>template>spec>timeoutSeconds", "5m"),
    ("KnativeService", "spec>template>spec>containerConcurrency", 2**70),
    ("Deployment", f"{POD}>enableServiceLink", False),
    ("Deployment", f"{POD}>terminationGracePeriodSeconds", "60"),
    ("Deployment", f"{POD}>containers>0>ports>0>containerPort", "http"),
    ("StatefulSet", "spec>replica", 1),
    ("StatefulSet", "spec>replicas", "1"),
    ("StatefulSet", "spec>volumeClaimTemplates", {}),
    ("Job", "spec>ttl", 5),
    ("Job", "spec>backoffLimit", "20"),
    ("Job", f"{POD}>restartPolicy", 1),
    ("Service", "spec>port", 80),
    ("Service", "spec>ports>0>port", "80"),
    ("Service", "spec>selector", []),
    ("ConfigMap", "datas", {}),
    ("ConfigMap", "data>TORPOR_LEASE_S", 30),
    ("Namespace", "specs", {}),
    ("Namespace", "metadata>labels", []),
    ("HorizontalPodAutoscaler", "spec>minReplica", 1),
    ("HorizontalPodAutoscaler", "spec>maxReplicas", "10"),
    ("HorizontalPodAutoscaler", "spec>metrics", {}),
    ("PodDisruptionBudget", "spec>minAvailabel", 1),
    ("PodDisruptionBudget", "spec>selector", "api"),
    ("NetworkPolicy", "spec>ingres", []),
    ("NetworkPolicy", "spec>policyTypes", "Egress"),
    ("Role", "rules>0>verb", ["get"]),
    ("Role", "rules>0>verbs", "get"),
    ("RoleBinding", "subject", []),
    ("RoleBinding", "roleRef>name", 1),
    ("ServiceAccount", "automount", False),
    ("ServiceAccount", "automountServiceAccountToken", "false"),
    ("Ingress", "spec>rule", []),
    ("Ingress", "spec>tls>0>hosts", "torpor.example.com"),
    ("PersistentVolumeClaim", "spec>accessMode", "ReadWriteOnce"),
    ("PersistentVolumeClaim", "spec>accessModes", "ReadWriteMany"),
]


@pytest.mark.parametrize(
    ("kind", "path", "value"), NEGATIVES, ids=[f"{k}-{p}={v}"[:80] for k, p, v in NEGATIVES]
)
def test_a_wrong_field_is_caught(
    samples: dict[str, dict[str, Any]], crds: Crds, kind: str, path: str, value: Any
) -> None:
    wrong = changed(samples[kind], path, value)

    assert faults(wrong, crds)


def test_every_kind_that_is_rendered_has_negative_samples(
    samples: dict[str, dict[str, Any]],
) -> None:
    assert set(samples) - {kind for kind, _, _ in NEGATIVES} == set()


def test_few_cel_rules_are_beyond_the_library(overlays: dict[str, Resources], crds: Crds) -> None:
    for resources in overlays.values():
        for resource in filter(crds.knows, resources):
            crds.faults(resource)

    assert all(".find(" in rule for rule in crds.skipped_rules)


@pytest.mark.parametrize("overlay", ["serverless", "serverless-kafka", "serverless-cpu"])
def test_the_service_that_kserve_creates_is_accepted_by_knative(
    overlays: dict[str, Resources], crds: Crds, overlay: str
) -> None:
    """KServe copies the pod's fields into a Knative Service, whose pod spec knows fewer."""
    (predictor,) = [
        r["spec"]["predictor"] for r in overlays[overlay] if r["kind"] == "InferenceService"
    ]
    kserve_only = {"minReplicas", "maxReplicas", "labels", "annotations", "timeout",
                   "scaleMetric", "scaleTarget"}  # fmt: skip
    pod = {key: value for key, value in predictor.items() if key not in kserve_only}
    timeouts = dict.fromkeys(
        ("timeoutSeconds", "responseStartTimeoutSeconds"), predictor["timeout"]
    )
    service = {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": "thinker-predictor", "namespace": "torpor"},
        "spec": {"template": {"spec": {**pod, **timeouts}}},
    }

    assert crds.faults(service) == []
