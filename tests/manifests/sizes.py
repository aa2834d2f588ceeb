"""How much a cluster must have: requests of all pods at once, as the scheduler adds them up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from knative.autoscaling.quantity import quantity
from tests.manifests.conftest import Resources
from tests.manifests.objects import Pod, pods

MIB = 2**20
# The init container that KServe adds: its Helm chart's `kserve.storage.resources.requests`.
INITIALIZER = {"cpu": "100m", "memory": "100Mi"}


@dataclass(frozen=True)
class Size:
    """Requests: thousandths of a core, and MiB."""

    cpu_m: int = 0
    memory_mib: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.cpu_m + other.cpu_m, self.memory_mib + other.memory_mib)

    def __mul__(self, count: int) -> Size:
        return Size(self.cpu_m * count, self.memory_mib * count)


# What everybody else on a kind node asks for, read from their charts (cluster.md names each).
KIND = Size(950, 290)
KEDA = Size(300, 300)
KSERVE = Size(200, 600)
CERT_MANAGER = Size(0, 0)  # its chart sets no requests


def requested(asked: Iterable[Mapping[str, Any]]) -> Size:
    """The sum of containers' requests."""
    found = Size()
    for each in asked:
        memory = quantity(str(each.get("memory", "0"))) / MIB
        found += Size(round(quantity(str(each.get("cpu", "0"))) * 1000), round(memory))
    return found


def of_pod(pod: Pod) -> Size:
    """What one pod asks for: its containers together, or its largest init container."""
    own = requested((box.get("resources") or {}).get("requests") or {} for box in pod.boxes)
    if pod.owner["kind"] != "InferenceService":
        return own
    first = requested([INITIALIZER])
    return Size(max(own.cpu_m, first.cpu_m), max(own.memory_mib, first.memory_mib))


def replicas(pod: Pod, resources: Resources) -> int:
    """How many there are of it when everything is awake, and nobody needs more than the least."""
    scalers = (r["spec"] for r in resources if r["kind"] == "HorizontalPodAutoscaler")
    least = [int(s["minReplicas"]) for s in scalers if s["scaleTargetRef"]["name"] == pod.name]
    if least:
        return least[0]
    return int(pod.owner["spec"].get("replicas", 1))


def awake(resources: Resources) -> Size:
    """All of ours awake: one predictor a model, and the Job of the install done."""
    found = Size()
    for pod in pods(resources):
        if pod.owner["kind"] != "Job":
            found += of_pod(pod) * replicas(pod, resources)
    return found


def named(resources: Resources, kind: str, name: str) -> Size:
    """What one more pod of a workload asks for: a rollout's surplus."""
    (found,) = (p for p in pods(resources) if (p.owner["kind"], p.name) == (kind, name))
    return of_pod(found)
