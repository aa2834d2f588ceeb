"""Rules of hardening: container privileges, network policies, secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from knative.deploy.doctor.field import FieldPath, field_rule, one_of
from knative.deploy.doctor.finding import Fault, Hop, Register, Severity, fault
from knative.deploy.doctor.kserve import storage_initializer
from knative.deploy.doctor.view import Pod, ResourceView, dig, variable
from knative.deploy.emit import Resource

register = Register()
_SECRET_NAME = re.compile(r"(PASSWORD|SECRET|TOKEN|API_KEY|PRIVATE|CREDENTIAL)", re.IGNORECASE)
_FILE_NAME = re.compile(r"(_FILE|_DIR|_PATH|_NAME|_URL|_TOKENS)$", re.IGNORECASE)
_PASSWORD_IN_URL = re.compile(r"\w+://[^/@\s]*:[^/@\s]+@")


@register.rule(
    "restricted-pod",
    Hop.SECURITY,
    why="The namespace enforces the restricted pod standard; without these the pod is refused, or "
    "a break-out has more to work with.",
    source="Kubernetes, Pod Security Standards (restricted)",
)
def restricted_pod(view: ResourceView) -> Iterator[Fault]:
    for pod in view.pods:
        for box in pod.containers:
            for field, must in [*_refused_for(pod, box), *_writable(box)]:
                yield fault(pod.owner, f"{box.get('name')}: {field}", None, must)
        if pod.owner.get("kind") != "InferenceService":
            continue
        if (added := storage_initializer(view, pod.owner)) is not None:
            for field, must in _refused_for(pod, added):
                place = f"{added['name']} (KServe's): {field}"
                yield fault(pod.owner, place, None, f"{must}; {_FOR_INITIALIZER[field]}")


_AT_POD = "in spec.predictor.securityContext"
_AT_KSERVE = "in KServe's ClusterStorageContainer: install KServe with its Helm chart, or patch it"
_FOR_INITIALIZER = {
    "allowPrivilegeEscalation": _AT_KSERVE,
    "capabilities.drop": _AT_KSERVE,
    "runAsNonRoot": _AT_POD,
    "seccompProfile.type": _AT_POD,
    "privileged or runAsUser": _AT_KSERVE,
}


def _refused_for(pod: Pod, box: Resource) -> Iterator[tuple[str, str]]:
    """Give what a container lacks for the restricted standard; the pod's counts where it may."""
    own = box.get("securityContext") or {}
    shared = pod.spec.get("securityContext") or {}
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation", "false"
    if "ALL" not in (dig(own, "capabilities.drop") or []):
        yield "capabilities.drop", "ALL"
    if not own.get("runAsNonRoot", shared.get("runAsNonRoot")):
        yield "runAsNonRoot", "true"
    profile = own.get("seccompProfile") or shared.get("seccompProfile") or {}
    if profile.get("type") not in ("RuntimeDefault", "Localhost"):
        yield "seccompProfile.type", "RuntimeDefault"
    if own.get("privileged") or own.get("runAsUser") == 0:
        yield "privileged or runAsUser", "neither privileged nor root"


def _writable(box: Resource) -> Iterator[tuple[str, str]]:
    """Give our own demand beyond the standard, for containers that are ours."""
    if (box.get("securityContext") or {}).get("readOnlyRootFilesystem") is not True:
        yield "readOnlyRootFilesystem", "true"


@register.rule(
    "object-form",
    Hop.SECURITY,
    why="What has no name in its metadata no server takes, and no other rule looks at.",
    source="Kubernetes, ObjectMeta",
)
def object_form(view: ResourceView) -> Iterator[Fault]:
    for resource in view.nameless:
        kind = resource.get("kind") if isinstance(resource, dict) else type(resource).__name__
        yield Fault(f"{kind}/?", "metadata.name", "not set", "a name")


@register.rule(
    "host-access",
    Hop.SECURITY,
    why="A pod in the host's namespaces or file system is the host.",
    source="Kubernetes, Pod Security Standards (baseline)",
)
def host_access(view: ResourceView) -> Iterator[Fault]:
    for pod in view.pods:
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(field):
                yield fault(pod.owner, f"{pod.path}.{field}", True, "false")
        for volume in pod.spec.get("volumes") or []:
            if "hostPath" in volume:
                yield fault(pod.owner, f"volume {volume.get('name')}", "hostPath", "a claim")


@register.rule(
    "image-pinned",
    Hop.SECURITY,
    why="An image without a version is another one tomorrow, and a rollback does not roll back.",
    source="issue 7.5",
)
def image_pinned(view: ResourceView) -> Iterator[Fault]:
    for pod in view.pods:
        for box in pod.containers:
            image = str(box.get("image", ""))
            tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
            if "@sha256:" not in image and tag in ("", "latest"):
                yield fault(pod.owner, f"{box.get('name')}: image", image, "a version or a digest")


@register.rule(
    "secret-in-manifest",
    Hop.SECURITY,
    why="What is in a manifest is in the repository, its history and every backup of it.",
    source="issue 7.8",
)
def secret_in_manifest(view: ResourceView) -> Iterator[Fault]:
    for secret in view.of("Secret", "v1"):
        if secret.get("data") or secret.get("stringData"):
            yield fault(secret, "data", "(not shown)", "made in the cluster, not in a manifest")
    for pod in view.pods:
        for box in pod.containers:
            for entry in box.get("env") or []:
                if _is_secret(str(entry.get("name")), entry.get("value")):
                    field = f"{box.get('name')}: env {entry['name']}"
                    yield fault(pod.owner, field, "(not shown)", "valueFrom.secretKeyRef")
    for config in (r for r in view.own if r.get("kind") == "ConfigMap"):
        for key, value in (config.get("data") or {}).items():
            if _is_secret(key, value):
                yield fault(config, f"data.{key}", "(not shown)", "a Secret")


def _is_secret(name: str, value: Any) -> bool:
    if not isinstance(value, str) or not value:
        return False
    named = bool(_SECRET_NAME.search(name)) and not _FILE_NAME.search(name)
    return named or bool(_PASSWORD_IN_URL.search(value))


@register.rule(
    "service-links",
    Hop.SECURITY,
    why="Kubernetes injects TORPOR_API_PORT=tcp://... for a Service torpor-api, into the prefix "
    "of our settings.",
    source="Kubernetes, enableServiceLinks",
)
def service_links(view: ResourceView) -> Iterator[Fault]:
    for pod in view.pods:
        if pod.spec.get("enableServiceLinks") is not False:
            yield fault(
                pod.owner, f"{pod.path}.enableServiceLinks", pod.spec.get("enableServiceLinks"),
                "false",
            )  # fmt: skip


@register.rule(
    "api-token",
    Hop.SECURITY,
    why="A process that does not speak to the API server needs no key to it.",
    source="Kubernetes, ServiceAccount",
)
def api_token(view: ResourceView) -> Iterator[Fault]:
    for pod in view.pods:
        talks = "first-secrets" in str(pod.owner.get("metadata", {}).get("name"))
        if not talks and pod.spec.get("automountServiceAccountToken") is not False:
            field = f"{pod.path}.automountServiceAccountToken"
            yield fault(
                pod.owner, field, pod.spec.get("automountServiceAccountToken"), "false",
                Severity.WARNING,
            )  # fmt: skip


@register.rule(
    "limits",
    Hop.SECURITY,
    why="A container without a memory limit can take its node with it; without requests the "
    "scheduler guesses.",
    source="Kubernetes, Resource Management",
)
def limits(view: ResourceView) -> Iterator[Fault]:
    for pod in view.pods:
        for box in pod.containers:
            if not dig(box, "resources.limits.memory"):
                yield fault(pod.owner, f"{box.get('name')}: resources.limits.memory", None, "set")
            if not dig(box, "resources.requests.cpu"):
                field = f"{box.get('name')}: resources.requests.cpu"
                yield fault(pod.owner, field, None, "set", Severity.WARNING)


@register.rule(
    "rights",
    Hop.SECURITY,
    why="After the install nothing needs cluster-wide rights or a wildcard.",
    source="issue 7.4, 7.8",
)
def rights(view: ResourceView) -> Iterator[Fault]:
    for role in [*view.of("Role"), *view.of("ClusterRole")]:
        if not _is_ours(role):
            continue
        for index, rule in enumerate(role.get("rules") or []):
            for field in ("apiGroups", "resources", "verbs"):
                if "*" in (rule.get(field) or []):
                    yield fault(role, f"rules[{index}].{field}", "*", "named one by one")
    for binding in view.of("ClusterRoleBinding"):
        if _is_ours(binding):
            yield fault(binding, "kind", "ClusterRoleBinding", "a RoleBinding in our namespace")


def _is_ours(resource: Resource) -> bool:
    named = dig(resource, "metadata.labels") or {}
    return bool(named.get("app.kubernetes.io/part-of") == "torpor")


_ENFORCED = FieldPath(
    "pod-security.kubernetes.io/enforce",
    lambda space: (dig(space, "metadata.labels") or {}).get("pod-security.kubernetes.io/enforce"),
)


@register.rule(
    "default-deny",
    Hop.SECURITY,
    why="Without a policy that shuts everything, every other policy is only a suggestion.",
    source="issue 7.8",
)
def default_deny(view: ResourceView) -> Iterator[Fault]:
    namespaces = {dig(pod.owner, "metadata.namespace") for pod in view.pods}
    shut = {
        dig(policy, "metadata.namespace")
        for policy in view.of("NetworkPolicy", "networking.k8s.io/")
        if dig(policy, "spec.podSelector") == {}
        and set(dig(policy, "spec.policyTypes") or []) == {"Ingress", "Egress"}
        and not dig(policy, "spec.ingress")
        and not dig(policy, "spec.egress")
    }
    for name in sorted(str(namespace) for namespace in namespaces - shut):
        yield Fault(
            f"Namespace/{name}", "NetworkPolicy", "none that shuts all", "nothing-by-default"
        )


register.rule(
    "pod-standard",
    Hop.SECURITY,
    why="The namespace itself must refuse what is not hardened.",
    source="Kubernetes, Pod Security Admission",
)(
    field_rule(
        lambda view: filter(_is_ours, view.of("Namespace", "v1")),
        _ENFORCED,
        one_of("restricted", "baseline", words="restricted"),
    )
)


@register.rule(
    "keys-file",
    Hop.SECURITY,
    why="Without a file of keys the api would accept any caller: it is off only on loopback.",
    source="issue 5.8",
)
def keys_file(view: ResourceView) -> Iterator[Fault]:
    for pod in view.pods:
        if pod.owner.get("metadata", {}).get("name") != "torpor-api":
            continue
        for box in pod.containers:
            if box.get("name") == "api" and not variable(box, "TORPOR_KEYS_SOURCE"):
                yield fault(pod.owner, "env TORPOR_KEYS_SOURCE", None, "a mounted Secret, or redis")
