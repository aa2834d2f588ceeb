"""The event layer on Knative: Broker, Triggers, and who may send.

Called by `tree`. Sources: docs/facts.md 3.1, 3.2; the three traps of the design.
"""

from __future__ import annotations

from knative.deploy.emit import Resource, because
from knative.deploy.render import parts
from knative.deploy.timeouts import Timeouts, parallelism
from knative.deploy.values import Values

RABBITMQ = "torpor-rabbitmq"
BROKER_CLASS = "eventing.knative.dev/broker.class"
PARALLELISM = "rabbitmq.eventing.knative.dev/parallelism"
KAFKA_CONFIG = "torpor-kafka-broker"
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
    """Give where Knative's broker leaves what it gave up: our own ingress.

    By address, not by reference: Knative would call port 80 of a referenced Service.
    """
    return parts.service_url(parts.BROKER, parts.BROKER_PORT, values) + "/"


def trigger(name: str, values: Values, spec: Resource, annotations: Resource) -> Resource:
    return {
        "apiVersion": "eventing.knative.dev/v1",
        "kind": "Trigger",
        "metadata": parts.metadata(name, "events", values, annotations=annotations),
        "spec": {"broker": parts.EVENTS, **spec},
    }


def triggers(values: Values, times: Timeouts) -> list[Resource]:
    """Give the Triggers: requests to each predictor. Results go to their subscribers: the predictor has ended the
    job in the store, and a result event that the api believed would let any client of the Broker end jobs.
    """
    is_only = not values.more_models and not values.steps.max_replicas
    found = []
    for each in values.each():
        types = [parts.REQUESTED]
        if values.steps.max_replicas:
            types = [parts.PREPARED, *([] if each.model.name in values.plans else types)]
        found += [_requests_trigger(each, times, type_, is_only=is_only) for type_ in types]
    return found


def _requests_trigger(values: Values, times: Timeouts, type_: str, *, is_only: bool) -> Resource:
    """Give the Trigger of one model's requests; alone it takes those that name no model too. What steps have
    prepared has a Trigger of its own: one with a filter of several types is not to be had of every broker.
    """
    model = values.model.name
    wanted = {"type": type_} if is_only else {"type": type_, "model": model}
    reason = (
        "Not by `model`: one predictor here, and a request without that attribute must not fall "
        "between the triggers. With more_models it is added to each."
        if is_only
        else "By `model`. The api always sets it; another producer must, or no trigger takes it."
    )
    predictor = {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "name": f"{model}-predictor",
    }
    return trigger(
        parts.trigger_name(model) if type_ == parts.REQUESTED else f"prepared-{model}",
        values,
        {
            "filter": because({"attributes": wanted}, reason),
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
                str(max(10, *(each.max_replicas * 2 for each in values.each()))),
                "Consumers beyond the partitions are idle.",
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
    # Replies of the predictor are the broker's own; no other client sends.
    names = [parts.API, *([parts.STEPS] if values.steps.max_replicas else [])]
    senders = [{"sub": f"system:serviceaccount:{values.namespace}:{name}"} for name in names]
    broker = {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "name": parts.EVENTS}
    return {
        "apiVersion": "eventing.knative.dev/v1alpha1",
        "kind": "EventPolicy",
        "metadata": parts.metadata(parts.EVENTS, "events", values),
        "spec": {"to": [{"ref": broker}], "from": senders},
    }


def identity_patch(values: Values) -> list[Resource]:
    """Give what lets a process show the Broker who it is: a token for that audience and no other."""
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
