"""Tools on a cluster: a queue a server in both topologies, keys as files, a way out to the servers and nowhere else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from eventing.broker.trigger import parse_trigger
from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import PLANNED
from eventing.cloudevent.tool_event import CALLED
from eventing.job.tools.document import parse_tools
from knative.deploy.doctor import Severity, examine
from knative.deploy.emit import Resource
from knative.deploy.render import parts
from knative.deploy.render.render import write
from knative.deploy.values import Values
from tests.manifests.conftest import Resources, kustomize
from tests.manifests.test_steps import knative_triggers, of, own_triggers, takers

TOOLS = {
    "servers": {
        "weather": {"url": "https://mcp.example.com/mcp", "credential": "weather"},
        "refunds": {
            "kind": "function",
            "url": "http://refunds.shop.svc.cluster.local",
            "effect": "keyed",
            "timeout_ms": 600_000,
            "parallelism": 3,
            "description": "Pays money back.",
            "parameters": {"type": "object"},
        },
    },
    "urls": {"tenants": ["acme"]},
}
GIVEN = {"steps": {"max_replicas": 2}, "tools": TOOLS}
OVERLAYS = ("queue", "serverless")


@pytest.fixture(scope="module")
def overlays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Resources]:
    folder = tmp_path_factory.mktemp("tools")
    write(folder, Values.model_validate(GIVEN))
    return {name: kustomize(folder / "overlays" / name) for name in OVERLAYS}


def called(label: str) -> Event:
    return Event(id="1", source="/torpor/tools", type=CALLED, extensions={"toolserver": label})


def way_out(resources: Resources) -> list[Resource]:
    (policy,) = [
        r
        for r in resources
        if r["kind"] == "NetworkPolicy" and r["metadata"]["name"].endswith("-tools")
    ]
    ways: list[Resource] = policy["spec"]["egress"]
    return ways


def test_a_call_reaches_the_queue_of_its_server_and_no_other(
    overlays: dict[str, Resources],
) -> None:
    for triggers in (own_triggers(overlays["queue"]), knative_triggers(overlays["serverless"])):
        for label in ("weather", "refunds", "urls"):
            assert takers(triggers, called(label)) == [f"tool-{label}"]
        for step in ("list-tools", "tools"):
            planned = Event(id="1", source="/s", type=PLANNED, extensions={"step": step})
            assert takers(triggers, planned) == [f"step-{step}"]


def test_a_delivery_lasts_longer_than_its_call_and_no_more_are_made_at_once_than_the_server_takes(
    overlays: dict[str, Resources],
) -> None:
    triggers = {t.name: t for t in own_triggers(overlays["queue"])}

    assert triggers["tool-weather"].delivery.timeout_s == 90
    assert triggers["tool-refunds"].delivery.timeout_s == 630
    assert triggers["tool-refunds"].parallelism == 3
    service = of(overlays["serverless"], "Service", parts.STEPS)
    assert service["spec"]["template"]["spec"]["timeoutSeconds"] >= 630


def test_api_broker_and_steps_read_one_file_and_the_steps_alone_have_the_keys_of_servers(
    overlays: dict[str, Resources],
) -> None:
    queue = overlays["queue"]
    text = of(queue, "ConfigMap", "torpor-tools")["data"]["tools.yaml"]
    assert parse_tools(yaml.safe_load(text)) == parse_tools(TOOLS)
    secrets = {}
    for name in (parts.API, parts.BROKER, parts.STEPS):
        pod = of(queue, "Deployment", name)["spec"]["template"]["spec"]
        env = {e["name"]: e.get("value") for e in pod["containers"][0]["env"]}
        assert env["TORPOR_TOOLS_FILE"] == "/etc/torpor/tools/tools.yaml"
        mounted = {m["name"] for m in pod["containers"][0]["volumeMounts"]}
        secrets[name] = {
            volume["secret"]["secretName"]
            for volume in pod["volumes"]
            if "tool" in volume["name"] and "secret" in volume and volume["name"] in mounted
        }
    assert secrets == {
        parts.API: {"torpor-tool-seal"},
        parts.BROKER: set(),
        parts.STEPS: {"torpor-tool-seal", "torpor-tool-credentials"},
    }


def test_the_steps_are_let_out_to_the_servers_and_nowhere_else(
    overlays: dict[str, Resources],
) -> None:
    for name in OVERLAYS:
        outside, inside, urls = way_out(overlays[name])
        assert outside == urls
        assert outside["ports"] == [{"protocol": "TCP", "port": 443}]
        assert "169.254.0.0/16" in outside["to"][0]["ipBlock"]["except"]
        namespaces = [
            peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
            for peer in inside["to"]
        ]
        assert namespaces == ["shop", "kourier-system", "knative-serving"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_doctor_finds_no_error(overlays: dict[str, Resources], overlay: str) -> None:
    report = examine(overlays[overlay])

    assert [f for f in report.findings if f.severity is Severity.ERROR] == []


def broken_tools(change: Any) -> Any:
    def make(resources: Resources) -> None:
        data = of(resources, "ConfigMap", "torpor-tools")["data"]
        document = yaml.safe_load(data["tools.yaml"])
        change(document)
        data["tools.yaml"] = yaml.safe_dump(document)

    return make


def without_trigger(resources: Resources) -> None:
    resources[:] = [r for r in resources if r["metadata"]["name"] != "tool-refunds"]


def short_delivery(resources: Resources) -> None:
    trigger = of(resources, "Trigger", "tool-refunds")
    trigger["spec"]["delivery"]["timeout"] = "PT60S"


MISTAKES = {
    "no effect class": (
        broken_tools(lambda d: d["servers"]["weather"].update(effect="twice")),
        "tools-block",
    ),
    "plain http to the outside": (
        broken_tools(lambda d: d["servers"]["weather"].update(url="http://mcp.example.com")),
        "tools-block",
    ),
    "no trigger": (without_trigger, "tools-trigger"),
    "a delivery too short": (short_delivery, "tools-timeout"),
}


@pytest.mark.parametrize(("change", "rule"), MISTAKES.values(), ids=MISTAKES)
def test_the_doctor_names_what_is_wrong_with_tools(
    overlays: dict[str, Resources], change: Any, rule: str
) -> None:
    broken = copy.deepcopy(overlays["serverless"])
    change(broken)

    found = [f for f in examine(broken).findings if f.severity is Severity.ERROR]

    assert [f.rule.name for f in found] == [rule]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tools": TOOLS}, "tools need steps"),
        ({**GIVEN, "tools": {"servers": {"urls": {"url": "https://a.b"}}}}, "named? by address"),
        ({**GIVEN, "tools": {"servers": {"x": {"url": "ftp://a.b"}}}}, r"servers\.x\.url"),
        ({**GIVEN, "tools": {"server": {}}}, "server is not supported"),
    ],
    ids=["without steps", "a reserved label", "an address", "an unknown field"],
)
def test_a_wrong_value_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Values.model_validate(given)


def test_a_trigger_of_calls_is_one_that_knative_takes(overlays: dict[str, Resources]) -> None:
    triggers = [
        each
        for each in overlays["serverless"]
        if each["kind"] == "Trigger" and each["metadata"]["name"].startswith("tool-")
    ]

    assert triggers
    for each in triggers:
        assert parse_trigger(
            {**each, "spec": {**each["spec"], "subscriber": {"uri": "http://a/e"}}}
        )
        assert set(each["spec"]["filter"]["attributes"]) == {"type", "toolserver"}


def test_one_machine_has_the_same_tools(tmp_path: Path) -> None:
    write(tmp_path, Values.model_validate(GIVEN))
    project = yaml.safe_load((tmp_path / "compose" / "compose.yaml").read_text())

    assert parse_tools(yaml.safe_load(project["configs"]["tools"]["content"])) == parse_tools(TOOLS)
    for name, folders in {
        "api": {"tool-seal"},
        "broker": set(),
        "steps": {"tool-seal", "tool-credentials"},
    }.items():
        service = project["services"][name]
        assert "tools" in [each["source"] for each in service["configs"]]
        mounted = {v.split(":")[0].rpartition("/")[2] for v in service.get("volumes", ())}
        assert {each for each in mounted if each.startswith("tool")} == folders
