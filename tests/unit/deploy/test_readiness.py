"""Whether an object is ready, and the clearest reason why not."""

from __future__ import annotations

from typing import Any

import pytest

from knative.deploy.readiness import readiness, why_stuck


def live(kind: str, spec: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    """An object as the server shows it."""
    return {"kind": kind, "metadata": {"generation": 2}, "spec": spec or {}, "status": status}


def conditions(*items: tuple[str, str, str]) -> list[dict[str, str]]:
    """Status conditions of type, status and message."""
    return [{"type": t, "status": s, "message": m} for t, s, m in items]


UP = {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        pytest.param(None, "deleted", id="gone"),
        pytest.param(live("Deployment", observedGeneration=1), "has not looked", id="not seen yet"),
        pytest.param(live("Deployment", {"replicas": 2}), "0 of 2 pods are of the new", id="old"),
        pytest.param(
            live("Deployment", {"replicas": 2}, **UP | {"replicas": 3}), "still ending", id="ending"
        ),
        pytest.param(
            live("Deployment", {"replicas": 2}, **UP | {"availableReplicas": 1}),
            "1 of 2 pods are available",
            id="not available",
        ),
        pytest.param(live("Deployment", {"replicas": 2}, **UP), "", id="deployment up"),
        pytest.param(live("Deployment", {"replicas": 0}), "", id="asleep is ready"),
        pytest.param(live("StatefulSet", {"replicas": 1}), "0 of 1", id="store starting"),
        pytest.param(live("StatefulSet", {"replicas": 1}, readyReplicas=1), "", id="store up"),
        pytest.param(
            live("StatefulSet", {"replicas": 1}, readyReplicas=1, updateRevision="b"),
            "old version",
            id="store rolling",
        ),
        pytest.param(live("Job"), "running", id="job runs"),
        pytest.param(
            live("Job", conditions=conditions(("Complete", "True", ""))), "", id="job done"
        ),
        pytest.param(
            live("Job", conditions=conditions(("Failed", "True", "BackoffLimitExceeded"))),
            "BackoffLimitExceeded",
            id="job failed",
        ),
        pytest.param(live("InferenceService"), "KServe has not", id="no status yet"),
        pytest.param(
            live(
                "InferenceService",
                conditions=conditions(
                    ("Ready", "False", ""), ("PredictorReady", "False", "no node fits")
                ),
            ),
            "no node fits",
            id="the reason of a part",
        ),
        pytest.param(
            live("ScaledObject", conditions=conditions(("Ready", "True", ""))),
            "",
            id="keda took it",
        ),
    ],
)
def test_readiness(state: dict[str, Any] | None, reason: str) -> None:
    found = readiness(state)

    assert found.is_ready is (reason == "")
    assert reason in found.reason


def pod(**status: Any) -> dict[str, Any]:
    """A pod with that status."""
    return {"metadata": {"name": "p"}, "status": status}


def scheduling(message: str) -> dict[str, Any]:
    """A pod that no node takes."""
    return pod(conditions=[{"type": "PodScheduled", "status": "False", "message": message}])


def box(**state: Any) -> dict[str, Any]:
    """A pod whose container is in that state."""
    return pod(containerStatuses=[{"name": "c", **state}])


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (scheduling("0/3 nodes: 3 Insufficient nvidia.com/gpu."), "no node has a free GPU"),
        (scheduling("3 node(s) had untolerated taint {gpu: true}"), "tainted"),
        (scheduling("3 node(s) didn't match Pod's node affinity/selector"), "labels"),
        (scheduling('persistentvolumeclaim "files" not found'), "disk is not there"),
        (scheduling("3 Insufficient memory"), "no node has room"),
        (box(state={"waiting": {"reason": "ErrImagePull"}}), "cannot be pulled"),
        (box(state={"waiting": {"reason": "CreateContainerConfigError"}}), "Secret or ConfigMap"),
        (box(state={"waiting": {"reason": "CrashLoopBackOff"}}), "again and again"),
        (box(lastState={"terminated": {"reason": "OOMKilled"}}), "killed for memory"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_reasons_of_stuck_pods_are_read_from_their_status(
    found: dict[str, Any], words: str
) -> None:
    (reason,) = why_stuck([found], [])

    assert words in reason


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("exceeded quota: gpus, requested: 1", "quota is used up"),
        ('pods "x" is forbidden: violates PodSecurity "restricted"', "pod standard"),
    ],
)
def test_events_show_why_pods_are_not_created(message: str, words: str) -> None:
    event = {"type": "Warning", "message": message, "involvedObject": {"name": "rs"}}

    (reason,) = why_stuck([], [event, event])

    assert words in reason


def test_a_refusal_is_reported_once_for_all_pod_names() -> None:
    refused = 'pods "thinker-{}" is forbidden: violates PodSecurity "restricted"'
    events = [
        {
            "type": "Warning",
            "message": refused.format(each),
            "involvedObject": {"name": "thinker-predictor-6f9b7c"},
        }
        for each in ("x2x5q", "9kd2f", "pp8sz")
    ]

    (reason,) = why_stuck([], events)

    assert reason.startswith("thinker-predictor-6f9b7c: ")


@pytest.mark.parametrize("reason", ["FailedMount", "FailedAttachVolume"])
def test_a_volume_that_is_mounted_since_is_no_reason(reason: str) -> None:
    event = {
        "type": "Warning",
        "reason": reason,
        "message": 'secret "torpor-redis" not found',
        "involvedObject": {"kind": "Pod", "name": "thinker-1"},
    }
    waits = box(state={"waiting": {"reason": "ContainerCreating"}})
    again = box(state={"waiting": {"reason": "CrashLoopBackOff"}}, containerID="containerd://1")
    waits["metadata"]["name"] = again["metadata"]["name"] = "thinker-1"

    assert "cannot be mounted" in why_stuck([waits], [event])[0]
    assert [said for said in why_stuck([again], [event]) if "mounted" in said] == []


def test_a_healthy_pod_gives_no_reason() -> None:
    assert why_stuck([box(state={"running": {}})], [{"type": "Normal", "message": "quota"}]) == []
