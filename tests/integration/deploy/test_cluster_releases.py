"""Releases are kept, brought back and pruned; data is not."""

from __future__ import annotations

import pytest

from knative.deploy.errors import (
    NotReady,
)
from knative.deploy.rollout import release, rollout
from knative.deploy.rollout.client import Cluster
from tests.integration.deploy.api_server import ApiServer
from tests.integration.deploy.objects import TERMS, Notes, config, deployment


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
async def test_delete_keeps_disks_without_data(
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


async def test_a_deploy_that_only_changes_a_config_map_restarts_the_pods_that_read_it(
    cluster: Cluster, server: ApiServer
) -> None:
    api = deployment()
    pod = api["spec"]["template"]["spec"]
    pod["volumes"] = [{"name": "triggers", "configMap": {"name": "torpor-triggers"}}]

    async def applied_template(triggers: str) -> object:
        text = {"triggers.yaml": triggers}
        await rollout.deploy(cluster, [config("torpor-triggers", **text), api], TERMS, Notes())
        return server.find("Deployment", "torpor-api")["spec"]["template"]

    before = await applied_template("metadata: {name: requests-thinker}")
    same = await applied_template("metadata: {name: requests-thinker}")
    after = await applied_template("metadata: {name: requests-thinker-canary}")

    assert before == same
    assert before != after
