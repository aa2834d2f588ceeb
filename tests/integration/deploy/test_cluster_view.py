"""What is shown of a deployment, its scale and its logs."""

from __future__ import annotations

import pytest

from knative.deploy.errors import (
    ObjectNotFound,
)
from knative.deploy.rollout import cluster_view
from knative.deploy.rollout.client import Cluster
from tests.integration.deploy.api_server import ApiServer
from tests.integration.deploy.objects import deployment


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
            "metadata": {"name": "torpor-api-6c9d5d64bf-x524b", "namespace": "torpor"},
            "status": {"conditions": [pending]},
        }
    )

    (row,) = await cluster_view.rows(cluster, "torpor")

    assert row.replicas == "0/1"
    assert not row.state.is_ready
    assert "no node has a free GPU" in row.stuck[0]


async def test_deployments_of_revisions_that_sleep_are_not_shown(
    cluster: Cluster, server: ApiServer
) -> None:
    ours = {"app.kubernetes.io/part-of": "torpor"}
    for number, replicas in ((1, 0), (2, 0), (3, 1)):
        revision = f"thinker-predictor-0000{number}"
        server.put(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {
                    "name": f"{revision}-deployment",
                    "namespace": "torpor",
                    "labels": {**ours, "serving.knative.dev/revision": revision},
                },
                "spec": {"replicas": replicas},
            }
        )
    await cluster.apply(deployment())

    found = await cluster_view.rows(cluster, "torpor")

    names = {row.ref.name for row in found}
    assert names == {"thinker-predictor-00003-deployment", "torpor-api"}


async def test_a_model_shows_neither_the_warnings_of_its_canary_nor_those_of_its_scaler(
    cluster: Cluster, server: ApiServer
) -> None:
    ours = {"app.kubernetes.io/part-of": "torpor"}
    server.put(
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": "thinker", "namespace": "torpor", "labels": ours},
            "spec": {"predictor": {}},
            "status": {"conditions": [{"type": "Ready", "status": "False", "message": "starts"}]},
        }
    )
    for number, (kind, name) in enumerate(
        [
            ("InferenceService", "thinker-canary"),
            ("ScaledObject", "thinker"),
            ("InferenceService", "thinker"),
        ]
    ):
        server.put(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": f"e{number}", "namespace": "torpor"},
                "type": "Warning",
                "reason": "Failed",
                "message": f"of the {kind} {name}",
                "involvedObject": {"kind": kind, "name": name},
            }
        )

    (row,) = await cluster_view.rows(cluster, "torpor")

    assert row.stuck == ("thinker: Failed: of the InferenceService thinker",)


async def test_a_snapshot_passes_over_what_is_not_installed_or_not_allowed(
    cluster: Cluster, server: ApiServer
) -> None:
    del server.kinds["keda.sh/v1alpha1"]
    server.fails.append(("GET", "/namespaces/torpor/services", 403, "no"))
    await cluster.apply(deployment())

    found = await cluster_view.snapshot(cluster, "torpor")

    assert [r["metadata"]["name"] for r in found] == ["torpor-api"]


async def test_a_snapshot_has_the_reasons_why_pods_are_not_created(
    cluster: Cluster, server: ApiServer
) -> None:
    owned = {"ownerReferences": [{"kind": "Deployment", "name": "thinker-predictor"}]}
    made = ({"apiVersion": "apps/v1", "kind": "ReplicaSet"}, {"apiVersion": "v1", "kind": "Pod"})
    for each in made:
        server.put({**each, "metadata": {"name": "p", "namespace": "torpor", **owned}})
    server.put(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": "e", "namespace": "torpor"},
            "reason": "FailedCreate",
        }
    )
    server.put(
        {
            "apiVersion": "serving.kserve.io/v1alpha1",
            "kind": "ClusterStorageContainer",
            "metadata": {"name": "default"},
        }
    )

    found = await cluster_view.snapshot(cluster, "torpor")

    kinds = {resource["kind"] for resource in found}
    assert kinds == {"ReplicaSet", "Pod", "Event", "ClusterStorageContainer"}


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
    with pytest.raises(ObjectNotFound):
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
