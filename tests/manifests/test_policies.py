"""Every required connection is allowed at its port, and no other.

Required connections follow from the objects that name an address, not from the matrix of flows that the policies
are made of.
"""

# ruff: noqa: E501  a table of mistakes is read by row

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from knative.deploy.render import parts
from tests.manifests.conftest import Resources
from tests.manifests.objects import (
    OVERLAYS,
    OWN_HOST,
    Pod,
    named,
    planted,
    pods,
    services,
    takes,
    texts,
)

Way = tuple[str, str, int | str]  # who calls, who is called, the pod's port; 53/UDP when not TCP
ANYONE = "anyone"
QUEUE_PROXY = {8012, 8013, 8022, 8112, 9090}
BROKER_PODS = {"http": 8080, "https": 8443}  # Knative's ingress, whatever its Service's port
# A pump's port; the policy is the same in both topologies and the sidecar is in one.
ONLY_IN_QUEUE = {("monitoring", 8082)}


def opened(pod: Pod) -> set[int]:
    return set(pod.ports.values()) | (QUEUE_PROXY if pod.is_knatives else set())


def chosen(selector: dict[str, Any], running: list[Pod]) -> set[str]:
    absent = {
        e["key"] for e in selector.get("matchExpressions", ()) if e["operator"] == "DoesNotExist"
    }
    return {
        pod.name
        for pod in running
        if takes(selector.get("matchLabels", {}), pod.labels) and not absent & pod.labels.keys()
    }


def parties(peers: list[dict[str, Any]] | None, running: list[Pod]) -> set[str]:
    """Our pods and others' namespaces among the peers of a rule; no peers are everybody."""
    found = set() if peers else {ANYONE}
    for peer in peers or []:
        match peer:
            case {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}:
                found.add(name)
            case {"podSelector": selector}:
                found |= chosen(selector, running)
            case {"ipBlock": {"cidr": "0.0.0.0/0"}}:
                found.add("internet")
    return found


def permitted(resources: Resources) -> tuple[set[Way], set[Way]]:
    """What may arrive and what may leave, all policies together."""
    running = pods(resources)
    arrives: set[Way] = set()
    leaves: set[Way] = set()
    for policy in named(resources, "NetworkPolicy"):
        spec = policy["spec"]
        ours = chosen(spec["podSelector"], running)
        rules = [
            (way, rule, parties(rule.get(side), running))
            for way, side in (("Ingress", "from"), ("Egress", "to"))
            if way in spec["policyTypes"]
            for rule in spec.get(way.lower()) or []
        ]
        for way, rule, others in rules:
            ports = [
                p["port"] if p["protocol"] == "TCP" else f"{p['port']}/{p['protocol']}"
                for p in rule["ports"]
            ]
            for pod, other, port in product(ours, others, ports):
                if way == "Ingress":
                    arrives.add((other, pod, port))
                else:
                    leaves.add((pod, other, port))
    return arrives, leaves


def behind(resources: Resources, host: str) -> Iterator[tuple[str, int]]:
    """The pods, with their port, that a Service of ours stands for."""
    for s in services(resources):
        if s["metadata"]["name"] == host:
            for pod, port in product(pods(resources), s["spec"]["ports"]):
                target = port.get("targetPort", port["port"])
                if takes(s["spec"]["selector"], pod.labels) and target in pod.ports:
                    yield pod.name, pod.ports[target]


def called(resources: Resources, caller: str, text: str) -> Iterator[Way]:
    """The ways to all of our Services that a text names."""
    for host, _ in OWN_HOST.findall(text):
        yield from ((caller, *port) for port in behind(resources, host))


def needed(resources: Resources) -> set[Way]:
    """Every call that the objects speak of."""
    found: set[Way] = set()
    data = {r["metadata"]["name"]: r["data"] for r in named(resources, "ConfigMap")}
    for pod in pods(resources):
        found |= {w for box in pod.boxes for w in needed_by(resources, pod, box, data)}
        if pod.is_knatives:
            found |= {("knative-serving", pod.name, port) for port in (8012, 9090)}
            found |= {("kourier-system", pod.name, 8012), (pod.name, "knative-serving", 8080)}
        if pod.boxes:
            found |= {(pod.name, "kube-system", port) for port in (53, "53/UDP")}
        if pod.spec.get("automountServiceAccountToken"):
            found |= {(pod.name, ANYONE, 443), (pod.name, ANYONE, 6443)}
    for r in named(resources, "ScaledObject"):
        found |= set(called(resources, "keda", texts(r["spec"])))
    if any(named(resources, "Ingress")):
        found |= {(ANYONE, *port) for port in behind(resources, parts.API)}
    for r in named(resources, "Trigger"):
        reached = (r["spec"]["subscriber"], r["spec"]["delivery"]["deadLetterSink"])
        found |= {way for to in reached for way in called(resources, mesh(resources), texts(to))}
    return found | scraped(resources)


def needed_by(
    resources: Resources, pod: Pod, box: dict[str, Any], data: dict[str, Any]
) -> Iterator[Way]:
    """The calls of one container: its store, its broker, its trigger's subscriber, the internet."""
    env = {entry["name"]: entry.get("value", "") for entry in box.get("env", [])}
    if "TORPOR_REDIS_URL" in env:
        yield from ((pod.name, *port) for port in behind(resources, parts.REDIS))
    if "STORAGE_URI" in env or box["name"] == "api":
        yield pod.name, "internet", 443
    if urlsplit(env.get("TORPOR_UPSTREAM_URL", "")).scheme == "https":
        yield pod.name, "internet", 443
    yield from called(resources, pod.name, env.get("TORPOR_UPSTREAM_FALLBACKS", ""))
    if box["name"] == "api":
        yield from to_broker(resources, pod.name, data[parts.SETTINGS]["TORPOR_BROKER_URL"])
    if box["name"] == "broker":
        for trigger in yaml.safe_load_all(data["torpor-triggers"]["triggers.yaml"]):
            if env["TORPOR_TRIGGER"] in ("", trigger["metadata"]["name"]):
                yield from called(resources, pod.name, trigger["spec"]["subscriber"]["uri"])


def mesh(resources: Resources) -> str:
    """Who delivers for Knative's broker: RabbitMQ's pods are ours, Kafka's in another namespace."""
    (broker,) = named(resources, "Broker")
    kind = broker["metadata"]["annotations"]["eventing.knative.dev/broker.class"]
    return parts.EVENTS if kind == "RabbitMQBroker" else "knative-eventing"


def to_broker(resources: Resources, caller: str, url: str) -> Iterator[Way]:
    doors = list(called(resources, caller, url))
    yield from doors
    if not doors:
        yield caller, mesh(resources), BROKER_PODS[urlsplit(url).scheme]


def scraped(resources: Resources) -> set[Way]:
    """What Prometheus calls."""
    found: set[Way] = set()
    for m in named(resources, "ServiceMonitor"):
        for s in services(resources):
            if takes(m["spec"]["selector"]["matchLabels"], s["metadata"]["labels"]):
                found |= {("monitoring", *d) for d in behind(resources, s["metadata"]["name"])}
    for m in named(resources, "PodMonitor"):
        asked = {end["portNumber"] for end in m["spec"]["podMetricsEndpoints"]}
        for pod in pods(resources):
            if takes(m["spec"]["selector"]["matchLabels"], pod.labels):
                found |= {("monitoring", pod.name, port) for port in asked & opened(pod)}
    return found


def wrong_ways(resources: Resources) -> set[str]:
    """What may not be reached and must, what may be and nobody is there, what is open to all."""
    arrives, leaves = permitted(resources)
    running = {pod.name: pod for pod in pods(resources)}
    among_us = {way for way in arrives | leaves if {*way[:2]} <= running.keys()}
    found = set()
    for caller, pod, port in needed(resources) | among_us:
        if pod in running and not {(caller, pod, port), (ANYONE, pod, port)} & arrives:
            found.add(f"{pod} does not let {caller} in at {port}")
        if caller in running and (caller, pod, port) not in leaves:
            found.add(f"{caller} is not let out to {pod} at {port}")
    found |= {
        f"{pod} opens no port {port}"
        for caller, pod, port in arrives | leaves
        if pod in running and running[pod].boxes and port not in opened(running[pod])
        if (caller, port) not in ONLY_IN_QUEUE
    }
    return found | stand_open(arrives, leaves, running)


def stand_open(arrives: set[Way], leaves: set[Way], running: dict[str, Pod]) -> set[str]:
    """All the world may come to the api alone, and none of ours may go everywhere without need."""
    found = {
        f"{pod} is open to all"
        for caller, pod, _ in arrives
        if caller == ANYONE and running[pod].labels != parts.labels("api")
    }
    return found | {
        f"{pod} may go everywhere"
        for pod, other, _ in leaves
        if other == ANYONE
        and running[pod].boxes
        and not running[pod].spec["automountServiceAccountToken"]
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_that_must_be_reached_can_be(overlays: dict[str, Resources], overlay: str) -> None:
    assert wrong_ways(overlays[overlay]) == set()


BREAKS = [
    ("queue", "base-api", "ingress>0>ports>0>port", 8001, "torpor-api opens no port 8001"),
    ("queue", "base-api", "egress>0>ports>0>port", 6380, "torpor-api is not let out to torpor-redis at 6379"),
    ("queue", "base-api", "egress>1", None, "torpor-api is not let out to internet at 443"),
    ("queue", "base-own-engine", "egress>0>ports>0>port", 80, "thinker is not let out to internet at 443"),
    ("queue", "base-predictor", "egress>0>ports>0>protocol", "UDP", "thinker is not let out to torpor-redis at 6379"),
    ("queue", "base-predictor", "policyTypes", ["Ingress"], "thinker is not let out to torpor-redis at 6379"),
    ("queue", "base-predictor", "egress>0>to", None, "thinker may go everywhere"),
    ("queue", "base-redis", "ingress>1", None, "torpor-redis does not let thinker in at 6379"),
    ("queue", "base-redis", "ingress>1>from", None, "torpor-redis is open to all"),
    ("queue", "base-first-secrets", "egress>0>ports>1", None, "torpor-first-secrets is not let out to anyone at 6443"),
    ("queue", "names-for-all", "egress>0>ports>1>port", 54, "torpor-api is not let out to kube-system at 53"),
    ("queue", "names-for-all", "egress>0>ports>0", None, "thinker is not let out to kube-system at 53/UDP"),
    ("queue", "keda-redis", "ingress>0>ports>0>port", 6380, "torpor-redis does not let keda in at 6379"),
    ("queue", "keda-redis", "ingress>0>from>0>namespaceSelector>matchLabels>kubernetes.io/metadata.name", "keda-system", "torpor-redis does not let keda in at 6379"),
    ("queue", "monitoring-broker", "ingress>0>ports>0>port", 8080, "torpor-broker does not let monitoring in at 8081"),
    ("queue", "monitoring-predictor", "ingress>0>ports>1", None, "thinker does not let monitoring in at 8082"),
    ("queue", "queue-broker", "egress>1>ports>0>port", 8080, "torpor-broker is not let out to torpor-api at 8000"),
    ("queue", "queue-broker", "ingress>0>ports>0>port", 8080, "torpor-broker does not let torpor-api in at 8081"),
    ("queue+work", "work-scaler-scaler", "ingress>0>ports>0>port", 9091, "torpor-scaler does not let keda in at 9090"),
    ("serverless", "broker-rabbitmq-broker", "ingress>0>ports>0>port", 8080, "torpor-broker does not let torpor in at 8081"),
    ("serverless", "broker-rabbitmq-api", "egress>0>ports>0>port", 80, "torpor-api is not let out to torpor at 8080"),
    ("serverless-kafka", "broker-kafka-broker", "ingress>0>ports>0>port", 80, "torpor-broker does not let knative-eventing in at 8081"),
    ("serverless+oidc", "eventing-tls-api", "egress>0>ports>0>port", 443, "torpor-api is not let out to knative-eventing at 8443"),
    ("serverless", "serverless-predictor", "ingress>1", None, "thinker does not let kourier-system in at 8012"),
    ("serverless+api-knative", "api-knative-api", "ingress>0", None, "torpor-api-public does not let kourier-system in at 8012"),
    ("serverless+api-knative", "api-knative-api", "ingress>1", None, "torpor-api-public does not let knative-serving in at 8012"),
]  # fmt: skip


@pytest.mark.parametrize(("overlay", "policy", "path", "value", "said"), BREAKS)
def test_a_way_that_is_shut_or_open_by_mistake_is_named(
    overlays: dict[str, Resources], overlay: str, policy: str, path: str, value: Any, said: str
) -> None:
    broken = planted(overlays[overlay], f"NetworkPolicy/{policy}", f"spec>{path}", value)

    assert said in wrong_ways(broken)
