"""What a deploy says it would do, and what stops it before anything is applied."""

from __future__ import annotations

import pytest

from knative.deploy.errors import (
    Conflict,
)
from knative.deploy.rollout import rollout
from knative.deploy.rollout.client import Cluster
from tests.integration.deploy.api_server import ApiServer
from tests.integration.deploy.objects import TERMS, Notes, config


async def test_a_plan_shows_new_changed_and_same_without_applying(
    cluster: Cluster, server: ApiServer
) -> None:
    await cluster.apply(config("same", a="1"))
    await cluster.apply(config("changed", a="1"))

    made = await rollout.plan(
        cluster, [config("same", a="1"), config("changed", a="2"), config("new", a="1")], TERMS
    )

    assert {step.ref.name: step.action for step in made.steps} == {
        "same": "same",
        "changed": "change",
        "new": "create",
    }
    assert "-  a: '1'\n+  a: '2'" in next(s.difference for s in made.steps if s.action == "change")
    assert "new" not in server.names("ConfigMap")


async def test_a_first_deploy_plans_objects_of_a_namespace_that_is_not_there_yet(
    cluster: Cluster, server: ApiServer
) -> None:
    server.remove("Namespace", "torpor")
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "torpor"}}

    await rollout.deploy(cluster, [config(a="1"), namespace], TERMS, Notes())

    assert "settings" in server.names("ConfigMap")


async def test_a_deployer_without_rights_on_roles_leaves_them_to_the_installer(
    cluster: Cluster, server: ApiServer
) -> None:
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "torpor-deployer", "namespace": "torpor"},
        "rules": [],
    }
    server.put(role)
    server.fails.append(("PATCH", "roles", 403, "cannot patch roles"))
    notes = Notes()

    await rollout.deploy(cluster, [role, config(a="1")], TERMS, notes)

    assert notes.steps == ["leave Role/torpor-deployer", "create ConfigMap/settings"]


async def test_a_conflict_in_the_dry_run_stops_before_anything_is_applied(
    cluster: Cluster, server: ApiServer
) -> None:
    server.put(config("b", x="2") | {"metadata": {**config("b")["metadata"], "x-owner": "helm"}})

    with pytest.raises(Conflict, match=r"ConfigMap/b.*\.data\.x \(of helm\).*--take-over"):
        await rollout.deploy(cluster, [config("a"), config("b", x="1")], TERMS, Notes())

    assert "a" not in server.names("ConfigMap")


async def test_all_missing_kinds_are_reported_at_once(cluster: Cluster, server: ApiServer) -> None:
    del server.kinds["keda.sh/v1alpha1"], server.kinds["serving.kserve.io/v1beta1"]
    wanted = [
        {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject"},
        {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService"},
        {"apiVersion": "v1", "kind": "ConfigMap"},
    ]

    found = await rollout.missing_kinds(cluster, wanted)

    assert [missing.kind for missing in found] == ["ScaledObject", "InferenceService"]
