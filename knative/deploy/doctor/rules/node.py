"""Rules of the node under the predictor, and of the store."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from knative.deploy.doctor.field import at, at_least, field_rule, kind, one_of
from knative.deploy.doctor.finding import Fault, Hop, Register, Severity, fault
from knative.deploy.doctor.rules.pod import drained_s
from knative.deploy.doctor.view import (
    Pod,
    ResourceView,
    argument,
    dig,
    engine,
    go_seconds,
    number,
)
from knative.deploy.emit import Resource

register = Register()
_POOLS = kind("NodePool", "karpenter.sh/")


@register.rule(
    "gpu-toleration",
    Hop.NODE,
    why="GPU nodes are tainted; a pod that asks for a GPU and tolerates nothing stays pending.",
    source="docs/facts.md 3.3",
)
def gpu_toleration(view: ResourceView) -> Iterator[Fault]:
    for predictor in view.predictors:
        pod = dig(predictor, "spec.predictor") or {}
        gpus = dig(engine(predictor), "resources.limits") or {}
        if "nvidia.com/gpu" in gpus and not pod.get("tolerations"):
            must = "nvidia.com/gpu Exists"
            yield fault(predictor, "spec.predictor.tolerations", None, must, Severity.WARNING)


@register.rule(
    "gpu-count",
    Hop.NODE,
    why="Tensor parallelism over more GPUs than the pod has does not start; over fewer wastes "
    "them.",
    source="docs/facts.md 3.7",
)
def gpu_count(view: ResourceView) -> Iterator[Fault]:
    for predictor in view.predictors:
        box = engine(predictor)
        ranks = number(argument(box, "--tensor-parallel-size"))
        gpus = number((dig(box, "resources.limits") or {}).get("nvidia.com/gpu"))
        if ranks and gpus and ranks != gpus:
            yield fault(predictor, "--tensor-parallel-size", ranks, f"nvidia.com/gpu ({gpus:.0f})")


register.rule(
    "node-grace",
    Hop.NODE,
    why="Karpenter takes a node when its terminationGracePeriod is over, whatever still runs on "
    "it.",
    source="docs/facts.md #14; Karpenter NodePool",
)(
    field_rule(
        _POOLS,
        at("spec.template.spec.terminationGracePeriod"),
        at_least(drained_s, unset=math.inf, unit=go_seconds, suffix="s"),
    )
)


register.rule(
    "node-consolidation",
    Hop.NODE,
    why="Consolidation of underused nodes moves pods, and ours are thinking.",
    source="docs/facts.md #6; Karpenter NodePool",
)(
    field_rule(
        _POOLS, at("spec.disruption.consolidationPolicy"), one_of("WhenEmpty"), Severity.WARNING
    )
)


@register.rule(
    "node-label",
    Hop.NODE,
    why="Karpenter makes a node only for labels that its pool gives or requires; GPU product "
    "labels are set after a node is there.",
    source="Karpenter NodePool",
)
def node_label(view: ResourceView) -> Iterator[Fault]:
    pools = view.of("NodePool", "karpenter.sh/")
    for predictor in view.predictors if pools else []:
        for key in dig(predictor, "spec.predictor.nodeSelector") or {}:
            if not any(_gives(pool, key) for pool in pools):
                field = f"spec.predictor.nodeSelector.{key}"
                yield fault(predictor, field, key, "a label or requirement of a NodePool")


def _gives(pool: Resource, key: str) -> bool:
    labels = dig(pool, "spec.template.metadata.labels") or {}
    required = [r.get("key") for r in dig(pool, "spec.template.spec.requirements") or []]
    well_known = key.startswith(("karpenter", "kubernetes.io/", "node.kubernetes.io/", "topology."))
    return key in labels or key in required or well_known


@register.rule(
    "cluster-autoscaler-grace",
    Hop.NODE,
    why="The Cluster Autoscaler waits max-graceful-termination-sec (600 s) for pods, whatever "
    "their own grace.",
    source="cluster-autoscaler FAQ; docs/facts.md #14",
)
def cluster_autoscaler_grace(view: ResourceView) -> Iterator[Fault]:
    found = view.named("Deployment", "cluster-autoscaler")
    for box in dig(found, "spec.template.spec.containers") or []:
        value = number(argument(box, "--max-graceful-termination-sec"))
        if (600 if value is None else value) < drained_s(view) and found is not None:
            must = f"at least {drained_s(view):.0f}"
            yield fault(found, "--max-graceful-termination-sec", value, must)


@register.rule(
    "disruption-budget",
    Hop.NODE,
    why="A budget that allows no disruption blocks every node upgrade for ever.",
    source="Kubernetes, PodDisruptionBudget",
)
def disruption_budget(view: ResourceView) -> Iterator[Fault]:
    for budget in view.of("PodDisruptionBudget", "policy/"):
        if dig(budget, "spec.maxUnavailable") in (0, "0", "0%"):
            yield fault(budget, "spec.maxUnavailable", 0, "at least 1", Severity.WARNING)
        if dig(budget, "spec.minAvailable") == "100%":
            yield fault(budget, "spec.minAvailable", "100%", "less", Severity.WARNING)


def _stores(view: ResourceView) -> list[tuple[Pod, str]]:
    """Give our Redis, with all that configures it as one text."""
    found = []
    for pod in view.pods:
        image = " ".join(str(box.get("image")) for box in pod.containers)
        if re.search(r"\b(valkey|redis)\b", image) and pod.owner.get("kind") == "StatefulSet":
            words = " ".join(
                str(word)
                for box in pod.containers
                for word in [*(box.get("command") or []), *(box.get("args") or [])]
            )
            mounted = [
                str(view.config(str(dig(volume, "configMap.name"))) or "")
                for volume in pod.spec.get("volumes") or []
            ]
            found.append((pod, words + " ".join(mounted).replace("\\n", "\n")))
    return found


@register.rule(
    "store-eviction",
    Hop.STORE,
    why="A store that evicts forgets jobs that were promised; one that is full says so.",
    source="docs/reliability.md (Redis), F20",
)
def store_eviction(view: ResourceView) -> Iterator[Fault]:
    for pod, text in _stores(view):
        match = re.search(r"maxmemory-policy[ =]+(\S+)", text)
        if match and not match[1].startswith("noeviction"):
            yield fault(pod.owner, "maxmemory-policy", match[1], "noeviction")


@register.rule(
    "store-durable",
    Hop.STORE,
    why="Without an append-only file on a disk of its own, a restart forgets every job.",
    source="docs/reliability.md (Redis), F04",
)
def store_durable(view: ResourceView) -> Iterator[Fault]:
    for pod, text in _stores(view):
        if not re.search(r"appendonly[ =]+yes", text):
            yield fault(pod.owner, "appendonly", None, "yes")
        claims = dig(pod.owner, "spec.volumeClaimTemplates") or [
            v for v in pod.spec.get("volumes") or [] if "persistentVolumeClaim" in v
        ]
        if not claims:
            yield fault(pod.owner, "spec.volumeClaimTemplates", None, "a disk for the data")
