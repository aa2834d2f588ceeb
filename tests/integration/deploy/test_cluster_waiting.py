"""A deploy waits until what it applied is up, and says why when it is not."""

from __future__ import annotations

import asyncio

import pytest

from knative.deploy.errors import (
    NotReady,
)
from knative.deploy.rollout import wait
from knative.deploy.rollout.client import Cluster
from knative.deploy.rollout.rollout import RolloutOptions
from knative.deploy.rollout.wait import wait_until_ready
from tests.integration.deploy.api_server import ApiServer
from tests.integration.deploy.objects import TERMS, UP, Notes, deployment


async def test_waiting_ends_when_a_slow_object_becomes_ready(
    cluster: Cluster, server: ApiServer
) -> None:
    await cluster.apply(deployment())
    notes = Notes()

    async def come_up() -> None:
        await asyncio.sleep(0.1)
        server.set_status("Deployment", "torpor-api", replicas=1, updatedReplicas=1)
        await notes.until_shown("0 of 1 pods are available")
        server.set_status("Deployment", "torpor-api", **UP)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(come_up())
        await wait_until_ready(cluster, [deployment()], TERMS, notes)

    assert notes.states[-1] == "Deployment/torpor-api: ready"
    assert "Deployment/torpor-api: 0 of 1 pods are available" in notes.states


async def test_waiting_survives_a_watch_that_breaks(cluster: Cluster, server: ApiServer) -> None:
    await cluster.apply(deployment())

    async def come_up() -> None:
        await asyncio.sleep(0.1)
        server.break_watches()
        server.set_status("Deployment", "torpor-api", **UP)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(come_up())
        await wait_until_ready(cluster, [deployment()], TERMS, Notes())


async def test_a_deletion_in_the_middle_ends_the_waiting_at_once(
    cluster: Cluster, server: ApiServer
) -> None:
    await cluster.apply(deployment())

    async def vanish() -> None:
        await asyncio.sleep(0.1)
        server.remove("Deployment", "torpor-api")

    with pytest.raises(NotReady, match="was deleted"):
        async with asyncio.timeout(TERMS.timeout_s / 2):
            await asyncio.gather(
                vanish(), wait_until_ready(cluster, [deployment()], TERMS, Notes())
            )


async def test_an_object_that_never_becomes_ready_is_reported_with_its_reason(
    cluster: Cluster, server: ApiServer
) -> None:
    await cluster.apply(deployment())
    waiting = {"reason": "ImagePullBackOff", "message": "not found"}
    server.put(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "torpor-api-6c9d5d64bf-x524b", "namespace": "torpor"},
            "status": {"containerStatuses": [{"name": "api", "state": {"waiting": waiting}}]},
        }
    )

    with pytest.raises(NotReady, match=r"image cannot be pulled \(not found\)"):
        await wait_until_ready(
            cluster, [deployment()], RolloutOptions("torpor", timeout_s=0.4), Notes()
        )


async def test_the_reason_for_a_stuck_pod_is_reported_while_waiting(
    cluster: Cluster, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait, "STUCK_AFTER_S", 0.1)
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
        await wait_until_ready(
            cluster, [deployment()], RolloutOptions("torpor", timeout_s=0.5), notes
        )

    assert any("quota is used up" in reason for reason in notes.stuck)
