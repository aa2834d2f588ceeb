"""The work-aware policy on a cluster: its gRPC server, and the ScaledObjects that ask it.

Called by `component`. One small pod answers for every model; KEDA gets an error from it while the
queue cannot be read, and an error never scales to zero (ADR 23).
"""

from __future__ import annotations

from knative.deploy.emit import Patch, Resource, because
from knative.deploy.render import parts
from knative.deploy.values import Values


def scaler(values: Values) -> tuple[Resource, Resource]:
    """Give the scaler's Deployment and Service."""
    pod = {
        "serviceAccountName": parts.SCALER,
        "automountServiceAccountToken": False,
        "enableServiceLinks": parts.NO_SERVICE_LINKS,
        "terminationGracePeriodSeconds": 10,
        "securityContext": parts.hardened_pod(),
        "containers": [_container(values)],
        "volumes": [parts.scratch("tmp", "64Mi")],
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": parts.metadata(parts.SCALER, "scaler", values),
        "spec": {
            "replicas": because(1, "What it learnt is in its memory; two would answer unlike."),
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": parts.labels("scaler")},
            "template": {"metadata": {"labels": parts.labels("scaler")}, "spec": pod},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": parts.metadata(parts.SCALER, "scaler", values),
        "spec": {
            "selector": parts.labels("scaler"),
            "ports": [
                {
                    "name": "grpc",
                    "port": parts.SCALER_PORT,
                    "targetPort": "grpc",
                    "appProtocol": "grpc",
                }
            ],
        },
    }
    return deployment, service


def _container(values: Values) -> Resource:
    listens = {"tcpSocket": {"port": "grpc"}}  # the protocol has no health of its own
    return {
        "name": "scaler",
        "image": values.images.reference("broker"),
        "args": ["knative.external_scaler"],
        "ports": [{"name": "grpc", "containerPort": parts.SCALER_PORT}],
        "env": [
            because(
                parts.secret_env("TORPOR_REDIS_URL", parts.REDIS_SECRET, "scaler-url"),
                "A user that may read our keys and write nothing.",
            ),
            {"name": "TORPOR_HOST", "value": "0.0.0.0"},  # noqa: S104  inside its own pod
            {"name": "TORPOR_PORT", "value": str(parts.SCALER_PORT)},
        ],
        "startupProbe": {**listens, "periodSeconds": 2, "failureThreshold": 30},
        "readinessProbe": {**listens, "periodSeconds": 5},
        "livenessProbe": {**listens, "periodSeconds": 10, "failureThreshold": 6},
        "resources": parts.resources("50m", "128Mi"),
        "securityContext": parts.hardened(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
    }


def scaled_object_patch(values: Values) -> Patch:
    """Give a ScaledObject that asks the scaler instead of counting events."""
    model = values.model
    metadata = {
        "scalerAddress": (
            f"{parts.SCALER}.{values.namespace}.svc.cluster.local:{parts.SCALER_PORT}"
        ),
        "queue": parts.trigger_name(model.name),
        "model": model.name,
        "slots": str(model.concurrency),
        "maxReplicas": str(values.max_replicas),
        "coldStartSeconds": str(values.cold_start_seconds),
        "p95WaitSeconds": str(values.p95_wait_seconds),
        "prefillTokensPerSecond": f"{model.prefill_tokens_per_s:g}",
        "decodeTokensPerSecond": f"{model.decode_tokens_per_s:g}",
    }
    trigger = because(
        {"type": "external-push", "name": "work", "metadata": metadata},
        "Its number is the replicas, target 1: running and loading ones are in it.",
    )
    down = "/spec/advanced/horizontalPodAutoscalerConfig/behavior/scaleDown"
    return [
        {"op": "replace", "path": "/spec/triggers", "value": [trigger]},
        {"op": "remove", "path": "/spec/advanced/scalingModifiers"},
        {
            "op": "replace",
            "path": down,
            "value": because(
                {"stabilizationWindowSeconds": 0},
                "The scaler has waited already before it asks for less.",
            ),
        },
        {"op": "replace", "path": "/spec/pollingInterval", "value": 2},
        {
            "op": "replace",
            "path": "/spec/cooldownPeriod",
            "value": because(
                0, "It stays active while anything waits, starts or runs, and knows when to stop."
            ),
        },
    ]
