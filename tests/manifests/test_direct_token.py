"""Who calls a predictor directly is asked for the operator's token, in both topologies, and Prometheus has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from knative.deploy.render.render import write
from knative.deploy.values import Values
from tests.integration.predictor_process import predictors
from tests.manifests.conftest import EXTRA_OVERLAYS, Resources, kustomize

VALUES = Values.model_validate({"platform": {"direct_token_secret": "torpor-direct"}})
TOKEN = "s3cret"


@pytest.fixture(scope="module", params=["queue", "serverless"])
def resources(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Resources:
    folder = tmp_path_factory.mktemp("token")
    write(folder, VALUES)
    return kustomize(folder / "overlays" / request.param)


def engine(resources: Resources) -> dict[str, Any]:
    (service,) = (r for r in resources if r["kind"] == "InferenceService")
    box: dict[str, Any] = service["spec"]["predictor"]["containers"][0]
    return box


def secret_of(resources: Resources) -> dict[str, str]:
    (entry,) = (e for e in engine(resources)["env"] if e["name"] == "TORPOR_DIRECT_TOKEN")
    found: dict[str, str] = entry["valueFrom"]["secretKeyRef"]
    return found


def scrapes(resources: Resources) -> list[dict[str, Any]]:
    (monitor,) = (r for r in resources if r["kind"] == "PodMonitor")
    found: list[dict[str, Any]] = monitor["spec"]["podMetricsEndpoints"]
    return found


def test_the_token_is_the_same_secret_for_the_engine_and_for_prometheus(
    resources: Resources,
) -> None:
    engines = [e for e in scrapes(resources) if e["portNumber"] == 8080]

    assert secret_of(resources) == {"name": "torpor-direct", "key": "token"}
    assert [e["authorization"]["credentials"] for e in engines] == [secret_of(resources)]


def test_without_a_secrets_name_nobody_refers_to_one(overlays: dict[str, Resources]) -> None:
    for name in (*EXTRA_OVERLAYS, "queue", "serverless"):
        assert "TORPOR_DIRECT_TOKEN" not in str(overlays[name])


@pytest.mark.parametrize("is_knative", [False, True], ids=["queue", "serverless"])
def test_prometheus_is_answered_with_what_it_is_given(tmp_path: Path, is_knative: bool) -> None:
    env = {"TORPOR_DIRECT_TOKEN": TOKEN} | ({"K_SERVICE": "thinker"} if is_knative else {})
    with predictors(tmp_path, 1, **env) as (one,):
        given = {"authorization": f"Bearer {TOKEN}"}

        assert httpx.get(f"{one.url}/metrics").status_code == 401
        assert httpx.get(f"{one.url}/metrics", headers=given).status_code == 200
