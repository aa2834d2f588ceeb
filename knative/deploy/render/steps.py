"""The steps before the predictor: one process for all of them, its queues, and what scales it from zero.

Called by `component` where the values have steps. In the queue topology it is a Deployment that KEDA scales by the
tickets of every step's queue, and the broker delivers to it; in the serverless one a Knative Service with a Trigger
a step. ADR 210 has the types.
"""

from __future__ import annotations

import yaml

from eventing.job.moderation.inline import inline_names
from eventing.job.plan import STEP_ORDER
from eventing.redis import keys
from eventing.store.vector_store.note import WORK_TYPES
from eventing.store.vector_store.query import RETRIEVE_STEP, SEARCH_STEP
from knative.deploy.emit import Patch, Resource, because
from knative.deploy.render import parts, scaling
from knative.deploy.render.api import FILES, FILES_CLAIM
from knative.deploy.render.broker import own_broker
from knative.deploy.render.broker.events import PARALLELISM, relay_url, trigger
from knative.deploy.render.tools import config as tools
from knative.deploy.timeouts import Timeouts
from knative.deploy.values import Values

PIPELINES = "torpor-pipelines"
FOLDER = "/etc/torpor/pipelines"
FILE = f"{FOLDER}/pipelines.yaml"
VECTOR_STORES = "vector-stores"
GUARD_SECRET = "torpor-guard"  # noqa: S105  its name
CALLER_URL = f"http://localhost:{parts.STEPS_PORT}/events"
_INDEXING_S = 1800  # a large file takes minutes
_GRACE_S = 30


def names(values: Values) -> list[str]:
    """Give the steps that jobs may have: the planned ones, and those that a call itself can ask for."""
    if not values.steps.max_replicas:
        return []
    planned = [step.name for plan in values.plans.values() for step in plan.steps]
    asked = (SEARCH_STEP, RETRIEVE_STEP, *inline_names(values.plans), *tools.steps(values))
    known = dict.fromkeys([*asked, *planned])
    order = {name: place for place, name in enumerate(STEP_ORDER)}
    return sorted(known, key=lambda name: order.get(name, len(order)))


def queues(values: Values) -> list[str]:
    """Give the names of our broker's triggers whose events come here."""
    if not values.steps.max_replicas:
        return []
    own = [f"step-{name}" for name in names(values)]
    beside_tools = {tools.queue_of(label) for label in values.tool_config.deployed}
    return [
        *own,
        *(f"plans-{model}" for model in values.plans),
        VECTOR_STORES,
        *(name for name in tools.queues(values) if name not in beside_tools),
    ]


def _wanted(values: Values) -> dict[str, list[dict[str, str]]]:
    """Give what each of those triggers takes: events with any of these sets of attributes."""
    found = {f"step-{name}": [{"type": parts.PLANNED, "step": name}] for name in names(values)}
    for model in values.plans:
        found[f"plans-{model}"] = [{"type": parts.REQUESTED, "model": model}]
    calls = {name: [attributes] for name, attributes in tools.queues(values).items()}
    return {**found, VECTOR_STORES: [{"type": each} for each in WORK_TYPES], **calls}


def _delivery(values: Values, name: str) -> Resource:
    """Give a delivery spec: few tries, as input that kills the process kills it in each, over a long time."""
    seconds = _INDEXING_S if name == VECTOR_STORES else values.steps.timeout_seconds
    if name in tools.queues(values):
        seconds = tools.timeout_s(values, name)
    return {
        "retry": values.steps.retries,
        "backoffPolicy": because(
            "exponential", "Soon after a crash, and for long while what a step needs is away."
        ),
        "backoffDelay": "PT1S",
        "timeout": f"PT{seconds}S",
    }


def _parallelism(values: Values, name: str) -> str:
    is_tool = name in tools.queues(values)
    return str(tools.parallelism(values, name) if is_tool else values.steps.concurrency)


def own_triggers(values: Values) -> list[Resource]:
    """Give the Triggers for our own broker, which pumps them itself: at zero no pod could. Calls of a tool that is
    deployed go to the caller in its pod, and are pumped there.
    """
    if not values.steps.max_replicas:
        return []
    url = parts.service_url(parts.STEPS, parts.STEPS_PORT, values) + "/events"
    pumped = queues(values)
    return [
        trigger(
            name,
            values,
            {
                "filters": [{"any": [{"exact": attributes} for attributes in wanted]}]
                if len(wanted) > 1
                else [{"exact": wanted[0]}],
                "subscriber": {"uri": url if name in pumped else CALLER_URL},
                "delivery": _delivery(values, name),
            },
            {own_broker.OWN_PARALLELISM: _parallelism(values, name)},
        )
        for name, wanted in _wanted(values).items()
    ]


def knative_triggers(values: Values, _: Timeouts) -> list[Resource]:
    """Give a Knative Trigger for each set of attributes: RabbitMQ's broker knows no other filter."""
    service = {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": parts.STEPS}
    found = []
    for name, wanted in _wanted(values).items():
        sink = because({"uri": relay_url(values)}, "Our record says then what becomes of the job.")
        for number, attributes in enumerate(wanted):
            spec = {
                "filter": {"attributes": attributes},
                "subscriber": {"ref": service, "uri": "/events"},
                "delivery": {**_delivery(values, name), "deadLetterSink": sink},
            }
            notes = {
                PARALLELISM: _parallelism(values, name),
                "kafka.eventing.knative.dev/delivery.order": "unordered",
            }
            own = f"{name}-{number}" if len(wanted) > 1 else name
            found.append(trigger(own, values, spec, notes))
    return found


def pipelines_file(values: Values) -> Resource:
    """Give the plans as the file that api, broker and steps read."""
    text = yaml.safe_dump(values.pipelines, sort_keys=False) if values.pipelines else "{}\n"
    return parts.config_map(PIPELINES, "steps", values, {"pipelines.yaml": text})


def files(values: Values, *, knative: bool) -> list[Resource]:
    """Give the files that say what steps do."""
    found = [pipelines_file(values)]
    if values.tool_config.queues:
        found.append(tools.config_map(values, knative=knative))
    return found


def files_patch(values: Values, *, seals: bool) -> Patch:
    """Give a process that takes jobs these files; one that `seals` what a request brings gets the key for that."""
    return [*_pipelines_patch(), *tools.patch(values, seals=seals)]


def _pipelines_patch() -> Patch:
    box = "/spec/template/spec/containers/0"
    return [
        {"op": "add", "path": f"{box}/env/-", "value": _file_env()},
        {"op": "add", "path": f"{box}/volumeMounts/-", "value": _file_mount()},
        {"op": "add", "path": "/spec/template/spec/volumes/-", "value": _file_volume()},
    ]


def _file_env() -> Resource:
    return {"name": "TORPOR_PIPELINES_FILE", "value": FILE}


def _file_mount() -> Resource:
    return {"name": "pipelines", "mountPath": FOLDER, "readOnly": True}


def _file_volume() -> Resource:
    return {"name": "pipelines", "configMap": {"name": PIPELINES}}


def _container(values: Values) -> Resource:
    port = parts.STEPS_PORT
    return {
        "name": "steps",
        "image": values.images.reference("steps"),
        "ports": [{"name": "http", "containerPort": port}],
        "envFrom": parts.settings_from(),
        "env": [
            parts.redis_url_env(),
            parts.secret_env("TORPOR_DELIVERY_TOKEN", parts.INTERNAL_SECRET, "token"),
            {"name": "TORPOR_STEPS_HOST", "value": "0.0.0.0"},  # noqa: S104  inside its own pod
            {"name": "TORPOR_STEPS_PORT", "value": str(port)},
            {"name": "TORPOR_FILES_URL", "value": values.platform.files_url},
            {"name": "TORPOR_GUARD_URL", "value": f"{_api_url(values)}/v1"},
            parts.secret_env("TORPOR_GUARD_TOKEN", GUARD_SECRET, "token", optional=True),
            {"name": "TORPOR_DRAIN_GRACE_S", "value": str(_GRACE_S - 10)},
            _file_env(),
        ],
        "readinessProbe": parts.http_get("/readyz", port, periodSeconds=2),
        "livenessProbe": parts.http_get("/healthz", port, periodSeconds=10, failureThreshold=6),
        "resources": parts.resources("500m", values.steps.memory),
        "securityContext": parts.hardened(),
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  the container's own
            {"name": "files", "mountPath": FILES},
            _file_mount(),
        ],
    }


def _api_url(values: Values) -> str:
    """Give where guard models are asked that have no address of their own."""
    return parts.service_url(parts.API, parts.API_PORT, values)


def _pod(values: Values, box: Resource, *, knative: bool) -> Resource:
    pod: Resource = {
        "serviceAccountName": parts.STEPS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": parts.NO_SERVICE_LINKS,
        "containers": [box],
        "volumes": [
            parts.scratch("tmp", "1Gi"),
            {"name": "files", "persistentVolumeClaim": {"claimName": FILES_CLAIM}},
            _file_volume(),
        ],
    }
    tools.into_pod(box, pod, values, knative=knative)
    return pod


def deployment(values: Values) -> Resource:
    """Give the steps' Deployment. No `replicas`: they belong to KEDA."""
    box = _container(values)
    box["env"].append(
        {
            "name": "TORPOR_QUEUE_TRIGGERS_FILE",
            "value": f"{own_broker.TRIGGERS_FOLDER}/triggers.yaml",
        }
    )
    box["volumeMounts"].append(own_broker.triggers_mount())
    box["startupProbe"] = parts.http_get(
        "/healthz", parts.STEPS_PORT, periodSeconds=1, failureThreshold=60
    )
    pod = {
        **_pod(values, box, knative=False),
        "terminationGracePeriodSeconds": _GRACE_S,
        "securityContext": parts.hardened_pod(
            fsGroup=parts.USER_ID, fsGroupChangePolicy="OnRootMismatch"
        ),
        "topologySpreadConstraints": parts.spread("steps"),
    }
    pod["volumes"].append(own_broker.triggers_volume())
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": parts.metadata(parts.STEPS, "steps", values),
        "spec": {
            "selector": {"matchLabels": parts.labels("steps")},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": parts.pod_metadata("steps"), "spec": pod},
        },
    }


def scaled_object(values: Values, times: Timeouts) -> Resource:
    """Give what scales the Deployment: lag and pending of every queue of the steps, in one formula."""
    triggers, terms = [], []
    for place, queue in enumerate(queues(values)):
        stream, target = keys.queue(queue, "tickets"), str(values.steps.concurrency)
        counts = {"lagCount": target, "activationLagCount": "0"}
        lag, pend = f"lag{place}", f"pend{place}"
        triggers.append(scaling.stream_trigger(lag, stream, values, counts))
        triggers.append(
            scaling.stream_trigger(pend, stream, values, {"pendingEntriesCount": target})
        )
        terms.append(f"({lag} > 0 ? {lag} : 0) + {pend}")
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": parts.metadata(parts.STEPS, "scaling", values),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": parts.STEPS},
            "minReplicaCount": 0,
            "maxReplicaCount": values.steps.max_replicas,
            "pollingInterval": because(times.polling, "Added to every wake from zero."),
            "cooldownPeriod": because(times.cooldown, "As the predictors', who are woken with it."),
            "advanced": {
                "scalingModifiers": {
                    "formula": because(
                        " + ".join(terms), "All steps in one process, so their work adds up."
                    ),
                    "target": str(values.steps.concurrency),
                    "activationTarget": "0",
                    "metricType": "AverageValue",
                },
                "horizontalPodAutoscalerConfig": {
                    "behavior": scaling.behavior(values.steps.max_replicas, times)
                },
            },
            "triggers": triggers,
        },
    }


def knative_service(values: Values) -> Resource:
    """Give the steps as a Knative Service that only the cluster can call."""
    box = _container(values)
    box["ports"] = [{"containerPort": parts.STEPS_PORT}]  # Knative allows only its own port names
    annotations = {
        "autoscaling.knative.dev/min-scale": "0",
        "autoscaling.knative.dev/max-scale": str(values.steps.max_replicas),
        "autoscaling.knative.dev/target-utilization-percentage": "100",
    }
    metadata = parts.metadata(parts.STEPS, "steps", values)
    metadata["labels"]["networking.knative.dev/visibility"] = because(
        "cluster-local", "Its caller is the event mesh."
    )
    calls = [tools.timeout_s(values, name) for name in tools.queues(values)]
    seconds = max(values.steps.timeout_seconds, _INDEXING_S, *calls)
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "template": {
                "metadata": parts.pod_metadata("steps", **annotations),
                "spec": {
                    **_pod(values, box, knative=True),
                    "containerConcurrency": values.steps.concurrency,
                    "timeoutSeconds": because(
                        seconds, "The longest delivery: indexing a file, or a call of a tool."
                    ),
                    "responseStartTimeoutSeconds": seconds,
                },
            }
        },
    }
