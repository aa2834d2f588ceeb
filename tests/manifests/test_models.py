"""Several models behind one api and one broker: each job reaches its own and no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.settings import ApiSettings
from eventing.broker.trigger import parse_trigger
from eventing.cloudevent.event import Event
from knative.deploy.config_hash import with_config_hash
from knative.deploy.doctor import Severity, examine
from knative.deploy.render import parts
from knative.deploy.render.render import write
from knative.deploy.render.tree import built, files
from knative.deploy.rollout.canary import Change, with_canary
from knative.deploy.values import Values, ValuesError, load_values
from tests.manifests.conftest import Resources, kustomize
from tests.manifests.objects import named

MODELS = ("thinker", "drafter")
VALUES = Values.model_validate(
    {
        "more_models": [
            {
                "name": "drafter",
                "uri": "hf://Qwen/Qwen3-0.6B",
                "concurrency": 64,
                "max_tokens": 4096,
                "max_replicas": 2,
            }
        ]
    }
)


@pytest.fixture(scope="module")
def overlays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Resources]:
    """The overlays of two models."""
    folder = tmp_path_factory.mktemp("two")
    write(folder, VALUES)
    return {
        name: kustomize(folder / "overlays" / name)
        for name in ("queue", "queue-cpu", "serverless-kafka")
    }


def of(resources: Resources, kind: str) -> dict[str, dict[str, Any]]:
    """The resources of a kind by name."""
    return {r["metadata"]["name"]: r for r in resources if r["kind"] == kind}


def test_each_model_has_its_service_its_scaler_and_its_stream(
    overlays: dict[str, Resources],
) -> None:
    scaled = of(overlays["queue"], "ScaledObject")

    assert set(of(overlays["queue"], "InferenceService")) == set(scaled) == set(MODELS)
    for name in MODELS:
        streams = {t["metadata"].get("stream") for t in scaled[name]["spec"]["triggers"]}
        assert streams - {None} == {parts.stream_key(name)}
        assert scaled[name]["spec"]["scaleTargetRef"]["name"] == f"{name}-predictor"


def test_each_models_settings_are_its_own(overlays: dict[str, Resources]) -> None:
    services = of(overlays["queue"], "InferenceService")

    for name, batch, most in (("thinker", 16, 4), ("drafter", 64, 2)):
        predictor = services[name]["spec"]["predictor"]
        assert f"--max-num-seqs={batch}" in predictor["containers"][0]["args"]
        assert predictor["maxReplicas"] == most
        variables = {e["name"]: e.get("value") for e in predictor["containers"][0]["env"]}
        assert variables["TORPOR_MODEL_NAME"] == name


@pytest.mark.parametrize("named", [*MODELS, "another", None])
def test_our_broker_takes_each_job_to_one_place(
    overlays: dict[str, Resources], named: str | None
) -> None:
    text = of(overlays["queue"], "ConfigMap")["torpor-triggers"]["data"]["triggers.yaml"]
    extensions = {} if named is None else {"model": named}
    event = Event(id="1", source="/x", type=parts.REQUESTED, extensions=extensions)

    taken = [
        trigger.name
        for trigger in map(parse_trigger, yaml.safe_load_all(text))
        if trigger.matches(event)
    ]

    assert taken == ([f"requests-{named}"] if named in MODELS else ["strays"])


def test_knative_takes_each_job_by_its_models_name(overlays: dict[str, Resources]) -> None:
    triggers = of(overlays["serverless-kafka"], "Trigger")

    for name in MODELS:
        trigger = triggers[f"requests-{name}"]
        assert trigger["spec"]["filter"]["attributes"]["model"] == name
        assert trigger["spec"]["subscriber"]["ref"]["name"] == f"{name}-predictor"


def test_the_api_accepts_both(
    overlays: dict[str, Resources], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = of(overlays["queue"], "ConfigMap")[parts.SETTINGS]["data"]
    monkeypatch.setenv("TORPOR_MODELS", settings["TORPOR_MODELS"])

    cards = ApiSettings().models

    assert [(card.name, card.context_tokens) for card in cards] == [
        ("thinker", 32768),
        ("drafter", 4096),
    ]


def test_pressure_is_measured_for_each_model_separately(overlays: dict[str, Resources]) -> None:
    for name, scaled in of(overlays["queue"], "ScaledObject").items():
        queries = [t["metadata"].get("query", "") for t in scaled["spec"]["triggers"]]
        p95, gpu = (query for query in queries if query)
        assert f'model="{name}"' in p95
        assert f'pod=~"{name}-predictor-.*"' in gpu


@pytest.mark.parametrize("overlay", ["queue", "queue-cpu", "serverless-kafka"])
def test_the_doctor_finds_no_error(overlays: dict[str, Resources], overlay: str) -> None:
    assert examine(overlays[overlay]).of(Severity.ERROR) == ()


def test_a_canary_of_one_model_does_not_change_the_other(overlays: dict[str, Resources]) -> None:
    before = of(overlays["queue"], "InferenceService")["thinker"]

    after = with_canary(overlays["queue"], "drafter", 10, Change(image="x/predictor:2"))

    assert of(after, "InferenceService")["thinker"] == before
    assert examine(after).of(Severity.ERROR) == ()


def test_a_second_model_rolls_no_pod_of_the_first() -> None:
    """Api and broker need to know of it."""
    alone, both = (with_config_hash(built("queue", values)) for values in (Values(), VALUES))

    assert of(both, "InferenceService")["thinker"] == of(alone, "InferenceService")["thinker"]
    for name in ("torpor-api", "torpor-broker"):
        assert of(both, "Deployment")[name] != of(alone, "Deployment")[name]


def test_the_budget_counts_every_models_replicas() -> None:
    rule = yaml.safe_load(files(VALUES)["components/monitoring/alerts.yaml"])
    (burn,) = [
        alert
        for group in rule["spec"]["groups"]
        for alert in group["rules"]
        if alert["alert"] == "TorporCostBurn"
    ]

    assert burn["expr"].endswith(f"> {1.95 * 6 * 0.8:g}")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        pytest.param([{"name": "thinker", "uri": "hf://a/b"}], "must differ", id="the first again"),
        pytest.param(
            [{"name": "thinker-canary", "uri": "hf://a/b"}], "NAME-canary", id="a canary's name"
        ),
        pytest.param([{"name": "drafter"}], "needs a uri of weights", id="without weights"),
        pytest.param([{"uri": "hf://a/b"}], "more_models.0.name", id="without a name"),
        pytest.param(
            [{"name": "b", "uri": "hf://a/b", "gpu": {}}], "more_models.0.gpu", id="its own GPU"
        ),
    ],
)
def test_models_with_colliding_names_are_refused(
    tmp_path: Path, more: list[dict[str, Any]], words: str
) -> None:
    (tmp_path / "values.yaml").write_text(json.dumps({"more_models": more}))

    with pytest.raises(ValuesError, match=words):
        load_values(tmp_path / "values.yaml")


def test_the_api_knows_the_context_that_each_engine_runs_with(
    overlays: dict[str, Resources],
) -> None:
    """Otherwise a prompt between the two wakes a predictor to be refused."""
    for overlay, resources in overlays.items():
        (settings,) = [
            r for r in named(resources, "ConfigMap") if r["metadata"]["name"] == "torpor-settings"
        ]
        cards = {card["name"]: card for card in json.loads(settings["data"]["TORPOR_MODELS"])}
        for service in named(resources, "InferenceService"):
            args = service["spec"]["predictor"]["containers"][0]["args"]
            given = dict(each.split("=", 1) for each in args if "=" in each)
            name = given["--served-model-name"]
            assert cards[name]["context_tokens"] == int(given["--max-model-len"]), (overlay, name)
