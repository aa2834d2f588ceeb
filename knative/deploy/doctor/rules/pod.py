"""Rules of the predictor's pod."""

from __future__ import annotations

from collections.abc import Iterator

from knative.autoscaling.quantity import quantity
from knative.deploy.doctor.field import FieldPath, at, at_least, field_rule, one_of
from knative.deploy.doctor.finding import Fault, Hop, Register, Severity, fault, needed
from knative.deploy.doctor.view import (
    CANARY_OF,
    ResourceView,
    argument,
    dig,
    engine,
    number,
    variable,
)
from knative.deploy.emit import Resource

register = Register()

LONGEST_DRAIN_S = 3600  # beyond it a thought is handed over rather than waited for

# Pod fields that Knative refuses unless a flag of config-features is on (docs/facts.md 3.3).
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


def drained_s(view: ResourceView) -> float:
    """Give how long a pod must be left to drain."""
    return min(view.job_s, LONGEST_DRAIN_S)


register.rule(
    "standard-grace",
    Hop.PREDICTOR,
    why="Standard mode gives a pod 30 s to end: a thinking one is killed on every scale-in.",
    source="docs/facts.md 3.4 deployment_reconciler.go:283, #6",
)(
    field_rule(
        ResourceView.in_standard_mode,
        at("spec.predictor.terminationGracePeriodSeconds"),
        at_least(drained_s),
    )
)


@register.rule(
    "drain-grace",
    Hop.PREDICTOR,
    why="A drain longer than the pod's grace is cut by SIGKILL. In Knative mode the container gets "
    "SIGTERM 30 s after the last request and has timeoutSeconds - 30 left.",
    source="docs/facts.md 3.3 drain.go, #14, #23",
)
def drain_grace(view: ResourceView) -> Iterator[Fault]:
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
    "kserve-cpu-limit",
    Hop.PREDICTOR,
    why="KServe's webhook puts its own default (1) where the engine has no CPU limit, and the API "
    "server refuses every pod that requests more: nothing ever wakes.",
    source="KServe predictor_custom.go Default, inferenceservice-config `resource`",
)
def kserve_cpu_limit(view: ResourceView) -> Iterator[Fault]:
    for predictor in view.predictors:
        box = engine(predictor)
        asked, most = (dig(box, f"resources.{each}.cpu") for each in ("requests", "limits"))
        if asked is not None and most is None and quantity(str(asked)) > 1:
            yield fault(predictor, "resources.limits.cpu", None, f"set, at least {asked}")


@register.rule(
    "shutdown-timeout",
    Hop.PREDICTOR,
    why="vLLM's own server aborts everything at SIGTERM unless --shutdown-timeout is set, and the "
    "pod's grace must exceed it.",
    source="docs/facts.md 3.7, #23 (llm-d#927)",
)
def shutdown_timeout(view: ResourceView) -> Iterator[Fault]:
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
    source="docs/facts.md #12",
)
def startup_probe(view: ResourceView) -> Iterator[Fault]:
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
    source="docs/adr/0015",
)
def readiness_path(view: ResourceView) -> Iterator[Fault]:
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
    source="docs/facts.md 3.4 predictor_custom.go",
)
def container_name(view: ResourceView) -> Iterator[Fault]:
    for predictor in view.predictors:
        boxes = dig(predictor, "spec.predictor.containers") or []
        names = [box.get("name") for box in boxes]
        if len(names) > 1 and "kserve-container" not in names:
            yield fault(predictor, "spec.predictor.containers", names, "one named kserve-container")


@register.rule(
    "model-name",
    Hop.PREDICTOR,
    why="Requests carry the model's name; a predictor that serves another refuses them all.",
    source="docs/architecture.md",
)
def model_name(view: ResourceView) -> Iterator[Fault]:
    for predictor in view.predictors:
        served = argument(engine(predictor), "--served-model-name")
        own = predictor["metadata"]["name"]
        name = (dig(predictor, "metadata.labels") or {}).get(CANARY_OF, own)
        if served is not None and served != name:
            yield fault(predictor, "--served-model-name", served, name)


register.rule(
    "protocol",
    Hop.PREDICTOR,
    why="KServe's custom predictor reads PROTOCOL and knows v1 and v2.",
    source="docs/facts.md 3.4",
)(
    field_rule(
        lambda view: view.predictors,
        FieldPath("env PROTOCOL", lambda predictor: variable(engine(predictor), "PROTOCOL")),
        one_of(None, "v1", "v2"),
    )
)


@register.rule(
    "model-cache-uri",
    Hop.PREDICTOR,
    why="A cache of another address is never hit: every wake downloads the weights.",
    source="facts, sources [10] localmodel.md",
)
def model_cache_uri(view: ResourceView) -> Iterator[Fault]:
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
    source="docs/facts.md 3.3 features.yaml",
)
def knative_features(view: ResourceView) -> Iterator[Fault]:
    wanted: dict[str, Resource] = {}
    asking = [(p, "spec.predictor") for p in view.in_knative_mode()]
    asking += [(s, "spec.template.spec") for s in view.knative_services]
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
