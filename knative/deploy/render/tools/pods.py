"""Tools that we deploy, from zero: for calls of any length in the queue topology, as a Knative Service in the other.

Called by `component`. In the queue topology the pod of a tool has three containers: the operator's, a caller, which is
the steps process for this server alone, and a pump that takes from the server's queue while the tool listens. KEDA
scales it by what waits in that queue and what is under way (docs/adr/0385).
"""

from __future__ import annotations

from eventing.job.tools.server import ToolDeployment, ToolServer
from eventing.redis import keys
from knative.deploy.emit import Resource, because
from knative.deploy.render import parts, scaling
from knative.deploy.render.api import FILES, FILES_CLAIM
from knative.deploy.render.broker import own_broker
from knative.deploy.render.tools import config
from knative.deploy.timeouts import Timeouts
from knative.deploy.values import Values

ACCOUNT = "torpor-tools"
COMPONENT = "tool"
DRAINED = "/drained"
_SIGTERM_LATE = {"preStop": {"sleep": {"seconds": 2}}}
_MARGIN_S = 30


def deployed(values: Values) -> list[ToolServer]:
    """Give the servers that are deployed."""
    return [values.tool_config.servers[label] for label in values.tool_config.deployed]


def account(values: Values) -> Resource:
    """Give the account of all tools; it has no token."""
    return parts.service_account(ACCOUNT, COMPONENT, values)


def drain_s(server: ToolServer) -> int:
    """Give how long a call that began this second may go on after SIGTERM."""
    return -(-server.timeout_ms // 1000) + config.SETTLES_S


def _labels(server: ToolServer) -> dict[str, str]:
    return {**parts.labels(COMPONENT), config.SERVER: server.label}


def _metadata(server: ToolServer, component: str, values: Values) -> Resource:
    found = parts.metadata(config.object_name(server.label), component, values)
    found["labels"][config.SERVER] = server.label
    return found


def _of(server: ToolServer) -> ToolDeployment:
    assert server.deployment is not None  # noqa: S101  of one that is deployed
    return server.deployment


def _tool(server: ToolServer) -> Resource:
    """Give the operator's container."""
    wanted = _of(server)
    limits = {"nvidia.com/gpu": str(wanted.gpus)} if wanted.gpus else {}
    listens = {"tcpSocket": {"port": wanted.port}}
    box: Resource = {
        "name": "tool",
        "image": wanted.image,
        "ports": [{"containerPort": wanted.port}],
        "env": [
            {"name": "PORT", "value": str(wanted.port)},
            *({"name": name, "value": value} for name, value in wanted.env.items()),
        ],
        "readinessProbe": {**listens, "periodSeconds": 2},
        "resources": parts.resources(wanted.cpu, wanted.memory, **limits),
        "securityContext": parts.hardened(),
        "volumeMounts": [{"name": "tool-tmp", "mountPath": "/tmp"}],  # noqa: S108
    }
    if wanted.secret:
        box["envFrom"] = [{"secretRef": {"name": wanted.secret}}]
    return box


def _drained_first() -> Resource:
    """Give what keeps the tool until its calls have ended."""
    return {
        "preStop": because(
            {"httpGet": {"path": DRAINED, "port": parts.STEPS_PORT}},
            "All containers get SIGTERM at once: the caller answers when no call is under way.",
        )
    }


def _caller(values: Values, server: ToolServer) -> Resource:
    """Give the steps process of this server."""
    port = parts.STEPS_PORT
    return {
        "name": "caller",
        "image": values.images.reference("steps"),
        "ports": [{"containerPort": port}],
        "envFrom": parts.settings_from(),
        "env": [
            parts.redis_url_env(),
            parts.secret_env("TORPOR_DELIVERY_TOKEN", parts.INTERNAL_SECRET, "token"),
            {"name": "TORPOR_TOOL_SERVER", "value": server.label},
            {"name": "TORPOR_STEPS_HOST", "value": "0.0.0.0"},  # noqa: S104  inside its own pod
            {"name": "TORPOR_STEPS_PORT", "value": str(port)},
            {"name": "TORPOR_FILES_URL", "value": values.platform.files_url},
            {"name": "TORPOR_DRAIN_GRACE_S", "value": str(drain_s(server))},
            {
                "name": "TORPOR_QUEUE_TRIGGERS_FILE",
                "value": f"{own_broker.TRIGGERS_FOLDER}/triggers.yaml",
            },
        ],
        "lifecycle": _SIGTERM_LATE,
        "readinessProbe": because(
            parts.http_get("/readyz", port, periodSeconds=2),
            "503 until the tool listens; the pump asks the same.",
        ),
        "livenessProbe": parts.http_get("/healthz", port, periodSeconds=10, failureThreshold=6),
        "resources": parts.resources("100m", "384Mi"),
        "securityContext": parts.hardened(),
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp", "subPath": "caller"},  # noqa: S108
            {"name": "files", "mountPath": FILES},
            own_broker.triggers_mount(),
        ],
    }


def _pump(values: Values, server: ToolServer) -> Resource:
    port = parts.PUMP_METRICS_PORT
    return {
        "name": "pump",
        "image": values.images.reference("broker"),
        "args": ["eventing.pump"],
        "ports": [{"containerPort": port}],
        "envFrom": parts.settings_from(),
        "env": [
            parts.redis_url_env(),
            *own_broker.triggers_env(config.queue_of(server.label)),
            {"name": "TORPOR_METRICS_PORT", "value": str(port)},
            {"name": "TORPOR_DRAIN_GRACE_S", "value": str(drain_s(server))},
        ],
        "lifecycle": _SIGTERM_LATE,
        "livenessProbe": parts.http_get("/healthz", port, periodSeconds=10, failureThreshold=6),
        "resources": parts.resources("100m", "256Mi"),
        "securityContext": parts.hardened(),
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp", "subPath": "pump"},  # noqa: S108
            own_broker.triggers_mount(),
        ],
    }


def deployment(values: Values, server: ToolServer) -> Resource:
    """Give a tool's Deployment. No `replicas`: they belong to KEDA."""
    tool, caller = _tool(server), _caller(values, server)
    tool |= {
        "startupProbe": {
            "tcpSocket": {"port": _of(server).port},
            "periodSeconds": 1,
            "failureThreshold": because(
                2 * _of(server).cold_start_s, "Twice its cold start: then it is started again."
            ),
            "terminationGracePeriodSeconds": because(
                _MARGIN_S, "No call can be under way, and preStop waits for those of its pod."
            ),
        },
        "lifecycle": _drained_first(),
    }
    pod: Resource = {
        "serviceAccountName": ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": parts.NO_SERVICE_LINKS,
        "terminationGracePeriodSeconds": because(
            drain_s(server) + _MARGIN_S,
            "The longest call: one that KEDA's choice of a pod cuts off would run again.",
        ),
        "securityContext": parts.hardened_pod(
            fsGroup=parts.USER_ID, fsGroupChangePolicy="OnRootMismatch"
        ),
        "topologySpreadConstraints": [_spread(server)],
        "containers": [tool, caller, _pump(values, server)],
        "volumes": [
            parts.scratch("tool-tmp", "1Gi"),
            parts.scratch("tmp", "1Gi"),
            {"name": "files", "persistentVolumeClaim": {"claimName": FILES_CLAIM}},
            own_broker.triggers_volume(),
        ],
    }
    if _of(server).gpus:
        pod["tolerations"] = [_GPU_NODES]
    config.into_caller(caller, pod, values, server)
    labels = _labels(server)
    template = parts.pod_metadata(COMPONENT)
    template["labels"] = labels
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(server, COMPONENT, values),
        "spec": {
            "selector": {"matchLabels": labels},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": template, "spec": pod},
        },
    }


_GPU_NODES: Resource = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def _spread(server: ToolServer) -> Resource:
    (wish,) = parts.spread(COMPONENT)
    return {**wish, "labelSelector": {"matchLabels": _labels(server)}}


def scaled_object(values: Values, server: ToolServer, times: Timeouts) -> Resource:
    """Give what scales the Deployment: lag and pending of its queue."""
    wanted, name = _of(server), config.object_name(server.label)
    stream, target = keys.queue(config.queue_of(server.label), "tickets"), str(server.parallelism)
    counts = {"lagCount": target, "activationLagCount": "0"}
    idle_s = max(_SHORTEST_IDLE_S, wanted.cold_start_s)
    up = {"type": "Pods", "value": wanted.max_replicas, "periodSeconds": 15}
    down = {"type": "Pods", "value": 1, "periodSeconds": 60}
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": _metadata(server, "scaling", values),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicaCount": 0,
            "maxReplicaCount": wanted.max_replicas,
            "pollingInterval": because(times.polling, "Added to every wake from zero."),
            "cooldownPeriod": because(
                idle_s, "Kept idle as long as another wake takes: its queue counts while it wakes."
            ),
            "advanced": {
                "scalingModifiers": {
                    "formula": because(
                        scaling.WORK, "Waiting plus in flight: a call of hours keeps its pod."
                    ),
                    "target": because(target, "Calls that one replica runs at once."),
                    "activationTarget": "0",
                    "metricType": "AverageValue",
                },
                "horizontalPodAutoscalerConfig": {
                    "behavior": {
                        "scaleUp": {"stabilizationWindowSeconds": 0, "policies": [up]},
                        "scaleDown": {"stabilizationWindowSeconds": idle_s, "policies": [down]},
                    }
                },
            },
            "triggers": [
                scaling.stream_trigger("lag", stream, values, counts),
                scaling.stream_trigger("pend", stream, values, {"pendingEntriesCount": target}),
            ],
        },
    }


_SHORTEST_IDLE_S = 60


def knative_service(values: Values, server: ToolServer) -> Resource:
    """Give a tool as a Knative Service that only the cluster can call: the steps dial it, and that wakes it."""
    wanted, box = _of(server), _tool(server)
    pod: Resource = {
        "serviceAccountName": ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": parts.NO_SERVICE_LINKS,
        "containerConcurrency": server.parallelism,
        "timeoutSeconds": because(
            -(-server.longest_ms // 1000), "Its cold start, and the longest call."
        ),
        "containers": [box],
        "volumes": [parts.scratch("tool-tmp", "1Gi")],
    }
    pod["responseStartTimeoutSeconds"] = pod["timeoutSeconds"]
    if wanted.gpus:
        pod["tolerations"] = [_GPU_NODES]
    template = parts.pod_metadata(
        COMPONENT,
        **{
            "autoscaling.knative.dev/min-scale": "0",
            "autoscaling.knative.dev/max-scale": str(wanted.max_replicas),
            "autoscaling.knative.dev/target-utilization-percentage": "100",
        },
    )
    template["labels"] = _labels(server)
    metadata = _metadata(server, COMPONENT, values)
    metadata["labels"]["networking.knative.dev/visibility"] = because(
        "cluster-local", "Its callers are the steps."
    )
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"template": {"metadata": template, "spec": pod}},
    }
