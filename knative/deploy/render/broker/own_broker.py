"""Our own broker on Redis: its triggers, its Deployment, and its part as a relay beside Knative's.

Called by `component`. Sources: docs/facts.md 3.1, 3.2; the three traps of the design.
"""

from __future__ import annotations

from eventing.cloudevent.tool_event import CALLED
from knative.deploy.emit import Patch, Resource, because
from knative.deploy.render import parts
from knative.deploy.render.broker.events import delivery, trigger
from knative.deploy.render.tools import config as tools
from knative.deploy.timeouts import Timeouts
from knative.deploy.values import Values

OWN_PARALLELISM = "torpor.dev/parallelism"
RETRY_SPAN = "torpor.dev/retry-span"
TRIGGERS = "torpor-triggers"
TRIGGERS_FOLDER = "/etc/torpor/triggers"
STRAYS = "strays"
GIVEN_UP = "given-up"
API_PATH = "/internal/events"


def own_triggers(values: Values, times: Timeouts) -> list[Resource]:
    """Give the Triggers for our own broker, which reads them from a file: one a model, pumped by the
    sidecar of its predictors, and one for requests that name none, pumped by the broker. None takes
    results: the predictor has ended the job in the store.
    """
    spec = {key: value for key, value in delivery(values, times).items() if key != "deadLetterSink"}
    return [
        *(_own_requests_trigger(each, spec) for each in values.each()),
        _strays_trigger(values, spec),
    ]


def _own_requests_trigger(values: Values, spec: Resource) -> Resource:
    """Give our broker's trigger of one model's requests, for the pump beside its predictors."""
    model = values.model.name
    wanted: Resource = {"filter": {"attributes": {"type": parts.REQUESTED, "model": model}}}
    if values.steps.max_replicas:
        types = [] if model in values.plans else [parts.REQUESTED]
        taken = [{"exact": {"type": each}} for each in (*types, parts.PREPARED)]
        wanted = {"filters": [{"any": taken}, {"exact": {"model": model}}]}
    requests = {
        **wanted,
        "subscriber": {"uri": f"http://localhost:{parts.PULL_PORT}/events"},
        "delivery": spec,
    }
    one = because(str(values.model.concurrency), "Claims no more than one engine can think about.")
    return trigger(parts.trigger_name(values.model.name), values, requests, {OWN_PARALLELISM: one})


def _strays_trigger(values: Values, spec: Resource) -> Resource:
    """Give our broker's trigger of requests that name no model of ours: the api fills in the
    attribute, or records a failure.
    """
    others = [{"not": {"exact": {"model": each.model.name}}} for each in values.each()]
    strays = {
        "filters": [{"exact": {"type": parts.REQUESTED}}, *others],
        "subscriber": {"uri": parts.service_url(parts.API, parts.API_PORT, values) + API_PATH},
        "delivery": {**spec, "timeout": "PT60S"},
    }
    return trigger(STRAYS, values, strays, {OWN_PARALLELISM: "4"})


def relay_triggers(values: Values, times: Timeouts) -> list[Resource]:
    """Give the trigger of our broker where Knative's does the rest: what that one gave up.

    Its pump knows what to do with such a request: have it published again, or record the dead
    letter when Knative can have spent its retries and the job does not run.
    """
    wanted: Resource = {"filter": {"attributes": {"type": parts.REQUESTED}}}
    if values.steps.max_replicas:
        types = [parts.REQUESTED, parts.PLANNED, parts.PREPARED]
        types += [CALLED] if tools.queues(values) else []
        wanted = {"filters": [{"any": [{"exact": {"type": each}} for each in types]}]}
    given_up = {
        **wanted,
        "subscriber": {
            "uri": because(
                parts.service_url(parts.API, parts.API_PORT, values) + "/healthz",
                "Takes no events: 405 is never retried, so each is recorded at once.",
            )
        },
        "delivery": {"retry": 0, "timeout": "PT10S"},
    }
    return [
        trigger(
            GIVEN_UP,
            values,
            given_up,
            {
                OWN_PARALLELISM: "4",
                RETRY_SPAN: because(
                    f"PT{times.retry_span}S",
                    "Given up sooner than this, a request was not tried long enough (RabbitMQ's "
                    "dispatcher gives up what it holds when it is told to end): published again.",
                ),
            },
        ),
    ]


def triggers_env(trigger: str) -> list[Resource]:
    """Give the variables of a process that pumps one trigger."""
    return [
        {"name": "TORPOR_TRIGGERS_FILE", "value": f"{TRIGGERS_FOLDER}/triggers.yaml"},
        {"name": "TORPOR_TRIGGER", "value": trigger},
        parts.secret_env("TORPOR_DELIVERY_TOKEN", parts.INTERNAL_SECRET, "token"),
    ]


def triggers_mount() -> Resource:
    """Give the mount of the triggers' file."""
    return {"name": "triggers", "mountPath": TRIGGERS_FOLDER, "readOnly": True}


def triggers_volume() -> Resource:
    """Give the volume of the triggers' file."""
    return {"name": "triggers", "configMap": {"name": TRIGGERS}}


def api_puts_patch() -> Patch:
    """Give the api the triggers' file: it shares our broker's Redis, and so puts events into the
    queues itself (docs/adr/0140).
    """
    container = "/spec/template/spec/containers/0"
    path = because(
        f"{TRIGGERS_FOLDER}/triggers.yaml",
        "Submits need no hop through the broker, and go on while it restarts.",
    )
    env = {"name": "TORPOR_QUEUE_TRIGGERS_FILE", "value": path}
    return [
        {"op": "add", "path": f"{container}/env/-", "value": env},
        {"op": "add", "path": f"{container}/env/-", "value": _broker_token()},
        {"op": "add", "path": f"{container}/volumeMounts/-", "value": triggers_mount()},
        {"op": "add", "path": "/spec/template/spec/volumes/-", "value": triggers_volume()},
    ]


def _broker_token() -> Resource:
    return parts.secret_env("TORPOR_BROKER_TOKEN", parts.INTERNAL_SECRET, "token")


def own_broker(values: Values, trigger: str, *, is_relay: bool = False) -> list[Resource]:
    """Give our own broker: stateless, so two of them share the work with no leader.

    `trigger` is the one that it pumps; empty for all in its file. A relay takes events of a broker
    that carries no token of ours.
    """
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": parts.metadata(parts.BROKER, "broker", values),
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": parts.labels("broker")},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": parts.pod_metadata("broker"),
                "spec": _pod(_container(values, trigger, is_relay=is_relay)),
            },
        },
    }
    return [
        deployment,
        parts.service(parts.BROKER, "broker", values, http=parts.BROKER_PORT),
        parts.disruption_budget(
            parts.BROKER, "broker", values, {"maxUnavailable": parts.ONE_AT_A_TIME}
        ),
    ]


def _ingress_env(*, is_relay: bool) -> Resource:
    if not is_relay:
        return parts.secret_env("TORPOR_INGRESS_TOKEN", parts.INTERNAL_SECRET, "token")
    why = "Knative's brokers carry no token; network policies let only the event mesh in."
    return {"name": "TORPOR_INGRESS_OPEN", "value": because("true", why)}


def _container(values: Values, trigger: str, *, is_relay: bool) -> Resource:
    return {
        "name": "broker",
        "image": values.images.reference("broker"),
        "args": ["eventing.broker"],
        "ports": [{"name": "http", "containerPort": parts.BROKER_PORT}],
        "envFrom": parts.settings_from(),
        "env": [
            parts.redis_url_env(),
            *triggers_env(trigger),
            _ingress_env(is_relay=is_relay),
            {"name": "TORPOR_HOST", "value": "0.0.0.0"},  # noqa: S104  inside its own pod
            {"name": "TORPOR_PORT", "value": str(parts.BROKER_PORT)},
        ],
        "startupProbe": parts.http_get(
            "/healthz", parts.BROKER_PORT, periodSeconds=2, failureThreshold=60
        ),
        "readinessProbe": parts.http_get("/readyz", parts.BROKER_PORT, periodSeconds=5),
        "livenessProbe": parts.http_get(
            "/healthz", parts.BROKER_PORT, periodSeconds=10, failureThreshold=6
        ),
        "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
        "resources": parts.resources("250m", "256Mi"),
        "securityContext": parts.hardened(),
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  the container's own
            triggers_mount(),
        ],
    }


def _pod(container: Resource) -> Resource:
    return {
        "serviceAccountName": parts.BROKER,
        "automountServiceAccountToken": False,
        "enableServiceLinks": parts.NO_SERVICE_LINKS,
        "terminationGracePeriodSeconds": 60,
        "securityContext": parts.hardened_pod(),
        "topologySpreadConstraints": parts.spread("broker"),
        "containers": [container],
        "volumes": [parts.scratch("tmp", "256Mi"), triggers_volume()],
    }
