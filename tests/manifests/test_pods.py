"""Probes, ports, graces and replicas suit the processes that run in the pods."""

# ruff: noqa: E501  a table of mistakes is read by row

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from api.routes import health
from eventing.broker.server import Broker
from eventing.broker.settings import BrokerSettings
from eventing.process.http_server import listen
from knative.deploy.render import parts
from knative.external_scaler import server as scaler_server
from predictor.delivery.admission import Admission
from predictor.serving.event_routes import add_probes
from tests.manifests.conftest import ROOT, Resources
from tests.manifests.objects import OVERLAYS, Pod, named, planted, pods, services, takes

Rule = Callable[[Resources], Iterator[str]]
KUBERNETES_GRACE_S = 30  # what a pod has that says nothing
SILENCE_S = 30  # for which a process may say nothing before it counts as dead


def paths(routes: Any) -> set[str]:
    return {route.path for route in cast("list[Route]", routes)}


def served(box: dict[str, Any]) -> set[str]:
    """The paths of a container's process that a probe or Prometheus may ask."""
    match box["name"]:
        case "api":
            made = health.router(
                cast("Any", None),
                cast("Any", None),
                store_timeout_s=1,
                is_metrics_open=False,
                is_local=False,
            )
            return paths(made.routes)
        case "broker" | "pump":
            return paths(Broker(BrokerSettings(), []).side_app().routes)
        case "kserve-container":
            app = Starlette()
            add_probes(app, cast("Admission", None), str)
            (name,) = re.findall(r"--served-model-name=(\S+)", " ".join(box["args"]))
            return paths(app.routes) | {f"/v2/models/{name}/ready", "/metrics"}  # KServe's and ours
    return set()


def probes(box: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from ((key, value) for key, value in box.items() if key.endswith("Probe"))


def asks_what_is_served(resources: Resources) -> Iterator[str]:
    """A probe asks a port that its container opens and a path that its process has."""
    for pod in pods(resources):
        for box in pod.boxes:
            own = Pod(pod.owner, {}, {"containers": [box]}).ports
            for kind, probe in probes(box):
                asked = probe.get("httpGet") or probe["tcpSocket"]
                if asked["port"] not in own:
                    yield f"{pod.name}: {kind} at {asked['port']}"
                if "path" in asked and asked["path"] not in served(box):
                    yield f"{pod.name}: {kind} at {asked['path']}"
    for monitor in named(resources, "ServiceMonitor", "PodMonitor"):
        ends = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
        yield from (f"metrics at {end['path']}" for end in ends if end["path"] != "/metrics")
    for monitor in named(resources, "PodMonitor"):
        asked = {end["portNumber"] for end in monitor["spec"]["podMetricsEndpoints"]}
        for pod in pods(resources):
            if takes(monitor["spec"]["selector"]["matchLabels"], pod.labels):
                yield from (f"nobody counts at {port}" for port in {*pod.ports.values()} - asked)


def is_not_ended_for_what_is_away(resources: Resources) -> Iterator[str]:
    """Life is not readiness: a store that is down, or half a minute's silence, restarts nobody."""
    for pod in pods(resources):
        # A Job opens no port.
        for box in (box for box in pod.boxes if box.get("ports")):
            found = dict(probes(box))
            if "livenessProbe" not in found:
                yield f"{pod.name}: no livenessProbe"
                continue
            life = found["livenessProbe"]
            if life.get("httpGet", {}).get("path", "/healthz") != "/healthz":
                yield f"{pod.name}: readiness taken for life"
            if life.get("failureThreshold", 3) * life.get("periodSeconds", 10) < SILENCE_S:
                yield f"{pod.name}: ended after less than {SILENCE_S} s"
            if "readinessProbe" not in found and box is pod.boxes[0]:
                yield f"{pod.name}: no readinessProbe"
            if found.get("readinessProbe", {}).get("httpGet", {}).get("path") == "/healthz":
                yield f"{pod.name}: life taken for readiness"


def listens_where_it_says(resources: Resources) -> Iterator[str]:
    """The port that a process is told is the one that its container declares."""
    for pod in pods(resources):
        for box in pod.boxes:
            env = {entry["name"]: entry.get("value") for entry in box.get("env", [])}
            declared = {str(port["containerPort"]) for port in box.get("ports", [])}
            for name in ("TORPOR_PORT", "TORPOR_METRICS_PORT"):
                if name in env and env[name] not in declared:
                    yield f"{pod.name}: {name} {env[name]}"
            if env.get("TORPOR_HOST", "0.0.0.0") != "0.0.0.0":
                yield f"{pod.name}: listens at {env['TORPOR_HOST']}"


def stop_s(name: str) -> float:
    """For how long a process lets open calls end after SIGTERM."""
    main = (ROOT / "api" / "__main__.py").read_text(encoding="utf-8")
    (api,) = re.findall(r"timeout_graceful_shutdown=(\d+)", main)
    return {
        parts.API: float(api),
        parts.BROKER: float(inspect.signature(listen).parameters["grace_s"].default),
        parts.SCALER: scaler_server._STOP_GRACE_S,
        parts.REDIS: KUBERNETES_GRACE_S,  # the end of the log goes to the disk
    }[name]


def may_end_in_peace(resources: Resources) -> Iterator[str]:
    """The pod's grace covers the wait before SIGTERM and the drain after it, with room."""
    for r in named(resources, "Deployment", "StatefulSet"):
        spec, name = r["spec"]["template"]["spec"], r["metadata"]["name"]
        (box,) = spec["containers"]
        waits = box.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        least = waits + 2 * stop_s(name)
        if spec.get("terminationGracePeriodSeconds", KUBERNETES_GRACE_S) < least:
            yield f"{name}: ended before {least:g} s"
        change = r["spec"].get("strategy", {}).get("rollingUpdate", {})
        if r["kind"] == "Deployment" and r["spec"].get("replicas") != 1:
            if change.get("maxUnavailable") != 0 or not change.get("maxSurge"):
                yield f"{name}: a rollout takes one away first"
            if waits < 1:
                yield f"{name}: ends before the Service forgets it"
    for r in named(resources, "InferenceService"):
        boxes = r["spec"]["predictor"]["containers"]
        for box in boxes if len(boxes) > 1 else ():  # Knative's queue-proxy does it for one alone
            waits = box.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            if waits < 1:
                yield f"{r['metadata']['name']}: {box['name']} is told before it can hear"


def runs(resources: Resources) -> Iterator[str]:
    """Somebody says how many replicas there are, one and not two, and the answer is not none."""
    least: dict[str, int] = {}
    for r in named(resources, "HorizontalPodAutoscaler"):
        name = r["spec"]["scaleTargetRef"]["name"]
        least[name] = r["spec"].get("minReplicas", 1)
        if r["spec"]["maxReplicas"] < least[name]:
            yield f"{name}: at most {r['spec']['maxReplicas']} replicas"
    for r in named(resources, "Deployment", "StatefulSet"):
        name, count = r["metadata"]["name"], r["spec"].get("replicas")
        if (count is None) != (name in least):
            yield f"{name}: {count} replicas and {least.get(name)} by its autoscaler"
        least[name] = count if count is not None else least.get(name, 0)
    for name, count in least.items():
        if count < 1:
            yield f"{name}: runs at {count} replicas"
    for budget in named(resources, "PodDisruptionBudget"):
        name, spec = budget["metadata"]["name"], budget["spec"]
        if {key: spec[key] for key in spec if key != "selector"} != {"maxUnavailable": 1}:
            yield f"{name}: a drain takes several, or waits for ever"
        component = name.removeprefix("torpor-")
        if budget["spec"]["selector"] != {"matchLabels": parts.labels(component)}:
            yield f"{name}: the budget of others"


def is_one_store(resources: Resources) -> Iterator[str]:
    """Redis is one pod with a name of its own: two would be two queues behind one address."""
    heads = {s["metadata"]["name"]: s for s in services(resources) if s["spec"].get("clusterIP")}
    for r in named(resources, "StatefulSet"):
        if r["spec"].get("replicas") != 1:
            yield f"{r['spec'].get('replicas')} stores"
        head = heads.get(r["spec"]["serviceName"], {"spec": {}})["spec"]
        if head.get("clusterIP") != "None" or (
            head["selector"] != r["spec"]["selector"]["matchLabels"]
        ):
            yield f"no headless Service {r['spec']['serviceName']}"


RULES: tuple[Rule, ...] = (
    asks_what_is_served, is_not_ended_for_what_is_away, listens_where_it_says, may_end_in_peace, runs, is_one_store,
)  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_suit_their_processes(
    overlays: dict[str, Resources], overlay: str, rule: Rule
) -> None:
    assert set(rule(overlays[overlay])) == set()


POD = "spec>template>spec"
BOX = f"{POD}>containers>0"
ENGINE = "spec>predictor>containers>0"
PUMP = "spec>predictor>containers>1"
API, BROKER, STORE = "Deployment/torpor-api", "Deployment/torpor-broker", "StatefulSet/torpor-redis"
BUDGET = "PodDisruptionBudget"
COMPONENT = "spec>selector>matchLabels>app.kubernetes.io/component"
BREAKS = [
    (asks_what_is_served, API, f"{BOX}>readinessProbe>httpGet>port", 8001, "readinessProbe at 8001"),
    (asks_what_is_served, API, f"{BOX}>readinessProbe>httpGet>path", "/ready", "readinessProbe at /ready"),
    (asks_what_is_served, BROKER, f"{BOX}>livenessProbe>httpGet>path", "/live", "livenessProbe at /live"),
    (asks_what_is_served, "InferenceService/thinker", f"{ENGINE}>startupProbe>httpGet>path", "/v2/models/other/ready", "startupProbe at"),
    (asks_what_is_served, "InferenceService/thinker", f"{PUMP}>livenessProbe>httpGet>port", 8080, "livenessProbe at 8080"),
    (asks_what_is_served, STORE, f"{BOX}>readinessProbe>tcpSocket>port", 6380, "readinessProbe at 6380"),
    (asks_what_is_served, "PodMonitor/torpor-predictor", "spec>podMetricsEndpoints>0>path", "/stats", "metrics at /stats"),
    (asks_what_is_served, "PodMonitor/torpor-predictor", "spec>podMetricsEndpoints>1", None, "nobody counts at 8082"),
    (is_not_ended_for_what_is_away, API, f"{BOX}>livenessProbe>httpGet>path", "/readyz", "readiness taken for life"),
    (is_not_ended_for_what_is_away, BROKER, f"{BOX}>readinessProbe>httpGet>path", "/healthz", "life taken for readiness"),
    (is_not_ended_for_what_is_away, STORE, f"{BOX}>livenessProbe>failureThreshold", 1, "ended after less"),
    (is_not_ended_for_what_is_away, "InferenceService/thinker", f"{PUMP}>livenessProbe", None, "no livenessProbe"),
    (is_not_ended_for_what_is_away, BROKER, f"{BOX}>readinessProbe", None, "no readinessProbe"),
    (listens_where_it_says, API, f"{BOX}>env>3>value", "8001", "TORPOR_PORT 8001"),
    (listens_where_it_says, API, f"{BOX}>env>2>value", "127.0.0.1", "listens at 127.0.0.1"),
    (may_end_in_peace, API, f"{POD}>terminationGracePeriodSeconds", 10, "ended before 15 s"),
    (may_end_in_peace, STORE, f"{POD}>terminationGracePeriodSeconds", 5, "ended before 60 s"),
    (may_end_in_peace, BROKER, f"{BOX}>lifecycle", None, "before the Service forgets it"),
    (may_end_in_peace, "InferenceService/thinker", f"{PUMP}>lifecycle", None, "pump is told before"),
    (may_end_in_peace, "InferenceService/thinker", f"{ENGINE}>lifecycle", None, "kserve-container is told"),
    (may_end_in_peace, API, "spec>strategy>rollingUpdate>maxUnavailable", 1, "takes one away first"),
    (runs, BROKER, "spec>replicas", 0, "runs at 0"),
    (runs, BROKER, "spec>replicas", None, "None replicas and None"),
    (runs, API, "spec>replicas", 2, "2 replicas and 2"),
    (runs, "HorizontalPodAutoscaler/torpor-api", "spec>maxReplicas", 1, "at most 1"),
    (runs, f"{BUDGET}/torpor-broker", "spec>maxUnavailable", 2, "a drain takes several"),
    (runs, f"{BUDGET}/torpor-api", "spec>minAvailable", 1, "or waits for ever"),
    (runs, f"{BUDGET}/torpor-broker", COMPONENT, "api", "the budget of others"),
    (runs, f"{BUDGET}/torpor-predictor", "spec>selector>matchLabels", {}, "the budget of others"),
    (is_one_store, STORE, "spec>replicas", 3, "3 stores"),
    (is_one_store, STORE, "spec>serviceName", "redis", "no headless Service redis"),
    (is_one_store, "Service/torpor-redis", "spec>clusterIP", None, "no headless Service"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "who", "path", "value", "said"), BREAKS)
def test_a_mistake_is_named(
    overlays: dict[str, Resources], rule: Rule, who: str, path: str, value: Any, said: str
) -> None:
    found = set(rule(planted(overlays["queue"], who, path, value)))

    assert any(said in each for each in found)


def test_every_rule_has_a_mistake_that_it_names() -> None:
    assert {mistake[0] for mistake in BREAKS} == set(RULES)
