"""Whatever a resource names is there: Secrets and keys, accounts, claims, pods, ports, hosts."""

# ruff: noqa: E501  a table of mistakes is read by row

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest

from knative.deploy import parts
from knative.deploy.first_secrets import internal_secret, keys_secret, redis_secret
from tests.manifests.conftest import Resources

OVERLAYS = (
    "queue", "queue-cpu", "queue+nodes", "queue+work", "queue+openshift", "serverless",
    "serverless-cpu", "serverless-kafka", "serverless+api-knative", "serverless+oidc",
)  # fmt: skip
BY_INSTALLER = {
    ("ConfigMap", "torpor-eventing-ca"): "the Kafka broker's authority; the component's header",
    ("Secret", "torpor-tls"): "cert-manager, by the Ingress's annotation",
}
WORKLOADS = ("Deployment", "StatefulSet", "Job")
OWN_HOST = re.compile(r"([\w-]+)\.torpor\.svc(?:\.cluster\.local)?(?::(\d+))?")
Pod = tuple[dict[str, str], dict[str, int]]


def fields(node: Any) -> Iterator[tuple[str, Any]]:
    """Every field below, by its name."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from fields(value)
    elif isinstance(node, list):
        for value in node:
            yield from fields(value)


def named(resources: Resources, *kinds: str) -> Iterator[dict[str, Any]]:
    return (r for r in resources if r["kind"] in kinds)


def pods(resources: Resources) -> list[Pod]:
    """Labels and named ports of all that will run in the namespace."""
    found: list[Pod] = []
    for r in resources:
        labels, spec = {}, {}
        if r["kind"] in WORKLOADS or r["apiVersion"] == "serving.knative.dev/v1":
            template = r["spec"]["template"]
            labels, spec = template["metadata"]["labels"], template["spec"]
        elif r["kind"] == "InferenceService":
            spec = r["spec"]["predictor"]
            labels = {**r["metadata"].get("labels", {}), **spec.get("labels", {})}
        elif r["kind"] == "RabbitmqCluster":
            labels = {"app.kubernetes.io/name": r["metadata"]["name"]}
        elif r["kind"] == "Broker":
            labels = {"eventing.knative.dev/broker": r["metadata"]["name"]}
        else:
            continue
        ports = [port for box in spec.get("containers", []) for port in box.get("ports", [])]
        found.append((labels, {p.get("name", ""): p["containerPort"] for p in ports}))
    return found


def objects(resources: Resources) -> set[tuple[str, str]]:
    """What can be named by kind and name: what we apply, and what is made from it."""
    found = {(r["kind"], r["metadata"]["name"]) for r in resources} | set(BY_INSTALLER)
    for secret, data in secrets().items():
        found |= {("Secret", secret), *(("Secret", f"{secret}/{key}") for key in data)}
    for service in named(resources, "InferenceService"):
        name = f"{service['metadata']['name']}-predictor"
        found |= {("Deployment", name), ("Service", name)}
    for broker in named(resources, "Broker"):
        found.add(("Service", f"{broker['metadata']['name']}-broker-ingress"))
    return found


def secrets() -> dict[str, dict[str, str]]:
    """What the Job `torpor-first-secrets` makes."""
    return {
        parts.REDIS_SECRET: redis_secret("torpor", str),
        parts.KEYS_SECRET: keys_secret(0),
        parts.INTERNAL_SECRET: internal_secret(str),
    }


def by_name(resource: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every object that a resource names, by kind and name."""
    for key, value in fields(resource):
        yield from data_named(key, value)
        match key, value:
            case "serviceAccountName", str():
                yield "ServiceAccount", value
            case "claimName", str():
                yield "PersistentVolumeClaim", value
            case "roleRef" | "scaleTargetRef" | "config" | "ref", {"kind": kind, "name": name}:
                yield kind, name
            case "subjects", list():
                yield from ((each["kind"], each["name"]) for each in value)
            case "authenticationRef", {"name": name}:
                yield "TriggerAuthentication", name
            case "broker", str() if resource["kind"] == "Trigger":
                yield "Broker", value


def data_named(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """The Secrets, with the keys in them, and the ConfigMaps that a field names."""
    match key, value:
        case "secretKeyRef", {"name": name, "key": entry}:
            yield "Secret", f"{name}/{entry}"
        case "secret", {"secretName": name}:
            yield "Secret", name
            yield from (("Secret", f"{name}/{item['key']}") for item in value.get("items", []))
        case "secretTargetRef", list():
            yield from (("Secret", f"{each['name']}/{each['key']}") for each in value)
        case "configMap" | "configMapRef" | "configMapKeyRef", {"name": name}:
            yield "ConfigMap", name


def selectors(resource: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Every choice of pods in our own namespace, as labels."""
    spec = resource.get("spec", {})
    match resource["kind"]:
        case "Service" if "selector" in spec:
            yield spec["selector"]
        case "Deployment" | "StatefulSet" | "PodDisruptionBudget" | "PodMonitor":
            yield spec["selector"]["matchLabels"]
        case "NetworkPolicy":
            peers = [spec] + [
                peer
                for way, side in (("ingress", "from"), ("egress", "to"))
                for rule in spec.get(way) or []
                for peer in rule.get(side) or []
                if "namespaceSelector" not in peer
            ]
            chosen = (peer.get("podSelector") or {} for peer in peers)
            yield from (one["matchLabels"] for one in chosen if one)


def takes(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def dangling(resources: Resources) -> set[str]:
    """What names something that is not there."""
    there, running = objects(resources), pods(resources)
    found = set()
    for r in resources:
        who = f"{r['kind']}/{r['metadata']['name']}"
        found |= {
            f"{who}: no {kind} {name}" for kind, name in by_name(r) if (kind, name) not in there
        }
        found |= {
            f"{who}: no pod has {labels}"
            for labels in selectors(r)
            if not any(takes(labels, pod) for pod, _ in running)
        }
    return found | wrong_ports(resources) | wrong_hosts(resources)


def wrong_ports(resources: Resources) -> set[str]:
    """Ports of Services, monitors and the Ingress that nobody opens."""
    running, found = pods(resources), set()
    services = [s for s in named(resources, "Service") if s["apiVersion"] == "v1"]
    for s in services:
        for port in s["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            chosen = [ports for labels, ports in running if takes(s["spec"]["selector"], labels)]
            if not all(target in ports or target in ports.values() for ports in chosen):
                found.add(f"Service/{s['metadata']['name']}: no port {target}")
    for m in named(resources, "ServiceMonitor"):
        asked = {end["port"] for end in m["spec"]["endpoints"]}
        wanted = m["spec"]["selector"]["matchLabels"]
        behind = [s for s in services if takes(wanted, s["metadata"]["labels"])]
        offered = {port["name"] for s in behind for port in s["spec"]["ports"]}
        found |= {f"ServiceMonitor/{m['metadata']['name']}: no port {p}" for p in asked - offered}
    doors = {(s["metadata"]["name"], p["name"]) for s in services for p in s["spec"]["ports"]}
    doors |= {(s["metadata"]["name"], p["port"]) for s in services for p in s["spec"]["ports"]}
    for i in named(resources, "Ingress"):
        backends = [value for key, value in fields(i) if key == "service"]
        called = {(b["name"], *b["port"].values()) for b in backends}
        found |= {f"Ingress: no Service and port {pair}" for pair in called - doors}
    return found


def wrong_hosts(resources: Resources) -> set[str]:
    """Addresses inside our namespace that no Service answers at."""
    there = objects(resources)
    ports = {
        s["metadata"]["name"]: {port["port"] for port in s["spec"]["ports"]}
        for s in named(resources, "Service")
        if s["apiVersion"] == "v1"
    }
    found = set()
    for r in resources:
        texts = [value for _, value in fields(r) if isinstance(value, str)]
        texts += [each for _, value in fields(r) if isinstance(value, list) for each in value
                  if isinstance(each, str)]  # fmt: skip
        for host, port in OWN_HOST.findall("\n".join(texts)):
            if ("Service", host) not in there or (port and int(port) not in ports.get(host, ())):
                found.add(f"{r['kind']}/{r['metadata']['name']}: nobody answers at {host}:{port}")
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_that_is_named_is_there(overlays: dict[str, Resources], overlay: str) -> None:
    assert dangling(overlays[overlay]) == set()


def test_no_overlay_is_left_out(overlays: dict[str, Resources]) -> None:
    assert set(overlays) == set(OVERLAYS)


ENV = "spec>template>spec>containers>0>env"
BREAKS = [
    ("Deployment/torpor-api", "spec>template>spec>serviceAccountName", "torpor-door", "ServiceAccount"),
    ("Deployment/torpor-api", "spec>template>metadata>labels>app.kubernetes.io/component", "door", "no pod"),
    ("Deployment/torpor-api", "spec>template>spec>containers>0>ports>0>name", "web", "no port http"),
    ("StatefulSet/torpor-redis", "spec>template>spec>containers>0>ports>0>name", "tcp", "no port redis"),
    ("Service/torpor-broker", "spec>ports>0>port", 8082, "nobody answers at torpor-broker:8081"),
    ("Service/torpor-redis", "metadata>name", "torpor-store", "nobody answers at torpor-redis:6379"),
    ("PodDisruptionBudget/torpor-api", "spec>selector>matchLabels>app.kubernetes.io/component", "x", "no pod"),
    ("ScaledObject/thinker", "spec>scaleTargetRef>name", "thinker", "Deployment thinker"),
    ("TriggerAuthentication/torpor-redis", "spec>secretTargetRef>0>key", "user", "Secret torpor-redis/user"),
    ("ServiceMonitor/torpor-api", "spec>endpoints>0>port", "metrics", "no port metrics"),
    ("Ingress/torpor-api", "spec>rules>0>http>paths>0>backend>service>name", "api", "Ingress"),
    ("InferenceService/thinker", "spec>predictor>containers>0>env>0>valueFrom", {"secretKeyRef": {"name": "torpor-redis", "key": "uri"}}, "Secret torpor-redis/uri"),
    ("NetworkPolicy/nothing-by-default", "spec>podSelector", {"matchLabels": {"a": "b"}}, "no pod"),
]  # fmt: skip


@pytest.mark.parametrize(("who", "path", "value", "said"), BREAKS)
def test_what_hangs_in_the_air_is_named(
    overlays: dict[str, Resources], who: str, path: str, value: Any, said: str
) -> None:
    resources = copy.deepcopy(overlays["queue"])
    node: Any = next(r for r in resources if f"{r['kind']}/{r['metadata']['name']}" == who)
    *steps, last = path.split(">")
    for step in steps:
        node = node[int(step)] if isinstance(node, list) else node[step]
    node[last] = value

    found = dangling(resources)

    assert any(said in each for each in found)


@pytest.mark.parametrize("component", ["api", "predictor"])
def test_knatives_ingress_and_activator_may_call_what_knative_serves(
    overlays: dict[str, Resources], component: str
) -> None:
    """Their calls come in at queue-proxy's port, which no policy on ours opens by itself."""
    callers = {
        peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        for policy in named(overlays["serverless+api-knative"], "NetworkPolicy")
        if policy["spec"]["podSelector"] == {"matchLabels": parts.labels(component)}
        for rule in policy["spec"].get("ingress") or []
        if 8012 in [port["port"] for port in rule["ports"]]
        for peer in rule["from"]
    }

    assert callers == {"kourier-system", "knative-serving"}
