"""Whether an object is ready, and the clearest reason why not."""

from __future__ import annotations

from typing import Any

import pytest

from knative.deploy.readiness import is_made_from, readiness, why_stuck


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
def test_an_object_is_ready_or_says_why_not(state: dict[str, Any] | None, reason: str) -> None:
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


@pytest.mark.parametrize("reason", ["FailedMount", "FailedAttachVolume"])
def test_a_volume_of_a_pod_that_is_gone_is_no_reason(reason: str) -> None:
    event = {
        "type": "Warning",
        "reason": reason,
        "message": 'MountVolume.SetUp failed for volume "keys" : secret "torpor-api-keys" not found',
        "involvedObject": {"kind": "Pod", "name": "torpor-api-8458ddc857-c8vt5"},
    }
    new = pod()
    new["metadata"]["name"] = "torpor-api-9d7ffbd94-rk7kk"

    assert why_stuck([new], [event]) == []


# Recorded of an install that went well, minutes after everything was ready.
WHILE_IT_STARTED = [
    {
        "type": "Warning",
        "reason": "UpdateFailed",
        "message": 'Failed to update status for InferenceService "thinker": conflict',
        "involvedObject": {"kind": "InferenceService", "name": "thinker"},
    },
    {
        "type": "Warning",
        "reason": "KEDAScalerFailed",
        "message": "connection to redis failed: dial tcp 10.96.7.168:6379: connect: connection refused",
        "involvedObject": {"kind": "ScaledObject", "name": "thinker"},
    },
]


def test_warnings_about_an_object_that_is_ready_since_are_no_reason() -> None:
    assert len(why_stuck([], WHILE_IT_STARTED)) == 2
    assert why_stuck([], WHILE_IT_STARTED, is_ready=True) == []


def test_a_refused_pod_of_a_model_that_is_ready_at_zero_is_still_a_reason() -> None:
    refused = {
        "type": "Warning",
        "message": 'pods "x" is forbidden: violates PodSecurity "restricted"',
        "involvedObject": {"kind": "ReplicaSet", "name": "thinker-predictor-6f9b7c"},
    }

    assert len(why_stuck([], [refused], is_ready=True)) == 1


def test_a_crash_loop_is_one_reason_however_long_its_wait_is_and_names_the_command() -> None:
    def crashes(wait: str) -> dict[str, Any]:
        message = (
            f"back-off {wait} restarting failed container=rabbitmq pod=torpor-rabbitmq-server-0"
        )
        found = box(state={"waiting": {"reason": "CrashLoopBackOff", "message": message}})
        found["metadata"] = {"name": "torpor-rabbitmq-server-0", "namespace": "torpor"}
        return found

    (first,), (second,) = (why_stuck([crashes(wait)], []) for wait in ("20s", "1m20s"))

    assert first == second
    assert "`kubectl -n torpor logs torpor-rabbitmq-server-0 -c c --previous`" in first


@pytest.mark.parametrize(
    ("kind", "name", "made"),
    [
        ("Deployment", "torpor-broker", "torpor-broker-dbb5c7d74-x5gr7"),
        ("Deployment", "torpor-broker", "torpor-broker-dbb5c7d74"),
        ("StatefulSet", "torpor-redis", "torpor-redis-0"),
        ("Job", "torpor-first-secrets", "torpor-first-secrets-4nb8n"),
        ("InferenceService", "thinker", "thinker"),
        ("InferenceService", "thinker", "thinker-predictor-797c575cf4-4q7hs"),
        ("InferenceService", "thinker", "thinker-predictor-00001-deployment-674bbd99cf-rlfjb"),
        ("RabbitmqCluster", "torpor-rabbitmq", "torpor-rabbitmq-server-0"),
        ("Trigger", "requests-thinker", "requests-thinker-dispatcher-84c4689894-gdj2g"),
    ],
)
def test_a_pod_is_of_the_object_that_it_was_made_from(kind: str, name: str, made: str) -> None:
    assert is_made_from(kind, name, made)


@pytest.mark.parametrize(
    ("kind", "name", "made"),
    [
        ("Deployment", "torpor-broker", "torpor-broker-ingress-854c6f6f84-gr87b"),
        ("Deployment", "torpor-broker", "torpor-broker-ingress-854c6f6f84"),
        ("InferenceService", "thinker", "thinker-canary"),
        ("InferenceService", "thinker", "thinker-canary-predictor-755c79d75c-mfxgg"),
        ("StatefulSet", "torpor-redis", "torpor-redis-backup-0"),
    ],
)
def test_a_pod_of_a_longer_name_is_of_another_object(kind: str, name: str, made: str) -> None:
    assert not is_made_from(kind, name, made)


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (
            "InternalError",
            "fails to reconcile predictor: fails to reconcile knative service: Operation cannot be fulfilled on "
            'services.serving.knative.dev "thinker-predictor": the object has been modified; please apply your changes',
        ),
        (
            "InferenceServiceNotReady",
            "InferenceService [thinker] is no longer Ready because of: PredictorReady, Ready, Stopped",
        ),
    ],
)
def test_a_write_that_is_tried_again_and_a_list_of_conditions_are_no_reasons(
    reason: str, message: str
) -> None:
    event = {
        "type": "Warning",
        "reason": reason,
        "message": message,
        "involvedObject": {"kind": "InferenceService", "name": "thinker"},
    }

    assert why_stuck([], [event]) == []
