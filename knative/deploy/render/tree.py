"""The folder `manifests/`: which file holds what, and which overlay takes which component.

Called by `render`. Pure: values in, texts out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from knative.deploy.emit import Resource, document
from knative.deploy.render import (
    api as front,
)
from knative.deploy.render import (
    events,
    foundation,
    inference,
    network,
    parts,
    store,
)
from knative.deploy.render.component import (
    COMPONENTS,
    VALUES_ANNOTATION,
    fingerprint,
    patch,
    stamped,
)
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


def files(values: Values) -> dict[str, str]:
    """Give every file under manifests/ by its path, values.yaml and images aside."""
    times = derive(values)
    found = _base(values, times)
    for name, make in COMPONENTS.items():
        found |= _component(name, *make(values, times))
    for name in OVERLAYS:
        found |= _overlay(name, values)
    return found | cluster.files(values, times)


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
            stamped(front.deployment(values), values),
            parts.service(parts.API, "api", values, http=parts.API_PORT),
            front.autoscaler(values),
            front.budget(values),
        ],
        "predictor": [
            *(_predictor(each, times) for each in values.each()),
            inference.predictor_budget(values),
        ],
        "network-policies": network.policies("base", values),
    }
    found = {f"base/{n}.yaml": document(*r, header=HEADER) for n, r in contents.items()}
    names = [f"{name}.yaml" for name in contents]
    found["base/kustomization.yaml"] = _kustomization("Kustomization", resources=names)
    return found


def _predictor(values: Values, times: Timeouts) -> Resource:
    """Give one model's service; its pods roll when a value of its own changes."""
    made = inference.service(values, times)
    made["spec"]["predictor"]["annotations"] = {VALUES_ANNOTATION: fingerprint(values)}
    return made


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
            patch("RabbitmqCluster", events.RABBITMQ, [one]),
            patch("Deployment", parts.BROKER, [one]),
        ]
    most = {"op": "replace", "path": "/spec/maxReplicaCount", "value": 1}
    return [
        patch("Deployment", parts.BROKER, [one]),
        *(patch("ScaledObject", each.model.name, [most]) for each in values.each()),
    ]
