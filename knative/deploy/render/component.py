"""The components of `manifests/`: what each adds, and what it changes.

Called by `tree`. Pure: values in, resources and patches out. Where there are several models, each
gets its own of whatever carries a model's name.
"""

from __future__ import annotations

from collections.abc import Callable

from knative.deploy import tls
from knative.deploy.emit import Patch, Resource, because, document
from knative.deploy.render import (
    api as front,
)
from knative.deploy.render import network, observability, parts, scaling, steps
from knative.deploy.render.broker import events, own_broker
from knative.deploy.render.model import hardware, inference
from knative.deploy.render.tools import config as tools
from knative.deploy.render.tools import pods
from knative.deploy.timeouts import Timeouts
from knative.deploy.values import Values

Parts = tuple[dict[str, list[Resource]], list[Resource]]
_SERVICE = "InferenceService"


def patch(kind: str, name: str, operations: Patch) -> Resource:
    """Give a kustomize entry that patches one object with JSON 6902 operations."""
    return {"target": {"kind": kind, "name": name}, "patch": document(list(operations))}


def _for_each_model(kind: str, values: Values, change: Callable[[Values], Patch]) -> list[Resource]:
    """Give one patch a model, of the object that carries its name."""
    return [patch(kind, each.model.name, change(each)) for each in values.each()]


def _for_each_engine(values: Values, change: Callable[[Values], Patch]) -> list[Resource]:
    """Give one patch a predictor with weights."""
    return [patch(_SERVICE, each.model.name, change(each)) for each in values.each_engine()]


def _broker_url(kind: str, values: Values) -> Resource:
    url = events.broker_url(kind, values)
    operation = {"op": "add", "path": "/data/TORPOR_BROKER_URL", "value": url}
    return patch("ConfigMap", parts.SETTINGS, [operation])


def _serverless(values: Values, times: Timeouts) -> Parts:
    policies = network.policies("serverless", values)
    hold = _for_each_model(_SERVICE, values, lambda each: inference.hold_patch(each, times))
    deployment, *rest = own_broker.own_broker(values, "", is_relay=True)
    contents = {
        "triggers": events.triggers(values, times),
        "relay": [
            _triggers_file(values, own_broker.relay_triggers(values, times)),
            deployment,
            *rest,
        ],
        "network-policies": policies,
    }
    return contents, hold


def _triggers_file(values: Values, triggers: list[Resource]) -> Resource:
    data = {"triggers.yaml": document(*triggers)}
    return parts.config_map(own_broker.TRIGGERS, "events", values, data)


def _queue(values: Values, times: Timeouts) -> Parts:
    own = [*own_broker.own_triggers(values, times), *steps.own_triggers(values)]
    triggers = _triggers_file(values, own)
    pumped = ",".join([own_broker.STRAYS, *steps.queues(values)])
    deployment, *rest = own_broker.own_broker(values, pumped)
    contents = {
        "broker": [deployment, *rest],
        "triggers": [triggers],
        "network-policies": network.policies("queue", values),
    }
    pull = _for_each_model(_SERVICE, values, lambda each: inference.pull_patch(each, times))
    puts = patch("Deployment", parts.API, own_broker.api_puts_patch())
    return contents, [_broker_url("Torpor", values), puts, *pull]


def _steps_queue(values: Values, times: Timeouts) -> Parts:
    contents = {
        "steps": [
            parts.service_account(parts.STEPS, "steps", values),
            *steps.files(values, knative=False),
            steps.deployment(values),
            parts.service(parts.STEPS, "steps", values, http=parts.STEPS_PORT),
            steps.scaled_object(values, times),
        ],
        "network-policies": network.policies("steps-queue", values),
    }
    readers = [
        patch("Deployment", name, steps.files_patch(values, seals=name == parts.API))
        for name in (parts.API, parts.BROKER)
    ]
    return contents, readers


def _steps_knative(values: Values, times: Timeouts) -> Parts:
    contents = {
        "steps": [
            parts.service_account(parts.STEPS, "steps", values),
            *steps.files(values, knative=True),
            steps.knative_service(values),
        ],
        "triggers": steps.knative_triggers(values, times),
        "network-policies": network.policies("steps-knative", values),
    }
    return contents, [patch("Deployment", parts.API, steps.files_patch(values, seals=True))]


def _tools_queue(values: Values, times: Timeouts) -> Parts:
    servers = pods.deployed(values)
    contents = {
        "tools": [
            pods.account(values),
            *(pods.deployment(values, each) for each in servers),
            *(pods.scaled_object(values, each, times) for each in servers),
        ],
        "network-policies": network.policies("tools-queue", values),
    }
    return contents, []


def _tools_knative(values: Values, _: Timeouts) -> Parts:
    contents = {
        "tools": [
            pods.account(values),
            *(pods.knative_service(values, each) for each in pods.deployed(values)),
        ],
        "network-policies": network.policies("tools-knative", values),
    }
    return contents, []


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
        patch("Namespace", values.namespace, [lenient]),
    ]


def _kafka(values: Values, times: Timeouts) -> Parts:
    contents = {
        "broker": events.kafka_broker(values, times),
        "network-policies": network.policies("broker-kafka", values),
    }
    return contents, [_broker_url("Kafka", values)]


def _keda(values: Values, times: Timeouts) -> Parts:
    contents = {
        "scaled-object": [
            scaling.authentication(values),
            *(scaling.scaled_object(each, times) for each in values.each()),
        ],
        "network-policies": network.policies("keda", values),
    }
    return contents, []


def _pressure(values: Values, _: Timeouts) -> Parts:
    return {}, _for_each_model("ScaledObject", values, scaling.pressure_patch)


def _work_scaler(values: Values, _: Timeouts) -> Parts:
    deployment, service = scaling.work_scaler(values)
    contents = {
        "scaler": [parts.service_account(parts.SCALER, "scaler", values), deployment, service],
        "network-policies": network.policies("work-scaler", values),
    }
    return contents, _for_each_model("ScaledObject", values, scaling.work_patch)


def _monitoring(values: Values, _: Timeouts) -> Parts:
    contents = {
        "monitors": observability.monitors(values),
        "alerts": [observability.alerts(values)],
        "dashboard": [observability.dashboard_config(values)],
        "network-policies": network.policies("monitoring", values),
    }
    return contents, []


def _gpu(values: Values, _: Timeouts) -> Parts:
    return {}, _for_each_engine(values, hardware.gpu_patch)


def _cpu(values: Values, _: Timeouts) -> Parts:
    return {}, [
        *_for_each_engine(values, hardware.cpu_patch),
        patch("ConfigMap", parts.SETTINGS, hardware.cpu_settings_patch(values)),
        {"patch": _deletion("autoscaling/v2", "HorizontalPodAutoscaler", values)},
        patch("Deployment", parts.API, hardware.single_patch()),
        patch("Deployment", parts.API, hardware.small_requests_patch("256Mi", "512Mi")),
        patch("Deployment", parts.BROKER, hardware.small_requests_patch("128Mi", "256Mi")),
        patch("StatefulSet", parts.REDIS, hardware.small_requests_patch("256Mi", "2Gi")),
        patch("PersistentVolumeClaim", front.FILES_CLAIM, hardware.one_node_patch()),
    ]


def _karpenter(values: Values, times: Timeouts) -> Parts:
    spot = _for_each_engine(values, hardware.spot_patch)
    return {"node-pool": [hardware.node_pool(values, times)]}, spot


def _model_cache(values: Values, _: Timeouts) -> Parts:
    return {"model-cache": hardware.model_cache(values)}, []


def _compile_cache(values: Values, _: Timeouts) -> Parts:
    cached = _for_each_engine(values, lambda _: hardware.compile_cache_patch())
    return {"claim": [hardware.compile_cache(values)]}, cached


def _ingress(values: Values, times: Timeouts) -> Parts:
    return {"ingress": [front.ingress(values, times)]}, []


def _api_knative(values: Values, times: Timeouts) -> Parts:
    gone = [
        {"patch": _deletion(version, kind, values)}
        for version, kind in (
            ("apps/v1", "Deployment"),
            ("autoscaling/v2", "HorizontalPodAutoscaler"),
            ("policy/v1", "PodDisruptionBudget"),
        )
    ]
    number = because(parts.API_PORT, "By number: Knative names the ports of its pods itself.")
    direct = {"op": "replace", "path": "/spec/ports/0/targetPort", "value": number}
    contents = {
        "api": [front.knative_service(values, times)],
        "network-policies": network.policies("api-knative", values),
    }
    return contents, [*gone, patch("Service", parts.API, [direct])]


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
    change = events.identity_patch(values)
    return {"event-policy": [events.event_policy(values)]}, _for_each_sender(values, change)


def _for_each_sender(values: Values, change: Patch) -> list[Resource]:
    """Give one patch a process that sends to Knative's Broker: the api, and the steps where there are any."""
    own = [patch("Service", parts.STEPS, change)] if values.steps.max_replicas else []
    return [patch("Deployment", parts.API, change), *own]


def _eventing_tls(values: Values, _: Timeouts) -> Parts:
    contents = {"network-policies": network.policies("eventing-tls", values)}
    return contents, [
        patch("ConfigMap", parts.SETTINGS, tls.broker_url_patch(values)),
        *_for_each_sender(values, tls.authority_patch()),
    ]


def _openshift(values: Values, _: Timeouts) -> Parts:
    gone = _no_user(0)
    group = {"op": "remove", "path": "/spec/template/spec/securityContext/fsGroup"}
    predictor = "/spec/predictor/containers/0/securityContext/runAsUser"
    return {}, [
        {"target": {"kind": "Deployment", "name": "torpor-.*"}, "patch": document(gone)},
        {"target": {"kind": "Job", "name": "torpor-.*"}, "patch": document(gone)},
        patch(
            "StatefulSet",
            parts.REDIS,
            [*gone, group],
        ),
        patch("Deployment", parts.API, [group]),
        *(
            patch("Deployment", name, [*_no_user(1), *_no_user(2), group])
            for name in map(tools.object_name, values.tool_config.deployed)
        ),
        *_for_each_model(_SERVICE, values, lambda _: [{"op": "remove", "path": predictor}]),
    ]


def _no_user(box: int) -> Patch:
    path = f"/spec/template/spec/containers/{box}/securityContext/runAsUser"
    return [{"op": "remove", "path": path}]


COMPONENTS = {
    "serverless": _serverless,
    "queue": _queue,
    "broker-rabbitmq": _rabbitmq,
    "broker-kafka": _kafka,
    "keda": _keda,
    "keda-pressure": _pressure,
    "work-scaler": _work_scaler,
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
    "eventing-tls": _eventing_tls,
}
STEPS_COMPONENTS = {"steps-queue": _steps_queue, "steps-knative": _steps_knative}
"""Written only where the values have steps."""
TOOLS_COMPONENTS = {"tools-queue": _tools_queue, "tools-knative": _tools_knative}
"""Written only where the values deploy tools."""


def components(values: Values) -> dict[str, Callable[[Values, Timeouts], Parts]]:
    """Give the components that these values have, by name."""
    return {
        **COMPONENTS,
        **(STEPS_COMPONENTS if values.steps.max_replicas else {}),
        **(TOOLS_COMPONENTS if values.tool_config.deployed else {}),
    }
