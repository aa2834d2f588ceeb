"""A predictor in Knative mode is ready when its Knative Service serves what was applied."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest

from knative.deploy.doctor.view import MODE
from knative.deploy.errors import NotReady
from knative.deploy.rollout import cluster_view, rollout, wait
from knative.deploy.rollout.client import Cluster
from knative.deploy.rollout.knative_service import HASH, with_hash, with_hashes
from knative.deploy.rollout.rollout import RolloutOptions
from knative.deploy.rollout.wait import wait_until_ready
from tests.integration.deploy.api_server import ApiServer
from tests.integration.deploy.objects import TERMS, Notes

SERVING = "serving.knative.dev/v1"
NAME = "thinker-predictor"


def predictor(image: str = "predictor:1", **more: Any) -> dict[str, Any]:
    """A predictor of ours in Knative mode."""
    labels = {"app.kubernetes.io/part-of": "torpor"}
    data = {
        "name": "thinker",
        "namespace": "torpor",
        "labels": labels,
        "annotations": {MODE: "Knative"},
    }
    spec = {"predictor": {"containers": [{"image": image}], **more}}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": data,
        "spec": spec,
    }  # fmt: skip


def service(of: dict[str, Any], created: str, ready: str, **status: Any) -> dict[str, Any]:
    """The Knative Service that KServe makes of it, as Knative shows it."""
    notes = dict(of["metadata"]["annotations"])
    is_ready = created == ready
    why = "" if is_ready else "RevisionFailed: pods are forbidden"
    made = {
        "apiVersion": SERVING,
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": "torpor", "generation": 1},
        "spec": {"template": {"metadata": {"annotations": notes}}},
        "status": {
            "observedGeneration": 1,
            "latestCreatedRevisionName": created,
            "latestReadyRevisionName": ready,
            "traffic": [{"revisionName": ready, "percent": 100}],
            "conditions": [{"type": "Ready", "status": str(is_ready), "message": why}],
        } | status,
    }  # fmt: skip
    return made


def revision(name: str, *, is_ready: bool) -> dict[str, Any]:
    """One of its revisions."""
    return {
        "apiVersion": SERVING,
        "kind": "Revision",
        "metadata": {
            "name": name,
            "namespace": "torpor",
            "labels": {"serving.knative.dev/service": NAME},
        },
        "status": {"conditions": [{"type": "Ready", "status": str(is_ready)}]},
    }


def pods_of(name: str, progressing: str) -> dict[str, Any]:
    """The Deployment that Knative makes of a revision, with the recorded conditions of one whose pod waits."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": f"{name}-deployment",
            "namespace": "torpor",
            "labels": {
                "serving.knative.dev/service": NAME,
                "serving.knative.dev/revision": name,
            },
        },
        "spec": {"replicas": 1},
        "status": {
            "replicas": 1,
            "unavailableReplicas": 1,
            "conditions": [
                {"type": "Available", "status": "False", "reason": "MinimumReplicasUnavailable"},
                {"type": "Progressing", "status": "True", "reason": progressing},
            ],
        },
    }


def applied(image: str) -> dict[str, Any]:
    """The predictor as a deploy applies it."""
    (made,) = with_hashes([predictor(image)])
    return made


async def test_a_deploy_waits_until_the_change_has_reached_knative_and_its_revision_is_ready(
    cluster: Cluster, server: ApiServer
) -> None:
    # KServe's own status says ready all the time: it is of the revision before.
    old, new = applied("predictor:1"), applied("predictor:2")
    server.put(
        copy.deepcopy(new) | {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    )
    server.put(service(old, "thinker-1", "thinker-1"))
    notes = Notes()

    async def come_up() -> None:
        await notes.until_shown("has not handed the change on")
        server.put(service(new, "thinker-2", "thinker-1"))
        await notes.until_shown("pods are forbidden")
        server.put(service(new, "thinker-2", "thinker-2"))

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(come_up())
        await wait_until_ready(cluster, [predictor("predictor:2")], TERMS, notes)

    assert notes.states == [
        "InferenceService/thinker: KServe has not handed the change on to Knative yet",
        "InferenceService/thinker: RevisionFailed: pods are forbidden",
        "InferenceService/thinker: ready",
    ]


async def test_a_revision_that_is_refused_is_not_ready(cluster: Cluster, server: ApiServer) -> None:
    server.put(service(applied("predictor:1"), "thinker-2", "thinker-1"))

    with pytest.raises(NotReady, match="pods are forbidden"):
        await wait_until_ready(
            cluster, [predictor()], RolloutOptions("torpor", timeout_s=0.2), Notes()
        )


async def test_status_does_not_take_kserves_word(cluster: Cluster, server: ApiServer) -> None:
    # Ready for KServe: generation 2, and of the Knative Service's generation 1 it has seen 1.
    new = applied("predictor:2")
    new["metadata"]["generation"] = 2
    ready = {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]}
    server.put(new | {"status": ready})
    server.put(service(new, "thinker-2", "thinker-2"))
    (row,) = await cluster_view.rows(cluster, "torpor")
    assert row.state.is_ready

    server.put(service(new, "thinker-2", "thinker-1"))

    (row,) = await cluster_view.rows(cluster, "torpor")
    assert (row.state.is_ready, "forbidden" in row.state.reason) == (False, True)


async def test_status_says_that_kserve_started_before_knative(
    cluster: Cluster, server: ApiServer
) -> None:
    server.put(applied("predictor:1"))
    about = {"kind": "InferenceService", "name": "thinker"}
    server.put(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": "thinker.1", "namespace": "torpor"},
            "type": "Warning",
            "reason": "ServerlessModeRejected",
            "message": "It is not possible to use Knative deployment mode",
            "involvedObject": about,
        }
    )

    (row,) = await cluster_view.rows(cluster, "torpor")

    assert not row.state.is_ready
    assert "rollout restart deployment kserve-controller-manager" in row.stuck[0]


async def test_superseded_revisions_that_never_came_up_are_deleted(
    cluster: Cluster, server: ApiServer
) -> None:
    server.put(service(applied("predictor:3"), "thinker-3", "thinker-3"))
    server.put(revision("thinker-1", is_ready=True))  # asleep, and good to go back to
    server.put(revision("thinker-2", is_ready=False))
    server.put(pods_of("thinker-2", "ReplicaSetUpdated"))
    server.put(revision("thinker-3", is_ready=True))
    notes = Notes()

    await wait_until_ready(cluster, [predictor("predictor:3")], TERMS, notes)

    assert server.names("Revision") == {"thinker-1", "thinker-3"}
    assert notes.steps == ["prune Revision/thinker-2"]


async def test_a_superseded_revision_that_served_once_is_kept_while_its_pod_waits_for_a_node(
    cluster: Cluster, server: ApiServer
) -> None:
    """Deleted, it left two jobs of a promoted split waiting in the activator, for as long as a request may take."""
    server.put(service(applied("predictor:3"), "thinker-3", "thinker-3"))
    server.put(revision("thinker-2", is_ready=False))
    server.put(pods_of("thinker-2", "NewReplicaSetAvailable"))
    server.put(revision("thinker-3", is_ready=True))
    notes = Notes()

    await wait_until_ready(cluster, [predictor("predictor:3")], TERMS, notes)

    assert server.names("Revision") == {"thinker-2", "thinker-3"}
    assert notes.steps == []


async def test_knative_serving_is_required_though_no_rendered_object_is_of_its_kind(
    cluster: Cluster, server: ApiServer
) -> None:
    del server.kinds[SERVING]

    (missing,) = await rollout.missing_kinds(cluster, [predictor()])

    assert "Knative Serving" in str(missing)


async def test_an_unchanged_reason_is_reported_once(
    cluster: Cluster, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait, "STUCK_AFTER_S", 0.05)
    server.put(service(applied("predictor:1"), "thinker-2", "thinker-1"))
    notes = Notes()

    with pytest.raises(NotReady):
        await wait_until_ready(
            cluster, [predictor()], RolloutOptions("torpor", timeout_s=0.5), notes
        )

    assert len(notes.states) == 1


async def test_a_rollback_passes_over_a_split_of_traffic(
    cluster: Cluster, server: ApiServer
) -> None:
    server.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "torpor"}})
    for made in (
        predictor("predictor:1"),
        predictor("predictor:2", canaryTrafficPercent=20),
        predictor("predictor:2"),
    ):
        await rollout.deploy(cluster, [made], TERMS, Notes())  # fmt: skip

    await rollout.roll_back(cluster, TERMS, Notes())

    live = server.find("InferenceService", "thinker")
    assert live["spec"]["predictor"]["containers"][0]["image"] == "predictor:1"
    with pytest.raises(NotReady, match="split the traffic"):
        await rollout.roll_back(cluster, TERMS, Notes(), to=2)


def test_the_hash_differs_for_different_predictors_and_is_stable() -> None:
    def told(made: dict[str, Any]) -> str:
        (stamped,) = with_hash([made])
        return str(stamped["metadata"]["annotations"][HASH])

    assert told(predictor()) == told(with_hash([predictor()])[0])
    assert told(predictor()) != told(predictor("predictor:2"))
    assert told(predictor()) != told(predictor(minReplicas=1))
