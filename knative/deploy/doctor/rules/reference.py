"""Rules about names: what a resource names must be there, and what an autoscaler owns must not be written twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from knative.deploy.doctor.finding import Fault, Hop, Register, Severity, fault, identity
from knative.deploy.doctor.rules.pod import drained_s
from knative.deploy.doctor.view import ResourceView, dig, number
from knative.deploy.emit import Resource
from knative.deploy.render import parts

register = Register()
_SCALED: Final = ("Deployment", "StatefulSet")
_FIRST_SECRETS: Final = (parts.REDIS_SECRET, parts.KEYS_SECRET, parts.INTERNAL_SECRET)
_BY_PLATFORM: Final = {
    ("ServiceAccount", "default"),
    ("ConfigMap", "kube-root-ca.crt"),
    ("ConfigMap", "torpor-eventing-ca"),  # the Kafka broker's authority; the component's header
}
_IN_CLUSTER: Final = re.compile(r"(?<![\w.-])([a-z0-9][a-z0-9-]*)\.([a-z0-9][a-z0-9-]*)\.svc\b")
_IN_URL: Final = re.compile(
    r"\b(?:https?|rediss?)://(?:[^@/\s\"']*@)?(?![^@/\s\"']*@)([a-z0-9][a-z0-9-]*)(?=[:/\s\"']|$)"
)
_IN_ADDRESS: Final = re.compile(r"\A([a-z0-9][a-z0-9-]*):\d+\Z")
_HERE: Final = re.compile(r"localhost|\d+")


class Named(NamedTuple):
    """An object as another resource names it: where it stands, and what must be there."""

    field: str
    kind: str
    name: str
    namespace: str


@register.rule(
    "names-lead-somewhere",
    Hop.FRONT,
    why="A name that leads nowhere shows at the first job: a pod that cannot start, a queue without a reader, a "
    "scaler that never wakes. namePrefix and namespace rename objects, not what texts say.",
    source="kubernetes-sigs/kustomize, name references",
)
def names_lead_somewhere(view: ResourceView) -> Iterator[Fault]:
    there = _there(view)
    for resource in view.own:
        for named in dict.fromkeys(_named_in(resource)):
            key = (named.kind, named.name, named.namespace)
            if key in there or (named.kind, named.name) in _BY_PLATFORM:
                continue
            if (severity := _severity(named, there)) is not None:
                shown = f"{named.kind}/{named.name} ({named.namespace or 'no namespace'})"
                must = _meant(named, there) or "one that is there"
                yield fault(resource, named.field, shown, must, severity)


@register.rule(
    "replicas-of-an-autoscaler",
    Hop.SCALER,
    why="The next apply of the manifest sets the number back: busy pods are ended, or a queue waits.",
    source="Kubernetes, HorizontalPodAutoscaler, migrating to horizontal autoscaling",
)
def replicas_of_an_autoscaler(view: ResourceView) -> Iterator[Fault]:
    for scaler, workload in _targets(view):
        if (replicas := dig(workload, "spec.replicas")) is not None and "status" not in workload:
            must = f"not set: {identity(scaler)} owns it"
            yield fault(workload, "spec.replicas", replicas, must, Severity.WARNING)


@register.rule(
    "workload-grace",
    Hop.PREDICTOR,
    why="A scale-in gives a pod its grace, 30 s unless it says more: a thinking one is killed.",
    source="docs/facts.md 3.5, #6",
)
def workload_grace(view: ResourceView) -> Iterator[Fault]:
    path = "spec.template.spec.terminationGracePeriodSeconds"
    for scaler, workload in _targets(view):
        if workload["metadata"]["name"] == parts.STEPS or view.scales_tool(scaler):
            continue  # a run that is cut off is run again, in seconds; tools have a rule of their own
        found = dig(workload, path)
        grace_s = number(found) if found is not None else 30
        if scaler.get("kind") == "ScaledObject" and (grace_s or 0) < drained_s(view):
            yield fault(workload, path, found, f"at least {drained_s(view):.0f}")


def _targets(view: ResourceView) -> Iterator[tuple[Resource, Resource]]:
    """Each autoscaler with the workload that it scales."""
    for scaler in [*view.scaled_objects, *view.of("HorizontalPodAutoscaler")]:
        target = dig(scaler, "spec.scaleTargetRef") or {}
        workload = view.named(str(target.get("kind", "Deployment")), str(target.get("name")))
        if workload and workload.get("kind") in _SCALED and _space(workload) == _space(scaler):
            yield scaler, workload


def _there(view: ResourceView) -> set[tuple[str, str, str]]:
    """Kind, name and namespace of what is applied, and of what is made from it."""
    found = set()
    for resource in view.own:
        name, space = str(resource["metadata"]["name"]), _space(resource)
        found.add((str(resource.get("kind")), name, space))
        match resource.get("kind"):
            case "InferenceService":
                found |= {(kind, f"{name}-predictor", space) for kind in ("Deployment", "Service")}
            case "Broker":
                found.add(("Service", f"{name}-broker-ingress", space))
            case "Certificate":
                found.add(("Secret", str(dig(resource, "spec.secretName")), space))
            case "RabbitmqCluster":
                found |= {("Service", name, space), ("Secret", f"{name}-default-user", space)}
            case "Job" if "knative.deploy.first_secrets" in str(resource):
                found |= {("Secret", secret, space) for secret in _FIRST_SECRETS}
    return found


def _severity(named: Named, there: set[tuple[str, str, str]]) -> Severity | None:
    """An error where the object was renamed or its kind is shown there; else a demand. A Secret is demanded too: who
    keeps it apart from the manifests does well. Nothing for another namespace's: what is in there is not ours to say.
    """
    if _meant(named, there):
        return Severity.ERROR
    if named.namespace and named.namespace not in {space for _, _, space in there}:
        return None
    if named.kind == "Secret":
        return Severity.NEEDED
    is_shown = any(kind == named.kind and space == named.namespace for kind, _, space in there)
    return Severity.ERROR if is_shown else Severity.NEEDED


def _meant(named: Named, there: set[tuple[str, str, str]]) -> str:
    """The object that carries the name with a prefix, or in another namespace."""
    for kind, name, space in sorted(there):
        if kind == named.kind and (name == named.name or name.endswith(f"-{named.name}")):
            return f"{kind}/{name} ({space})"
    return ""


def _named_in(resource: Resource) -> Iterator[Named]:
    space, kind = _space(resource), resource.get("kind")
    if kind == "Secret" or (resource.get("metadata") or {}).get("ownerReferences"):
        return  # a Secret's values are not read, and a made object is as its maker says
    root = "spec" if "spec" in resource else "data"
    for path, key, value in _fields(resource.get(root) or {}, root):
        for what, name in _by_field(str(kind), key, value):
            yield Named(path, what, name, "" if what.startswith("Cluster") else space)
        if isinstance(value, str) and key not in (
            "query",
            "image",
        ):  # `new:2` is an image, no address
            yield from _hosts(path, value, space)
    if kind == "Job" and "knative.deploy.first_secrets" in str(resource):
        yield from (
            Named(f"Secret/{parts.REDIS_SECRET} url", "Service", name, space)
            for name in _store_services(resource)
        )


def _store_services(job: Resource) -> list[str]:
    """Give the Services that the first-secrets job puts into the store's address."""
    (box,) = job["spec"]["template"]["spec"]["containers"]
    env = {each["name"]: each.get("value", "") for each in box.get("env", [])}
    hosts = parts.store_hosts("", int(env.get("TORPOR_STORE_REPLICAS", "1")))
    return [host.split(".")[0] for host in hosts]


def _by_field(owner: str, key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Kind and name of what one field names."""
    if isinstance(value, dict) and value.get("optional"):
        return
    yield from _data(key, value)
    match key, value:
        case "serviceAccountName", str():
            yield "ServiceAccount", value
        case "claimName", str():
            yield "PersistentVolumeClaim", value
        case "scaleTargetRef", {"name": str(name)}:
            yield str(value.get("kind", "Deployment")), name
        case "authenticationRef", {"name": str(name)}:
            yield str(value.get("kind", "TriggerAuthentication")), name
    yield from _of_kind(owner, key, value)


def _data(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """The Secrets and ConfigMaps that a field names."""
    match key, value:
        case "secretKeyRef" | "secretRef" | "credentials", {"name": str(name)}:
            yield "Secret", name
        case "secret", {"secretName": str(name)}:
            yield "Secret", name
        case "secretTargetRef", list():
            yield from (("Secret", str(each.get("name"))) for each in value)
        case "configMap" | "configMapRef" | "configMapKeyRef", {"name": str(name)}:
            yield "ConfigMap", name


def _of_kind(owner: str, key: str, value: Any) -> Iterator[tuple[str, str]]:
    """What is a name in the resources of one kind only."""
    match owner, key, value:
        case "Ingress", "service", {"name": str(name)}:
            yield "Service", name
        case "Trigger", "broker", str():
            yield "Broker", value
        case _, "ref", {"kind": str(kind), "name": str(name)} if "namespace" not in value:
            yield kind, name  # a sink, a subscriber, a reply


def _hosts(path: str, text: str, space: str) -> Iterator[Named]:
    for name, namespace in _IN_CLUSTER.findall(text):
        yield Named(path, "Service", name, namespace)
    for name in [*_IN_URL.findall(text), *_IN_ADDRESS.findall(text)]:
        if not _HERE.fullmatch(name):
            yield Named(path, "Service", name, space)


def _fields(node: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """Every field below: its path, its name, its value. An item of a list of texts has the list's name."""
    items: list[tuple[Any, Any]] = []
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    for key, value in items:
        inner = f"{path}[{key}]" if isinstance(node, list) else f"{path}.{key}"
        yield inner, str(key), value
        yield from _fields(value, inner)


def _space(resource: Resource) -> str:
    return str((resource.get("metadata") or {}).get("namespace") or "")
