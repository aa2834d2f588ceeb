"""Rules of the broker: its class, its queues, its address."""

from __future__ import annotations

import re
from collections.abc import Iterator

from knative.deploy import tls
from knative.deploy.doctor.field import field_rule, note, one_of
from knative.deploy.doctor.finding import Fault, Hop, Register, Severity, fault, needed
from knative.deploy.doctor.view import (
    BROKER_CLASS,
    ResourceView,
    annotation,
    dig,
    number,
    variable,
)
from knative.deploy.render import parts
from knative.deploy.render.broker import events
from knative.deploy.timeouts import rabbitmq_ack_s

register = Register()
_DURABLE = ("RabbitMQBroker", "Kafka", "KafkaNamespaced")
_ORDER = "kafka.eventing.knative.dev/delivery.order"


register.rule(
    "broker-class",
    Hop.BROKER,
    why="The default broker keeps events in memory and ends a delivery after 15 minutes whatever "
    "is set.",
    source="docs/facts.md 3.1 (InMemoryChannel, fanout_event_handler.go:51)",
)(
    field_rule(
        lambda view: view.brokers,
        note(BROKER_CLASS),
        one_of(*_DURABLE, words="RabbitMQBroker or Kafka"),
    )
)


@register.rule(
    "broker-address",
    Hop.BROKER,
    why="Each broker class names its ingress its own way; a wrong address is a 503 on every "
    "submit.",
    source="docs/facts.md 3.2",
)
def broker_address(view: ResourceView) -> Iterator[Fault]:
    settings = view.named("ConfigMap", parts.SETTINGS)
    if settings is None:
        return
    value = str(view.settings.get("TORPOR_BROKER_URL", ""))
    kinds = {str(annotation(broker, BROKER_CLASS)) for broker in view.brokers}
    if not view.brokers and view.named("Deployment", parts.BROKER):
        wanted = f"http://{parts.BROKER}."
    elif kinds & {"Kafka", "KafkaNamespaced"}:
        wanted = "http://kafka-broker-ingress."
    elif "RabbitMQBroker" in kinds:
        wanted = f"http://{parts.EVENTS}-broker-ingress."
    else:
        return
    if not value.replace("https://", "http://").startswith(wanted):
        yield fault(settings, "data.TORPOR_BROKER_URL", value or None, f"{wanted}...")


@register.rule(
    "broker-tls",
    Hop.BROKER,
    why="A broker's certificate is signed inside the cluster: without that authority api and "
    "steps trust no broker, and every submit is answered with 503. A token over plain http can be read.",
    source="Knative, Transport Encryption; Sender Identity",
)
def broker_tls(view: ResourceView) -> Iterator[Fault]:
    is_https = str(view.settings.get("TORPOR_BROKER_URL", "")).startswith("https://")
    for pod in view.pods:
        if pod.owner["metadata"].get("name") not in (parts.API, parts.STEPS):
            continue
        for box in pod.containers:
            if is_https and not variable(box, tls.CA_FILE):
                yield fault(pod.owner, f"env {tls.CA_FILE}", None, "the Broker's authority")
            if not is_https and variable(box, "TORPOR_BROKER_TOKEN_FILE"):
                url = view.settings.get("TORPOR_BROKER_URL")
                must = "https (component eventing-tls)"
                yield fault(pod.owner, "TORPOR_BROKER_URL", url, must, Severity.WARNING)


@register.rule(
    "ingress-token",
    Hop.BROKER,
    why="Any client of the broker's ingress could end jobs and use other tenants' shares; "
    "without the token it does not start on an address that others reach.",
    source="eventing.broker.access",
)
def ingress_token(view: ResourceView) -> Iterator[Fault]:
    names = ("TORPOR_INGRESS_TOKEN", "TORPOR_INGRESS_OPEN")
    for pod in view.pods:
        for box in pod.containers:
            if "eventing.broker" not in (box.get("args") or []):
                continue
            if not {entry.get("name") for entry in box.get("env") or []} & set(names):
                yield fault(pod.owner, f"{box.get('name')}: env {names[0]}", None, "the token")


@register.rule(
    "rabbitmq-quorum",
    Hop.BROKER,
    why="A classic queue is on one node: with it go the jobs that it held.",
    source="docs/reliability.md (RabbitMQ quorum queues)",
)
def rabbitmq_quorum(view: ResourceView) -> Iterator[Fault]:
    for config in view.of("RabbitmqBrokerConfig"):
        value = dig(config, "spec.queueType")
        if value not in (None, "quorum"):
            yield fault(config, "spec.queueType", value, "quorum")
    for cluster in view.of("RabbitmqCluster"):
        value = number(dig(cluster, "spec.replicas")) or 1
        if value < 3 or value % 2 == 0:
            yield fault(cluster, "spec.replicas", value, "3, 5 or 7", Severity.WARNING)


@register.rule(
    "rabbitmq-ack-timer",
    Hop.BROKER,
    why="The dispatcher prefetches 100 messages whatever its parallelism, and RabbitMQ closes the "
    "channel of one that is unacked for 30 min: all 100 run again.",
    source="docs/facts.md 3.2 (Qos(100,0,false)); celery#6760",
)
def rabbitmq_ack_timer(view: ResourceView) -> Iterator[Fault]:
    clusters = view.of("RabbitmqCluster")
    for trigger in view.request_triggers():
        if view.class_of(trigger) != "RabbitMQBroker":
            continue
        delivery = view.delivery(trigger)
        parallel = int(number(annotation(trigger, events.PARALLELISM)) or 1)
        timeout = delivery.timeout_s or view.held_s
        least = rabbitmq_ack_s(timeout, delivery.span_s, parallel)
        if not clusters:
            yield needed(
                "RabbitMQ", "consumer_timeout (ms)", f"at least {least * 1000} in rabbitmq.conf"
            )
        for cluster in clusters:
            config = str(dig(cluster, "spec.rabbitmq.additionalConfig") or "")
            match = re.search(r"^\s*consumer_timeout\s*=\s*(\d+)", config, re.MULTILINE)
            value = int(match[1]) if match else 1_800_000
            if value < least * 1000:
                field = "spec.rabbitmq.additionalConfig: consumer_timeout"
                yield fault(cluster, field, value, f"at least {least * 1000} (ms)")


@register.rule(
    "rabbitmq-parallelism",
    Hop.BROKER,
    why="One dispatcher works on one event at a time by default: one job at a time for "
    "the whole fleet.",
    source="docs/facts.md 3.2 (trigger_validation.go: 1-1000, default 1)",
)
def rabbitmq_parallelism(view: ResourceView) -> Iterator[Fault]:
    capacity = _capacity(view)
    for trigger in view.triggers:
        if view.class_of(trigger) != "RabbitMQBroker":
            continue
        value = annotation(trigger, events.PARALLELISM)
        count = number(value) if value is not None else 1
        if count is None or not 1 <= count <= 1000:
            yield fault(trigger, events.PARALLELISM, value, "1 to 1000")
        elif trigger in view.request_triggers() and count < min(1000, capacity):
            must = f"{min(1000, capacity)}: what all replicas can think about at once"
            yield fault(trigger, events.PARALLELISM, value, must, Severity.WARNING)


def _capacity(view: ResourceView) -> int:
    """Give how many jobs all replicas of the largest predictor hold at once."""
    held = [
        int(number(dig(p, "spec.predictor.maxReplicas")) or 1)
        * int(number(dig(p, "spec.predictor.containerConcurrency")) or 1)
        for p in view.in_knative_mode()
    ]
    return max(held, default=1)


@register.rule(
    "kafka-order",
    Hop.BROKER,
    why="`ordered` keeps one job in flight per partition.",
    source="docs/facts.md 3.2",
)
def kafka_order(view: ResourceView) -> Iterator[Fault]:
    for trigger in view.request_triggers():
        value = annotation(trigger, _ORDER)
        if view.class_of(trigger).startswith("Kafka") and value == "ordered":
            yield fault(trigger, _ORDER, value, "unordered")


@register.rule(
    "kafka-partitions",
    Hop.BROKER,
    why="Consumers beyond the number of partitions are idle.",
    source="docs/facts.md 3.2, 3.6",
)
def kafka_partitions(view: ResourceView) -> Iterator[Fault]:
    for config in view.of("ConfigMap"):
        value = number((config.get("data") or {}).get("default.topic.partitions"))
        least = max(
            (int(number(dig(p, "spec.predictor.maxReplicas")) or 1) for p in view.predictors),
            default=1,
        )
        if value is not None and value < least:
            yield fault(
                config, "data.default.topic.partitions", value, f"at least {least}",
                Severity.WARNING,
            )  # fmt: skip


@register.rule(
    "untrusted-source",
    Hop.BROKER,
    why="RedisStreamSource acknowledges sends that failed, starts at the end of the stream and "
    "deletes its group on shutdown; RequestReply ends after one minute.",
    source="docs/facts.md trap 2; docs/facts.md 3.1 ingress_handler.go",
)
def untrusted_source(view: ResourceView) -> Iterator[Fault]:
    for kind in ("RedisStreamSource", "RequestReply"):
        for resource in view.of(kind):
            yield fault(resource, "kind", kind, "not used on a job's path")
