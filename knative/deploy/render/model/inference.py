"""The predictor as a KServe InferenceService, and how each topology changes it.

Called by `tree` and `component`. The base names no topology; the patches here are what makes it
hold a delivery (`serverless`) or pull from the queue (`queue`). They never mix: answering early
under the KPA would scale a busy pod to zero, and KEDA cannot see work that is held.
"""

from __future__ import annotations

from knative.deploy.emit import Patch, Resource, because
from knative.deploy.render import parts
from knative.deploy.render.broker import own_broker
from knative.deploy.render.model import provider
from knative.deploy.timeouts import Timeouts
from knative.deploy.values import Values

PROBE_PERIOD_S = 1  # half of it is added to every cold start, and so is half of the next
CACHE = "/var/cache/torpor"
VISIBILITY = "networking.knative.dev/visibility"
CLUSTER_LOCAL = "cluster-local"
INITIAL_SCALE = "autoscaling.knative.dev/initial-scale"


CPU_CONTEXT_TOKENS = 2048
"""Prompt and answer of a model on a CPU: its cache has one GiB."""


def deployment_mode(values: Values, *, knative: bool) -> str:
    """Give KServe's name of a mode; they changed with 0.16 (docs/facts.md 3.4)."""
    old = int(values.platform.kserve.split(".")[1]) < 16
    if knative:
        return "Serverless" if old else "Knative"
    return "RawDeployment" if old else "Standard"


def engine_args(values: Values, *, gpu: bool) -> list[str]:
    """Give vLLM's arguments, as vLLM names them."""
    model = values.model
    args = [
        "--model=/mnt/models",
        f"--served-model-name={model.name}",
        f"--max-num-seqs={model.concurrency}",
        f"--max-model-len={model.max_tokens if gpu else CPU_CONTEXT_TOKENS}",
    ]
    return [*args, f"--tensor-parallel-size={values.gpu.count}"] if gpu else args


def engine_resources(cpu: str, most: str, memory: str, **limits: str) -> Resource:
    """Give the engine's resources, with a CPU limit far above what it asks for."""
    unless = because(
        most,
        "KServe's webhook puts 1 where no CPU limit stands, and the API server then refuses a pod "
        "that requests more (predictor_custom.go Default; inferenceservice-config resource).",
    )
    made = parts.resources(cpu, memory, **limits)
    made["limits"]["cpu"] = unless
    return made


def service(values: Values, times: Timeouts) -> Resource:
    """Give the InferenceService that both topologies share."""
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": parts.metadata(
            values.model.name,
            "predictor",
            values,
            annotations={
                "serving.kserve.io/deploymentMode": because(
                    deployment_mode(values, knative=False),
                    "Always explicit: constant, ConfigMap and Helm defaults differ (docs/facts.md 3.4).",
                ),
            },
        ),
        "spec": {
            "predictor": {
                **_pod_metadata(values),
                "minReplicas": because(0, "No replica without jobs."),
                "maxReplicas": values.max_replicas,
                "serviceAccountName": parts.PREDICTOR,
                "automountServiceAccountToken": False,
                "enableServiceLinks": parts.NO_SERVICE_LINKS,
                "securityContext": because(
                    parts.hardened_pod(),
                    "KServe's storage-initializer sets no seccomp profile of its own: without the "
                    "pod's our namespace refuses every predictor.",
                ),
                "containers": [_container(values, times)],
                "volumes": _volumes(values),
            }
        },
    }


def _pod_metadata(values: Values) -> Resource:
    made = parts.pod_metadata("predictor")
    made["labels"] |= provider.labels(values)
    return made


def _volumes(values: Values) -> list[Resource]:
    if upstream := values.model.upstream:
        return [parts.scratch("tmp", "1Gi"), *provider.volumes(upstream)]
    return [
        parts.scratch("tmp", "4Gi"),
        parts.scratch("cache", "20Gi"),
        parts.scratch("shm", "4Gi", memory=True),
    ]


def _container(values: Values, times: Timeouts) -> Resource:
    own = _provider_part(values) if values.model.upstream else _engine_part(values)
    ready = f"/v2/models/{values.model.name}/ready"
    return {
        "name": because("kserve-container", "KServe looks for this name when there are several."),
        "image": own["image"],
        "args": own["args"],
        "ports": [{"containerPort": parts.PULL_PORT, "protocol": "TCP"}],
        "envFrom": parts.settings_from(),
        "env": own["env"],
        "startupProbe": because(
            parts.http_get(
                ready,
                parts.PULL_PORT,
                periodSeconds=PROBE_PERIOD_S,
                failureThreshold=-(-times.startup_probe // PROBE_PERIOD_S),
            ),
            f"Loading may take {times.startup_probe} s; until then not ready is not dead.",
        ),
        "readinessProbe": parts.http_get(ready, parts.PULL_PORT, periodSeconds=PROBE_PERIOD_S),
        "livenessProbe": because(
            parts.http_get("/healthz", parts.PULL_PORT, periodSeconds=10, timeoutSeconds=5)
            | {"failureThreshold": 6},
            "A minute of silence: a long prefill must not look like a dead process.",
        ),
        "resources": own["resources"],
        "securityContext": parts.hardened(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *own["volumeMounts"]],  # noqa: S108
    }


def _engine_part(values: Values) -> Resource:
    """Give what the container of vLLM has of its own."""
    uri = because(values.model.uri, "KServe's initializer puts it under /mnt/models.")
    return {
        "image": values.images.reference("predictor"),
        "args": engine_args(values, gpu=True),
        "env": [
            {"name": "STORAGE_URI", "value": uri},
            *_common_env(values),
            {"name": "TORPOR_MODELS_DIR", "value": f"{CACHE}/models"},
            {"name": "VLLM_CACHE_ROOT", "value": f"{CACHE}/vllm"},
            {"name": "TRITON_CACHE_DIR", "value": f"{CACHE}/triton"},
            {"name": "HF_HOME", "value": f"{CACHE}/huggingface"},
        ],
        "resources": engine_resources("4", "16", "24Gi"),
        "volumeMounts": [
            {"name": "cache", "mountPath": CACHE},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
        ],
    }


def _provider_part(values: Values) -> Resource:
    """Give what the container has that asks a provider."""
    upstream = values.model.upstream
    assert upstream is not None  # noqa: S101 (asked by the caller)
    return {
        "image": because(
            values.images.reference("predictor-cpu"),
            "It uses no GPU; this image is the smaller one.",
        ),
        "args": provider.args(values),
        "env": [*_common_env(values), *provider.env(values, upstream)],
        "resources": provider.resources(),
        "volumeMounts": provider.mounts(upstream),
    }


def _common_env(values: Values) -> list[Resource]:
    return [
        {"name": "PROTOCOL", "value": "v2"},
        {"name": "TORPOR_MODEL_NAME", "value": values.model.name},
        parts.redis_url_env(),
        *direct_token_env(values),
        {"name": "HOME", "value": "/tmp"},  # noqa: S108  the container's own
    ]


def direct_token_env(values: Values) -> list[Resource]:
    """Give the token of the direct routes, where an operator has named its Secret."""
    name = values.platform.direct_token_secret
    return [parts.secret_env("TORPOR_DIRECT_TOKEN", name, "token")] if name else []


def hold_patch(values: Values, times: Timeouts) -> Patch:
    """Give what makes the predictor hold each delivery under Knative's KPA."""
    annotations = {
        "serving.kserve.io/deploymentMode": deployment_mode(values, knative=True),
        "serving.kserve.io/autoscalerClass": None,
        "autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev",
        "autoscaling.knative.dev/window": because(
            f"{times.stable_window}s", "An idle pod is kept as long as waking another would take."
        ),
        "autoscaling.knative.dev/target-utilization-percentage": because(
            "85", "Full batches pay for the GPU; 15 % room until the next pod is awake."
        ),
        "autoscaling.knative.dev/target-burst-capacity": because(
            "-1", "The activator queues; it never puts a request on a pod whose batch is full."
        ),
        INITIAL_SCALE: because(
            "0",
            "A changed predictor does not load a model to be ready. KServe drops this where "
            "config-autoscaler does not allow it.",
        ),
        "serving.knative.dev/progress-deadline": because(
            f"{times.progress_deadline}s", "The global 600 s would give up a slow load."
        ),
    }
    adds: Patch = [
        {"op": "add", "path": f"/metadata/annotations/{_escape(key)}", "value": value}
        for key, value in annotations.items()
        if value is not None
    ]
    private = because(CLUSTER_LOCAL, "Else Knative publishes it on the external gateway, keyless.")
    adds.append({"op": "add", "path": f"/metadata/labels/{_escape(VISIBILITY)}", "value": private})
    fields = {
        "timeout": because(
            times.request, "KServe copies it to timeoutSeconds and responseStartTimeoutSeconds."
        ),
        "containerConcurrency": because(
            values.model.concurrency, "The engine's useful batch; 0 would let 100 pile up."
        ),
        "scaleMetric": "concurrency",
        "scaleTarget": values.model.concurrency,
    }
    adds += [
        {"op": "add", "path": f"/spec/predictor/{name}", "value": value}
        for name, value in fields.items()
    ]
    return adds


def pull_patch(values: Values, times: Timeouts) -> Patch:
    """Give what puts a pump beside the predictor and leaves the replicas to KEDA."""
    return [
        {
            "op": "add",
            "path": "/metadata/annotations/serving.kserve.io~1autoscalerClass",
            "value": because(
                "external",
                "KServe's own keda class knows no redis trigger, no cooldown, no formula, and "
                "reverts what is added (docs/facts.md 3.4).",
            ),
        },
        {
            "op": "add",
            "path": "/spec/predictor/terminationGracePeriodSeconds",
            "value": because(times.pod_grace, "Standard mode gives 30 s, which kills a thought."),
        },
        {
            "op": "add",
            "path": "/spec/predictor/deploymentStrategy",
            "value": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
        },
        {
            "op": "add",
            "path": "/spec/predictor/containers/0/env/-",
            "value": because(
                parts.secret_env("TORPOR_DELIVERY_TOKEN", parts.INTERNAL_SECRET, "token"),
                "Only our pump may deliver. Knative's brokers carry no such token.",
            ),
        },
        {"op": "add", "path": "/spec/predictor/containers/0/lifecycle", "value": _late_sigterm()},
        {"op": "add", "path": "/spec/predictor/containers/-", "value": _pump(values)},
        {"op": "add", "path": "/spec/predictor/volumes/-", "value": own_broker.triggers_volume()},
    ]


def _pump(values: Values) -> Resource:
    return {
        "name": "pump",
        "image": values.images.reference("broker"),
        "args": ["eventing.pump"],
        "envFrom": parts.settings_from(),
        "env": [
            parts.redis_url_env(),
            *own_broker.triggers_env(parts.trigger_name(values.model.name)),
            {
                "name": "TORPOR_METRICS_PORT",
                "value": because(
                    str(parts.PUMP_METRICS_PORT), "A pump has no other port; 0 would show nothing."
                ),
            },
        ],
        "ports": [{"containerPort": parts.PUMP_METRICS_PORT, "protocol": "TCP"}],
        "lifecycle": _late_sigterm(),
        "livenessProbe": parts.http_get(
            "/healthz", parts.PUMP_METRICS_PORT, periodSeconds=10, failureThreshold=6
        ),
        "resources": parts.resources("100m", "256Mi"),
        "securityContext": parts.hardened(),
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp", "subPath": "pump"},  # noqa: S108
            own_broker.triggers_mount(),
        ],
    }


def _late_sigterm() -> Resource:
    wait: Resource = because(
        {"preStop": {"sleep": {"seconds": 2}}},
        "A process 1 without a handler ignores SIGTERM: one that was just started has none yet.",
    )
    return wait


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def predictor_budget(values: Values) -> Resource:
    """Give the predictors' disruption budget: nodes are drained one thought at a time."""
    return parts.disruption_budget(parts.PREDICTOR, "predictor", values, {"maxUnavailable": 1})
