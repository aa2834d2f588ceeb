"""Everything that a resource references exists: Secrets and keys, accounts, claims, pods, ports, hosts."""

# ruff: noqa: E501  a table of mistakes is read by row

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from knative.deploy.doctor.examination import examine
from knative.deploy.doctor.finding import Severity
from tests.manifests.conftest import MANIFESTS, Resources, kustomize
from tests.manifests.objects import (
    OVERLAYS,
    OWN_HOST,
    fields,
    named,
    planted,
    pods,
    secrets,
    services,
    takes,
    texts,
)

BY_INSTALLER = {
    ("ConfigMap", "torpor-eventing-ca"): "the Kafka broker's authority; the component's header",
    ("Secret", "torpor-tls"): "cert-manager, by the Ingress's annotation",
}


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
        case "secretKeyRef" | "credentials", {"name": name, "key": entry}:
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
            apart = spec.get("template", {}).get("spec", {}).get("topologySpreadConstraints", [])
            yield from (one["labelSelector"]["matchLabels"] for one in apart)
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
            if not any(takes(labels, pod.labels) for pod in running)
        }
    return found | wrong_ports(resources) | wrong_hosts(resources)


def wrong_ports(resources: Resources) -> set[str]:
    """Ports of Services, monitors and the Ingress that nobody opens."""
    running, found = pods(resources), set()
    offers = services(resources)
    for s in offers:
        for port in s["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            chosen = [pod for pod in running if takes(s["spec"]["selector"], pod.labels)]
            if not all(target in pod.ports for pod in chosen):
                found.add(f"Service/{s['metadata']['name']}: no port {target}")
    for m in named(resources, "ServiceMonitor"):
        asked = {end["port"] for end in m["spec"]["endpoints"]}
        wanted = m["spec"]["selector"]["matchLabels"]
        behind = [s for s in offers if takes(wanted, s["metadata"]["labels"])]
        offered = {port["name"] for s in behind for port in s["spec"]["ports"]}
        found |= {f"ServiceMonitor/{m['metadata']['name']}: no port {p}" for p in asked - offered}
    doors = {(s["metadata"]["name"], p["name"]) for s in offers for p in s["spec"]["ports"]}
    doors |= {(s["metadata"]["name"], p["port"]) for s in offers for p in s["spec"]["ports"]}
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
        for s in services(resources)
    }
    headless = {
        s["metadata"]["name"] for s in services(resources) if s["spec"].get("clusterIP") == "None"
    }
    said = {f"{r['kind']}/{r['metadata']['name']}": texts(r) for r in resources}
    said |= {f"Secret/{name}": texts(data) for name, data in secrets().items()}
    found = set()
    for who, text in said.items():
        for host, port in OWN_HOST.findall(text):
            if ("Service", host) not in there or (port and int(port) not in ports.get(host, ())):
                found.add(f"{who}: nobody answers at {host}:{port}")
            if host in headless:
                found.add(f"{who}: {host} is headless, gone from DNS while its pod is away")
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_that_is_named_is_there(overlays: dict[str, Resources], overlay: str) -> None:
    assert dangling(overlays[overlay]) == set()


def test_no_overlay_is_left_out(overlays: dict[str, Resources]) -> None:
    assert set(overlays) == set(OVERLAYS)


def test_a_prefix_and_a_namespace_leave_no_name_behind_unsaid(tmp_path: Path) -> None:
    """What a team puts over an overlay to have two of it: kustomize renames objects, and no text."""
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    over = {
        "namePrefix": "staging-",
        "namespace": "llm",
        "resources": ["../manifests/overlays/queue"],
    }
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / "kustomization.yaml").write_text(yaml.safe_dump(over))

    report = examine(kustomize(tmp_path / "staging"))

    found = {f.fault for f in report.findings if f.rule.name == "names-lead-somewhere"}
    assert {each.severity for each in found} == {Severity.ERROR}
    assert all("staging-" in each.must_be for each in found)
    told = {(each.resource.split("/")[0], each.value.split("/")[0]) for each in found}
    assert told >= {
        ("ScaledObject", "Deployment"),
        ("ScaledObject", "TriggerAuthentication"),
        ("ScaledObject", "Service"),
        ("ConfigMap", "Service"),
        ("Job", "Service"),
        ("InferenceService", "ConfigMap"),
        ("InferenceService", "ServiceAccount"),
    }


NAMING = [
    ("an address with a password", {"data": {"u": "https://user:pw@shop.d.svc/x"}}, {"Service/shop (d)"}),
    ("a variable, a template, this machine, the world", {"data": {"u": "http://$(HOST):80 http://{{ .x }} http://127.0.0.1 http://localhost:1 https://example.com"}}, set()),
    ("a host of another namespace", {"data": {"u": "http://prometheus.monitoring.svc:9090"}}, set()),
    ("a sink", {"kind": "PingSource", "spec": {"sink": {"ref": {"kind": "Broker", "name": "b"}}}}, {"Broker/b (d)"}),
    ("a cluster's authentication", {"kind": "ScaledJob", "spec": {"triggers": [{"authenticationRef": {"name": "a", "kind": "ClusterTriggerAuthentication"}}]}}, {"ClusterTriggerAuthentication/a (no namespace)"}),
    ("an optional Secret", {"kind": "Pod", "spec": {"env": [{"secretKeyRef": {"name": "s", "key": "k", "optional": True}}]}}, set()),
    ("a CronJob's claim", {"kind": "CronJob", "spec": {"volumes": [{"persistentVolumeClaim": {"claimName": "c"}}]}}, {"PersistentVolumeClaim/c (d)"}),
]  # fmt: skip


@pytest.mark.parametrize(("what", "fields", "named_"), NAMING, ids=[each[0] for each in NAMING])
def test_the_doctor_knows_a_name_when_it_sees_one(
    what: str, fields: dict[str, Any], named_: set[str]
) -> None:
    resource = {"kind": "ConfigMap", "metadata": {"name": "x", "namespace": "d"}, **fields}

    found = examine([resource]).findings

    assert {f.fault.value for f in found if f.rule.name == "names-lead-somewhere"} == named_


BREAKS = [
    ("Deployment/torpor-api", "spec>template>spec>serviceAccountName", "torpor-nobody", "ServiceAccount"),
    ("Deployment/torpor-api", "spec>template>metadata>labels>app.kubernetes.io/component", "none", "no pod"),
    ("Deployment/torpor-api", "spec>template>spec>containers>0>ports>0>name", "web", "no port http"),
    ("StatefulSet/torpor-redis", "spec>template>spec>containers>0>ports>0>name", "tcp", "no port redis"),
    ("Service/torpor-broker", "spec>ports>0>port", 8082, "nobody answers at torpor-broker:8081"),
    ("Service/torpor-store", "metadata>name", "torpor-redis2", "nobody answers at torpor-store:6379"),
    ("Service/torpor-store", "spec>clusterIP", "None", "torpor-store is headless"),
    ("PodDisruptionBudget/torpor-api", "spec>selector>matchLabels>app.kubernetes.io/component", "x", "no pod"),
    ("ScaledObject/thinker", "spec>scaleTargetRef>name", "thinker", "Deployment thinker"),
    ("TriggerAuthentication/torpor-redis", "spec>secretTargetRef>0>key", "user", "Secret torpor-redis/user"),
    ("ServiceMonitor/torpor-api", "spec>endpoints>0>authorization>credentials>key", "key", "Secret torpor-api-keys/key"),
    ("Deployment/torpor-api", "spec>template>spec>topologySpreadConstraints>0>labelSelector>matchLabels>app.kubernetes.io/component", "x", "no pod"),
    ("ServiceMonitor/torpor-api", "spec>endpoints>0>port", "metrics", "no port metrics"),
    ("Ingress/torpor-api", "spec>rules>0>http>paths>0>backend>service>name", "api", "Ingress"),
    ("InferenceService/thinker", "spec>predictor>containers>0>env>0>valueFrom", {"secretKeyRef": {"name": "torpor-redis", "key": "uri"}}, "Secret torpor-redis/uri"),
    ("NetworkPolicy/nothing-by-default", "spec>podSelector", {"matchLabels": {"a": "b"}}, "no pod"),
]  # fmt: skip


@pytest.mark.parametrize(("who", "path", "value", "said"), BREAKS)
def test_dangling_references_are_named(
    overlays: dict[str, Resources], who: str, path: str, value: Any, said: str
) -> None:
    found = dangling(planted(overlays["queue"], who, path, value))

    assert any(said in each for each in found)
