"""The client against an API server that refuses, breaks off and forgets."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from knative.deploy.errors import (
    ClusterForbidden,
    ClusterUnreachable,
    Conflict,
    FieldConflict,
    Invalid,
    MissingKind,
)
from knative.deploy.rollout.client import Cluster, Ref, connected
from tests.integration.deploy.api_server import ApiServer
from tests.integration.deploy.objects import SETTINGS, config


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

    assert caught.value.causes == (FieldConflict("argocd", ".data.a"),)
    taken = await cluster.apply(config(a="2"), takes_over=True)
    assert taken["data"] == {"a": "2"}


async def test_forbidden_says_which_right_is_missing(cluster: Cluster, server: ApiServer) -> None:
    server.fails.append(("PATCH", "configmaps", 403, 'cannot patch resource "configmaps"'))

    with pytest.raises(ClusterForbidden, match='cannot patch resource "configmaps"'):
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

    with pytest.raises(ClusterUnreachable):
        await cluster.get(SETTINGS)


async def test_without_any_cluster_it_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    with pytest.raises(ClusterUnreachable, match="KUBECONFIG"):
        async with connected():
            raise AssertionError("there is no cluster")


async def test_a_followed_object_is_shown_at_every_change_and_when_it_goes(
    cluster: Cluster, server: ApiServer
) -> None:
    seen = []
    async with asyncio.timeout(60), aclosing(cluster.follow(SETTINGS)) as states:
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
    async with asyncio.timeout(60), aclosing(cluster.follow(SETTINGS)) as states:
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
    async with asyncio.timeout(60), aclosing(cluster.follow(SETTINGS)) as states:
        async for state in states:
            seen.append(state)
            if len(seen) == 1:
                server.version = 100
                server.put(config(a="1"))
            if state is not None:
                break

    assert seen[-1]["data"] == {"a": "1"}
