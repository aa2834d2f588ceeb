"""The folder `manifests/`: which file holds what, and which overlay takes which component.

Called by `render`. Pure: values in, texts out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from knative.deploy import (
    cluster,
    events,
    foundation,
    front,
    hardware,
    inference,
    network,
    observability,
    parts,
    scaling,
    store,
)
from knative.deploy.emit import Resource, because, document
from knative.deploy.inference import Patch
from knative.deploy.timeouts import Timeouts, derive
from knative.deploy.values import Values

HEADER = "Written by `torpor render` from manifests/values.yaml: change the value, not this file."
VALUES_ANNOTATION = "torpor.dev/values"

OVERLAYS: Mapping[str, Sequence[str]] = {
    "serverless": ("serverless", "broker-rabbitmq", "gpu-nvidia", "ingress", "monitoring"),
    "serverless-kafka": ("serverless", "broker-kafka", "gpu-nvidia", "ingress", "monitoring"),
    "serverless-cpu": ("serverless", "broker-rabbitmq", "cpu-small"),
    "queue": ("queue", "keda", "gpu-nvidia", "keda-pressure", "ingress", "monitoring"),
    "queue-cpu": ("queue", "keda", "cpu-small"),
}
WHAT_FOR: Mapping[str, str] = {
    "serverless": "Knative Broker (RabbitMQ), Triggers, KPA; GPUs. Jobs of seconds to minutes.",
    "serverless-kafka": "The same on a Kafka Broker.",
    "serverless-cpu": "The same on a small cluster without a GPU.",
    "queue": "Torpor's broker on Redis, a pump beside each predictor, KEDA; GPUs. Any length.",
    "queue-cpu": "The same on a small cluster without a GPU.",
}


def files(values: Values) -> dict[str, str]:
    """Give every file under manifests/ by its path, values.yaml and images aside."""
    times = derive(values)
    found = _base(values, times)
    for name, make in _COMPONENTS.items():
        found |= _component(name, *make(values, times))
    for name in OVERLAYS:
        found |= _overlay(name, values)
    return found | cluster.files(values, times)


def fingerprint(values: Values) -> str:
    """Give a short hash of the values: pods that carry it roll when a value changes."""
    return hashlib.sha256(values.model_dump_json().encode()).hexdigest()[:12]


def _kustomization(kind: str, **fields: Any) -> str:
    version = "v1alpha1" if kind == "Component" else "v1beta1"
    head = {"apiVersion": f"kustomize.config.k8s.io/{version}", "kind": kind}
    return document({**head, **{k: v for k, v in fields.items() if v}}, header=HEADER)


def _base(values: Values, times: Timeouts) -> dict[str, str]:
    contents: dict[str, list[Resource]] = {
        "namespace": [foundation.namespace(values)],
        "service-accounts": foundation.service_accounts(values),
        "rbac": foundation.rights(values),
        "first-secrets": [foundation.first_secrets_job(values)],
        "settings": [parts.settings(values, times)],
        "redis": store.redis(values),
        "api": [
            front.files_claim(values),
            _stamped(front.deployment(values), values),
            parts.service(parts.API, "api", values, http=parts.API_PORT),
            front.autoscaler(values),
            front.budget(values),
        ],
        "predictor": [inference.service(values, times), inference.predictor_budget(values)],
        "network-policies": network.policies("base", values),
    }
    predictor = contents["predictor"][0]["spec"]["predictor"]
    predictor["annotations"] = {VALUES_ANNOTATION: fingerprint(values)}
    found = {f"base/{n}.yaml": document(*r, header=HEADER) for n, r in contents.items()}
    names = [f"{name}.yaml" for name in contents]
    found["base/kustomization.yaml"] = _kustomization("Kustomization", resources=names)
    return found


def _stamped(workload: Resource, values: Values) -> Resource:
    workload["spec"]["template"]["metadata"]["annotations"] = {
        VALUES_ANNOTATION: fingerprint(values)
    }
    return workload


Parts = tuple[dict[str, list[Resource]], list[Resource]]


def _patch(kind: str, name: str, patch: Patch) -> Resource:
    """Give a kustomize entry that patches one object with JSON 6902 operations."""
    return {"target": {"kind": kind, "name": name}, "patch": document(list(patch))}


def _broker_url(kind: str, values: Values) -> Resource:
    url = events.broker_url(kind, values)
    operation = {"op": "add", "path": "/data/TORPOR_BROKER_URL", "value": url}
    return _patch("ConfigMap", parts.SETTINGS, [operation])


def _serverless(values: Values, times: Timeouts) -> Parts:
    policies = network.policies("serverless", values)
    patch = _patch("InferenceService", values.model.name, inference.hold_patch(values, times))
    deployment, *rest = events.own_broker(values, "")
    contents = {
        "triggers": events.triggers(values, times),
        "relay": [
            _triggers_file(values, events.relay_triggers(values, times)),
            _stamped(deployment, values),
            *rest,
        ],
        "network-policies": policies,
    }
    return contents, [patch]


def _triggers_file(values: Values, triggers: list[Resource]) -> Resource:
    data = {"triggers.yaml": document(*triggers)}
    return parts.config_map(events.TRIGGERS, "events", values, data)


def _queue(values: Values, times: Timeouts) -> Parts:
    triggers = _triggers_file(values, events.own_triggers(values, times))
    deployment, *rest = events.own_broker(values, events.RESULTS)
    contents = {
        "broker": [_stamped(deployment, values), *rest],
        "triggers": [triggers],
        "network-policies": network.policies("queue", values),
    }
    pull = _patch("InferenceService", values.model.name, inference.pull_patch(values, times))
    return contents, [_broker_url("Torpor", values), pull]


def _rabbitmq(values: Values, times: Timeouts) -> Parts:
    contents = {
        "broker": events.rabbitmq_broker(values, times),
        "network-policies": network.policies("broker-rabbitmq", values),
    }
    lenient = {
        "op": "replace",
        "path": "/metadata/labels/pod-security.kubernetes.io~1enforce",
        "value": because(
            "baseline",
            "eventing-rabbitmq's own ingress and dispatcher pods set no seccomp profile; with "
            "`restricted` they are refused. Ours keep to `restricted` (the doctor checks them).",
        ),
    }
    return contents, [
        _broker_url("RabbitMQBroker", values),
        _patch("Namespace", values.namespace, [lenient]),
    ]


def _kafka(values: Values, times: Timeouts) -> Parts:
    contents = {
        "broker": events.kafka_broker(values, times),
        "network-policies": network.policies("broker-kafka", values),
    }
    return contents, [_broker_url("Kafka", values)]


def _keda(values: Values, times: Timeouts) -> Parts:
    contents = {
        "scaled-object": [scaling.authentication(values), scaling.scaled_object(values, times)],
        "network-policies": network.policies("keda", values),
    }
    return contents, []


def _pressure(values: Values, _: Timeouts) -> Parts:
    return {}, [_patch("ScaledObject", values.model.name, scaling.pressure_patch(values))]


def _monitoring(values: Values, _: Timeouts) -> Parts:
    contents = {
        "monitors": observability.monitors(values),
        "alerts": [observability.alerts(values)],
        "dashboard": [observability.dashboard_config(values)],
        "network-policies": network.policies("monitoring", values),
    }
    return contents, []


def _gpu(values: Values, _: Timeouts) -> Parts:
    return {}, [_patch("InferenceService", values.model.name, hardware.gpu_patch(values))]


def _cpu(values: Values, _: Timeouts) -> Parts:
    return {}, [
        _patch("InferenceService", values.model.name, hardware.cpu_patch(values)),
        _patch("HorizontalPodAutoscaler", parts.API, hardware.small_api_patch()),
        _patch("PersistentVolumeClaim", front.FILES_CLAIM, hardware.one_node_patch()),
    ]


def _karpenter(values: Values, times: Timeouts) -> Parts:
    patch = _patch("InferenceService", values.model.name, hardware.spot_patch(values))
    return {"node-pool": [hardware.node_pool(values, times)]}, [patch]


def _model_cache(values: Values, _: Timeouts) -> Parts:
    return {"model-cache": hardware.model_cache(values)}, []


def _compile_cache(values: Values, _: Timeouts) -> Parts:
    patch = _patch("InferenceService", values.model.name, hardware.compile_cache_patch())
    return {"claim": [hardware.compile_cache(values)]}, [patch]


def _ingress(values: Values, times: Timeouts) -> Parts:
    return {"ingress": [front.ingress(values, times)]}, []


def _api_knative(values: Values, times: Timeouts) -> Parts:
    gone = [
        {"patch": _deletion(version, kind, values)}  # no target: «Service» is Knative's kind too
        for version, kind in (
            ("apps/v1", "Deployment"),
            ("autoscaling/v2", "HorizontalPodAutoscaler"),
            ("policy/v1", "PodDisruptionBudget"),
            ("v1", "Service"),
        )
    ]
    return {"api": [front.knative_service(values, times)]}, gone


def _deletion(version: str, kind: str, values: Values) -> str:
    return document(
        {
            "apiVersion": version,
            "kind": kind,
            "metadata": {"name": parts.API, "namespace": values.namespace},
            "$patch": "delete",
        }
    )


def _oidc(values: Values, _: Timeouts) -> Parts:
    patch = _patch("Deployment", parts.API, events.identity_patch(values))
    return {"event-policy": [events.event_policy(values)]}, [patch]


def _openshift(values: Values, _: Timeouts) -> Parts:
    box = "/spec/template/spec/containers/0/securityContext/runAsUser"
    gone = [{"op": "remove", "path": box}]
    group = {"op": "remove", "path": "/spec/template/spec/securityContext/fsGroup"}
    predictor = "/spec/predictor/containers/0/securityContext/runAsUser"
    return {}, [
        {"target": {"kind": "Deployment", "name": "torpor-.*"}, "patch": document(gone)},
        {"target": {"kind": "Job", "name": "torpor-.*"}, "patch": document(gone)},
        _patch(
            "StatefulSet",
            parts.REDIS,
            [*gone, group],
        ),
        _patch("Deployment", parts.API, [group]),
        _patch("InferenceService", values.model.name, [{"op": "remove", "path": predictor}]),
    ]


_COMPONENTS = {
    "serverless": _serverless,
    "queue": _queue,
    "broker-rabbitmq": _rabbitmq,
    "broker-kafka": _kafka,
    "keda": _keda,
    "keda-pressure": _pressure,
    "gpu-nvidia": _gpu,
    "cpu-small": _cpu,
    "karpenter": _karpenter,
    "model-cache": _model_cache,
    "compile-cache": _compile_cache,
    "ingress": _ingress,
    "monitoring": _monitoring,
    "api-knative": _api_knative,
    "openshift": _openshift,
    "eventing-oidc": _oidc,
}


def _component(
    name: str, contents: dict[str, list[Resource]], patches: list[Resource]
) -> dict[str, str]:
    folder = f"components/{name}"
    found = {f"{folder}/{n}.yaml": document(*r, header=HEADER) for n, r in contents.items()}
    found[f"{folder}/kustomization.yaml"] = _kustomization(
        "Component", resources=[f"{n}.yaml" for n in contents], patches=patches
    )
    return found


def _overlay(name: str, values: Values) -> dict[str, str]:
    patches: list[Resource] = []
    if name.endswith("-cpu"):
        patches = _small_patches(name, values)
    text = _kustomization(
        "Kustomization",
        resources=["../../base"],
        components=[f"../../components/{component}" for component in OVERLAYS[name]],
        patches=patches,
    )
    head, _, rest = text.partition("\n")
    return {f"overlays/{name}/kustomization.yaml": f"{head}\n# {WHAT_FOR[name]}\n{rest}"}


def _small_patches(name: str, values: Values) -> list[Resource]:
    """Give what a one-node cluster cannot hold three of."""
    one = {"op": "replace", "path": "/spec/replicas", "value": 1}
    if name.startswith("serverless"):
        return [
            _patch("RabbitmqCluster", events.RABBITMQ, [one]),
            _patch("Deployment", parts.BROKER, [one]),
        ]
    most = {"op": "replace", "path": "/spec/maxReplicaCount", "value": 1}
    return [
        _patch("Deployment", parts.BROKER, [one]),
        _patch("ScaledObject", values.model.name, [most]),
    ]
