"""The event layer of each topology: Knative Broker with Triggers, or our own broker on Redis.

Called by `tree`. Sources: facts 3.1, 3.2; the three traps of the design.
"""

from __future__ import annotations

from knative.deploy import parts
from knative.deploy.emit import Resource, because
from knative.deploy.timeouts import Timeouts, parallelism
from knative.deploy.values import Values

RABBITMQ = "torpor-rabbitmq"
BROKER_CLASS = "eventing.knative.dev/broker.class"
PARALLELISM = "rabbitmq.eventing.knative.dev/parallelism"
RESULT_PATH = "/internal/events"
KAFKA_CONFIG = "torpor-kafka-broker"
OWN_PARALLELISM = "torpor.dev/parallelism"
TRIGGERS = "torpor-triggers"
TRIGGERS_FOLDER = "/etc/torpor/triggers"
RESULTS = "results"
GIVEN_UP = "given-up"
IDENTITY_FOLDER = "/var/run/torpor/identity"


def delivery(values: Values, times: Timeouts, timeout_s: int | None = None) -> Resource:
    """Give a delivery spec that asks long enough and cuts nothing."""
    return {
        "retry": because(
            times.retries,
            f"Waits {times.retry_span} s in all: longer than a job, a wake and a lease together.",
        ),
        "backoffPolicy": because("linear", "Exponential would spend half the span in one wait."),
        "backoffDelay": f"PT{times.retry_delay}S",
        "timeout": because(
            f"PT{timeout_s or times.delivery}S", "Outlasts queue-proxy, which answers 504 first."
        ),
        "deadLetterSink": because(
            {"uri": relay_url(values)},
            "A second net; the first is our own record, written before anything is acknowledged.",
        ),
    }


def relay_url(values: Values) -> str:
    """Give where Knative's broker leaves results and what it gave up: our own ingress.

    By address, not by reference: Knative would call port 80 of a referenced Service.
    """
    return parts.service_url(parts.BROKER, parts.BROKER_PORT, values) + "/"


def _trigger(name: str, values: Values, spec: Resource, annotations: Resource) -> Resource:
    return {
        "apiVersion": "eventing.knative.dev/v1",
        "kind": "Trigger",
        "metadata": parts.metadata(name, "events", values, annotations=annotations),
        "spec": {"broker": parts.EVENTS, **spec},
    }


def triggers(values: Values, times: Timeouts) -> list[Resource]:
    """Give the Triggers: requests to the predictor, each kind of result to the api."""
    model = values.model.name
    predictor = {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "name": f"{model}-predictor",
    }
    requests = _trigger(
        parts.trigger_name(model),
        values,
        {
            "filter": because(
                {"attributes": {"type": parts.REQUESTED}},
                "Not by `model`: one predictor here, and a request without that attribute must not "
                "fall between the triggers. With several models add it to each.",
            ),
            "subscriber": {"ref": predictor, "uri": "/events"},
            "delivery": delivery(values, times),
        },
        {
            PARALLELISM: because(
                str(parallelism(values)),
                "As many held deliveries as all predictors can think about; the default is 1.",
            ),
            "kafka.eventing.knative.dev/delivery.order": because(
                "unordered", "`ordered` has one job in flight per partition."
            ),
        },
    )
    results = [
        _trigger(
            f"results-{kind.split('.')[3]}",
            values,
            {
                "filter": {"attributes": {"type": kind}},
                "subscriber": {"uri": relay_url(values)},
                "delivery": delivery(values, times, timeout_s=60),
            },
            {PARALLELISM: "10"},
        )
        for kind in parts.RESULTS
    ]
    return [requests, *results]


def _knative_broker(kind: str, values: Values, times: Timeouts, config: Resource) -> Resource:
    return {
        "apiVersion": "eventing.knative.dev/v1",
        "kind": "Broker",
        "metadata": parts.metadata(
            parts.EVENTS, "events", values, annotations={BROKER_CLASS: kind}
        ),
        "spec": {"config": config, "delivery": delivery(values, times)},
    }


def rabbitmq_broker(values: Values, times: Timeouts) -> list[Resource]:
    """Give a RabbitMQ cluster with quorum queues, and the Broker on it."""
    reference = {
        "apiVersion": "eventing.knative.dev/v1alpha1",
        "kind": "RabbitmqBrokerConfig",
        "name": parts.EVENTS,
    }
    config = {
        "apiVersion": "eventing.knative.dev/v1alpha1",
        "kind": "RabbitmqBrokerConfig",
        "metadata": parts.metadata(parts.EVENTS, "events", values),
        "spec": {
            "rabbitmqClusterReference": {"name": RABBITMQ, "namespace": values.namespace},
            "queueType": because("quorum", "A majority has it before the api hears 202."),
        },
    }
    return [
        _rabbitmq_cluster(values, times),
        config,
        _knative_broker("RabbitMQBroker", values, times, reference),
    ]


def _rabbitmq_cluster(values: Values, times: Timeouts) -> Resource:
    container = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    pod = {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "rabbitmq", "securityContext": container}],
        "initContainers": [{"name": "setup-container", "securityContext": container}],
    }
    return {
        "apiVersion": "rabbitmq.com/v1beta1",
        "kind": "RabbitmqCluster",
        "metadata": parts.metadata(RABBITMQ, "events", values),
        "spec": {
            "replicas": because(3, "Quorum queues lose one node and nothing else."),
            "persistence": {"storage": "10Gi"},
            "rabbitmq": {
                "additionalConfig": because(
                    f"consumer_timeout = {times.rabbitmq_ack * 1000}\n"
                    "queue_leader_locator = balanced\n",
                    "Milliseconds. The dispatcher holds 100 messages whatever its parallelism; at "
                    "the default of 30 min RabbitMQ closes its channel and all 100 run again.",
                )
            },
            "resources": parts.resources("500m", "2Gi"),
            "override": {"statefulSet": {"spec": {"template": {"spec": pod}}}},
        },
    }


def kafka_broker(values: Values, times: Timeouts) -> list[Resource]:
    """Give the Broker on an existing Kafka; events stay under its 1 MiB by `dataref`."""
    config = parts.config_map(
        KAFKA_CONFIG,
        "events",
        values,
        {
            "bootstrap.servers": "torpor-kafka-bootstrap.kafka.svc.cluster.local:9092",
            "default.topic.partitions": because(
                str(max(10, values.max_replicas * 2)), "Consumers beyond the partitions are idle."
            ),
            "default.topic.replication.factor": "3",
            "default.topic.config.min.insync.replicas": "2",
        },
    )
    reference = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": KAFKA_CONFIG,
        "namespace": values.namespace,
    }
    return [config, _knative_broker("Kafka", values, times, reference)]


def event_policy(values: Values) -> Resource:
    """Give who may send to the Broker once Knative's OIDC is on: our own accounts."""
    # Replies of the predictor are the broker's own; nobody else sends.
    senders = [{"sub": f"system:serviceaccount:{values.namespace}:{parts.API}"}]
    broker = {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "name": parts.EVENTS}
    return {
        "apiVersion": "eventing.knative.dev/v1alpha1",
        "kind": "EventPolicy",
        "metadata": parts.metadata(parts.EVENTS, "events", values),
        "spec": {"to": [{"ref": broker}], "from": senders},
    }


def identity_patch(values: Values) -> list[Resource]:
    """Give what lets the api show the Broker who it is: a token for that audience and no other."""
    token = {
        "serviceAccountToken": {
            "path": "token",
            "audience": f"eventing.knative.dev/broker/{values.namespace}/{parts.EVENTS}",
            "expirationSeconds": 3600,
        }
    }
    box = "/spec/template/spec/containers/0"
    return [
        {
            "op": "add",
            "path": "/spec/template/spec/volumes/-",
            "value": {"name": "identity", "projected": {"sources": [token]}},
        },
        {
            "op": "add",
            "path": f"{box}/volumeMounts/-",
            "value": {"name": "identity", "mountPath": IDENTITY_FOLDER, "readOnly": True},
        },
        {
            "op": "add",
            "path": f"{box}/env/-",
            "value": {"name": "TORPOR_BROKER_TOKEN_FILE", "value": f"{IDENTITY_FOLDER}/token"},
        },
    ]


def broker_url(kind: str, values: Values) -> str:
    """Give the address that the api publishes to; each broker class names its ingress its way."""
    match kind:
        case "RabbitMQBroker":
            host = f"{parts.EVENTS}-broker-ingress.{values.namespace}.svc.cluster.local"
            return f"http://{host}"
        case "Kafka":
            host = "kafka-broker-ingress.knative-eventing.svc.cluster.local"
            return f"http://{host}/{values.namespace}/{parts.EVENTS}"
        case _:
            return parts.service_url(parts.BROKER, parts.BROKER_PORT, values)


def own_triggers(values: Values, times: Timeouts) -> list[Resource]:
    """Give the same Triggers for our own broker, which reads them from a file.

    One for all results: each broker process pumps one trigger, each predictor's sidecar the other.
    """
    spec = {key: value for key, value in delivery(values, times).items() if key != "deadLetterSink"}
    requests = {
        "filter": {"attributes": {"type": parts.REQUESTED, "model": values.model.name}},
        "subscriber": {"uri": f"http://localhost:{parts.PULL_PORT}/events"},
        "delivery": spec,
    }
    # Requests that name no model of ours: the api fills in the attribute, or records a failure.
    unnamed = {"not": {"exact": {"model": values.model.name}}}
    strays = {"all": [{"exact": {"type": parts.REQUESTED}}, unnamed]}
    one = because(str(values.model.concurrency), "Claims no more than one engine can think about.")
    return [
        _trigger(parts.trigger_name(values.model.name), values, requests, {OWN_PARALLELISM: one}),
        _results_trigger(values, spec, strays),
    ]


def _results_trigger(values: Values, spec: Resource, *more: Resource) -> Resource:
    """Give our broker's trigger that takes results to the api."""
    wanted = {
        "filters": [{"any": [*({"exact": {"type": kind}} for kind in parts.RESULTS), *more]}],
        "subscriber": {"uri": parts.service_url(parts.API, parts.API_PORT, values) + RESULT_PATH},
        "delivery": {**spec, "timeout": "PT60S"},
    }
    return _trigger(RESULTS, values, wanted, {OWN_PARALLELISM: "16"})


def relay_triggers(values: Values, times: Timeouts) -> list[Resource]:
    """Give the triggers of our broker where Knative's does the rest: results, and what it gave up.

    It stands between because Knative's brokers carry no token of ours, and because its pump knows
    what to do with a request that was given up: record the dead letter, unless the job runs well.
    """
    spec = {k: v for k, v in delivery(values, times).items() if k != "deadLetterSink"}
    given_up = {
        "filter": {"attributes": {"type": parts.REQUESTED}},
        "subscriber": {
            "uri": because(
                parts.service_url(parts.API, parts.API_PORT, values) + "/healthz",
                "Takes no events: 405 is never retried, so each is recorded at once.",
            )
        },
        "delivery": {"retry": 0, "timeout": "PT10S"},
    }
    return [
        _results_trigger(values, spec),
        _trigger(GIVEN_UP, values, given_up, {OWN_PARALLELISM: "4"}),
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


def own_broker(values: Values, trigger: str) -> list[Resource]:
    """Give our own broker: stateless, so two of them share the work with no leader.

    `trigger` is the one that it pumps; empty for all in its file.
    """
    container = {
        "name": "broker",
        "image": values.images.reference("broker"),
        "args": ["eventing.broker"],
        "ports": [{"name": "http", "containerPort": parts.BROKER_PORT}],
        "envFrom": parts.settings_from(),
        "env": [
            parts.redis_url_env(),
            *triggers_env(trigger),
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
    pod = {
        "serviceAccountName": parts.BROKER,
        "automountServiceAccountToken": False,
        "enableServiceLinks": parts.NO_SERVICE_LINKS,
        "terminationGracePeriodSeconds": 60,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "topologySpreadConstraints": parts.spread("broker"),
        "containers": [container],
        "volumes": [parts.scratch("tmp", "256Mi"), triggers_volume()],
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": parts.metadata(parts.BROKER, "broker", values),
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": parts.labels("broker")},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": parts.labels("broker")}, "spec": pod},
        },
    }
    return [
        deployment,
        parts.service(parts.BROKER, "broker", values, http=parts.BROKER_PORT),
        parts.disruption_budget(parts.BROKER, "broker", values, {"minAvailable": 1}),
    ]
