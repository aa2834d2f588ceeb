"""Objects that the doctor's mistakes add to an overlay."""

from __future__ import annotations

import json
from typing import Any

import yaml

GONE = object()
KSVC = "serving.knative.dev/v1"
N = "nginx.ingress.kubernetes.io/"
A = "autoscaling.knative.dev/"


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
