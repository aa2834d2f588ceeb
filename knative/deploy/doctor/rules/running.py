"""Rules of what a live cluster shows beside its objects: pods that were refused, or are stuck."""

from __future__ import annotations

from collections.abc import Iterator

from knative.deploy.doctor.finding import Fault, Hop, Register, fault
from knative.deploy.doctor.view import View, dig
from knative.deploy.rollout.readiness import nameless, why_stuck

register = Register()
_MAKERS = ("ReplicaSet", "StatefulSet", "Job")


@register.rule(
    "pods-refused",
    Hop.PREDICTOR,
    why="A pod that admission refuses is never made: its Deployment waits without a word, and no "
    "log says why.",
    source="Kubernetes, ReplicaSet condition ReplicaFailure, event FailedCreate",
)
def pods_refused(view: View) -> Iterator[Fault]:
    for maker in (resource for kind in _MAKERS for resource in view.of(kind)):
        wanted = dig(maker, "spec.replicas")
        there = dig(maker, "status.replicas") or 0
        if wanted is None or there >= wanted:
            continue
        for reason in dict.fromkeys(_refusals(view, str(maker["metadata"]["name"]), maker)):
            yield fault(maker, "pods", f"{there} of {wanted}", f"not refused: {reason}")


def _refusals(view: View, name: str, maker: dict[str, object]) -> Iterator[str]:
    for condition in dig(maker, "status.conditions") or []:
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            yield nameless(str(condition.get("message")))
    for event in view.of("Event", "v1"):
        is_about = dig(event, "involvedObject.name") == name
        if is_about and event.get("reason") == "FailedCreate":
            yield nameless(str(event.get("message")))


@register.rule(
    "pods-stuck",
    Hop.NODE,
    why="A pod without a node, an image or a volume serves nobody, however long a job waits.",
    source="Kubernetes, PodScheduled and container states",
)
def pods_stuck(view: View) -> Iterator[Fault]:
    for reason in why_stuck(view.of("Pod", "v1"), ()):
        who, _, what = reason.partition(": ")
        yield Fault(f"Pod/{who}", "status", what, "running")
