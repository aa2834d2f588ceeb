"""Names, labels and pod pieces that every manifest shares.

Called by the modules that build resources. The names here are the contract with the processes
(streams, groups, ports, paths); a test compares them with what the processes use.
"""

from __future__ import annotations

import json
from typing import Any

from knative.deploy.emit import Resource, because
from knative.deploy.timeouts import Timeouts
from knative.deploy.values import ModelValues, Values

API = "torpor-api"
API_PUBLIC = "torpor-api-public"  # the Knative Service: Knative makes a Service of its name
BROKER = "torpor-broker"  # our ingress in the queue topology
REDIS = "torpor-redis"
STORE = "torpor-store"  # the Service that clients of Redis use
STEPS = "torpor-steps"  # the steps before the predictor
SCALER = "torpor-scaler"  # our own policy, served to KEDA
PREDICTOR = "torpor-predictor"  # service account; the InferenceService carries the model's name
EVENTS = "torpor"  # the Knative Broker in the serverless topology
SETTINGS = "torpor-settings"
REDIS_SECRET = "torpor-redis"  # noqa: S105  a name, not a secret
KEYS_SECRET = "torpor-api-keys"  # noqa: S105
INTERNAL_SECRET = "torpor-internal"  # noqa: S105
PULL_PORT = 8080
PUMP_METRICS_PORT = 8082
API_PORT = 8000
BROKER_PORT = 8081
REDIS_PORT = 6379
SENTINEL_PORT = 26379
WATCHED = "torpor"  # what the sentinels call the primary
SCALER_PORT = 9090
STEPS_PORT = 8083
USER_ID = 10001  # the images' user; OpenShift picks its own (component openshift)
NO_SERVICE_LINKS = because(
    False, "A Service torpor-api would inject TORPOR_API_PORT=tcp://... into our settings' prefix."
)
ONE_AT_A_TIME = because(
    1, "`minAvailable: 1` would keep the node of a single replica for ever, and let nine of ten go."
)
GROUP = "torpor"  # consumer group of every trigger stream
REQUESTED = "dev.torpor.inference.requested.v1"
PLANNED = "dev.torpor.inference.planned.v1"
PREPARED = "dev.torpor.inference.prepared.v1"
RESULTS = tuple(
    f"dev.torpor.inference.{state}.v1" for state in ("completed", "failed", "cancelled")
)


def trigger_name(model: str) -> str:
    """Give the name of the trigger that carries a model's requests."""
    return f"requests-{model}"


def stream_key(model: str) -> str:
    """Give the Redis stream whose lag and pending KEDA reads."""
    return f"torpor:{{{trigger_name(model)}}}:tickets"


def service_url(name: str, port: int, values: Values) -> str:
    """Give the in-cluster address of one of our services."""
    return f"http://{name}.{values.namespace}.svc.cluster.local:{port}"


def store_hosts(namespace: str, replicas: int) -> list[str]:
    """Give the names of the store's servers: of each its Service, whose address stays."""
    names = [STORE] if replicas == 1 else [f"{REDIS}-{number}" for number in range(replicas)]
    return [f"{name}.{namespace}.svc.cluster.local" for name in names]


def labels(component: str) -> dict[str, str]:
    """Give the labels of a component; also its selector."""
    return {
        "app.kubernetes.io/name": "torpor",
        "app.kubernetes.io/component": component,
    }


CONFIG_HASH = "torpor.dev/config"


def pod_metadata(component: str, **annotations: str) -> Resource:
    """Give a pod template's metadata. An overlay, or `torpor deploy`, fills the hash in."""
    return {
        "labels": labels(component),
        "annotations": {**annotations, CONFIG_HASH: _UNFILLED},
    }


_UNFILLED = because("", "The hash of the ConfigMaps that these pods read at start.")


def metadata(name: str, component: str, values: Values, **more: Any) -> Resource:
    """Give an object's metadata in our namespace."""
    return {
        "name": name,
        "namespace": values.namespace,
        "labels": {**labels(component), "app.kubernetes.io/part-of": "torpor"},
        **more,
    }


def hardened_pod(**more: Any) -> Resource:
    """Give a pod's security context: what also holds for containers that others put into it."""
    return {**more, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def hardened() -> Resource:
    """Give a container's security context: all that the «restricted» pod standard asks."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def http_get(path: str, port: int, **more: int) -> Resource:
    """Give an HTTP probe."""
    return {"httpGet": {"path": path, "port": port}, **more}


def resources(cpu: str, memory: str, **limits: str) -> Resource:
    """Give requests and a memory limit; no CPU limit, throttling only adds latency."""
    return {
        "requests": {"cpu": cpu, "memory": memory},
        "limits": {"memory": memory, **limits},
    }


def secret_env(name: str, secret: str, key: str, *, optional: bool = False) -> Resource:
    """Give an environment variable that is read from a Secret."""
    reference: Resource = {"name": secret, "key": key}
    if optional:
        reference["optional"] = True
    return {"name": name, "valueFrom": {"secretKeyRef": reference}}


def redis_url_env() -> Resource:
    """Give TORPOR_REDIS_URL, from the Secret that the first-secrets job or you made."""
    return secret_env("TORPOR_REDIS_URL", REDIS_SECRET, "url")


def settings_from() -> list[Resource]:
    """Give the shared settings as environment."""
    return [{"configMapRef": {"name": SETTINGS}}]


def scratch(name: str, size: str, *, memory: bool = False) -> Resource:
    """Give a volume that dies with the pod; the root file system is read-only."""
    spec: Resource = {"sizeLimit": size}
    if memory:
        spec["medium"] = "Memory"
    return {"name": name, "emptyDir": spec}


def spread(component: str) -> list[Resource]:
    """Give the wish that two pods of a component sit on two nodes."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": labels(component)},
        }
    ]


def service_account(name: str, component: str, values: Values) -> Resource:
    """Give a process's account, without a token: it does not talk to the API server."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(name, component, values),
        "automountServiceAccountToken": False,
    }


def config_map(name: str, component: str, values: Values, data: Resource) -> Resource:
    """Give a ConfigMap."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(name, component, values),
        "data": data,
    }


def shared_disk(name: str, component: str, values: Values, why: str) -> Resource:
    """Give a claim of a disk that several pods read and write."""
    spec: Resource = {
        "accessModes": because(["ReadWriteMany"], why),
        "resources": {"requests": {"storage": "20Gi"}},
    }
    if values.platform.storage_class:
        spec["storageClassName"] = values.platform.storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(name, component, values),
        "spec": spec,
    }


def service(name: str, component: str, values: Values, **ports: int) -> Resource:
    """Give a Service with named ports on a component's pods."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(name, component, values),
        "spec": {
            "selector": labels(component),
            "ports": [
                {"name": port_name, "port": port, "targetPort": port_name, "appProtocol": "http"}
                for port_name, port in ports.items()
            ],
        },
    }


def disruption_budget(name: str, component: str, values: Values, spec: Resource) -> Resource:
    """Give a PodDisruptionBudget on a component's pods, unless the spec selects others."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(name, component, values),
        "spec": {**spec, "selector": spec.get("selector", {"matchLabels": labels(component)})},
    }


def model_cards(values: Values, *, context_tokens: int | None = None) -> str:
    """Give the models that the api accepts, as JSON; those with weights with this context, if one is given."""
    return json.dumps([_model_card(each.model, context_tokens) for each in values.each()])


def _model_card(model: ModelValues, context_tokens: int | None) -> dict[str, Any]:
    card: dict[str, Any] = {"name": model.name, "context_tokens": model.max_tokens}
    if model.capabilities is not None:
        card["capabilities"] = sorted(model.capabilities)
    if model.upstream:
        prices = ("input_price_per_1m", "output_price_per_1m", "cached_input_price_per_1m")
        told = {name: getattr(model.upstream, name) for name in prices}
        return card | {name: price for name, price in told.items() if price is not None}
    return card if context_tokens is None else card | {"context_tokens": context_tokens}


def settings(values: Values, times: Timeouts) -> Resource:
    """Give the settings that every container reads. TORPOR_BROKER_URL comes with the topology."""
    data: Resource = {
        "TORPOR_MODELS": because(
            model_cards(values),
            "What the api accepts in `model`; all else is refused when it is submitted.",
        ),
        "TORPOR_MAX_JOB_SECONDS": because(str(times.job), "The one number."),
        "TORPOR_COLD_START_SECONDS": str(values.cold_start_seconds),
        "TORPOR_LEASE_S": str(times.lease),
        "TORPOR_DRAIN_GRACE_S": because(
            str(times.drain), f"Under the pod's grace ({times.pod_grace} s), or it means nothing."
        ),
        "TORPOR_GPU_PRICE_PER_HOUR": str(values.gpu.price_per_hour),
        "TORPOR_GPUS_PER_REPLICA": str(values.gpu.count),
    }
    if values.store.replicas > 1:
        data["TORPOR_STORE_ACKS"] = because(
            "1", "A 202 waits until a replica has the job too, so a failover loses none."
        )
    return config_map(SETTINGS, "settings", values, data)
