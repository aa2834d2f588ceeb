"""The settings in the manifests are those that the processes read."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from api.settings import ApiSettings
from eventing.broker.settings import BrokerSettings
from eventing.broker.trigger import parse_trigger
from eventing.cloudevent.event import Event
from eventing.redis import keys
from knative.autoscaling.keda.scaledobject import read_scaled_object
from knative.autoscaling.kpa.annotations import read_knative
from knative.deploy.first_secrets import FirstSecretsSettings
from knative.deploy.render import network, parts
from knative.deploy.render.tree import files
from knative.deploy.timeouts import derive, explain
from knative.deploy.values import Values
from knative.external_scaler.scaler import read_metadata
from knative.external_scaler.settings import ExternalScalerSettings
from knative.monitoring.dashboard import queries as dashboard_queries
from predictor.settings import PredictorSettings
from tests.manifests.conftest import ROOT, Resources

BY_THE_DOCTOR = {"TORPOR_MAX_JOB_SECONDS"}
"""Read out of the ConfigMap, by `knative.deploy.doctor.view`, and by no process."""


def read_by_processes() -> set[str]:
    """Every variable that some settings class reads."""
    classes = (
        ApiSettings,
        BrokerSettings,
        PredictorSettings,
        FirstSecretsSettings,
        ExternalScalerSettings,
    )
    return {f"TORPOR_{name.upper()}" for each in classes for name in each.model_fields}


def test_every_variable_is_read_by_some_process(overlays: dict[str, Resources]) -> None:
    text = yaml.safe_dump_all([r for resources in overlays.values() for r in resources])

    named = set(re.findall(r"\bTORPOR_[A-Z_]+\b", text))

    assert named - read_by_processes() == BY_THE_DOCTOR


def test_the_external_scaler_takes_what_its_trigger_says(overlays: dict[str, Resources]) -> None:
    (scaled,) = [r for r in overlays["queue+work"] if r["kind"] == "ScaledObject"]
    (trigger,) = scaled["spec"]["triggers"]

    read = read_metadata(trigger["metadata"], queue="", model="")

    model = scaled["metadata"]["name"]
    assert (read.queue, read.model) == (parts.trigger_name(model), model)
    assert read.spec.max_replicas == scaled["spec"]["maxReplicaCount"]
    # KEDA finds it by the Service's name, and the Service its pod by the port's.
    service = next(r for r in overlays["queue+work"] if r["metadata"]["name"] == parts.SCALER)
    host, _, port = trigger["metadata"]["scalerAddress"].partition(":")
    assert host.startswith(f"{service['metadata']['name']}.{service['metadata']['namespace']}.")
    assert int(port) == parts.SCALER_PORT


def test_the_settings_of_the_processes_accept_the_rendered_values(
    overlays: dict[str, Resources], monkeypatch: pytest.MonkeyPatch
) -> None:
    for resource in overlays["queue"]:
        if resource["metadata"]["name"] == parts.SETTINGS:
            for name, value in resource["data"].items():
                monkeypatch.setenv(name, value)
        if resource["kind"] == "InferenceService":
            for entry in resource["spec"]["predictor"]["containers"][0]["env"]:
                if "value" in entry and entry["name"].startswith("TORPOR_"):
                    monkeypatch.setenv(entry["name"], entry["value"])

    assert PredictorSettings().served_name == "thinker"
    assert PredictorSettings().drain_grace_s == 1800
    assert [card.name for card in ApiSettings().models] == ["thinker"]
    assert ApiSettings().broker_url.startswith("http://torpor-broker.torpor.svc")


@pytest.mark.parametrize("seconds", [10, 3600, 86_400])
def test_the_longest_and_shortest_jobs_give_settings_that_start(
    seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = Values(max_job_seconds=seconds)
    settings = yaml.safe_load(files(values)["base/settings.yaml"])
    for name, value in settings["data"].items():
        monkeypatch.setenv(name, value)

    assert PredictorSettings().lease_s >= 15


def test_keda_reads_the_stream_and_group_that_the_broker_writes() -> None:
    assert parts.stream_key("thinker") == keys.queue(parts.trigger_name("thinker"), "tickets")
    assert parts.GROUP == keys.GROUP


def test_our_broker_accepts_its_triggers(overlays: dict[str, Resources]) -> None:
    text = next(r for r in overlays["queue"] if r["metadata"]["name"] == "torpor-triggers")["data"][
        "triggers.yaml"
    ]

    requests, results = (parse_trigger(document) for document in yaml.safe_load_all(text))

    assert requests.subscriber == "http://localhost:8080/events"
    assert requests.parallelism == 16
    assert requests.delivery.timeout_s >= 1800
    assert results.subscriber.endswith("/internal/events")


def test_a_request_without_a_model_reaches_the_api_and_no_predictor(
    overlays: dict[str, Resources],
) -> None:
    text = next(r for r in overlays["queue"] if r["metadata"]["name"] == "torpor-triggers")
    requests, strays = (
        parse_trigger(document) for document in yaml.safe_load_all(text["data"]["triggers.yaml"])
    )
    named = Event(id="1", source="/x", type=parts.REQUESTED, extensions={"model": "thinker"})
    unnamed = Event(id="1", source="/x", type=parts.REQUESTED)
    done = Event(id="1", source="/x", type=parts.RESULTS[0])

    assert [t.matches(e) for t in (requests, strays) for e in (named, unnamed, done)] == [
        True, False, False,
        False, True, False,
    ]  # fmt: skip


def test_each_process_pumps_a_trigger_that_is_there(overlays: dict[str, Resources]) -> None:
    text = yaml.safe_dump_all(overlays["queue"])

    chosen = set(re.findall(r"name: TORPOR_TRIGGER\n\s+value: (\S+)", text))

    assert chosen == {"requests-thinker", "strays"}


def test_a_pump_is_scraped_where_it_serves_its_metrics(
    overlays: dict[str, Resources], monkeypatch: pytest.MonkeyPatch
) -> None:
    (service,) = [r for r in overlays["queue"] if r["kind"] == "InferenceService"]
    (monitor,) = [r for r in overlays["queue"] if r["kind"] == "PodMonitor"]
    (pump,) = [b for b in service["spec"]["predictor"]["containers"] if b["name"] == "pump"]
    for entry in pump["env"]:
        if "value" in entry:
            monkeypatch.setenv(entry["name"], entry["value"])

    port = BrokerSettings().metrics_port

    assert port
    assert [p["containerPort"] for p in pump["ports"]] == [port]
    assert port in [e["portNumber"] for e in monitor["spec"]["podMetricsEndpoints"]]
    assert any(
        port in f.ports
        for f in network.FLOWS
        if (f.source, f.target) == (network.Peer.MONITORING, network.Peer.PREDICTOR)
    )


def test_without_a_gpu_nothing_costs(overlays: dict[str, Resources]) -> None:
    for name, price in (("queue", "1.95"), ("queue-cpu", "0")):
        (settings,) = [r for r in overlays[name] if r["metadata"]["name"] == parts.SETTINGS]
        assert settings["data"]["TORPOR_GPU_PRICE_PER_HOUR"] == price


def shared_families() -> list[str]:
    """The families that every replica of the api or broker shows alike: (s) in the docs."""
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `(torpor_\w+)` \|.*\| \(s\)", page, re.MULTILINE)


def asked_by_all(overlays: dict[str, Resources]) -> list[str]:
    """Every query of the alerts, the dashboard and KEDA's triggers."""
    found = dashboard_queries()
    for resource in overlays["queue"]:
        if resource["kind"] == "PrometheusRule":
            found += [r["expr"] for g in resource["spec"]["groups"] for r in g["rules"]]
        if resource["kind"] == "ScaledObject":
            found += [t["metadata"].get("query", "") for t in resource["spec"]["triggers"]]
    return found


def test_metrics_that_every_replica_shows_alike_are_never_summed(
    overlays: dict[str, Resources],
) -> None:
    """`sum` would count the same GPU, job or second once a replica of the api."""
    families = shared_families()
    right = r"(max|min)( by \([\w, ]+\))? ?\((rate\()?"

    assert len(families) > 10
    for query in asked_by_all(overlays):
        for match in re.finditer(r"torpor_\w+", query):
            if match[0] in families:
                assert re.search(right + "$", query[: match.start()]), query


@pytest.mark.parametrize("overlay", ["queue", "queue-cpu"])
def test_the_simulator_reads_the_scaled_object(
    overlays: dict[str, Resources], overlay: str
) -> None:
    (scaled,) = [r for r in overlays[overlay] if r["kind"] == "ScaledObject"]

    spec = read_scaled_object(scaled)

    assert (spec.min_replicas, spec.cooldown_s) == (0, 660)


def test_the_simulator_reads_the_knative_predictor(overlays: dict[str, Resources]) -> None:
    (service,) = [r for r in overlays["serverless"] if r["kind"] == "InferenceService"]

    assert read_knative(service).container_concurrency == 16


def egress(policy: dict[str, Any]) -> set[int]:
    """The ports that a policy lets out."""
    rules = policy["spec"].get("egress") or []
    return {port["port"] for rule in rules for port in rule.get("ports") or []}


def test_only_the_first_secrets_job_and_rabbitmq_reach_the_api_server() -> None:
    senders = {f.source for f in network.FLOWS if f.target is network.Peer.KUBERNETES}

    assert senders == {network.Peer.FIRST_SECRETS, network.Peer.RABBITMQ}


def test_nothing_private_counts_as_the_internet(overlays: dict[str, Resources]) -> None:
    blocks = [
        peer["ipBlock"]
        for r in overlays["queue"]
        if r["kind"] == "NetworkPolicy"
        for rule in r["spec"].get("egress") or []
        for peer in rule.get("to") or []
        if "ipBlock" in peer
    ]

    assert blocks
    assert all("169.254.0.0/16" in block["except"] for block in blocks)


def test_every_policy_is_in_the_matrix_of_the_docs() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")

    assert network.matrix() in page


def test_only_its_users_may_reach_the_store(overlays: dict[str, Resources]) -> None:
    sources = {f.source for f in network.FLOWS if f.target is network.Peer.REDIS}

    assert sources == {
        network.Peer.API,
        network.Peer.PREDICTOR,
        network.Peer.BROKER,
        network.Peer.KEDA,
        network.Peer.SCALER,
        network.Peer.STEPS,
        network.Peer.TOOL,
        network.Peer.REDIS,  # replicas and sentinels of each other
        network.Peer.BACKUP,
    }
    assert not any(
        6379 in egress(r) and "broker-rabbitmq" in r["metadata"]["name"]
        for r in overlays["serverless"]
        if r["kind"] == "NetworkPolicy"
    )


def test_every_alert_has_its_run_book(overlays: dict[str, Resources]) -> None:
    (rule,) = [r for r in overlays["queue"] if r["kind"] == "PrometheusRule"]
    listed = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]

    assert listed
    for alert in listed:
        assert (ROOT / alert["annotations"]["runbook_url"]).is_file(), alert["alert"]


def test_alerts_fire_at_what_the_values_promise() -> None:
    values = Values(p95_wait_seconds=7, cold_start_seconds=900)

    text = files(values)["components/monitoring/alerts.yaml"]

    assert "> 7" in text
    assert "> 907" in text


def test_batch_jobs_wait_for_room_where_the_values_let_them() -> None:
    path = "components/work-scaler/kustomization.yaml"
    trigger = re.search(r"batchWaitSeconds: '(\d+)'", files(Values(batch_wait_seconds=3600))[path])

    assert trigger is not None
    assert trigger[1] == "3600"
    assert "batchWaitSeconds" not in files(Values())[path]


def test_the_scaler_asks_for_a_metric_that_the_api_exports(
    overlays: dict[str, Resources],
) -> None:
    (scaled,) = [r for r in overlays["queue"] if r["kind"] == "ScaledObject"]
    queries = [t["metadata"].get("query", "") for t in scaled["spec"]["triggers"]]
    source = "".join(path.read_text() for path in (ROOT / "eventing" / "telemetry").rglob("*.py"))

    names = re.findall(r"torpor_[a-z_]+?_seconds", " ".join(queries))

    assert names
    assert [name for name in names if f'"{name}"' not in source] == []


def test_the_docs_show_every_derived_second_as_it_is() -> None:
    page = (ROOT / "docs" / "topologies.md").read_text(encoding="utf-8")

    for name, seconds, why in explain(derive(Values())):
        assert f"| {name} | {seconds} | {why.formula} |" in page
