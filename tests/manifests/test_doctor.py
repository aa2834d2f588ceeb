"""Each of the doctor's rules is broken once in a shipped overlay and must be reported by name."""

# ruff: noqa: E501  a table of mistakes is read by row

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from knative.deploy.doctor import RULES, Severity, examine
from tests.manifests.conftest import ROOT, Resources
from tests.manifests.test_deployed_tools import MISTAKES as OF_DEPLOYED_TOOLS
from tests.manifests.test_tools import MISTAKES

GONE = object()
KSVC = "serving.knative.dev/v1"
N = "nginx.ingress.kubernetes.io/"
A = "autoscaling.knative.dev/"


@dataclass(frozen=True)
class Break:
    """One mistake: a field of one resource set (or GONE), or a resource added."""

    rule: str
    overlay: str
    kind: str = ""
    path: str = ""
    value: Any = GONE
    name: str = ""
    add: Any = None

    def __str__(self) -> str:
        return f"{self.rule}: {self.kind} {self.path.rpartition('>')[2]}"[:70]


def ksvc(name: str, **spec: Any) -> dict[str, Any]:
    """A Knative Service as KServe makes it for a predictor."""
    return {
        "apiVersion": KSVC,
        "kind": "Service",
        "metadata": {
            "name": name,
            "labels": {
                "serving.kserve.io/inferenceservice": "thinker",
                "networking.knative.dev/visibility": "cluster-local",
            },
        },
        "spec": {"template": {"spec": {"timeoutSeconds": 2460, **spec}}},
    }


BLOCKING = {"step": "moderate-input", "settings": {"mode": "block"}, "on_failure": "continue"}


def plans(document: Any) -> dict[str, Any]:
    """The plans of a cluster."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "torpor-pipelines", "namespace": "torpor"},
        "data": {"pipelines.yaml": yaml.safe_dump(document)},
    }


def tool_servers(**server: Any) -> dict[str, Any]:
    """The tools of a cluster: one server."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "torpor-tools", "namespace": "torpor"},
        "data": {"tools.yaml": yaml.safe_dump({"servers": {"mail": server}})},
    }


def call_trigger(*, timeout: str) -> dict[str, Any]:
    """The trigger of calls to that server."""
    made = step_trigger(retry=1, timeout=timeout)
    made["metadata"]["name"] = "tool-mail"
    wanted = {"type": "dev.torpor.tool.called.v1", "toolserver": "mail"}
    made["spec"]["filter"]["attributes"] = wanted
    return made


def tiers(*models: Any) -> dict[str, Any]:
    """A public name over several models."""
    return {"auto": {"steps": [{"step": "route", "settings": {"tiers": list(models)}}]}}


def step_trigger(*, retry: int, timeout: str) -> dict[str, Any]:
    """The trigger of one step."""
    wanted = {"type": "dev.torpor.inference.planned.v1", "step": "no-op"}
    return {
        "apiVersion": "eventing.knative.dev/v1",
        "kind": "Trigger",
        "metadata": {"name": "step-no-op", "namespace": "torpor"},
        "spec": {
            "broker": "torpor",
            "filter": {"attributes": wanted},
            "subscriber": {"uri": "http://torpor-steps.torpor.svc.cluster.local/events"},
            "delivery": {"retry": retry, "timeout": timeout, "backoffDelay": "PT1S"},
        },
    }


def provider(
    *, url: str = "https://api.example.com/v1", price: int = 15, **changed: str
) -> list[dict[str, Any]]:
    """A predictor that asks a provider, sound but for what is changed, and its card."""
    given = {
        "MODEL": "large-4",
        "KEY_FILE": "/etc/keys/key",
        "TENANTS": '["acme"]',
        "URL": url,
        **changed,
    }
    env = [{"name": f"TORPOR_UPSTREAM_{key}", "value": value} for key, value in given.items()]
    mounts = [{"name": "key", "mountPath": "/etc/keys"}]
    box = {"name": "kserve-container", "env": env, "volumeMounts": mounts}
    volumes = [{"name": "key", "secret": {"secretName": "big"}}]
    cards = json.dumps([{"name": "thinker"}, {"name": "big", "output_price_per_1m": price}])
    return [
        config("torpor-settings", "torpor", TORPOR_MODELS=cards, TORPOR_MAX_JOB_SECONDS="1800"),
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": "big", "namespace": "torpor"},
            "spec": {"predictor": {"containers": [box], "volumes": volumes}},
        },
    ]


def own(*models: str) -> str:
    """Models of this installation that stand in for a provider."""
    url = "http://torpor-api.torpor.svc.cluster.local:8000/v1"
    return json.dumps([{"url": url, "model": m, "key_file": "/etc/keys/key"} for m in models])


def published(name: str) -> dict[str, Any]:
    """A predictor's Knative Service as it was seen on the external gateway."""
    made = ksvc(name, responseStartTimeoutSeconds=2460)
    del made["metadata"]["labels"]["networking.knative.dev/visibility"]
    made["status"] = {"url": f"http://{name}.torpor.example.com"}
    return made


def rejected() -> dict[str, Any]:
    """What KServe's manager said that was started before Knative was installed."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "thinker.18a0", "namespace": "torpor"},
        "type": "Warning",
        "reason": "ServerlessModeRejected",
        "involvedObject": {"kind": "InferenceService", "name": "thinker", "namespace": "torpor"},
        "message": "It is not possible to use Knative deployment mode when Knative Services are not available",
    }  # fmt: skip


def deployment(name: str, namespace: str, **box: Any) -> dict[str, Any]:
    """A Deployment of the platform."""
    spec = {"containers": [{"name": name, **box}], "terminationGracePeriodSeconds": 300}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"template": {"spec": spec}},
    }


def scaled_worker(grace_s: int | None) -> list[dict[str, Any]]:
    """A StatefulSet with a number of its own, and the ScaledObject that scales it."""
    worker = deployment("worker", "torpor") | {"kind": "StatefulSet"}
    worker["spec"]["replicas"] = 2
    worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = grace_s
    target = {"scaleTargetRef": {"kind": "StatefulSet", "name": "worker"}, "triggers": []}
    scaler = {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": "worker", "namespace": "torpor"},
        "spec": target,
    }
    return [worker, scaler]


def config(name: str, namespace: str = "knative-serving", **data: str) -> dict[str, Any]:
    """A ConfigMap of the platform."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": data,
    }


def storage_container(**context: Any) -> dict[str, Any]:
    """KServe's own of the file kserve.yaml: without a security context unless one is given."""
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ClusterStorageContainer",
        "metadata": {"name": "default"},
        "spec": {
            "container": {"name": "storage-initializer", "image": "kserve/storage-initializer:v0.20.0", **context},
            "supportedUriFormats": [{"prefix": "gs://"}, {"prefix": "hf://"}],
        },
    }  # fmt: skip


REFUSED = (
    'pods "thinker-predictor-6f9b7c-x2x5q" is forbidden: violates PodSecurity "restricted:latest": '
    'seccompProfile (pod or container "storage-initializer" must set '
    "securityContext.seccompProfile.type to RuntimeDefault or Localhost)"
)


def replica_set() -> dict[str, Any]:
    """A ReplicaSet as the API server showed it while admission refused its pods."""
    failure = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreate",
        "message": REFUSED,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": "thinker-predictor-6f9b7c", "namespace": "torpor"},
        "spec": {"replicas": 1},
        "status": {"replicas": 0, "conditions": [failure]},
    }  # fmt: skip


def pod(**status: Any) -> dict[str, Any]:
    """A predictor's pod that does not come up."""
    data = {"name": "thinker-predictor-6f9b7c-x2x5q", "namespace": "torpor"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": data, "status": status}


def late_config() -> list[dict[str, Any]]:
    """An api's pod, and the triggers changed after it started, as both were recorded."""
    told = {"manager": "torpor", "time": "2026-11-29T12:00:00Z", "fieldsV1": {"f:data": {}}}
    triggers = config("torpor-triggers", "torpor", **{"triggers.yaml": ""})
    triggers["metadata"]["managedFields"] = [told]
    api = pod(startTime="2026-11-29T11:00:00Z")
    api["metadata"]["labels"] = {"app.kubernetes.io/component": "api"}
    api["spec"] = {"volumes": [{"name": "t", "configMap": {"name": "torpor-triggers"}}]}
    return [triggers, api]


STRANDED = """\
metadata: {name: requests-thinker-canary}
spec:
  filter: {attributes: {type: dev.torpor.inference.requested.v1, model: thinker}}
  subscriber: {uri: "http://localhost:8080/events"}
"""
ISVC = "InferenceService"
P = "spec>predictor"
BOX = f"{P}>containers>0"
SO = "ScaledObject"
RED = "spec>triggers>0>metadata"
MOD = "spec>advanced>scalingModifiers"
BEH = "spec>advanced>horizontalPodAutoscalerConfig>behavior"
POD = "spec>template>spec"
CB = f"{POD}>containers>0"
TR = "requests-thinker"
D = "spec>delivery"

BREAKS = [
    # the api
    Break("api-behind-queue-proxy", "queue", add=ksvc("torpor-api")),
    Break("api-sleeps", "serverless+api-knative", "KnativeService", f"spec>template>metadata>annotations>{A}min-scale", "0"),
    Break("api-sleeps", "queue", "HorizontalPodAutoscaler", "spec>minReplicas", 0),
    Break("ingress-timeout", "queue", "Ingress", f"metadata>annotations>{N}proxy-read-timeout", "60"),
    Break("ingress-timeout", "queue", "Ingress", f"metadata>annotations>{N}proxy-send-timeout"),
    Break("ingress-buffering", "queue", "Ingress", f"metadata>annotations>{N}proxy-buffering"),
    Break("ingress-retry", "queue", "Ingress", f"metadata>annotations>{N}proxy-next-upstream"),
    # names, and what an autoscaler owns
    Break("names-lead-somewhere", "queue", "ScaledObject", "spec>scaleTargetRef>name", "thinker"),
    Break("names-lead-somewhere", "queue", "ScaledObject", "spec>triggers>0>metadata>address", "torpor-redis2.torpor.svc:6379"),
    Break("names-lead-somewhere", "queue", "ScaledObject", "spec>triggers>0>authenticationRef>name", "redis"),
    Break("names-lead-somewhere", "queue", "TriggerAuthentication", "spec>secretTargetRef>0>name", "redis"),
    Break("names-lead-somewhere", "queue", "ConfigMap", "data>TORPOR_BROKER_URL", "http://broker:8081", "torpor-settings"),
    Break("names-lead-somewhere", "queue", "Trigger", "spec>subscriber>uri", "http://thinker.torpor.svc.cluster.local/events"),
    Break("names-lead-somewhere", "queue", ISVC, f"{P}>serviceAccountName", "predictor"),
    Break("names-lead-somewhere", "queue", "Ingress", "spec>rules>0>http>paths>0>backend>service>name", "api"),
    Break("names-lead-somewhere", "serverless-kafka", "Trigger", "spec>broker", "default"),
    Break("replicas-of-an-autoscaler", "queue", add=scaled_worker(600)),
    Break("workload-grace", "queue", add=scaled_worker(5)),
    Break("workload-grace", "queue", add=scaled_worker(None)),
    # the held path
    Break("models-listed", "queue", "ConfigMap", "data>TORPOR_MODELS", '[{"name": "other"}]', "torpor-settings"),
    Break("models-listed", "queue", "ConfigMap", "data>TORPOR_MODELS", "thinker", "torpor-settings"),
    Break("hold-timeout", "serverless", ISVC, f"{P}>timeout", 300),
    Break("hold-timeout", "serverless", ISVC, f"{P}>timeout"),
    Break("hold-response-start", "serverless", add=ksvc("thinker-predictor", responseStartTimeoutSeconds=300)),
    Break("hold-idle", "serverless", add=ksvc("thinker-predictor", responseStartTimeoutSeconds=2460, idleTimeoutSeconds=60)),
    Break("max-revision-timeout", "serverless", add=config("config-defaults")),
    Break("activator-grace", "serverless", add=deployment("activator", "knative-serving")),
    Break("scale-to-zero-enabled", "serverless", add=config("config-autoscaler", **{"enable-scale-to-zero": "false"})),
    Break("knative-settings", "serverless", ISVC, f"metadata>annotations>{A}window", "2h"),
    Break("knative-settings", "serverless", ISVC, f"metadata>annotations>{A}target-utilization", "85"),
    Break("kpa-class", "serverless", ISVC, f"metadata>annotations>{A}class", "hpa.autoscaling.knative.dev"),
    Break("kpa-window", "serverless", ISVC, f"metadata>annotations>{A}window", "60s"),
    Break("progress-deadline", "serverless", ISVC, "metadata>annotations>serving.knative.dev/progress-deadline", "300s"),
    Break("container-concurrency", "serverless", ISVC, f"{P}>containerConcurrency", 0),
    Break("container-concurrency", "serverless", ISVC, f"{P}>containerConcurrency", 100),
    Break("deployment-mode", "queue", ISVC, "metadata>annotations>serving.kserve.io/deploymentMode"),
    Break("mode-name-by-version", "queue", add=deployment("kserve-controller-manager", "kserve", image="kserve/kserve-controller:v0.15.2")),
    Break("hold-and-claim", "queue", ISVC, "metadata>annotations>serving.kserve.io/deploymentMode", "Knative"),
    Break("hold-and-claim", "serverless", ISVC, "metadata>annotations>serving.kserve.io/deploymentMode", "Standard"),
    Break("hold-mode-length", "serverless", "ConfigMap", "data>TORPOR_MAX_JOB_SECONDS", "1801", "torpor-settings"),
    Break("predictor-visibility", "serverless", ISVC, "metadata>labels>networking.knative.dev/visibility"),
    Break("predictor-visibility", "serverless-kafka", ISVC, "metadata>labels>networking.knative.dev/visibility", "external"),
    Break("predictor-visibility", "serverless", add=published("thinker-predictor")),
    Break("knative-before-kserve", "serverless", add=rejected()),
    Break("knative-before-kserve", "serverless", ISVC, "metadata>uid", "0b64b3a5"),
    Break("initial-scale", "serverless", ISVC, f"metadata>annotations>{A}initial-scale"),
    Break("initial-scale", "serverless", add=config("config-autoscaler", **{"enable-scale-to-zero": "true"})),
    Break("istio-virtual-host", "serverless", add=[
        config("config-network", **{"ingress-class": "kourier.ingress.networking.knative.dev"}),
        config("inferenceservice-config", "kserve", ingress='{"disableIstioVirtualHost": false}'),
    ]),
    # the broker
    Break("broker-class", "serverless", "Broker", "metadata>annotations>eventing.knative.dev/broker.class", "MTChannelBasedBroker"),
    Break("broker-class", "serverless", "Broker", "metadata>annotations>eventing.knative.dev/broker.class"),
    Break("broker-address", "serverless", "ConfigMap", "data>TORPOR_BROKER_URL", "http://kafka-broker-ingress.x", "torpor-settings"),
    Break("broker-address", "queue", "ConfigMap", "data>TORPOR_BROKER_URL", GONE, "torpor-settings"),
    Break("broker-tls", "serverless+oidc", "Deployment", f"{CB}>env>6", {"name": "X", "value": "y"}, "torpor-api"),
    Break("broker-tls", "serverless+oidc", "ConfigMap", "data>TORPOR_BROKER_URL", "http://kafka-broker-ingress.x", "torpor-settings"),
    Break("ingress-token", "queue", "Deployment", f"{CB}>env>4", {"name": "X", "value": "y"}, "torpor-broker"),
    Break("ingress-token", "serverless", "Deployment", f"{CB}>env>4", {"name": "X", "value": "y"}, "torpor-broker"),
    Break("rabbitmq-quorum", "serverless", "RabbitmqBrokerConfig", "spec>queueType", "classic"),
    Break("rabbitmq-quorum", "serverless", "RabbitmqCluster", "spec>replicas", 2),
    Break("rabbitmq-ack-timer", "serverless", "RabbitmqCluster", "spec>rabbitmq>additionalConfig", "queue_leader_locator = balanced"),
    Break("rabbitmq-ack-timer", "serverless", "Trigger", "metadata>annotations>rabbitmq.eventing.knative.dev/parallelism", "1", TR),
    Break("rabbitmq-parallelism", "serverless", "Trigger", "metadata>annotations>rabbitmq.eventing.knative.dev/parallelism", "2000", TR),
    Break("rabbitmq-parallelism", "serverless", "Trigger", "metadata>annotations>rabbitmq.eventing.knative.dev/parallelism", GONE, TR),
    Break("kafka-order", "serverless-kafka", "Trigger", "metadata>annotations>kafka.eventing.knative.dev/delivery.order", "ordered", TR),
    Break("kafka-partitions", "serverless-kafka", "ConfigMap", "data>default.topic.partitions", "2", "torpor-kafka-broker"),
    Break("untrusted-source", "queue", add={"apiVersion": "sources.knative.dev/v1alpha1", "kind": "RedisStreamSource", "metadata": {"name": "s"}}),
    # the deliveries
    Break("delivery-timeout", "serverless", "Trigger", f"{D}>timeout", "PT600S", TR),
    Break("delivery-timeout", "serverless-kafka", "Trigger", f"{D}>timeout", GONE, TR),
    Break("retry-span", "serverless", "Trigger", f"{D}>retry", 10, TR),
    Break("retry-span", "serverless", "Trigger", f"{D}>backoffDelay", "PT0.2S", TR),
    Break("retry-waits", "serverless", "Trigger", f"{D}>backoffPolicy", "exponential", TR),
    Break("dead-letter-sink", "serverless", "Trigger", f"{D}>deadLetterSink", GONE, TR),
    Break("delivery-form", "serverless", "Trigger", f"{D}>retries", 3, TR),
    Break("delivery-form", "serverless", "Broker", f"{D}>timeout", "30s"),
    Break("delivery-form", "serverless", "Trigger", f"{D}>backoffPolicy", "fibonacci", TR),
    Break("delivery-form", "serverless", "Trigger", f"{D}>retryAfterMax", "PT60S", TR),
    Break("trigger-filter", "serverless", "Trigger", "spec>filter", GONE, TR),
    Break("trigger-filter", "serverless", "Trigger", "spec>filter>attributes>model", "other", TR),
    Break("models-split", "serverless", add={"apiVersion": "serving.kserve.io/v1beta1", "kind": ISVC, "metadata": {"name": "second"}}),
    Break("pump-trigger", "queue", ISVC, f"{P}>containers>1>env>2>value", "requests-second"),
    Break("rabbitmq-filters", "serverless", "Trigger", "spec>filters", [{"exact": {"type": "dev.torpor.inference.requested.v1"}}], TR),
    Break("reference-port", "serverless", "Trigger", "spec>subscriber", {"ref": {"apiVersion": "v1", "kind": "Service", "name": "torpor-api"}}, TR),
    Break("subscriber", "serverless", "Trigger", "spec>subscriber>ref>name", "thinker-predictor-default", TR),
    Break("subscriber", "serverless", "Trigger", "spec>subscriber>uri", "/v1/models", TR),
    Break("delivery-timeout", "queue", "Trigger", f"{D}>timeout", "PT30S", TR),
    Break("retry-span", "queue", "Trigger", f"{D}>retry", 3, TR),
    Break("pump-parallelism", "queue", "Trigger", "metadata>annotations>torpor.dev/parallelism", "64", TR),
    # the scaler
    Break("keda-version", "queue", add=deployment("keda-operator", "keda", image="ghcr.io/kedacore/keda:2.16.1")),
    Break("autoscaler-class", "queue", ISVC, "metadata>annotations>serving.kserve.io/autoscalerClass", "keda"),
    Break("nothing-wakes", "queue", SO, "spec>scaleTargetRef>name", "thinker"),
    Break("two-scalers", "queue", "HorizontalPodAutoscaler", "spec>scaleTargetRef>name", "thinker-predictor"),
    Break("two-scalers", "queue", ISVC, "metadata>annotations>serving.kserve.io/deploymentMode", "Knative"),
    Break("keda-lag-alone", "queue", SO, "spec>triggers>1"),
    Break("keda-lag-alone", "queue", SO, "spec>triggers>0"),
    Break("keda-both-counts", "queue", SO, f"{RED}>pendingEntriesCount", "16"),
    Break("steps-block", "queue", add=plans({"thinker": {"steps": [BLOCKING]}})),
    Break("steps-block", "queue", add=plans({"thinker": {"step": "no-op"}})),
    Break("steps-block", "queue", add=plans({"thinker": {"audit": {"critic": "thinker"}}})),
    Break("audit-critic", "queue", add=plans({"thinker": {"audit": {"critic": "judge"}}})),
    Break("audit-critic", "queue", add=plans({"thinker": {"audit": {"critic": "thinker-32b"}}})),
    Break("steps-trigger", "queue", add=plans({"thinker": {"steps": ["no-op"]}})),
    Break("steps-timeout", "serverless-kafka", add=step_trigger(retry=10, timeout="PT300S")),
    Break("tools-block", "queue", add=[tool_servers(url="http://mail.example.com"), call_trigger(timeout="PT90S")]),
    Break("tools-block", "queue", add=[tool_servers(url="https://a.example", effect="twice")]),
    Break("tools-trigger", "queue", add=tool_servers(url="https://mail.example.com")),
    Break("tools-timeout", "queue", add=[tool_servers(url="https://a.example"), call_trigger(timeout="PT30S")]),
    Break("keda-formula", "queue", SO, f"{MOD}>formula", "lag + pend"),
    Break("keda-formula", "queue", SO, "spec>advanced>scalingModifiers"),
    Break("keda-activation", "queue", SO, f"{MOD}>activationTarget", "1"),
    Break("keda-activation", "queue", SO, f"{RED}>activationLagCount", "5"),
    Break("keda-settings", "queue", SO, f"{MOD}>formula", "(lag > 0 ? lag : 0) + pend + unknown"),
    Break("keda-settings", "queue", SO, f"{RED}>lagCount", "many"),
    Break("keda-settings", "queue", SO, f"{RED}>consumergroup", "torpor"),
    Break("keda-cooldown", "queue", SO, "spec>cooldownPeriod", 60),
    Break("keda-initial-cooldown", "queue", SO, "spec>initialCooldownPeriod", 660),
    Break("keda-stream", "queue", SO, f"{RED}>stream", "torpor:requests:tickets"),
    Break("keda-stream", "queue", SO, f"{RED}>consumerGroup", "pumps"),
    Break("keda-scale-up", "queue", SO, f"{BEH}>scaleUp"),
    Break("keda-scale-down", "queue", SO, f"{BEH}>scaleDown>stabilizationWindowSeconds", 30),
    Break("keda-fallback", "queue", SO, "spec>fallback", {"failureThreshold": 3, "replicas": 0}),
    Break("keda-paused", "queue", SO, "metadata>annotations", {"autoscaling.keda.sh/paused": "true"}),
    Break("keda-rabbitmq-amqp", "queue", SO, "spec>triggers>0", {"type": "rabbitmq", "metadata": {"protocol": "amqp", "queueName": "q", "mode": "QueueLength", "value": "5"}}),
    Break("scaler-address", "queue+work", SO, f"{RED}>scalerAddress", "torpor-scaler.torpor.svc:9000"),
    Break("scaler-address", "queue+work", SO, f"{RED}>scalerAddress", "nobody.torpor.svc:9090"),
    Break("scaler-address", "queue+work", "Deployment", "spec>replicas", 2, "torpor-scaler"),
    Break("scaler-settings", "queue+work", SO, f"{RED}>slots", "many"),
    Break("scaler-settings", "queue+work", SO, f"{RED}>queue", "requests-other"),
    Break("keda-sleeping-metric", "queue", SO, "spec>triggers>2>metadata>query", "sum(vllm:num_requests_waiting)"),
    Break("replica-limits", "queue", SO, "spec>maxReplicaCount", 100),
    # the predictor's pod
    Break("standard-grace", "queue", ISVC, f"{P}>terminationGracePeriodSeconds"),
    Break("standard-grace", "queue", ISVC, f"{P}>terminationGracePeriodSeconds", 300),
    Break("drain-grace", "queue", "ConfigMap", "data>TORPOR_DRAIN_GRACE_S", "1900", "torpor-settings"),
    Break("drain-grace", "serverless", "ConfigMap", "data>TORPOR_DRAIN_GRACE_S", "2440", "torpor-settings"),
    Break("kserve-cpu-limit", "queue", ISVC, f"{BOX}>resources>limits>cpu"),
    Break("shutdown-timeout", "queue", ISVC, f"{BOX}>image", "docker.io/vllm/vllm-openai:v0.20.0"),
    Break("startup-probe", "queue", ISVC, f"{BOX}>startupProbe"),
    Break("startup-probe", "queue", ISVC, f"{BOX}>startupProbe>failureThreshold", 30),
    Break("readiness-path", "queue", ISVC, f"{BOX}>readinessProbe>httpGet>path", "/"),
    Break("container-name", "queue", ISVC, f"{BOX}>name", "model"),
    Break("model-name", "queue", ISVC, f"{BOX}>args", ["--served-model-name=other"]),
    Break("protocol", "queue", ISVC, f"{BOX}>env>1>value", "grpc-v2"),
    Break("model-cache-uri", "queue+nodes", "LocalModelCache", "spec>sourceModelUri", "hf://other/model"),
    Break("knative-features", "serverless", add=config("config-features")),
    # the node
    Break("gpu-toleration", "queue", ISVC, f"{P}>tolerations"),
    Break("gpu-count", "queue", ISVC, f"{BOX}>resources>limits>nvidia.com/gpu", "2"),
    Break("node-grace", "queue+nodes", "NodePool", f"{POD}>terminationGracePeriod", "5m"),
    Break("node-consolidation", "queue+nodes", "NodePool", "spec>disruption>consolidationPolicy", "WhenEmptyOrUnderutilized"),
    Break("node-label", "queue+nodes", ISVC, f"{P}>nodeSelector", {"nvidia.com/gpu.product": "NVIDIA-L40S"}),
    Break("cluster-autoscaler-grace", "queue", add=deployment("cluster-autoscaler", "kube-system", command=["./cluster-autoscaler"])),
    Break("disruption-budget", "queue", "PodDisruptionBudget", "spec>maxUnavailable", 0, "torpor-predictor"),
    # the store
    Break("store-eviction", "queue", "ConfigMap", "data>valkey.conf", "appendonly yes\nmaxmemory-policy allkeys-lru\n", "torpor-redis"),
    Break("store-durable", "queue", "ConfigMap", "data>valkey.conf", "maxmemory-policy noeviction\n", "torpor-redis"),
    Break("store-durable", "queue", "StatefulSet", "spec>volumeClaimTemplates"),
    # security
    Break("restricted-pod", "queue", "Deployment", f"{CB}>securityContext>capabilities", GONE, "torpor-api"),
    Break("restricted-pod", "queue", ISVC, f"{P}>containers>1>securityContext>runAsUser", 0),
    Break("restricted-pod", "queue", ISVC, f"{P}>securityContext"),
    Break("restricted-pod", "serverless-kafka", ISVC, f"{P}>securityContext"),
    Break("restricted-pod", "queue", add=storage_container()),
    Break("queue-served", "queue", ISVC, f"{P}>containers>1>env>2>value", "requests-other"),
    Break("queue-served", "queue", "ConfigMap", "data>triggers.yaml", STRANDED, "torpor-triggers"),
    Break("queue-served", "queue", SO, "spec>triggers", []),
    Break("config-followed", "queue", add=late_config()),
    Break("pods-refused", "queue", add=replica_set()),
    Break("pods-stuck", "queue", add=pod(conditions=[{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: 1 Insufficient cpu."}])),
    Break("pods-stuck", "queue", add=pod(containerStatuses=[{"name": "kserve-container", "state": {"waiting": {"reason": "ImagePullBackOff"}}}])),
    Break("restricted-pod", "queue", "StatefulSet", f"{CB}>securityContext>readOnlyRootFilesystem"),
    Break("object-form", "queue", add={"kind": "Role", "metadata": None}),
    Break("host-access", "queue", "Deployment", f"{POD}>hostNetwork", True, "torpor-api"),
    Break("host-access", "queue", ISVC, f"{P}>volumes>0", {"name": "tmp", "hostPath": {"path": "/tmp"}}),
    Break("image-pinned", "queue", "Deployment", f"{CB}>image", "registry.example.com:5000/torpor/api", "torpor-api"),
    Break("image-pinned", "queue", "Deployment", f"{CB}>image", "torpor/api:latest", "torpor-api"),
    Break("secret-in-manifest", "queue", add={"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": "b"}}),
    Break("secret-in-manifest", "queue", "Deployment", f"{CB}>env>1", {"name": "TORPOR_DELIVERY_TOKEN", "value": "abc"}, "torpor-api"),
    Break("secret-in-manifest", "queue", "ConfigMap", "data>TORPOR_REDIS_URL", "redis://:hunter2@redis:6379/0", "torpor-settings"),
    Break("service-links", "queue", "Deployment", f"{POD}>enableServiceLinks", GONE, "torpor-broker"),
    Break("api-token", "queue", ISVC, f"{P}>automountServiceAccountToken"),
    Break("limits", "queue", "Deployment", f"{CB}>resources>limits", GONE, "torpor-api"),
    Break("rights", "queue", "Role", "rules>0>verbs", ["*"], "torpor-deployer"),
    Break("default-deny", "queue", "NetworkPolicy", "spec>policyTypes", ["Ingress"], "nothing-by-default"),
    Break("pod-standard", "queue", "Namespace", "metadata>labels>pod-security.kubernetes.io/enforce", "privileged"),
    Break("provider-key", "queue", add=provider(KEY_FILE="")),
    Break("provider-key", "queue", add=provider(KEY_FILE="/tmp/key")),
    Break("provider-key", "queue", add=provider(FALLBACKS='[{"url": "http://torpor-api/v1", "model": "thinker"}]')),
    Break("provider-tenants", "queue", add=provider(TENANTS="")),
    Break("provider-tenants", "queue", add=provider(TENANTS="acme")),
    Break("provider-tenants", "queue", add=[*provider(), plans(tiers("thinker", "big"))]),
    Break("provider-tenants", "queue", add=[*provider(), plans(tiers({"model": "big", "tenants": ["acme", "zen"]}))]),
    Break("provider-tenants", "queue", add=[*provider(), plans({"thinker": {"fallback": "big"}})]),
    Break("provider-tenants", "queue", add=[*provider(), plans({"thinker": {"steps": [{"step": "validate-output", "settings": {"cascade": ["big"]}}]}})]),
    Break("provider-fallback", "queue", add=[*provider(), plans({"thinker": {"fallback": "bigg"}})]),
    Break("steps-block", "queue", add=plans({"thinker": {"fallback": 7}})),
    Break("provider-price", "queue", add=provider(price=0)),
    Break("provider-fallback", "queue", add=provider(FALLBACKS=own("thinkr"))),
    Break("provider-fallback", "queue", add=provider(FALLBACKS=own("big"))),
    Break("provider-fallback", "queue", add=[*provider(FALLBACKS=own("auto")), plans(tiers("thinker", "big"))]),
    Break("provider-fallback", "queue", add=provider(FALLBACKS="thinker")),
    Break("provider-timeout", "queue", add=provider(FALLBACKS=own(*["thinker"] * 5))),
    Break("provider-way-out", "queue", add=provider(url="https://api.example.com:8443/v1")),
    Break("keys-file", "queue", "Deployment", f"{CB}>env>5", {"name": "X", "value": "y"}, "torpor-api"),
]  # fmt: skip


def broken(resources: Resources, mistake: Break) -> Resources:
    """Give a copy of the resources with the mistake in it."""
    made = copy.deepcopy(resources)
    if mistake.add is not None:
        added = mistake.add if isinstance(mistake.add, list) else [mistake.add]
        changed = [r["metadata"]["name"] for r in added if r["kind"] == "ConfigMap"]
        return [*(r for r in made if r["metadata"]["name"] not in changed), *added]
    if mistake.kind == "Trigger" and not any(r["kind"] == "Trigger" for r in made):
        _break_own_trigger(made, mistake)
        return made
    _set(_find(made, mistake), mistake.path, mistake.value)
    return made


def _find(resources: Resources, mistake: Break) -> dict[str, Any]:
    kind = "Service" if mistake.kind == "KnativeService" else mistake.kind
    return next(
        r
        for r in resources
        if r["kind"] == kind
        and mistake.name in ("", r["metadata"]["name"])
        and (mistake.kind != "KnativeService" or r["apiVersion"] == KSVC)
    )


def _break_own_trigger(resources: Resources, mistake: Break) -> None:
    holder = next(r for r in resources if r["metadata"]["name"] == "torpor-triggers")
    triggers = list(yaml.safe_load_all(holder["data"]["triggers.yaml"]))
    _set(_find(triggers, mistake), mistake.path, mistake.value)
    holder["data"]["triggers.yaml"] = yaml.safe_dump_all(triggers)


def _set(node: Any, path: str, value: Any) -> None:
    *steps, last = path.split(">")
    for step in steps:
        node = node[int(step)] if isinstance(node, list) else node[step]
    key: Any = int(last) if isinstance(node, list) else last
    if value is GONE:
        del node[key]
    else:
        node[key] = value


def test_without_istio_kserve_must_not_create_virtual_services(
    overlays: dict[str, Resources],
) -> None:
    kourier = config(
        "config-network", **{"ingress-class": "kourier.ingress.networking.knative.dev"}
    )
    default = config(
        "inferenceservice-config", "kserve", ingress='{"disableIstioVirtualHost": false}'
    )
    told = config("inferenceservice-config", "kserve", ingress='{"disableIstioVirtualHost": true}')

    def found(*added: dict[str, Any]) -> list[str]:
        return [
            f.fault.field
            for f in examine([*overlays["serverless"], *added]).findings
            if f.rule.name == "istio-virtual-host"
        ]

    assert len(found(kourier, default)) == 1
    assert found(kourier, told) == found(default) == found() == []


@pytest.mark.parametrize("mistake", BREAKS, ids=str)
def test_a_mistake_is_named_by_its_rule(overlays: dict[str, Resources], mistake: Break) -> None:
    sound = overlays[mistake.overlay]
    before = {f.fault for f in examine(sound).findings if f.rule.name == mistake.rule}

    after = {
        f.fault for f in examine(broken(sound, mistake)).findings if f.rule.name == mistake.rule
    }

    assert after - before


def test_a_sound_provider_breaks_none_of_its_rules(overlays: dict[str, Resources]) -> None:
    sound = {
        **tiers("thinker", {"model": "big", "tenants": ["acme"]}),
        "thinker": {"fallback": {"model": "big", "tenants": ["acme"]}},
    }
    mistake = Break("", "queue", add=[*provider(FALLBACKS=own("thinker")), plans(sound)])
    out = {"podSelector": {}, "egress": [{"ports": [{"port": 443}, {"port": 8000}]}]}
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "out"},
        "spec": out,
    }

    found = examine([*broken(overlays["queue"], mistake), policy]).findings

    assert [f for f in found if f.rule.name.startswith("provider-")] == []


def test_every_rule_is_broken_by_some_mistake() -> None:
    broken = {mistake.rule for mistake in BREAKS} | {rule for _, rule in MISTAKES.values()}
    broken |= {rule for _, found in OF_DEPLOYED_TOOLS.values() for rule, _ in found}

    assert {rule.name for rule in RULES} == broken


def test_rules_have_names_of_their_own_and_say_why_and_whence() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.why and rule.source for rule in RULES)


def test_every_source_in_the_page_of_facts_is_there() -> None:
    page = ROOT.parent / "shared" / "facts.md"
    if not page.is_file():
        pytest.skip("../shared/facts.md is not beside this checkout")
    text = page.read_text(encoding="utf-8")

    for rule in RULES:
        for listed in re.findall(r"facts ((?:\d\.\d+b?(?:, )?)+)", rule.source):
            for section in listed.rstrip(", ").split(", "):
                assert f"### {section} " in text, rule.name
        for row in re.findall(r"(?<![\w])#(\d{1,2})\b", rule.source):
            assert f"| {row} |" in text, rule.name


def test_no_overlay_has_an_error(overlays: dict[str, Resources]) -> None:
    errors = {
        f"{name}: {finding.rule.name} {finding.fault}"
        for name, resources in overlays.items()
        for finding in examine(resources).of(Severity.ERROR)
    }

    assert errors == set()


def test_queue_overlays_are_without_warning_too(overlays: dict[str, Resources]) -> None:
    assert examine(overlays["queue"]).of(Severity.WARNING) == ()
    assert examine(overlays["queue-cpu"]).of(Severity.WARNING) == ()


def test_a_held_job_of_thirty_minutes_is_warned_about(overlays: dict[str, Resources]) -> None:
    names = {f.rule.name for f in examine(overlays["serverless"]).of(Severity.WARNING)}

    assert names == {"hold-mode-length"}


def test_facts_that_a_folder_cannot_show_are_listed_as_needed(
    overlays: dict[str, Resources],
) -> None:
    report = examine(overlays["serverless"])

    asked = {f.rule.name for f in report.of(Severity.NEEDED)}
    assert asked == {"max-revision-timeout", "activator-grace", "knative-features"}
    assert report.exit_status() == 0
    assert report.exit_status(is_strict=True) == 1


def test_a_cluster_with_the_rendered_settings_needs_nothing_more(
    overlays: dict[str, Resources],
) -> None:
    flags = ("nodeselector", "tolerations", "securitycontext")
    cluster = [
        config("config-defaults", **{"max-revision-timeout-seconds": "2460"}),
        config("config-features", **{f"kubernetes.podspec-{f}": "enabled" for f in flags}),
        deployment("activator", "knative-serving"),
    ]
    cluster[2]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 2490

    report = examine([*overlays["serverless"], *cluster])

    assert report.of(Severity.NEEDED) == ()
    assert report.of(Severity.ERROR) == ()


def test_a_longer_job_than_rendered_for_breaks_every_hop(overlays: dict[str, Resources]) -> None:
    names = {f.rule.name for f in examine(overlays["serverless"], job_s=7200).of(Severity.ERROR)}

    assert names >= {"hold-timeout", "delivery-timeout", "retry-span", "ingress-timeout"}


def test_findings_come_hop_by_hop_with_the_worst_first(overlays: dict[str, Resources]) -> None:
    mistakes = [mistake for mistake in BREAKS if mistake.overlay == "serverless" and mistake.kind]
    resources = overlays["serverless"]
    for mistake in mistakes[:20]:
        try:
            resources = broken(resources, mistake)
        except (KeyError, StopIteration):  # two mistakes in one place
            continue

    findings = examine(resources).findings

    hops = list(dict.fromkeys(f.rule.hop for f in findings))
    assert hops == sorted(hops, key=list(type(hops[0])).index)


def test_garbage_is_examined_without_falling_over() -> None:
    garbage: Resources = [
        {},
        {"kind": "InferenceService", "apiVersion": "serving.kserve.io/v1beta1", "metadata": {"name": "x"}},
        {"kind": "ScaledObject", "apiVersion": "keda.sh/v1alpha1", "metadata": {"name": "x"}, "spec": {}},
        {"kind": "Trigger", "apiVersion": "eventing.knative.dev/v1", "metadata": {"name": "x"}},
    ]  # fmt: skip

    assert examine(garbage).exit_status() == 1


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(
            {"kind": "Deployment", "apiVersion": "apps/v1", "metadata": None}, id="no metadata"
        ),
        pytest.param({"kind": "Role", "metadata": {"name": 5}}, id="a name that is no text"),
        pytest.param(
            {
                "kind": SO,
                "apiVersion": "keda.sh/v1alpha1",
                "metadata": {"name": "x"},
                "spec": {"triggers": [7]},
            },
            id="a number for a trigger",
        ),
        pytest.param(
            {
                "kind": "Trigger",
                "apiVersion": "eventing.knative.dev/v1",
                "metadata": {"name": "t"},
                "spec": {"delivery": 5},
            },
            id="a number for a delivery",
        ),
        pytest.param(
            {
                "kind": "Deployment",
                "apiVersion": "apps/v1",
                "metadata": {"name": "d"},
                "spec": {"template": {"spec": {"containers": "x"}}},
            },
            id="a text for containers",
        ),
        pytest.param(
            {
                "kind": "ConfigMap",
                "apiVersion": "v1",
                "metadata": {"name": "torpor-triggers"},
                "data": {"triggers.yaml": "a: ["},
            },
            id="triggers that are no YAML",
        ),
    ],
)
def test_a_malformed_object_is_an_error_and_no_traceback(
    overlays: dict[str, Resources], garbage: dict[str, Any]
) -> None:
    findings = examine([garbage, *overlays["queue"]]).of(Severity.ERROR)

    assert findings
    assert all(finding.fault.must_be for finding in findings)
