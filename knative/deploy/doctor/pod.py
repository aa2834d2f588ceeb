"""Rules of the predictor's pod, the store and the node under them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from knative.deploy.doctor.finding import Fault, Hop, Register, Severity, fault, needed
from knative.deploy.doctor.view import (
    Pod,
    View,
    argument,
    dig,
    engine,
    go_seconds,
    number,
    variable,
)
from knative.deploy.emit import Resource

register = Register()

LONGEST_DRAIN_S = 3600  # beyond it a thought is handed over rather than waited for
CANARY_OF = "torpor.dev/canary-of"  # a canary serves the name of what it may replace

# Pod fields that Knative refuses unless a flag of config-features is on (facts 3.3).
FLAGS = {
    "nodeSelector": "kubernetes.podspec-nodeselector",
    "tolerations": "kubernetes.podspec-tolerations",
    "affinity": "kubernetes.podspec-affinity",
    "runtimeClassName": "kubernetes.podspec-runtimeclassname",
    "initContainers": "kubernetes.podspec-init-containers",
    "schedulerName": "kubernetes.podspec-schedulername",
    "priorityClassName": "kubernetes.podspec-priorityclassname",
    "topologySpreadConstraints": "kubernetes.podspec-topologyspreadconstraints",
    "securityContext": "kubernetes.podspec-securitycontext",
    "hostAliases": "kubernetes.podspec-hostaliases",
    "dnsPolicy": "kubernetes.podspec-dnspolicy",
    "dnsConfig": "kubernetes.podspec-dnsconfig",
}


@register.rule(
    "standard-grace",
    Hop.PREDICTOR,
    why="Standard mode gives a pod 30 s to end: a thinking one is killed on every scale-in.",
    source="facts 3.4 deployment_reconciler.go:283, #6",
)
def standard_grace(view: View) -> Iterator[Fault]:
    path = "spec.predictor.terminationGracePeriodSeconds"
    for predictor in view.in_standard_mode():
        value = number(dig(predictor, path))
        least = min(view.job_s, LONGEST_DRAIN_S)
        if value is None or value < least:
            yield fault(predictor, path, value, f"at least {least}")


@register.rule(
    "drain-grace",
    Hop.PREDICTOR,
    why="A drain longer than the pod's grace is cut by SIGKILL. In Knative mode the container gets "
    "SIGTERM 30 s after the last request and has timeoutSeconds - 30 left.",
    source="facts 3.3 drain.go, #14, #23",
)
def drain_grace(view: View) -> Iterator[Fault]:
    settings = view.named("ConfigMap", "torpor-settings")
    drain = number(view.settings.get("TORPOR_DRAIN_GRACE_S"))
    if settings is None or drain is None:
        return
    for predictor in view.predictors:
        grace = number(dig(predictor, "spec.predictor.terminationGracePeriodSeconds"))
        if predictor in view.in_knative_mode():
            total = number(dig(predictor, "spec.predictor.timeout"))
            grace = None if total is None else total - 30
        if grace is not None and drain >= grace:
            yield fault(settings, "data.TORPOR_DRAIN_GRACE_S", drain, f"under {grace:.0f}")


@register.rule(
    "shutdown-timeout",
    Hop.PREDICTOR,
    why="vLLM's own server aborts everything at SIGTERM unless --shutdown-timeout is set, and the "
    "pod's grace must exceed it.",
    source="facts 3.7, #23 (llm-d#927)",
)
def shutdown_timeout(view: View) -> Iterator[Fault]:
    for predictor in view.predictors:
        box = engine(predictor)
        value = number(argument(box, "--shutdown-timeout"))
        grace = number(dig(predictor, "spec.predictor.terminationGracePeriodSeconds"))
        if value is not None and grace is not None and value >= grace:
            yield fault(predictor, "--shutdown-timeout", value, f"under {grace:.0f}")
        if "vllm/vllm-openai" in str(box.get("image")) and value is None:
            yield fault(predictor, "--shutdown-timeout", None, f"at least {view.job_s}")


@register.rule(
    "startup-probe",
    Hop.PREDICTOR,
    why="Without a startup probe as long as a wake, liveness restarts a pod that is loading.",
    source="facts #12",
)
def startup_probe(view: View) -> Iterator[Fault]:
    for predictor in view.predictors:
        box = engine(predictor)
        probe = box.get("startupProbe")
        if probe is None:
            if "livenessProbe" in box:
                yield fault(predictor, "startupProbe", None, f"{view.cold_start_s} s or more")
            continue
        seconds = (number(probe.get("periodSeconds")) or 10) * (
            number(probe.get("failureThreshold")) or 3
        )
        if seconds < view.cold_start_s:
            must = f"periodSeconds x failureThreshold at least {view.cold_start_s}"
            yield fault(predictor, "startupProbe", f"{seconds:.0f} s", must)


@register.rule(
    "readiness-path",
    Hop.PREDICTOR,
    why="Ready must mean that the engine can serve: a path that answers while the model loads "
    "sends it work that it refuses.",
    source="design, What the predictor answers",
)
def readiness_path(view: View) -> Iterator[Fault]:
    for predictor in view.predictors:
        box = engine(predictor)
        path = dig(box, "readinessProbe.httpGet.path")
        name = argument(box, "--served-model-name") or predictor["metadata"]["name"]
        wanted = f"/v2/models/{name}/ready"
        if path != wanted:
            yield fault(predictor, "readinessProbe.httpGet.path", path, wanted)


@register.rule(
    "container-name",
    Hop.PREDICTOR,
    why="With several containers KServe takes the one named kserve-container for the model's.",
    source="facts 3.4 predictor_custom.go",
)
def container_name(view: View) -> Iterator[Fault]:
    for predictor in view.predictors:
        boxes = dig(predictor, "spec.predictor.containers") or []
        names = [box.get("name") for box in boxes]
        if len(names) > 1 and "kserve-container" not in names:
            yield fault(predictor, "spec.predictor.containers", names, "one named kserve-container")


@register.rule(
    "model-name",
    Hop.PREDICTOR,
    why="Requests carry the model's name; a predictor that serves another refuses them all.",
    source="design 3",
)
def model_name(view: View) -> Iterator[Fault]:
    for predictor in view.predictors:
        served = argument(engine(predictor), "--served-model-name")
        own = predictor["metadata"]["name"]
        name = (dig(predictor, "metadata.labels") or {}).get(CANARY_OF, own)
        if served is not None and served != name:
            yield fault(predictor, "--served-model-name", served, name)


@register.rule(
    "protocol",
    Hop.PREDICTOR,
    why="KServe's custom predictor reads PROTOCOL and knows v1 and v2.",
    source="facts 3.4",
)
def protocol(view: View) -> Iterator[Fault]:
    for predictor in view.predictors:
        value = variable(engine(predictor), "PROTOCOL")
        if value not in (None, "v1", "v2"):
            yield fault(predictor, "env PROTOCOL", value, "v1 or v2")


@register.rule(
    "model-cache-uri",
    Hop.PREDICTOR,
    why="A cache of another address is never hit: every wake downloads the weights.",
    source="facts, sources [10] localmodel.md",
)
def model_cache_uri(view: View) -> Iterator[Fault]:
    used = {variable(engine(p), "STORAGE_URI") for p in view.predictors}
    for cache in view.of("LocalModelCache", "serving.kserve.io/"):
        value = dig(cache, "spec.sourceModelUri")
        if used and value not in used:
            must = " or ".join(sorted(map(str, used)))
            yield fault(cache, "spec.sourceModelUri", value, must, Severity.WARNING)


@register.rule(
    "knative-features",
    Hop.PREDICTOR,
    why="Knative refuses pod fields whose feature flag is off, and those that GPU pods need are "
    "off by default.",
    source="facts 3.3 features.yaml",
)
def knative_features(view: View) -> Iterator[Fault]:
    wanted: dict[str, Resource] = {}
    asking = [(p, "spec.predictor") for p in view.in_knative_mode()]
    asking += [(s, "spec.template.spec") for s in view.of("Service", "serving.knative.dev/")]
    for resource, path in asking:
        for flag in _flags(dig(resource, path) or {}):
            wanted.setdefault(flag, resource)
    found = view.named("ConfigMap", "config-features")
    for flag, predictor in wanted.items():
        if found is None or dig(found, "metadata.namespace") == "knative-eventing":
            place = "ConfigMap/config-features (knative-serving)"
            yield needed(place, f"data.{flag}", f"enabled, for {predictor['metadata']['name']}")
        elif (found.get("data") or {}).get(flag) not in ("enabled", "allowed"):
            yield fault(found, f"data.{flag}", (found.get("data") or {}).get(flag), "enabled")


def _flags(pod: Resource) -> Iterator[str]:
    """Give the flags that a pod's fields need."""
    for field, flag in FLAGS.items():
        if pod.get(field):
            yield flag
    for volume in pod.get("volumes") or []:
        if "persistentVolumeClaim" in volume:
            yield "kubernetes.podspec-persistent-volume-claim"
            if not volume["persistentVolumeClaim"].get("readOnly"):
                yield "kubernetes.podspec-persistent-volume-write"
        if "csi" in volume:
            yield "kubernetes.podspec-volumes-csi"
    for box in pod.get("containers") or []:
        if any(dig(entry, "valueFrom.fieldRef") for entry in box.get("env") or []):
            yield "kubernetes.podspec-fieldref"


@register.rule(
    "gpu-toleration",
    Hop.NODE,
    why="GPU nodes are tainted; a pod that asks for a GPU and tolerates nothing stays pending.",
    source="facts 3.3",
)
def gpu_toleration(view: View) -> Iterator[Fault]:
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
    source="facts 3.7",
)
def gpu_count(view: View) -> Iterator[Fault]:
    for predictor in view.predictors:
        box = engine(predictor)
        ranks = number(argument(box, "--tensor-parallel-size"))
        gpus = number((dig(box, "resources.limits") or {}).get("nvidia.com/gpu"))
        if ranks and gpus and ranks != gpus:
            yield fault(predictor, "--tensor-parallel-size", ranks, f"nvidia.com/gpu ({gpus:.0f})")


@register.rule(
    "node-grace",
    Hop.NODE,
    why="Karpenter takes a node when its terminationGracePeriod is over, whatever still runs on "
    "it.",
    source="facts #14; Karpenter NodePool",
)
def node_grace(view: View) -> Iterator[Fault]:
    for pool in view.of("NodePool", "karpenter.sh/"):
        path = "spec.template.spec.terminationGracePeriod"
        value = dig(pool, path)
        least = min(view.job_s, LONGEST_DRAIN_S)
        if value is not None and (go_seconds(value) or 0) < least:
            yield fault(pool, path, value, f"at least {least}s")


@register.rule(
    "node-consolidation",
    Hop.NODE,
    why="Consolidation of underused nodes moves pods, and ours are thinking.",
    source="facts #6; Karpenter NodePool",
)
def node_consolidation(view: View) -> Iterator[Fault]:
    for pool in view.of("NodePool", "karpenter.sh/"):
        path = "spec.disruption.consolidationPolicy"
        value = dig(pool, path)
        if value != "WhenEmpty":
            yield fault(pool, path, value, "WhenEmpty", Severity.WARNING)


@register.rule(
    "node-label",
    Hop.NODE,
    why="Karpenter makes a node only for labels that its pool gives or requires; GPU product "
    "labels are set after a node is there.",
    source="Karpenter NodePool",
)
def node_label(view: View) -> Iterator[Fault]:
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
    source="cluster-autoscaler FAQ; facts #14",
)
def cluster_autoscaler_grace(view: View) -> Iterator[Fault]:
    found = view.named("Deployment", "cluster-autoscaler")
    for box in dig(found, "spec.template.spec.containers") or []:
        value = number(argument(box, "--max-graceful-termination-sec"))
        if (600 if value is None else value) < min(
            view.job_s, LONGEST_DRAIN_S
        ) and found is not None:
            must = f"at least {min(view.job_s, LONGEST_DRAIN_S)}"
            yield fault(found, "--max-graceful-termination-sec", value, must)


@register.rule(
    "disruption-budget",
    Hop.NODE,
    why="A budget that allows no disruption blocks every node upgrade for ever.",
    source="Kubernetes, PodDisruptionBudget",
)
def disruption_budget(view: View) -> Iterator[Fault]:
    for budget in view.of("PodDisruptionBudget", "policy/"):
        if dig(budget, "spec.maxUnavailable") in (0, "0", "0%"):
            yield fault(budget, "spec.maxUnavailable", 0, "at least 1", Severity.WARNING)
        if dig(budget, "spec.minAvailable") == "100%":
            yield fault(budget, "spec.minAvailable", "100%", "less", Severity.WARNING)


def _stores(view: View) -> list[tuple[Pod, str]]:
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
    source="reliability 1 (Redis), F20",
)
def store_eviction(view: View) -> Iterator[Fault]:
    for pod, text in _stores(view):
        match = re.search(r"maxmemory-policy[ =]+(\S+)", text)
        if match and not match[1].startswith("noeviction"):
            yield fault(pod.owner, "maxmemory-policy", match[1], "noeviction")


@register.rule(
    "store-durable",
    Hop.STORE,
    why="Without an append-only file on a disk of its own, a restart forgets every job.",
    source="reliability 1 (Redis), F04",
)
def store_durable(view: View) -> Iterator[Fault]:
    for pod, text in _stores(view):
        if not re.search(r"appendonly[ =]+yes", text):
            yield fault(pod.owner, "appendonly", None, "yes")
        claims = dig(pod.owner, "spec.volumeClaimTemplates") or [
            v for v in pod.spec.get("volumes") or [] if "persistentVolumeClaim" in v
        ]
        if not claims:
            yield fault(pod.owner, "spec.volumeClaimTemplates", None, "a disk for the data")
