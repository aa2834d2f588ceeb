"""The readiness of an object, and the reason when it is not ready. Pure.

Called by the doctor and by `rollout`. Reads documented status fields and conditions only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from knative.deploy.emit import Resource

_BY_READY_CONDITION = {
    "InferenceService": "KServe has not made it ready",
    "Broker": "the broker is not ready",
    "Trigger": "the trigger is not ready",
    "ScaledObject": "KEDA has not accepted it",
    "RabbitmqCluster": "RabbitMQ is not up",
}
_SCALER_FAILS = (
    ": KEDA cannot scale it, so it may not wake. Check the trigger's address and Secret, and that keda-operator may "
    "reach it; `kubectl -n keda logs deployment/keda-operator` shows each try"
)
_READY_NAMES = {"RabbitmqCluster": "AllReplicasReady"}


@dataclass(frozen=True, slots=True)
class ObjectReadiness:
    """`is_ready`, or the reason."""

    is_ready: bool
    reason: str = ""


READY = ObjectReadiness(True)


def waits_for(resource: Resource) -> bool:
    """Say whether a kind has a readiness to wait for."""
    kinds = ("Deployment", "StatefulSet", "Job", *_BY_READY_CONDITION)
    is_knative = str(resource.get("apiVersion")).startswith("serving.knative.dev/")
    return resource.get("kind") in kinds or is_knative


def readiness(live: Resource | None) -> ObjectReadiness:
    """Give the readiness of an object as the server shows it."""
    if live is None:
        return ObjectReadiness(False, "it was deleted")
    status = live.get("status") or {}
    generation = live["metadata"].get("generation", 0)
    seen = status.get("observedGeneration", generation)
    if seen < generation:
        return ObjectReadiness(False, "its controller has not looked at the change yet")
    match live["kind"]:
        case "Deployment":
            return _deployment(live, status)
        case "StatefulSet":
            return _stateful_set(live, status)
        case "Job":
            return _job(status)
        case kind:
            return _by_condition(kind, status)


def _deployment(live: Resource, status: Resource) -> ObjectReadiness:
    wanted = live["spec"].get("replicas", 1)
    updated = status.get("updatedReplicas", 0)
    available = status.get("availableReplicas", 0)
    for condition in status.get("conditions") or []:
        if condition.get("reason") == "ProgressDeadlineExceeded":
            return ObjectReadiness(False, f"gave up: {condition.get('message')}")
    if updated < wanted:
        return ObjectReadiness(False, f"{updated} of {wanted} pods are of the new version")
    if status.get("replicas", 0) > updated:
        return ObjectReadiness(False, "old pods are still ending")
    if available < updated:
        return ObjectReadiness(False, f"{available} of {updated} pods are available")
    return READY


def _stateful_set(live: Resource, status: Resource) -> ObjectReadiness:
    wanted = live["spec"].get("replicas", 1)
    ready = status.get("readyReplicas", 0)
    if status.get("updateRevision") != status.get("currentRevision"):
        return ObjectReadiness(False, "pods of the old version are being replaced")
    return (
        READY if ready >= wanted else ObjectReadiness(False, f"{ready} of {wanted} pods are ready")
    )


def _job(status: Resource) -> ObjectReadiness:
    for condition in status.get("conditions") or []:
        if condition.get("status") == "True" and condition.get("type") == "Complete":
            return READY
        if condition.get("status") == "True" and condition.get("type") == "Failed":
            return ObjectReadiness(False, f"failed: {condition.get('message')}")
    return ObjectReadiness(False, "running")


def _by_condition(kind: str, status: Resource) -> ObjectReadiness:
    wanted = _READY_NAMES.get(kind, "Ready")
    conditions = {c.get("type"): c for c in status.get("conditions") or []}
    main = conditions.get(wanted)
    if main is None:
        return ObjectReadiness(False, _BY_READY_CONDITION.get(kind, "no status yet"))
    if main.get("status") == "True":
        return READY
    said = [main, *(c for c in conditions.values() if c.get("status") == "False")]
    words = [
        str(c.get("message") or c.get("reason"))
        for c in said
        if c.get("message") or c.get("reason")
    ]
    reason = "; ".join(dict.fromkeys(words)) or _BY_READY_CONDITION.get(kind, "")
    return ObjectReadiness(False, reason + (_SCALER_FAILS if kind == "ScaledObject" else ""))


_WAITING = {
    "ErrImagePull": "the image cannot be pulled",
    "ImagePullBackOff": "the image cannot be pulled",
    "InvalidImageName": "the image's name is not one",
    "CreateContainerConfigError": "a Secret or ConfigMap that it reads is missing",
    "CrashLoopBackOff": "it ends again and again",
    "RunContainerError": "it cannot be started",
}


WITH_OWN_EVENTS = ("InferenceService", "ScaledObject")
_MOUNT_REASONS = ("FailedMount", "FailedAttachVolume")
_POD_NAME = re.compile(r'\bpods? "[^"]*"')


def nameless(message: str) -> str:
    """Give a message without the pod's name, which differs for each try of the same refusal."""
    return _POD_NAME.sub("pods", message)


# A ReplicaSet's hash and a pod's suffix have no vowels, so no word is one.
_SUFFIX = "-[bcdfghjklmnpqrstvwxz2-9]+"
_MADE_FROM = {
    "Deployment": f"({_SUFFIX}){{0,2}}",
    "StatefulSet": r"(-\d+)?",
    "Job": f"({_SUFFIX})?",
    "InferenceService": "(-predictor.*)?",
}


def is_made_from(kind: str, name: str, made: str) -> bool:
    """Say whether an object's name is that of a kind's object, or of one that its controllers make from it."""
    return re.fullmatch(re.escape(name) + _MADE_FROM.get(kind, ".*"), made) is not None


def why_stuck(
    pods: Iterable[Resource], events: Iterable[Resource], *, is_ready: bool = False
) -> list[str]:
    """Give the reasons in pods and events, without repetitions, the clearest first. With `is_ready`, events about
    the object itself are over.
    """
    pods_by_reason: dict[str, list[str]] = {}  # a reason, and the pods that it is pods_by_reason of
    waits_for_volume = set()
    for pod in pods:
        if not _has_started_container(pod):
            waits_for_volume.add(pod["metadata"]["name"])
        for place, reason in _pod_reasons(pod):
            pods_by_reason.setdefault(reason, []).append(f"{pod['metadata']['name']}{place}")
    found = [f"{_first_of_several(names)}: {reason}" for reason, names in pods_by_reason.items()]
    current = (event for event in events if not _is_over(event, waits_for_volume, is_ready))
    found += [said for event in current if (said := _event_reason(event))]
    return list(dict.fromkeys(found))


def _has_started_container(pod: Resource) -> bool:
    status = pod.get("status") or {}
    boxes = [
        *(status.get("initContainerStatuses") or []),
        *(status.get("containerStatuses") or []),
    ]
    return any(box.get("containerID") for box in boxes)


def _is_over(event: Resource, waits_for_volume: set[str], is_ready: bool) -> bool:
    """An API server keeps an event for an hour: its pod may be gone or started since, its object ready."""
    about = event.get("involvedObject") or {}
    if event.get("reason") in _MOUNT_REASONS:
        return about.get("name") not in waits_for_volume
    return is_ready and about.get("kind") in WITH_OWN_EVENTS


def _first_of_several(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _pod_reasons(pod: Resource) -> Iterable[tuple[str, str]]:
    """Give the stuck container of a pod ("" for the whole pod), and why."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield "", _scheduling(str(condition.get("message")))
    boxes = [
        *(status.get("initContainerStatuses") or []),
        *(status.get("containerStatuses") or []),
    ]
    for box in boxes:
        yield from _container_reasons(pod["metadata"], box)


def _container_reasons(pod: dict[str, Any], box: dict[str, Any]) -> Iterable[tuple[str, str]]:
    state = box.get("state") or {}
    reason = (state.get("waiting") or {}).get("reason", "")
    if reason == "CrashLoopBackOff":
        # Its message has the seconds of this wait: another text each time.
        where = f"-n {pod.get('namespace', 'default')} logs {pod['name']} -c {box['name']}"
        yield f"/{box['name']}", f"{_WAITING[reason]}; `kubectl {where} --previous` says why"
    elif reason in _WAITING:
        said = (state["waiting"].get("message") or "").strip()
        yield f"/{box['name']}", _WAITING[reason] + (f" ({said[:200]})" if said else "")
    last = (box.get("lastState") or {}).get("terminated") or {}
    if last.get("reason") == "OOMKilled":
        yield f"/{box['name']}", "killed for memory; raise its limit or lower --max-model-len"


def _scheduling(message: str) -> str:
    if "nvidia.com/gpu" in message:
        return f"no node has a free GPU of the kind asked for ({message[:200]})"
    if "untolerated taint" in message and "affinity/selector" not in message:
        return f"every node is tainted against it ({message[:200]})"
    if "affinity/selector" in message:
        return f"no node has the labels asked for ({message[:200]})"
    if "PersistentVolumeClaim" in message or "persistentvolumeclaim" in message:
        return f"its disk is not there ({message[:200]})"
    return f"no node has room ({message[:200]})"


def _says_nothing(event: Resource, message: str) -> bool:
    """A controller tries a write again whose object had changed; conditions are in the object's own state."""
    return (
        "the object has been modified" in message
        or event.get("reason") == "InferenceServiceNotReady"
    )


def _event_reason(event: Resource) -> str | None:
    message = nameless(str(event.get("message", "")))
    if event.get("type") != "Warning" or _says_nothing(event, message):
        return None
    about = (event.get("involvedObject") or {}).get("name", "?")
    if "exceeded quota" in message:
        return f"{about}: the namespace's quota is used up ({message[:200]})"
    if "violates PodSecurity" in message:
        return f"{about}: the namespace's pod standard refuses it ({message[:200]})"
    if event.get("reason") in _MOUNT_REASONS:
        return f"{about}: a volume cannot be mounted ({message[:200]})"
    if event.get("reason") == "ServerlessModeRejected":
        return (
            f"{about}: KServe started before Knative was installed: `kubectl -n kserve rollout "
            "restart deployment kserve-controller-manager`"
        )
    if (event.get("involvedObject") or {}).get("kind") in WITH_OWN_EVENTS:
        return f"{about}: {event.get('reason')}: {message[:200]}"
    return None
