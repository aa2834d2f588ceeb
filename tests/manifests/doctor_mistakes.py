"""The mistakes that the doctor must find: each breaks one rule in a shipped overlay."""

# ruff: noqa: E501  a table of mistakes is read by row

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import yaml

from tests.manifests.conftest import Resources
from tests.manifests.doctor_objects import (
    BLOCKING,
    GONE,
    KSVC,
    STRANDED,
    A,
    N,
    call_trigger,
    config,
    deployment,
    ksvc,
    late_config,
    own,
    plans,
    pod,
    provider,
    published,
    rejected,
    replica_set,
    scaled_worker,
    step_trigger,
    storage_container,
    tiers,
    tool_servers,
)


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
