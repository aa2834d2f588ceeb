"""The client against an API server that refuses, breaks off and forgets."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from eventing.api_key import FileKeys, key_id_of
from knative.deploy import cluster_view, first_secrets, release, rollout
from knative.deploy.client import Cluster, Ref, connected
from knative.deploy.faults import (
    Conflict,
    Forbidden,
    Invalid,
    MissingKind,
    NotFound,
    NotReady,
    Unreachable,
)
from knative.deploy.readiness import Readiness
from knative.deploy.rollout import Step, Terms
from tests.integration.deploy.api_server import ApiServer

TERMS = Terms("torpor", timeout_s=2)
SETTINGS = Ref("v1", "ConfigMap", "settings", "torpor")


class Notes:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.states: list[str] = []
        self.stuck: list[str] = []

    def applied(self, step: Step) -> None:
        self.steps.append(f"{step.action} {step.ref}")

    def waiting(self, ref: Ref, state: Readiness, stuck: Sequence[str]) -> None:
        self.states.append(f"{ref}: {state.reason or 'ready'}")
        self.stuck += stuck


def config(name: str = "settings", **data: str) -> dict[str, Any]:
    """A ConfigMap of ours."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "torpor"},
        "data": data,
    }


def deployment(name: str = "torpor-api", image: str = "api:1") -> dict[str, Any]:
    """A Deployment of ours."""
    labels = {"app.kubernetes.io/part-of": "torpor"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "torpor", "labels": labels},
        "spec": {"replicas": 1, "template": {"spec": {"containers": [{"image": image}]}}},
    }


UP = {"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1, "readyReplicas": 1}


# the client


async def test_an_apply_is_server_side_with_our_field_manager(
    cluster: Cluster, server: ApiServer
) -> None:
    await cluster.apply(config(a="1"))

    method, path, query = server.requests[-1]
    assert (method, path) == ("PATCH", "/api/v1/namespaces/torpor/configmaps/settings")
    assert query == {"fieldManager": "torpor", "force": "false", "fieldValidation": "Strict"}
    assert server.find("ConfigMap", "settings")["data"] == {"a": "1"}


async def test_a_dry_run_changes_nothing(cluster: Cluster, server: ApiServer) -> None:
    made = await cluster.apply(config(a="1"), is_dry_run=True)

    assert made["data"] == {"a": "1"}
    assert "settings" not in server.names("ConfigMap")


async def test_a_conflict_names_the_other_manager(cluster: Cluster, server: ApiServer) -> None:
    server.put(config(a="1") | {"metadata": {**config()["metadata"], "x-owner": "argocd"}})

    with pytest.raises(Conflict) as caught:
        await cluster.apply(config(a="2"))

    assert caught.value.causes == ('conflict with "argocd"',)
    taken = await cluster.apply(config(a="2"), takes_over=True)
    assert taken["data"] == {"a": "2"}


async def test_forbidden_says_which_right_is_missing(cluster: Cluster, server: ApiServer) -> None:
    server.fails.append(("PATCH", "configmaps", 403, 'cannot patch resource "configmaps"'))

    with pytest.raises(Forbidden, match='cannot patch resource "configmaps"'):
        await cluster.apply(config())


async def test_a_webhooks_refusal_keeps_its_words(cluster: Cluster, server: ApiServer) -> None:
    server.fails.append(("PATCH", "configmaps", 422, "admission webhook denied: window 2h"))

    with pytest.raises(Invalid, match="window 2h"):
        await cluster.apply(config())


@pytest.mark.parametrize(
    ("api_version", "kind", "hint"),
    [
        pytest.param("keda.sh/v1alpha1", "ScaledObject", "Install KEDA 2.17", id="group gone"),
        pytest.param("apps/v1", "Deploymint", "Install whatever serves", id="kind unknown"),
    ],
)
async def test_a_missing_crd_says_how_to_install_it(
    cluster: Cluster, server: ApiServer, api_version: str, kind: str, hint: str
) -> None:
    del server.kinds["keda.sh/v1alpha1"]

    with pytest.raises(MissingKind, match=hint):
        await cluster.get(Ref(api_version, kind, "x", "torpor"))


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_server_is_asked_again(
    cluster: Cluster, server: ApiServer, status: int
) -> None:
    server.fails += [("GET", "configmaps", status, "busy")] * 2
    server.put(config(a="1"))

    found = await cluster.get(SETTINGS)

    assert found is not None
    assert found["data"] == {"a": "1"}


async def test_what_is_not_there_is_none(cluster: Cluster) -> None:
    assert await cluster.get(SETTINGS) is None
    assert await cluster.delete(SETTINGS) is False


async def test_a_long_list_is_read_page_by_page(cluster: Cluster, server: ApiServer) -> None:
    for number in range(1100):
        server.put(config(f"c{number}"))

    found, _ = await cluster.list("v1", "ConfigMap", "torpor")

    assert len({item["metadata"]["name"] for item in found}) == 1100
    assert found[0]["kind"] == "ConfigMap"


async def test_a_server_that_is_not_there_is_one_clear_error(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster._api.configuration, "_base_path", "http://127.0.0.1:9")

    with pytest.raises(Unreachable):
        await cluster.get(SETTINGS)


async def test_without_any_cluster_it_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    with pytest.raises(Unreachable, match="KUBECONFIG"):
        async with connected():
            raise AssertionError("there is no cluster")


async def test_a_followed_object_is_shown_at_every_change_and_when_it_goes(
    cluster: Cluster, server: ApiServer
) -> None:
    seen = []
    async with asyncio.timeout(5), aclosing(cluster.follow(SETTINGS)) as states:
        async for state in states:
            seen.append(state["data"] if state else None)
            if len(seen) == 1:
                server.put(config(a="1"))
            elif len(seen) == 2:
                server.put(config(a="2"))
            elif len(seen) == 3:
                server.remove("ConfigMap", "settings")
            else:
                break

    assert seen == [None, {"a": "1"}, {"a": "2"}, None]


async def test_a_watch_that_breaks_off_loses_no_change(cluster: Cluster, server: ApiServer) -> None:
    server.watch_breaks = 1
    seen = []
    async with asyncio.timeout(5), aclosing(cluster.follow(SETTINGS)) as states:
        async for state in states:
            seen.append(state["data"] if state else None)
            if seen[-1] is None:
                server.put(config(a="1"))
            elif seen[-1] == {"a": "1"} and seen.count({"a": "1"}) == 1:
                server.put(config(a="2"))
            elif seen[-1] == {"a": "2"}:
                break

    assert {"a": "2"} in seen


async def test_an_expired_watch_is_begun_again_from_a_list(
    cluster: Cluster, server: ApiServer
) -> None:
    server.version = -10  # the list hands out a version that the watch calls too old
    seen = []
    async with asyncio.timeout(5), aclosing(cluster.follow(SETTINGS)) as states:
        async for state in states:
            seen.append(state)
            if len(seen) == 1:
                server.version = 100
                server.put(config(a="1"))
            if state is not None:
                break

    assert seen[-1]["data"] == {"a": "1"}


# plan, deploy, wait


async def test_a_plan_tells_new_changed_and_same_without_applying(
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
    server.put(config("b") | {"metadata": {**config("b")["metadata"], "x-owner": "helm"}})

    with pytest.raises(Conflict, match=r"ConfigMap/b.*helm.*--take-over"):
        await rollout.deploy(cluster, [config("a"), config("b", x="1")], TERMS, Notes())

    assert "a" not in server.names("ConfigMap")


async def test_all_missing_kinds_are_told_at_once(cluster: Cluster, server: ApiServer) -> None:
    del server.kinds["keda.sh/v1alpha1"], server.kinds["serving.kserve.io/v1beta1"]
    wanted = [
        {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject"},
        {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService"},
        {"apiVersion": "v1", "kind": "ConfigMap"},
    ]

    found = await rollout.missing_kinds(cluster, wanted)

    assert [missing.kind for missing in found] == ["ScaledObject", "InferenceService"]


async def test_waiting_ends_when_a_slow_object_becomes_ready(
    cluster: Cluster, server: ApiServer
) -> None:
    await cluster.apply(deployment())
    notes = Notes()

    async def come_up() -> None:
        await asyncio.sleep(0.1)
        server.set_status("Deployment", "torpor-api", replicas=1, updatedReplicas=1)
        await asyncio.sleep(0.1)
        server.set_status("Deployment", "torpor-api", **UP)

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(come_up())
        await rollout.wait(cluster, [deployment()], TERMS, notes)

    assert notes.states[-1] == "Deployment/torpor-api: ready"
    assert "Deployment/torpor-api: 0 of 1 pods are available" in notes.states


async def test_waiting_survives_a_watch_that_breaks(cluster: Cluster, server: ApiServer) -> None:
    await cluster.apply(deployment())

    async def come_up() -> None:
        await asyncio.sleep(0.1)
        server.break_watches()
        server.set_status("Deployment", "torpor-api", **UP)

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(come_up())
        await rollout.wait(cluster, [deployment()], TERMS, Notes())


async def test_a_deletion_in_the_middle_ends_the_waiting_at_once(
    cluster: Cluster, server: ApiServer
) -> None:
    await cluster.apply(deployment())

    async def vanish() -> None:
        await asyncio.sleep(0.1)
        server.remove("Deployment", "torpor-api")

    with pytest.raises(NotReady, match="was deleted"):
        async with asyncio.timeout(1.5):
            await asyncio.gather(vanish(), rollout.wait(cluster, [deployment()], TERMS, Notes()))


async def test_what_never_comes_up_says_why(cluster: Cluster, server: ApiServer) -> None:
    await cluster.apply(deployment())
    waiting = {"reason": "ImagePullBackOff", "message": "not found"}
    server.put(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "torpor-api-1", "namespace": "torpor"},
            "status": {"containerStatuses": [{"name": "api", "state": {"waiting": waiting}}]},
        }
    )

    with pytest.raises(NotReady, match=r"image cannot be pulled \(not found\)"):
        await rollout.wait(cluster, [deployment()], Terms("torpor", timeout_s=0.4), Notes())


async def test_why_it_hangs_is_told_while_waiting(
    cluster: Cluster, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "STUCK_AFTER_S", 0.1)
    await cluster.apply(deployment())
    server.put(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": "e", "namespace": "torpor"},
            "type": "Warning",
            "involvedObject": {"name": "torpor-api-x"},
            "message": "pods is forbidden: exceeded quota: gpus",
        }
    )
    notes = Notes()

    with pytest.raises(NotReady):
        await rollout.wait(cluster, [deployment()], Terms("torpor", timeout_s=0.5), notes)

    assert any("quota is used up" in reason for reason in notes.stuck)


# releases


async def test_a_rollback_brings_back_what_was_and_prunes_what_came_later(
    cluster: Cluster, server: ApiServer
) -> None:
    await rollout.deploy(cluster, [deployment(image="api:1")], TERMS, Notes())
    await rollout.deploy(cluster, [deployment(image="api:2"), config("extra")], TERMS, Notes())

    made = await rollout.roll_back(cluster, TERMS, Notes())

    image = server.find("Deployment", "torpor-api")["spec"]["template"]["spec"]["containers"][0]
    assert image == {"image": "api:1"}
    assert "extra" not in server.names("ConfigMap")
    assert (made.number, made.note) == (3, "back to 1")


async def test_a_deploy_prunes_what_the_last_release_had_but_never_data(
    cluster: Cluster, server: ApiServer
) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "disk", "namespace": "torpor"},
    }
    await rollout.deploy(cluster, [config("old"), claim], TERMS, Notes())

    await rollout.deploy(cluster, [config("new")], TERMS, Notes())

    assert "old" not in server.names("ConfigMap")
    assert "disk" in server.names("PersistentVolumeClaim")


async def test_ten_releases_are_kept(cluster: Cluster, server: ApiServer) -> None:
    for number in range(12):
        await release.record(cluster, "torpor", [config(a=str(number))], "")

    known = await release.releases(cluster, "torpor")

    assert [each.number for each in known] == list(range(3, 13))
    assert known[-1].resources[0]["data"] == {"a": "11"}


async def test_a_rollback_without_an_earlier_release_says_so(cluster: Cluster) -> None:
    await rollout.deploy(cluster, [config()], TERMS, Notes())

    with pytest.raises(NotReady, match="no release to go back to"):
        await rollout.roll_back(cluster, TERMS, Notes())


@pytest.mark.parametrize(("with_data", "left"), [(False, {"disk"}), (True, set())])
async def test_delete_keeps_disks_unless_told(
    cluster: Cluster, server: ApiServer, with_data: bool, left: set[str]
) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "disk", "namespace": "torpor"},
    }
    await rollout.deploy(cluster, [claim, deployment()], TERMS, Notes())

    await rollout.remove(cluster, TERMS, Notes(), with_data=with_data)

    assert server.names("Deployment") == set()
    assert server.names("PersistentVolumeClaim") == left
    assert await release.releases(cluster, "torpor") == []


# what is shown


async def test_status_shows_readiness_and_reasons(cluster: Cluster, server: ApiServer) -> None:
    await cluster.apply(deployment())
    pending = {
        "type": "PodScheduled",
        "status": "False",
        "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
    }
    server.put(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "torpor-api-1", "namespace": "torpor"},
            "status": {"conditions": [pending]},
        }
    )

    (row,) = await cluster_view.rows(cluster, "torpor")

    assert row.replicas == "0/1"
    assert not row.state.is_ready
    assert "no node has a free GPU" in row.stuck[0]


async def test_a_snapshot_passes_over_what_is_not_installed_or_not_allowed(
    cluster: Cluster, server: ApiServer
) -> None:
    del server.kinds["keda.sh/v1alpha1"]
    server.fails.append(("GET", "/namespaces/torpor/services", 403, "no"))
    await cluster.apply(deployment())

    found = await cluster_view.snapshot(cluster, "torpor")

    assert [r["metadata"]["name"] for r in found] == ["torpor-api"]


async def test_scale_sets_both_objects(cluster: Cluster, server: ApiServer) -> None:
    server.put(
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": "thinker", "namespace": "torpor"},
            "spec": {"predictor": {"minReplicas": 0, "maxReplicas": 4}},
        }
    )
    server.put(
        {
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": {"name": "thinker", "namespace": "torpor"},
            "spec": {"minReplicaCount": 0, "maxReplicaCount": 4},
        }
    )

    await cluster_view.set_bounds(cluster, "torpor", "thinker", None, 9)

    assert server.find("InferenceService", "thinker")["spec"]["predictor"] == {
        "minReplicas": 0,
        "maxReplicas": 9,
    }
    assert server.find("ScaledObject", "thinker")["spec"]["maxReplicaCount"] == 9


async def test_scaling_an_unknown_model_says_so(cluster: Cluster) -> None:
    with pytest.raises(NotFound):
        await cluster_view.set_bounds(cluster, "torpor", "nobody", 1, 2)


async def test_logs_come_from_all_pods_of_a_component(cluster: Cluster, server: ApiServer) -> None:
    labels = {"app.kubernetes.io/name": "torpor", "app.kubernetes.io/component": "api"}
    for number in (1, 2):
        server.put(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": f"api-{number}", "namespace": "torpor", "labels": labels},
                "spec": {"containers": [{"name": "api"}]},
            }
        )
        server.logs[f"api-{number}"] = [f"line of {number}"]

    lines = [
        item
        async for item in cluster_view.log_lines(cluster, "torpor", "api", follows=False, tail=10)
    ]

    assert sorted(lines) == [("api-1", "line of 1"), ("api-2", "line of 2")]


# first secrets


async def test_first_secrets_are_made_once_and_never_overwritten(
    cluster: Cluster, server: ApiServer
) -> None:
    made = await first_secrets.ensure(cluster, "torpor", lambda size: "t" * size)
    again = await first_secrets.ensure(cluster, "torpor", lambda size: "u" * size)

    assert made == ["torpor-redis", "torpor-api-keys", "torpor-internal"]
    assert again == []
    token = server.find("Secret", "torpor-internal")["data"]["token"]
    assert base64.b64decode(token) == b"t" * 32


async def test_losing_the_race_for_a_secret_is_not_an_error(
    cluster: Cluster, server: ApiServer
) -> None:
    server.fails.append(("POST", "secrets", 409, "already exists"))

    made = await first_secrets.ensure(cluster, "torpor", lambda size: "t" * size)

    assert made == ["torpor-api-keys", "torpor-internal"]


async def test_the_first_keys_open_the_api_and_are_stored_hashed(
    cluster: Cluster, server: ApiServer, tmp_path: Path
) -> None:
    await first_secrets.ensure(cluster, "torpor", lambda size: "t" * size)

    held = server.find("Secret", "torpor-api-keys")["data"]
    data = {name: base64.b64decode(value).decode() for name, value in held.items()}
    path = tmp_path / "keys.json"
    path.write_text(data["keys.json"])
    keys = FileKeys(path)
    for text, scope in ((data["first-key"], "admin"), (data["metrics-key"], "metrics:read")):
        key = await keys.find(key_id_of(text))
        assert key is not None
        assert key.opens(text, 0)
        assert scope in key.scopes
        assert text not in data["keys.json"]
