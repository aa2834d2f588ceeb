"""Steps on a cluster: one process from zero in both topologies, and nothing of it where there are none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from eventing.broker.trigger import Trigger, parse_trigger
from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import PLANNED, PREPARED, REQUESTED
from eventing.job.pipelines.document import parse_pipelines
from eventing.redis import keys
from knative.autoscaling.keda.scaledobject import read_scaled_object
from knative.deploy.doctor import Severity, examine
from knative.deploy.render import parts
from knative.deploy.render.render import write
from knative.deploy.render.tree import built, files
from knative.deploy.values import Values, ValuesError, load_values
from steps.settings import StepsSettings
from tests.manifests.conftest import Resources, kustomize

PIPELINES = {
    "thinker": {
        "steps": [
            {"step": "semantic-cache", "on_failure": "continue", "timeout_ms": 50},
            {"step": "no-op", "settings": {"detail": {"seen": 1}}},
        ]
    }
}
VALUES = Values.model_validate(
    {
        "steps": {"max_replicas": 2, "timeout_seconds": 30},
        "pipelines": PIPELINES,
        "more_models": [{"name": "drafter", "uri": "hf://Qwen/Qwen3-0.6B"}],
    }
)


@pytest.fixture(scope="module")
def overlays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Resources]:
    """The overlays of a model with steps, and of one without."""
    folder = tmp_path_factory.mktemp("steps")
    write(folder, VALUES)
    secured = folder / "overlays" / "serverless+oidc"
    secured.mkdir()
    content = {
        "resources": ["../serverless-kafka"],
        "components": ["../../components/eventing-tls", "../../components/eventing-oidc"],
    }
    (secured / "kustomization.yaml").write_text(yaml.safe_dump(content))
    names = ("queue", "queue-cpu", "serverless-kafka", "serverless", secured.name)
    return {name: kustomize(folder / "overlays" / name) for name in names}


def of(resources: Resources, kind: str, name: str) -> dict[str, Any]:
    """The one resource of this kind and name."""
    (found,) = [r for r in resources if (r["kind"], r["metadata"]["name"]) == (kind, name)]
    return found


def own_triggers(resources: Resources) -> list[Trigger]:
    text = of(resources, "ConfigMap", "torpor-triggers")["data"]["triggers.yaml"]
    return [parse_trigger(document) for document in yaml.safe_load_all(text)]


def knative_triggers(resources: Resources) -> list[Trigger]:
    """As our parser reads them, with an address for each reference."""
    found = []
    for resource in resources:
        if resource["kind"] == "Trigger":
            ref = resource["spec"]["subscriber"]["ref"]["name"]
            address = {"uri": f"http://{ref}/events"}
            found.append(
                parse_trigger({**resource, "spec": {**resource["spec"], "subscriber": address}})
            )
    return found


def event(type_: str, **extensions: str) -> Event:
    return Event(id="1", source="/s", type=type_, extensions={"model": "thinker", **extensions})


def takers(triggers: list[Trigger], sent: Event) -> list[str]:
    return sorted(t.name for t in triggers if t.matches(sent))


def test_without_steps_nothing_of_them_is_rendered() -> None:
    assert [path for path, text in files(Values()).items() if "torpor-steps" in text] == []


def test_an_event_reaches_its_step_its_plan_or_its_predictor_and_no_other(
    overlays: dict[str, Resources],
) -> None:
    for triggers, prepared in (
        (own_triggers(overlays["queue"]), "requests"),
        (knative_triggers(overlays["serverless-kafka"]), "prepared"),
    ):
        assert takers(triggers, event(PLANNED, step="no-op")) == ["step-no-op"]
        assert takers(triggers, event(REQUESTED)) == ["plans-thinker"]
        assert takers(triggers, event(PREPARED)) == [f"{prepared}-thinker"]
        assert takers(triggers, event(REQUESTED, model="drafter")) == ["requests-drafter"]
        assert takers(triggers, event(PREPARED, model="drafter")) == [f"{prepared}-drafter"]
        assert takers(triggers, event(PLANNED, step="retrieve", model="drafter")) == [
            "step-retrieve"
        ]


def test_the_broker_pumps_every_queue_of_the_steps(overlays: dict[str, Resources]) -> None:
    (box,) = of(overlays["queue"], "Deployment", parts.BROKER)["spec"]["template"]["spec"][
        "containers"
    ]
    (pumped,) = [e["value"] for e in box["env"] if e["name"] == "TORPOR_TRIGGER"]
    to_steps = [t.name for t in own_triggers(overlays["queue"]) if parts.STEPS in t.subscriber]

    assert sorted(pumped.split(",")) == sorted(["strays", *to_steps])
    assert "step-semantic-cache" in to_steps


def test_keda_scales_the_steps_by_lag_and_pending_of_every_queue(
    overlays: dict[str, Resources],
) -> None:
    scaled = of(overlays["queue"], "ScaledObject", parts.STEPS)
    spec = read_scaled_object(scaled)
    streams = {t["metadata"]["stream"] for t in scaled["spec"]["triggers"]}

    to_steps = [t.name for t in own_triggers(overlays["queue"]) if parts.STEPS in t.subscriber]
    assert streams == {keys.queue(name, "tickets") for name in to_steps}
    assert len(scaled["spec"]["triggers"]) == 2 * len(streams)
    assert spec is not None


def test_api_broker_and_steps_read_the_same_plans(overlays: dict[str, Resources]) -> None:
    plans = of(overlays["queue"], "ConfigMap", "torpor-pipelines")["data"]["pipelines.yaml"]
    assert parse_pipelines(yaml.safe_load(plans)) == parse_pipelines(PIPELINES)
    for name in (parts.API, parts.BROKER, parts.STEPS):
        pod = of(overlays["queue"], "Deployment", name)["spec"]["template"]["spec"]
        (box,) = pod["containers"]
        assert {
            "name": "TORPOR_PIPELINES_FILE",
            "value": "/etc/torpor/pipelines/pipelines.yaml",
        } in (box["env"])
        assert "torpor-pipelines" in [v.get("configMap", {}).get("name") for v in pod["volumes"]]


def test_the_process_can_start_with_what_it_is_given(
    overlays: dict[str, Resources], monkeypatch: pytest.MonkeyPatch
) -> None:
    for overlay, kind in (("queue", "Deployment"), ("serverless", "Service")):
        (box,) = of(overlays[overlay], kind, parts.STEPS)["spec"]["template"]["spec"]["containers"]
        for entry in box["env"]:
            if "value" in entry and entry["name"] != "TORPOR_PIPELINES_FILE":
                monkeypatch.setenv(entry["name"], entry["value"])

        settings = StepsSettings()

        assert settings.steps_port == parts.STEPS_PORT
        assert box["securityContext"]["readOnlyRootFilesystem"]
        assert box["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_steps_show_knatives_broker_who_they_are_and_trust_its_authority_as_the_api_does(
    overlays: dict[str, Resources],
) -> None:
    secured = overlays["serverless+oidc"]

    def given(kind: str, name: str) -> dict[str, Any]:
        pod = of(secured, kind, name)["spec"]["template"]["spec"]
        box = pod["containers"][0]
        env = {e["name"]: e for e in box["env"] if e["name"].startswith("TORPOR_BROKER_")}
        own = ("identity", "eventing-ca")
        listed = [*pod["volumes"], *box["volumeMounts"]]
        return {"env": env, "volumes": [each for each in listed if each["name"] in own]}

    wanted = given("Deployment", parts.API)
    assert set(wanted["env"]) == {"TORPOR_BROKER_CA_FILE", "TORPOR_BROKER_TOKEN_FILE"}
    assert given("Service", parts.STEPS) == wanted
    senders = of(secured, "EventPolicy", parts.EVENTS)["spec"]["from"]
    assert [each["sub"].rpartition(":")[2] for each in senders] == [parts.API, parts.STEPS]


def test_the_doctor_names_the_steps_that_trust_no_authority_of_an_https_broker(
    overlays: dict[str, Resources],
) -> None:
    broken = copy.deepcopy(overlays["serverless+oidc"])
    pod = of(broken, "Service", parts.STEPS)["spec"]["template"]["spec"]
    box = pod["containers"][0]
    box["env"] = [each for each in box["env"] if each["name"] != "TORPOR_BROKER_CA_FILE"]

    found = [f for f in examine(broken).findings if f.rule.name == "broker-tls"]

    assert [f.fault.resource for f in found] == [f"Service/{parts.STEPS}"]


@pytest.mark.parametrize(
    "overlay", ["queue", "queue-cpu", "serverless", "serverless-kafka", "serverless+oidc"]
)
def test_the_doctor_finds_no_error(overlays: dict[str, Resources], overlay: str) -> None:
    report = examine(overlays[overlay])

    assert [f for f in report.findings if f.severity is Severity.ERROR] == []


def test_a_model_that_the_steps_serve_alone_needs_no_predictor() -> None:
    values = Values.model_validate(
        {"steps": {"max_replicas": 1}, "pipelines": {"minilm": {"steps": ["embed"]}}}
    )

    triggers = own_triggers(built("queue", values))

    assert takers(triggers, event(PLANNED, step="embed", model="minilm")) == ["step-embed"]


def test_a_public_name_over_several_models_needs_no_predictor() -> None:
    route = {"step": "route", "settings": {"tiers": ["thinker"]}}
    values = Values.model_validate(
        {"steps": {"max_replicas": 1}, "pipelines": {"auto": {"steps": [route]}}}
    )

    triggers = own_triggers(built("queue", values))

    assert takers(triggers, event(PLANNED, step="route", model="auto")) == ["step-route"]


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"pipelines": {"other": {"steps": ["no-op"]}}}, "other is none of the models"),
        ({"pipelines": {"other": {"cache": {"exact": {}}}}}, "other is none of the models"),
        ({"pipelines": {"thinker": {"steps": ["no-op", "no-op"]}}}, "no-op twice"),
        ({"steps": {"max_replicas": 0}}, "set steps.max_replicas"),
    ],
)
def test_values_that_can_not_be_meant_are_refused(
    more: dict[str, Any], word: str, tmp_path: Any
) -> None:
    given = {"steps": {"max_replicas": 1}, "pipelines": PIPELINES, **more}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(given))

    with pytest.raises(ValuesError, match=word):
        load_values(tmp_path / "values.yaml")
