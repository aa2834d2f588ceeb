"""Tools that we deploy: a queue, a pod with a caller and a pump, and a scaler in the queue topology; a Knative Service
in the other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from eventing.job.tools.document import load_tools, parse_tools
from eventing.redis import keys
from knative.autoscaling.keda.scaledobject import read_scaled_object
from knative.deploy.doctor import Severity, examine
from knative.deploy.emit import Resource
from knative.deploy.render import parts
from knative.deploy.render.render import write
from knative.deploy.render.tree import finished
from knative.deploy.values import Values
from tests.manifests.conftest import Resources, kustomize
from tests.manifests.test_policies import wrong_ways
from tests.manifests.test_steps import knative_triggers, of, own_triggers, takers
from tests.manifests.test_tools import called

RENDER = {
    "kind": "function",
    "effect": "keyed",
    "credential": "render",
    "timeout_ms": 1_200_000,
    "parallelism": 2,
    "deploy": {
        "image": "registry.example.com/render:1.2.0",
        "max_replicas": 3,
        "cold_start_seconds": 90,
        "env": {"DPI": "300"},
        "secret": "render-env",
    },
}
FILES = {
    "tools": [{"name": "read", "inputSchema": {"type": "object"}}],
    "deploy": {"image": "registry.example.com/files@sha256:" + "0" * 64, "gpus": 1},
}
WEATHER = {"url": "https://mcp.example.com/mcp", "credential": "weather"}
SERVERS = {"render": RENDER, "files": FILES, "weather": WEATHER}
GIVEN: dict[str, Any] = {"steps": {"max_replicas": 2}, "tools": {"servers": SERVERS}}
NAME = "torpor-tool-render"
OVERLAYS = ("queue", "serverless", "openshift")


@pytest.fixture(scope="module")
def overlays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Resources]:
    folder = tmp_path_factory.mktemp("deployed")
    write(folder, Values.model_validate({**GIVEN, "store": {"replicas": 3}}))
    own = folder / "overlays" / "openshift"
    own.mkdir()
    content = {"resources": ["../queue"], "components": ["../../components/openshift"]}
    (own / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return {name: kustomize(folder / "overlays" / name) for name in OVERLAYS}


def boxes(resources: Resources, name: str = NAME) -> dict[str, Resource]:
    pod = of(resources, "Deployment", name)["spec"]["template"]["spec"]
    return {box["name"]: box for box in pod["containers"]}


def env(box: Resource) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in box["env"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_doctor_finds_no_error(overlays: dict[str, Resources], overlay: str) -> None:
    report = examine(overlays[overlay])
    assert [f for f in report.findings if f.severity is Severity.ERROR] == []


def test_its_calls_are_pumped_in_its_own_pod_and_nowhere_else(
    overlays: dict[str, Resources],
) -> None:
    resources = overlays["queue"]
    triggers = {t.name: t for t in own_triggers(resources)}
    (broker,) = of(resources, "Deployment", parts.BROKER)["spec"]["template"]["spec"]["containers"]
    pumped = env(broker)["TORPOR_TRIGGER"].split(",")
    pump, caller = boxes(resources)["pump"], boxes(resources)["caller"]

    assert takers(list(triggers.values()), called("render")) == ["tool-render"]
    assert {"tool-render", "tool-files"} & set(pumped) == set()
    assert "tool-weather" in pumped
    assert env(pump)["TORPOR_TRIGGER"] == "tool-render"
    assert (env(caller)["TORPOR_TOOL_SERVER"], env(caller)["TORPOR_STEPS_PORT"]) == (
        "render",
        "8083",
    )
    assert triggers["tool-render"].subscriber == "http://localhost:8083/events"
    assert triggers["tool-render"].parallelism == 2
    # The pod is ready when this starts; still, a container of it may start again meanwhile.
    assert triggers["tool-render"].delivery.timeout_s == 1200 + 90 + 30


def test_it_is_scaled_from_zero_by_what_waits_in_its_queue_and_what_is_under_way(
    overlays: dict[str, Resources],
) -> None:
    scaled = of(overlays["queue"], "ScaledObject", NAME)
    spec, stream = scaled["spec"], keys.queue("tool-render", "tickets")

    assert read_scaled_object(scaled).max_replicas == 3
    assert (spec["scaleTargetRef"]["name"], spec["minReplicaCount"]) == (NAME, 0)
    assert {t["type"] for t in spec["triggers"]} == {"redis-sentinel-streams"}
    assert {t["metadata"]["stream"] for t in spec["triggers"]} == {stream}
    assert [sorted(t["metadata"].keys() & {"lagCount", "pendingEntriesCount"}) for t in spec["triggers"]] == [
        ["lagCount"],
        ["pendingEntriesCount"],
    ]  # fmt: skip
    assert spec["advanced"]["scalingModifiers"]["target"] == "2"
    assert spec["cooldownPeriod"] == 90
    steps = of(overlays["queue"], "ScaledObject", parts.STEPS)
    counted = {t["metadata"]["stream"] for t in steps["spec"]["triggers"]}
    assert stream not in counted
    assert keys.queue("tool-weather", "tickets") in counted


def test_a_call_that_began_this_second_ends_before_its_pod(overlays: dict[str, Resources]) -> None:
    resources = overlays["queue"]
    pod = of(resources, "Deployment", NAME)["spec"]["template"]["spec"]
    found = boxes(resources)

    for name in ("caller", "pump"):
        assert float(env(found[name])["TORPOR_DRAIN_GRACE_S"]) == 1230
    assert pod["terminationGracePeriodSeconds"] == 1260
    # A start that failed has no calls to wait for.
    assert found["tool"]["startupProbe"]["terminationGracePeriodSeconds"] == 30
    assert found["tool"]["lifecycle"]["preStop"]["httpGet"] == {"path": "/drained", "port": 8083}


def test_the_operators_container_sees_nothing_of_ours(overlays: dict[str, Resources]) -> None:
    for resources in (overlays["queue"], overlays["serverless"]):
        kind = "Deployment" if resources is overlays["queue"] else "Service"
        pod = of(resources, kind, NAME)["spec"]["template"]["spec"]
        tool = pod["containers"][0]
        assert env(tool) == {"PORT": "8080", "DPI": "300"}
        assert tool["envFrom"] == [{"secretRef": {"name": "render-env"}}]
        assert [each["name"] for each in tool["volumeMounts"]] == ["tool-tmp"]
        assert tool["securityContext"]["readOnlyRootFilesystem"]
        assert tool["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
    gpu = boxes(overlays["queue"], "torpor-tool-files")["tool"]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_a_credential_is_mounted_where_its_calls_are_made_and_only_there(
    overlays: dict[str, Resources],
) -> None:
    def held(name: str) -> dict[str, list[str]]:
        pod = of(overlays["queue"], "Deployment", name)["spec"]["template"]["spec"]
        volumes = {
            v["name"]: [i["key"] for i in v["secret"]["items"]]
            for v in pod["volumes"]
            if "secret" in v
        }
        return {
            box["name"]: keys
            for box in pod["containers"]
            for m in box["volumeMounts"]
            if (keys := volumes.get(m["name"], []))
        }

    assert held(NAME) == {"caller": ["render"]}
    assert held("torpor-tool-files") == {}
    assert held(parts.STEPS) == {"steps": ["weather"]}


def test_processes_know_its_address_and_not_its_image(
    overlays: dict[str, Resources], tmp_path: Path
) -> None:
    found = {}
    for name in ("queue", "serverless"):
        text = of(overlays[name], "ConfigMap", "torpor-tools")["data"]["tools.yaml"]
        (tmp_path / name).write_text(text)
        found[name] = load_tools(tmp_path / name).servers
        assert "registry.example.com" not in text

    assert found["queue"]["render"].url == "http://127.0.0.1:8080/"
    assert found["queue"]["files"].url == "http://127.0.0.1:8080/mcp"
    assert found["queue"]["render"].wake_ms == 0
    host = f"{NAME}.torpor.svc.cluster.local"
    assert found["serverless"]["render"].url == f"http://{host}/"
    assert found["serverless"]["render"].wake_ms == 90_000


def test_another_image_restarts_the_tool_and_nothing_else() -> None:
    def templates(image: str) -> dict[str, Any]:
        changed = copy.deepcopy(GIVEN)
        changed["tools"]["servers"]["render"]["deploy"]["image"] = image
        return {
            f"{r['kind']}/{r['metadata']['name']}": r["spec"]["template"]
            for r in finished("queue", Values.model_validate(changed))
            if "template" in (r.get("spec") or {})
        }

    before, after = templates("a.example/render:1"), templates("a.example/render:2")
    assert [name for name in before if before[name] != after[name]] == [f"Deployment/{NAME}"]


def test_a_knative_service_of_it_may_run_as_long_as_it_wakes_and_works(
    overlays: dict[str, Resources],
) -> None:
    resources = overlays["serverless"]
    service = of(resources, "Service", NAME)
    template = service["spec"]["template"]

    assert template["metadata"]["annotations"]["autoscaling.knative.dev/min-scale"] == "0"
    assert template["spec"]["timeoutSeconds"] == 1290
    assert template["spec"]["containerConcurrency"] == 2
    assert [box["name"] for box in template["spec"]["containers"]] == ["tool"]
    assert service["metadata"]["labels"]["networking.knative.dev/visibility"] == "cluster-local"
    steps = of(resources, "Service", parts.STEPS)["spec"]["template"]["spec"]
    assert steps["timeoutSeconds"] >= 1290 + 30
    assert takers(knative_triggers(resources), called("render")) == ["tool-render"]
    assert not [r for r in resources if r["kind"] == "ScaledObject"]


@pytest.mark.parametrize("overlay", OVERLAYS[:2])
def test_its_pods_are_let_out_to_nothing_but_what_their_own_processes_need(
    overlays: dict[str, Resources], overlay: str
) -> None:
    chosen = parts.labels("tool")
    (policy,) = [
        r
        for r in overlays[overlay]
        if r["kind"] == "NetworkPolicy" and r["spec"]["podSelector"].get("matchLabels") == chosen
    ]
    ways = {port["port"] for way in policy["spec"]["egress"] for port in way["ports"]}

    assert ways == ({6379, 26379, 8000} if overlay == "queue" else {8080, 8000})
    workload = of(overlays[overlay], "Deployment" if overlay == "queue" else "Service", NAME)
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert chosen.items() <= labels.items()
    assert wrong_ways(overlays[overlay]) == set()
    assert labels["torpor.dev/tool-server"] == "render"


def without(kind: str, name: str) -> Callable[[Resources], None]:
    def change(resources: Resources) -> None:
        resources[:] = [r for r in resources if (r["kind"], r["metadata"]["name"]) != (kind, name)]

    return change


def short_grace(name: str) -> Callable[[Resources], None]:
    def change(resources: Resources) -> None:
        pod = of(resources, "Deployment", name)["spec"]["template"]["spec"]
        pod["terminationGracePeriodSeconds"] = 20

    return change


def another_stream(resources: Resources) -> None:
    for trigger in of(resources, "ScaledObject", NAME)["spec"]["triggers"]:
        trigger["metadata"]["stream"] = keys.queue("tool-rendre", "tickets")


def unpumped(resources: Resources) -> None:
    pod = of(resources, "Deployment", parts.BROKER)["spec"]["template"]["spec"]
    (entry,) = [e for e in pod["containers"][0]["env"] if e["name"] == "TORPOR_TRIGGER"]
    entry["value"] = entry["value"].replace(",tool-weather", "")


def longer_than_a_job(resources: Resources) -> None:
    data = of(resources, "ConfigMap", "torpor-tools")["data"]
    document = yaml.safe_load(data["tools.yaml"])
    document["servers"]["weather"]["timeout_ms"] = 7_200_000
    data["tools.yaml"] = yaml.safe_dump(document)


MISTAKES: dict[str, tuple[Callable[[Resources], None], list[tuple[str, str]]]] = {
    "no scaler": (without("ScaledObject", NAME), [("tools-queue", "error")]),
    "no pod": (
        lambda r: (without("Deployment", NAME)(r), without("ScaledObject", NAME)(r))[0],
        [("tools-queue", "error")],
    ),
    "a scaler of another queue": (
        another_stream,
        [("keda-stream", "error"), ("keda-stream", "error"), ("tools-queue", "error")],
    ),
    "a keyed call is cut off": (short_grace(NAME), [("tools-grace", "warning")]),
    "a call that may happen once is cut off": (
        short_grace("torpor-tool-files"),
        [("tools-grace", "error")],
    ),
    "a call that outlasts every job": (
        longer_than_a_job,
        [("tools-timeout", "error"), ("tools-timeout", "warning")],
    ),
    "a queue that the broker does not pump": (unpumped, [("tools-queue", "error")]),
}


@pytest.mark.parametrize(("change", "rules"), MISTAKES.values(), ids=MISTAKES)
def test_the_doctor_names_what_is_wrong_with_a_deployed_tool(
    overlays: dict[str, Resources], change: Callable[[Resources], None], rules: list[Any]
) -> None:
    broken = copy.deepcopy(overlays["queue"])
    before = {(f.rule.name, f.fault) for f in examine(broken).findings}
    change(broken)

    found = [f for f in examine(broken).findings if (f.rule.name, f.fault) not in before]

    assert sorted((f.rule.name, str(f.severity)) for f in found) == rules


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ({"deploy": {"image": "a/b:1"}}, r"files\.tools must have its tools"),
        ({**FILES, "deploy": {"image": "a/b"}}, r"deploy\.image must be an image with a tag"),
        ({**FILES, "deploy": {"image": "a/b:1", "port": 8083}}, r"deploy\.port must not be 8083"),
        ({**FILES, "deploy": {"image": "a/b:1", "replica": 1}}, r"deploy\.replica is not supp"),
        ({**FILES, "timeout_ms": 7_200_000}, r"files\.timeout_ms must be at most max_job_seconds"),
    ],
    ids=["no tools", "no tag", "a taken port", "an unknown field", "longer than a job"],
)
def test_a_wrong_value_is_named(server: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Values.model_validate({**GIVEN, "tools": {"servers": {"files": server}}})


def test_one_machine_runs_the_same_three_containers(tmp_path: Path) -> None:
    write(tmp_path, Values.model_validate(GIVEN))
    project = yaml.safe_load((tmp_path / "compose" / "compose.yaml").read_text())
    services = project["services"]

    assert services["tool-render"]["image"] == "registry.example.com/render:1.2.0"
    for part in ("caller", "pump"):
        assert services[f"tool-render-{part}"]["network_mode"] == "service:tool-render"
    found = parse_tools(yaml.safe_load(project["configs"]["tools"]["content"])).servers
    assert found["render"].url == "http://127.0.0.1:8080/"
    mounted = [str(v) for v in services["tool-render-caller"]["volumes"]]
    assert any("tool-credentials" in each for each in mounted)
    assert not services["tool-render"].get("volumes")
