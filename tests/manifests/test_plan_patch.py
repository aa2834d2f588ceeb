"""What `torpor plan` prints is merged by kustomize, and the doctor finds no fault in the result."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from knative.autoscaling.keda.scaledobject import read_scaled_object
from knative.autoscaling.kpa.annotations import read_knative
from knative.deploy.doctor import Severity, examine
from knative.deploy.values import Values
from tests.manifests.conftest import MANIFESTS, Resources, kustomize
from torpor.simulator.candidate import Candidate, Place
from torpor.simulator.engine import GPU_ASSUMED
from torpor.simulator.plan import WaitTarget, grid
from torpor.simulator.world import Scenario

VALUES = Values()
PLACE = Place(VALUES.model.name, VALUES.namespace)
# The policy's first words and the components that its patch is for.
POLICIES = {
    "kpa": ("serverless", "broker-rabbitmq", "gpu-nvidia"),
    "keda": ("queue", "keda", "gpu-nvidia"),
    "work": ("queue", "keda", "gpu-nvidia", "work-scaler"),
}


def first(policy: str) -> Candidate:
    """The first setting of a policy that `plan` would try with the rendered values."""
    scenario = Scenario(
        GPU_ASSUMED,
        horizon_s=600,
        start_s=VALUES.cold_start_seconds,
        container_concurrency=VALUES.model.concurrency,
    )
    target = WaitTarget(VALUES.p95_wait_seconds)
    return next(c for c in grid(scenario, target, is_safe=True) if c.name.startswith(policy))


@pytest.fixture(params=POLICIES, scope="module")
def patched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Resources]:
    """An overlay of the policy's components with the plan's patch, as `kubectl` would apply it."""
    copy = tmp_path_factory.mktemp("planned") / "manifests"
    shutil.copytree(MANIFESTS, copy)
    return request.param, overlay(copy, POLICIES[request.param], first(request.param))


def overlay(manifests: Path, components: tuple[str, ...], chosen: Candidate) -> Resources:
    folder = manifests / "overlays" / "planned"
    folder.mkdir()
    (folder / "plan.yaml").write_text(chosen.patch_text(PLACE))
    content = {
        "resources": ["../../base"],
        "components": [f"../../components/{component}" for component in components],
        "patches": [{"path": "plan.yaml"}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return kustomize(folder)


def test_the_doctor_finds_no_fault_in_a_planned_overlay(patched: tuple[str, Resources]) -> None:
    errors = [f for f in examine(patched[1]).findings if f.severity is Severity.ERROR]
    assert errors == []


def test_the_printed_patch_gives_the_simulated_settings(patched: tuple[str, Resources]) -> None:
    policy, resources = patched
    if policy == "kpa":
        (service,) = [r for r in resources if r["kind"] == "InferenceService"]
        scaling = read_knative(service)
        assert (scaling.spec.stable_window_s, scaling.policy.min_scale) == (6, 0)
        return
    (scaled,) = [r for r in resources if r["kind"] == "ScaledObject"]
    spec = read_scaled_object(scaled)
    keys = {"keda": ["lag", "pend"], "work": ["work"]}[policy]
    assert [trigger.key for trigger in spec.triggers] == keys
    assert (spec.polling_interval_s, spec.modifiers is None) == (2, policy == "work")
