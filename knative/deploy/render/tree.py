"""The folder `manifests/`: which file holds what, and which overlay takes which component.

Called by `render`. Pure: values in, texts out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from knative.deploy.config_hash import config_hash, pod_template
from knative.deploy.emit import Resource, document
from knative.deploy.render import (
    api as front,
)
from knative.deploy.render import foundation, network, overlay, parts, store
from knative.deploy.render.broker import events
from knative.deploy.render.component import components, patch
from knative.deploy.render.model import inference
from knative.deploy.rollout import cluster
from knative.deploy.timeouts import Timeouts, derive
from knative.deploy.values import Values

HEADER = "Written by `torpor render` from manifests/values.yaml: change the value, not this file."

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


def parts_of(name: str, values: Values) -> list[str]:
    """Give the components of an overlay, without those that change nothing, which kustomize refuses; those of the
    steps are last, since they patch what others made.
    """
    kind = "queue" if name.startswith("queue") else "knative"
    listed = [*OVERLAYS[name], *([f"steps-{kind}"] if values.steps.max_replicas else [])]
    listed += [f"tools-{kind}"] if values.tool_config.deployed else []
    times = derive(values)
    return [each for each in listed if any(components(values)[each](values, times))]


def files(values: Values) -> dict[str, str]:
    """Give every file under manifests/ by its path, values.yaml and images aside."""
    times = derive(values)
    base = _base(values, times)
    found = {f"base/{name}.yaml": document(*r, header=HEADER) for name, r in base.items()}
    listed = [f"{name}.yaml" for name in base]
    found["base/kustomization.yaml"] = _kustomization("Kustomization", resources=listed)
    for name, make in components(values).items():
        if any(made := make(values, times)):
            found |= _component(name, *made)
    for name in OVERLAYS:
        hashes = _hash_patches(built(name, values))
        found |= _overlay(name, parts_of(name, values), [*_small_patches(name, values), *hashes])
    return found | cluster.files(values, times)


def built(name: str, values: Values) -> list[Resource]:
    """Give an overlay's objects as kustomize builds them, all but the hashes of ConfigMaps."""
    return _assembled(name, values, _small_patches(name, values))


def finished(name: str, values: Values) -> list[Resource]:
    """Give an overlay's objects as kustomize builds them."""
    patches = [*_small_patches(name, values), *_hash_patches(built(name, values))]
    return _assembled(name, values, patches)


def _assembled(name: str, values: Values, patches: Sequence[Resource]) -> list[Resource]:
    times = derive(values)
    return overlay.assemble(
        (resource for listed in _base(values, times).values() for resource in listed),
        (components(values)[component](values, times) for component in parts_of(name, values)),
        patches,
    )


def _hash_patches(resources: Sequence[Resource]) -> list[Resource]:
    """Give what makes pods roll when a ConfigMap that they read at start is another."""
    return [
        patch(
            resource["kind"], resource["metadata"]["name"], [_hash_operation(resource, resources)]
        )
        for resource in resources
        if pod_template(resource) is not None
    ]


def _hash_operation(resource: Resource, resources: Sequence[Resource]) -> Resource:
    place = "predictor" if resource["kind"] == "InferenceService" else "template/metadata"
    key = parts.CONFIG_HASH.replace("/", "~1")
    value = config_hash(resource, resources)
    return {"op": "replace", "path": f"/spec/{place}/annotations/{key}", "value": value}


def _kustomization(kind: str, **fields: Any) -> str:
    version = "v1alpha1" if kind == "Component" else "v1beta1"
    head = {"apiVersion": f"kustomize.config.k8s.io/{version}", "kind": kind}
    return document({**head, **{k: v for k, v in fields.items() if v}}, header=HEADER)


def _base(values: Values, times: Timeouts) -> dict[str, list[Resource]]:
    backup = store.backup(values)
    kept = {"backup": [*backup, *network.policies("backup", values)]} if backup else {}
    return {
        "namespace": [foundation.namespace(values)],
        "service-accounts": foundation.service_accounts(values),
        "rbac": foundation.rights(values),
        "first-secrets": [foundation.first_secrets_job(values)],
        "settings": [parts.settings(values, times)],
        "redis": store.redis(values),
        **kept,
        "api": [
            front.files_claim(values),
            front.deployment(values),
            parts.service(parts.API, "api", values, http=parts.API_PORT),
            front.autoscaler(values),
            front.budget(values),
        ],
        "predictor": [
            *(inference.service(each, times) for each in values.each()),
            inference.predictor_budget(values),
        ],
        "network-policies": [
            *network.policies("base", values),
            *(network.policies("store-of-three", values) if values.store.replicas > 1 else []),
        ],
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


def _overlay(name: str, components: Sequence[str], patches: Sequence[Resource]) -> dict[str, str]:
    text = _kustomization(
        "Kustomization",
        resources=["../../base"],
        components=[f"../../components/{component}" for component in components],
        patches=patches,
    )
    head, _, rest = text.partition("\n")
    return {f"overlays/{name}/kustomization.yaml": f"{head}\n# {WHAT_FOR[name]}\n{rest}"}


def _small_patches(name: str, values: Values) -> list[Resource]:
    """Give what a one-node cluster cannot hold three of."""
    if not name.endswith("-cpu"):
        return []
    one = {"op": "replace", "path": "/spec/replicas", "value": 1}
    if name.startswith("serverless"):
        return [
            patch("RabbitmqCluster", events.RABBITMQ, [one]),
            patch("Deployment", parts.BROKER, [one]),
        ]
    most = {"op": "replace", "path": "/spec/maxReplicaCount", "value": 1}
    return [
        patch("Deployment", parts.BROKER, [one]),
        *(patch("ScaledObject", each.model.name, [most]) for each in values.each()),
    ]
