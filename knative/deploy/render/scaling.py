"""KEDA for the queue topology: work waiting and work in flight, p95 and GPU as pressure; and our own policy, the
work-aware one: one small pod answers for every model, and KEDA gets an error from it while the queue cannot be read,
which never scales to zero (ADR 23).

Called by `component`; the simulator and the local stack read what is written here. Sources: facts
3.5, 3.6 and the runs of 3.6b.
"""

from __future__ import annotations

from knative.deploy.emit import Patch, Resource, because
from knative.deploy.render import parts
from knative.deploy.timeouts import Timeouts
from knative.deploy.values import Values

WORK = "(lag > 0 ? lag : 0) + pend"
REDIS_AUTH = "torpor-redis"


def pressure_formula(values: Values) -> str:
    """Give the formula with p95 and GPU: they raise what the work asks for, and nothing alone.

    With no work the product is zero, so a stale series cannot keep a GPU awake; `??` keeps a
    failed Prometheus from taking the formula down. `float` because KEDA wants one, and a choice
    between two numbers is of no type that its expression language will vouch for (keda-docs#1246).
    """
    p95 = f"((p95 ?? 0) > {values.p95_wait_seconds} ? 1.5 : 1.0)"
    return f"float(({WORK}) * {p95} * ((gpu ?? 0) > 90 ? 1.25 : 1.0))"


def authentication(values: Values) -> Resource:
    """Give KEDA's way to Redis: a user that may look at queue lengths and nothing else."""
    names = {"username": "keda-username", "password": "keda-password"}
    if values.store.replicas > 1:
        names |= {"sentinelUsername": "keda-username", "sentinelPassword": "keda-password"}
    targets = [
        {"parameter": parameter, "name": parts.REDIS_SECRET, "key": key}
        for parameter, key in names.items()
    ]
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "TriggerAuthentication",
        "metadata": parts.metadata(REDIS_AUTH, "scaling", values),
        "spec": {"secretTargetRef": targets},
    }


def stream_trigger(name: str, stream: str, values: Values, counts: Resource) -> Resource:
    """Give KEDA's trigger on one stream of tickets."""
    hosts = parts.store_hosts(values.namespace, values.store.replicas)
    where = {"address": f"{hosts[0]}:{parts.REDIS_PORT}"}
    if len(hosts) > 1:
        addresses = ",".join(f"{host}:{parts.SENTINEL_PORT}" for host in hosts)
        where = {"addresses": addresses, "sentinelMaster": parts.WATCHED}
    return {
        "type": "redis-sentinel-streams" if len(hosts) > 1 else "redis-streams",
        "name": name,
        "metadata": {
            **where,
            "stream": stream,
            "consumerGroup": parts.GROUP,
            **counts,
        },
        "authenticationRef": {"name": REDIS_AUTH},
    }


def scaled_object(values: Values, times: Timeouts) -> Resource:
    """Give the ScaledObject on the Deployment that KServe makes."""
    target = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": f"{values.model.name}-predictor",
    }
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": parts.metadata(values.model.name, "scaling", values),
        "spec": {
            "scaleTargetRef": target,
            "minReplicaCount": 0,
            "maxReplicaCount": values.max_replicas,
            "pollingInterval": because(times.polling, "Added to every wake from zero."),
            "cooldownPeriod": because(
                times.cooldown, "Longer than the worst wake (docs/facts.md #11)."
            ),
            "initialCooldownPeriod": because(
                times.initial_cooldown,
                "KServe's new Deployment starts a pod without a job. One that a job woke "
                "is held by the job, and then by cooldownPeriod.",
            ),
            "advanced": because(
                {
                    "scalingModifiers": _modifiers(values),
                    "horizontalPodAutoscalerConfig": {
                        "behavior": behavior(values.max_replicas, times)
                    },
                },
                "No `fallback`: on an error KEDA then leaves the replicas as they are, and that is "
                "what a store that is down for a minute deserves.",
            ),
            "triggers": _work_triggers(values),
        },
    }


def _modifiers(values: Values) -> Resource:
    return {
        "formula": because(
            WORK,
            "Waiting plus in flight. Lag alone is 0 while a job runs: the pod was seen to be "
            "ended within 9 s (docs/facts.md 3.6b).",
        ),
        "target": because(str(values.model.concurrency), "Jobs that one replica does at once."),
        "activationTarget": because("0", "Strictly greater: one job wakes. Needs KEDA 2.17."),
        "metricType": "AverageValue",
    }


def behavior(max_replicas: int, times: Timeouts) -> Resource:
    """Give how fast the HPA may go up and down."""
    return {
        "scaleUp": because(
            {
                "stabilizationWindowSeconds": 0,
                "policies": [{"type": "Pods", "value": max_replicas, "periodSeconds": 15}],
            },
            "Without it the HPA may only go to max(2n, 4) a sync: 30 s instead of 10 s (3.6b).",
        ),
        "scaleDown": {
            "stabilizationWindowSeconds": because(
                times.scale_down_window, "It picks its victim blindly: wait as long as a wake."
            ),
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
        },
    }


def _work_triggers(values: Values) -> list[Resource]:
    target, stream = str(values.model.concurrency), parts.stream_key(values.model.name)
    return [
        because(
            stream_trigger("lag", stream, values, {"lagCount": target, "activationLagCount": "0"}),
            "Wakes: entries that are not delivered.",
        ),
        because(
            stream_trigger("pend", stream, values, {"pendingEntriesCount": target}),
            "Stays: entries taken and not yet acknowledged.",
        ),
    ]


def pressure_patch(values: Values) -> Patch:
    """Give what adds p95 of the wait (Prometheus) and GPU utilisation (DCGM) to the formula."""
    model, namespace = values.model.name, values.namespace
    wait = (
        "(histogram_quantile(0.95, sum by (le) "
        f'(rate(torpor_queue_wait_seconds_bucket{{model="{model}"}}[2m]))) > 0) or vector(0)'
    )
    # dcgm-exporter's own labels are `exported_` unless it is scraped with honorLabels.
    here, there = (
        f'DCGM_FI_DEV_GPU_UTIL{{{prefix}namespace="{namespace}",{prefix}pod=~"{model}-predictor-.*"}}'
        for prefix in ("exported_", "")
    )
    gpu = f"avg({here} or {there}) or vector(0)"
    return [
        {
            "op": "replace",
            "path": "/spec/advanced/scalingModifiers/formula",
            "value": pressure_formula(values),
        },
        {
            "op": "add",
            "path": "/spec/triggers/-",
            "value": because(
                _prometheus("p95", values, wait, str(values.p95_wait_seconds)),
                "From the api's and broker's histogram: a predictor at zero has no metrics. "
                "`> 0` drops NaN of an empty window, `or vector(0)` an absent series.",
            ),
        },
        {
            "op": "add",
            "path": "/spec/triggers/-",
            "value": because(
                _prometheus("gpu", values, gpu, "90"),
                "dcgm-exporter; scraped with or without honorLabels.",
            ),
        },
    ]


def _prometheus(name: str, values: Values, query: str, threshold: str) -> Resource:
    return {
        "type": "prometheus",
        "name": name,
        "metadata": {
            "serverAddress": values.platform.prometheus_url,
            "query": query,
            "threshold": threshold,
            "ignoreNullValues": "true",
        },
    }


def work_scaler(values: Values) -> tuple[Resource, Resource]:
    """Give the scaler's Deployment and Service."""
    pod = {
        "serviceAccountName": parts.SCALER,
        "automountServiceAccountToken": False,
        "enableServiceLinks": parts.NO_SERVICE_LINKS,
        "terminationGracePeriodSeconds": 10,
        "securityContext": parts.hardened_pod(),
        "containers": [_scaler_container(values)],
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


def _scaler_container(values: Values) -> Resource:
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


def work_patch(values: Values) -> Patch:
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
    if values.batch_wait_seconds:
        metadata["batchWaitSeconds"] = str(values.batch_wait_seconds)
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
