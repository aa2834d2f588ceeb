"""`torpor doctor --live` finds what real clusters had (the objects are as their API servers showed them)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.deploy.api_server import ApiServer, Object
from tests.integration.deploy.conftest import Run
from tests.integration.deploy.test_commands import ready_at_once
from tests.manifests.doctor_objects import (
    STRANDED,
    late_config,
    pod,
    replica_set,
    storage_container,
)


def unschedulable() -> list[Object]:
    full = "0/1 nodes are available: 1 Insufficient cpu."
    conditions = [{"type": "PodScheduled", "status": "False", "message": full}]
    return [pod(phase="Pending", conditions=conditions)]


def without_image() -> list[Object]:
    """A pod whose pump ran beside an engine that could not be pulled."""
    waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
    statuses = [
        {"name": "kserve-container", "ready": False, "state": {"waiting": waiting}},
        {"name": "pump", "ready": True, "state": {"running": {}}},
    ]
    return [pod(phase="Pending", containerStatuses=statuses)]


def stranded() -> list[Object]:
    """The triggers of a canary whose predictor has gone."""
    data = {"name": "torpor-triggers", "namespace": "torpor"}
    triggers = {"triggers.yaml": f"apiVersion: eventing.knative.dev/v1\nkind: Trigger\n{STRANDED}"}
    return [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": data, "data": triggers}]


def published() -> list[Object]:
    """The Knative Service that KServe makes of a predictor, on the external gateway."""
    labels = {"serving.kserve.io/inferenceservice": "thinker"}
    data = {"name": "thinker-predictor", "namespace": "torpor", "labels": labels}
    return [{"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": data}]


def rejected() -> list[Object]:
    """A predictor in Knative mode that a manager without Knative has refused."""
    predictor = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": "hasty",
            "namespace": "torpor",
            "uid": "7d3c",
            "annotations": {"serving.kserve.io/deploymentMode": "Knative"},
        },
        "spec": {"predictor": {"containers": [{"name": "kserve-container"}]}},
    }
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "hasty.1", "namespace": "torpor"},
        "reason": "ServerlessModeRejected",
        "message": "It is not possible to use Knative deployment mode when Knative Services are "
        "not available",
        "involvedObject": {"kind": "InferenceService", "name": "hasty"},
    }
    return [predictor, event]


@pytest.mark.parametrize(
    ("rule", "planted"),
    [
        pytest.param("restricted-pod", lambda: [storage_container()], id="C1, before it happens"),
        pytest.param("pods-refused", lambda: [replica_set()], id="C1, once it has"),
        pytest.param("config-followed", late_config, id="C2: older than its triggers"),
        pytest.param("queue-served", stranded, id="C2: a queue without a pump"),
        pytest.param("pods-stuck", without_image, id="C3: a pump without its engine"),
        pytest.param("pods-stuck", unschedulable, id="C6: no node has room"),
        pytest.param("predictor-visibility", published, id="S2: on the gateway"),
        pytest.param("knative-before-kserve", rejected, id="S7: KServe before Knative"),
    ],
)
async def test_a_fault_of_a_real_cluster_is_an_error_of_the_live_doctor(
    run: Run, server: ApiServer, overlay: Path, rule: str, planted: Callable[[], list[Object]]
) -> None:
    server.on_apply = lambda item: ready_at_once(server, item)
    await run("deploy", overlay, "--yes", "--no-wait")
    assert await errors(run) == set()

    for each in planted():
        server.put(each)

    assert rule in await errors(run)


async def errors(run: Run) -> set[str]:
    """The rules that the live doctor says are broken."""
    result = await run("doctor", "--live", "--json")
    findings: list[dict[str, Any]] = json.loads(result.output)
    return {each["rule"] for each in findings if each["severity"] == "error"}
