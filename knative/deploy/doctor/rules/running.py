"""Rules about the pods of a live cluster: refused, stuck, or with outdated settings."""

from __future__ import annotations

from collections.abc import Iterator

from knative.deploy.config_hash import config_names
from knative.deploy.doctor.finding import Fault, Hop, Register, fault
from knative.deploy.doctor.view import ResourceView, dig
from knative.deploy.emit import Resource
from knative.deploy.readiness import nameless, why_stuck

register = Register()
_MAKERS = ("ReplicaSet", "StatefulSet", "Job")


@register.rule(
    "pods-refused",
    Hop.PREDICTOR,
    why="A pod that admission refuses is never made: its Deployment waits without a word, and no "
    "log says why.",
    source="Kubernetes, ReplicaSet condition ReplicaFailure, event FailedCreate",
)
def pods_refused(view: ResourceView) -> Iterator[Fault]:
    for maker in (resource for kind in _MAKERS for resource in view.of(kind)):
        wanted = dig(maker, "spec.replicas")
        there = dig(maker, "status.replicas") or 0
        if wanted is None or there >= wanted:
            continue
        for reason in dict.fromkeys(_refusals(view, str(maker["metadata"]["name"]), maker)):
            yield fault(maker, "pods", f"{there} of {wanted}", f"not refused: {reason}")


def _refusals(view: ResourceView, name: str, maker: Resource) -> Iterator[str]:
    for condition in dig(maker, "status.conditions") or []:
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            yield nameless(str(condition.get("message")))
    for event in view.of("Event", "v1"):
        is_about = dig(event, "involvedObject.name") == name
        if is_about and event.get("reason") == "FailedCreate":
            yield nameless(str(event.get("message")))


@register.rule(
    "config-followed",
    Hop.FRONT,
    why="Settings and triggers are read once, at start: a pod older than they are puts jobs where "
    "no pump looks any more, and gives a canary none.",
    source="ADR 165",
)
def config_followed(view: ResourceView) -> Iterator[Fault]:
    changed = {
        str(config["metadata"]["name"]): max(times)
        for config in view.of("ConfigMap", "v1")
        if (times := _times_of_change(config))
    }
    for pod in view.of("Pod", "v1"):
        started = str(dig(pod, "status.startTime") or "")
        if not started or _component(pod) not in ("api", "broker"):
            continue
        for name in dict.fromkeys(config_names(pod.get("spec") or {})):
            if changed.get(name, "") > started:
                must = f"after ConfigMap/{name} was changed ({changed[name]}): `torpor deploy`"
                yield fault(pod, "status.startTime", started, must)


def _times_of_change(config: Resource) -> list[str]:
    """Give when the data was changed; RFC 3339 in UTC, so texts compare as times do."""
    listed = dig(config, "metadata.managedFields") or []
    return [str(e["time"]) for e in listed if "time" in e and "f:data" in (e.get("fieldsV1") or {})]


def _component(pod: Resource) -> str:
    return str((dig(pod, "metadata.labels") or {}).get("app.kubernetes.io/component"))


@register.rule(
    "pods-stuck",
    Hop.NODE,
    why="A pod without a node, an image or a volume serves no job, however long a job waits.",
    source="Kubernetes, PodScheduled and container states",
)
def pods_stuck(view: ResourceView) -> Iterator[Fault]:
    for reason in why_stuck(view.of("Pod", "v1"), ()):
        who, _, what = reason.partition(": ")
        yield Fault(f"Pod/{who}", "status", what, "running")
