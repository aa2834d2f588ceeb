"""Pods restart when a ConfigMap that they read at start changes, and only then."""

from __future__ import annotations

from typing import Any

import pytest

from knative.deploy.config_hash import config_names, pod_template, with_config_hash
from knative.deploy.render import parts
from knative.deploy.render.tree import OVERLAYS, built
from knative.deploy.rollout.canary import Change, promoted, with_canary, without_canary
from knative.deploy.values import load_values
from tests.manifests.conftest import MANIFESTS, Resources
from tests.manifests.objects import named


def hashes(resources: Resources) -> dict[str, str]:
    """The hash in each workload's pod template."""
    found = {}
    for resource in resources:
        if (place := pod_template(resource)) is not None:
            name = f"{resource['kind']}/{resource['metadata']['name']}"
            found[name] = place[0]["annotations"][parts.CONFIG_HASH]
    return found


def by_name(resources: Resources) -> dict[tuple[str, str], dict[str, Any]]:
    return {(r["kind"], r["metadata"]["name"]): r for r in resources}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_builds_what_the_hashes_were_made_of(
    overlays: dict[str, Resources], overlay: str
) -> None:
    values = load_values(MANIFESTS / "values.yaml")

    assert by_name(with_config_hash(built(overlay, values))) == by_name(overlays[overlay])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_change_of_a_config_map_rolls_every_pod_that_reads_it(
    overlays: dict[str, Resources], overlay: str
) -> None:
    before = hashes(overlays[overlay])
    for config in named(overlays[overlay], "ConfigMap"):
        name, key = config["metadata"]["name"], sorted(config["data"])[0]
        changed = with_config_hash(with_data(overlays[overlay], name, key, "# and more"))

        rolled = {who for who, found in hashes(changed).items() if found != before[who]}

        assert rolled == readers(overlays[overlay], name, key), name


def with_data(resources: Resources, name: str, key: str, more: str) -> Resources:
    """The resources with something added to one key of a ConfigMap."""
    return [
        {**r, "data": {**r["data"], key: f"{r['data'][key]}\n{more}"}}
        if (r["kind"], r["metadata"]["name"]) == ("ConfigMap", name)
        else r
        for r in resources
    ]


def readers(resources: Resources, name: str, key: str) -> set[str]:
    """Every workload whose pods name the ConfigMap; a comment in the triggers is nothing to a pump,
    which reads its own trigger of them.
    """
    found = set()
    for resource in resources:
        place = pod_template(resource)
        is_predictor = resource["kind"] == "InferenceService"
        if place is None or name not in config_names(place[1]):
            continue
        if not (is_predictor and key == "triggers.yaml"):
            found.add(f"{resource['kind']}/{resource['metadata']['name']}")
    return found


def rolled(before: Resources, after: Resources) -> set[str]:
    old, new = hashes(with_config_hash(before)), hashes(with_config_hash(after))
    return {who for who in old.keys() & new.keys() if old[who] != new[who]}


def test_a_canary_its_promotion_and_its_withdrawal_restart_routing_pods_and_no_engine(
    overlays: dict[str, Resources],
) -> None:
    plain = overlays["queue"]
    split = with_canary(plain, "thinker", 50, Change(image="x/predictor:2"))
    routing = {"Deployment/torpor-api", "Deployment/torpor-broker"}

    assert rolled(plain, split) == routing
    assert rolled(split, without_canary(split, "thinker")) == routing
    assert rolled(split, promoted(split, "thinker")) == routing


def test_a_pump_rolls_when_its_own_trigger_is_delivered_otherwise(
    overlays: dict[str, Resources],
) -> None:
    slower = [
        {
            **r,
            "data": {"triggers.yaml": r["data"]["triggers.yaml"].replace("retry:", "retry: 1", 1)},
        }
        if r["metadata"]["name"] == "torpor-triggers"
        else r
        for r in overlays["queue"]
    ]

    assert "InferenceService/thinker" in rolled(overlays["queue"], slower)
