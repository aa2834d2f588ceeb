"""A provider's model on a cluster: no GPU, no weights, keys as files, let out to its provider alone, from zero."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.settings import ApiSettings
from knative.autoscaling.keda.scaledobject import read_scaled_object
from knative.deploy.doctor import Severity, examine
from knative.deploy.package.compose import files as compose_files
from knative.deploy.render import parts
from knative.deploy.render.render import write
from knative.deploy.values import Values, ValuesError, load_values
from predictor.settings import EngineKind, PredictorSettings
from tests.manifests.conftest import Resources, kustomize
from tests.manifests.crd import Crds
from tests.manifests.objects import named, planted
from tests.manifests.test_pods import RULES
from tests.manifests.test_policies import permitted, wrong_ways
from tests.manifests.test_schemas import faults

UPSTREAM: dict[str, Any] = {
    "url": "https://api.provider.example/v1",
    "model": "large-4",
    "secret": "big-provider",
    "tenants": ["acme"],
    "fallbacks": [
        {"model": "thinker", "secret": "big-fallback"},
        {
            "url": "https://other.example:8443/v1",
            "model": "theirs",
            "secret": "other-provider",
            "cache_salt": True,
        },
    ],
    "hedges": True,
    "input_price_per_1m": 3,
    "output_price_per_1m": 15,
}
INSIDE = {
    "url": "http://vllm.models.svc.cluster.local:8000/v1",
    "model": "qwen",
    "tenants": ["*"],
    "networks": ["10.20.0.0/16"],
    "cache_salt": True,
}
GIVEN: dict[str, Any] = {
    "more_models": [
        {"name": "big", "upstream": UPSTREAM, "concurrency": 64, "max_tokens": 131072},
        {"name": "inside", "upstream": INSIDE},
    ]
}
NAMES = ("queue", "queue-cpu", "serverless", "serverless-kafka", "queue+more")


@pytest.fixture(scope="module")
def overlays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Resources]:
    """Overlays of one model with weights and two of providers."""
    folder = tmp_path_factory.mktemp("providers")
    write(folder, Values.model_validate(GIVEN))
    more = folder / "overlays" / "queue+more"
    more.mkdir()
    added = (
        "queue",
        "keda",
        "gpu-nvidia",
        "karpenter",
        "model-cache",
        "compile-cache",
        "openshift",
    )
    content = {
        "resources": ["../../base"],
        "components": [f"../../components/{component}" for component in added],
    }
    (more / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return {name: kustomize(folder / "overlays" / name) for name in NAMES}


def of(resources: Resources, kind: str, name: str) -> dict[str, Any]:
    """The one resource of this kind and name."""
    (found,) = [r for r in named(resources, kind) if r["metadata"]["name"] == name]
    return found


def engine(resources: Resources, model: str) -> dict[str, Any]:
    box: dict[str, Any] = of(resources, "InferenceService", model)["spec"]["predictor"][
        "containers"
    ][0]
    return box


def settings(box: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> PredictorSettings:
    """What the process reads of its container."""
    for entry in box["env"]:
        if "value" in entry:
            monkeypatch.setenv(entry["name"], entry["value"])
    return PredictorSettings(engine=EngineKind(box["args"][0].partition("=")[2]))


@pytest.mark.parametrize("overlay", NAMES)
def test_a_providers_pod_has_no_gpu_and_no_weights(
    overlays: dict[str, Resources], overlay: str
) -> None:
    pod = of(overlays[overlay], "InferenceService", "big")["spec"]["predictor"]
    box = pod["containers"][0]

    assert "STORAGE_URI" not in [each["name"] for each in box["env"]]
    assert "nvidia.com/gpu" not in box["resources"]["limits"]
    assert not {"nodeSelector", "tolerations"} & pod.keys()
    assert pod["minReplicas"] == 0
    assert [v["name"] for v in pod["volumes"] if v["name"] in ("cache", "shm")] == []


def test_the_process_reads_its_provider_its_stand_ins_and_its_keys(
    overlays: dict[str, Resources], monkeypatch: pytest.MonkeyPatch
) -> None:
    box = engine(overlays["queue"], "big")
    read = settings(box, monkeypatch)
    mounted = {mount["mountPath"]: mount["name"] for mount in box["volumeMounts"]}
    volumes = of(overlays["queue"], "InferenceService", "big")["spec"]["predictor"]["volumes"]
    secrets = {v["name"]: v["secret"]["secretName"] for v in volumes if "secret" in v}

    assert (read.upstream_url, read.upstream_model) == (UPSTREAM["url"], "large-4")
    assert read.upstream_tenants == ("acme",)
    assert (read.upstream_max_concurrency, read.upstream_context_tokens) == (64, 131072)
    assert read.upstream_hedges
    assert [read.upstream_cache_salt, *(each.cache_salt for each in read.upstream_fallbacks)] == [
        False,
        False,
        True,
    ]
    assert settings(engine(overlays["queue"], "inside"), monkeypatch).upstream_cache_salt
    own, other = read.upstream_fallbacks
    assert (own.url, own.model) == (
        "http://torpor-api.torpor.svc.cluster.local:8000/v1",
        "thinker",
    )
    assert read.upstream_allow == ("torpor-api.torpor.svc.cluster.local",)
    assert (other.url, other.model) == ("https://other.example:8443/v1", "theirs")
    files = [read.upstream_key_file, own.key_file, other.key_file]
    found = [secrets[mounted[str(file.parent)]] for file in files if file]
    assert found == ["big-provider", "big-fallback", "other-provider"]


def test_no_key_is_in_the_manifests(overlays: dict[str, Resources]) -> None:
    for resources in overlays.values():
        assert list(named(resources, "Secret")) == []
        assert not [
            e
            for e in engine(resources, "big")["env"]
            if "KEY" in e["name"] and "FILE" not in e["name"]
        ]


def test_a_provider_inside_is_reached_by_the_host_and_the_networks_that_are_given(
    overlays: dict[str, Resources], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = settings(engine(overlays["queue"], "inside"), monkeypatch)
    policy = of(overlays["queue"], "NetworkPolicy", "provider-inside")

    assert read.upstream_allow == ("vllm.models.svc.cluster.local", "10.20.0.0/16")
    assert policy["spec"]["egress"] == [
        {
            "to": [{"ipBlock": {"cidr": "10.20.0.0/16"}}],
            "ports": [{"protocol": "TCP", "port": 8000}],
        }
    ]


@pytest.mark.parametrize("overlay", ["queue", "serverless-kafka"])
def test_each_pod_is_let_out_to_its_own_provider_and_no_other(
    overlays: dict[str, Resources], overlay: str
) -> None:
    _, leaves = permitted(overlays[overlay])
    out = {(pod, other, port) for pod, other, port in leaves if other in ("internet", "torpor-api")}

    assert {way for way in out if way[0] == "big"} == {
        ("big", "internet", 443),
        ("big", "internet", 8443),
        ("big", "torpor-api", 8000),
    }
    assert {way for way in out if way[0] == "inside"} == set()
    assert {way for way in out if way[0] == "thinker"} == {("thinker", "internet", 443)}


def test_private_addresses_are_no_way_to_a_public_provider(overlays: dict[str, Resources]) -> None:
    policy = of(overlays["queue"], "NetworkPolicy", "provider-big")

    (block,) = [peer["ipBlock"] for peer in policy["spec"]["egress"][0]["to"]]
    assert {"169.254.0.0/16", "10.0.0.0/8", "127.0.0.0/8"} <= set(block["except"])


@pytest.mark.parametrize("overlay", NAMES[:4])
def test_all_that_must_be_reached_can_be(overlays: dict[str, Resources], overlay: str) -> None:
    assert wrong_ways(overlays[overlay]) == set()


def test_a_provider_that_no_policy_lets_out_is_named(overlays: dict[str, Resources]) -> None:
    spec = "spec>podSelector>matchLabels>torpor.dev/provider"
    broken = planted(overlays["queue"], "NetworkPolicy/provider-big", spec, "large")

    assert "big is not let out to internet at 443" in wrong_ways(broken)
    assert "provider-way-out" in {f.rule.name for f in examine(broken).of(Severity.ERROR)}


@pytest.mark.parametrize("overlay", NAMES[:4])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_pods_suit_their_processes(overlays: dict[str, Resources], overlay: str, rule: Any) -> None:
    assert sorted(rule(overlays[overlay])) == []


def test_keda_and_knative_wake_it_as_any_model(overlays: dict[str, Resources]) -> None:
    scaled = of(overlays["queue"], "ScaledObject", "big")
    held = of(overlays["serverless"], "InferenceService", "big")

    assert read_scaled_object(scaled) is not None
    assert scaled["spec"]["minReplicaCount"] == 0
    streams = {t["metadata"].get("stream") for t in scaled["spec"]["triggers"]} - {None}
    assert streams == {parts.stream_key("big")}
    assert held["spec"]["predictor"]["containerConcurrency"] == 64
    assert held["metadata"]["annotations"]["autoscaling.knative.dev/initial-scale"] == "0"
    assert "requests-big" in [
        t["metadata"]["name"] for t in named(overlays["serverless"], "Trigger")
    ]


@pytest.mark.parametrize("overlay", ["queue", "queue-cpu"])
def test_the_api_knows_its_price_and_its_context(
    overlays: dict[str, Resources], overlay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = of(overlays[overlay], "ConfigMap", parts.SETTINGS)["data"]
    monkeypatch.setenv("TORPOR_MODELS", data["TORPOR_MODELS"])

    cards = {card.name: card for card in ApiSettings().models}

    assert cards["big"].context_tokens == 131072
    assert (cards["big"].input_price_per_1m, cards["big"].output_price_per_1m) == (3, 15)


def test_gpu_nodes_and_caches_of_weights_are_of_the_other_models(
    overlays: dict[str, Resources],
) -> None:
    more = overlays["queue+more"]

    assert [c["metadata"]["name"] for c in named(more, "LocalModelCache")] == ["thinker"]
    assert next(named(more, "NodePool"))["spec"]["limits"] == {"nvidia.com/gpu": "4"}


@pytest.mark.parametrize("overlay", NAMES)
def test_the_doctor_finds_no_error(overlays: dict[str, Resources], overlay: str) -> None:
    report = examine(overlays[overlay])

    assert [f for f in report.findings if f.severity is Severity.ERROR] == []


def test_the_doctor_asks_for_a_price(overlays: dict[str, Resources]) -> None:
    found = [f for f in examine(overlays["queue"]).findings if f.rule.name == "provider-price"]

    assert [f.fault.field for f in found] == ["data.TORPOR_MODELS: inside"]


@pytest.mark.parametrize("overlay", NAMES)
def test_strict_schemas_take_every_resource(
    overlays: dict[str, Resources], crds: Crds, overlay: str
) -> None:
    found = {r["metadata"]["name"]: faults(r, crds) for r in overlays[overlay]}

    assert {name: each for name, each in found.items() if each} == {}


def test_compose_mounts_the_keys_and_no_weights() -> None:
    text = compose_files(Values.model_validate(GIVEN))["compose/compose.yaml"]
    big = yaml.safe_load(text)["services"]["big"]

    assert "./secrets/big-provider:/etc/torpor/provider/big-provider:ro" in big["volumes"]
    assert not [volume for volume in big["volumes"] if "models" in volume]
    assert json.loads(big["environment"]["TORPOR_UPSTREAM_TENANTS"]) == ["acme"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tenants": []}, "upstream.tenants"),
        ({"url": "http://api.provider.example/v1"}, "must start with https"),
        ({"url": "https://169.254.169.254/v1"}, "not a public address"),
        ({"url": "https://vllm.models.svc.cluster.local/v1"}, "networks"),
        ({"fallbacks": [{"model": "thinkr"}]}, "falls back to thinkr, which is no model here"),
        ({"fallbacks": [{"model": "big"}]}, "big -> big"),
        ({"fallbacks": [{"model": "auto"}]}, "big -> auto -> big"),
        ({"secret": "../keys"}, "upstream.secret"),
        ({"hedges": "sometimes"}, "upstream.hedges"),
        ({"key": "sk-1"}, "upstream.key: is no value here"),
    ],
    ids=lambda each: each if isinstance(each, str) else "-".join(each),
)
def test_values_that_can_not_be_meant_are_refused(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    auto = {"step": "route", "settings": {"tiers": ["thinker", "big"]}}
    given = {
        "more_models": [{"name": "big", "upstream": UPSTREAM | changed}],
        "steps": {"max_replicas": 1},
        "pipelines": {"auto": {"steps": [auto]}},
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(given))

    with pytest.raises(ValuesError, match=said):
        load_values(tmp_path / "values.yaml")


@pytest.mark.parametrize(
    "more", [{}, {"uri": "hf://a/b", "upstream": UPSTREAM}], ids=["neither", "both"]
)
def test_a_model_has_weights_or_a_provider(tmp_path: Path, more: dict[str, Any]) -> None:
    given = {"more_models": [{"name": "big", **more}]}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(given))

    with pytest.raises(ValuesError, match="needs a uri of weights, or an upstream"):
        load_values(tmp_path / "values.yaml")


def test_the_first_model_may_be_a_providers_and_needs_no_gpu_then() -> None:
    values = Values.model_validate(
        {"model": {"name": "big", "upstream": UPSTREAM | {"fallbacks": []}}}
    )

    assert values.each_engine() == ()
    assert examine([]).findings is not None
