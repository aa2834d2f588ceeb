"""The state of a live cluster: for the doctor, for `status`, and the logs.

Called by the commands. Reads only, except for `set_bounds`. Kinds that are not installed are skipped; missing
rights narrow the view and are not an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from knative.deploy.doctor.view import is_in_knative_mode
from knative.deploy.emit import Resource
from knative.deploy.errors import ClusterForbidden, DeployError, MissingKind, ObjectNotFound
from knative.deploy.readiness import ObjectReadiness, readiness
from knative.deploy.rollout import knative_service
from knative.deploy.rollout.client import Cluster, Ref, ref_of
from knative.deploy.rollout.wait import stuck_reasons

OURS = "app.kubernetes.io/part-of=torpor"
_EXAMINED = (
    ("v1", "ConfigMap"),
    ("v1", "Service"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("networking.k8s.io/v1", "Ingress"),
    ("apps/v1", "ReplicaSet"),
    ("v1", "Pod"),
    ("serving.kserve.io/v1beta1", "InferenceService"),
    ("serving.kserve.io/v1alpha1", "ClusterStorageContainer"),
    ("serving.knative.dev/v1", "Service"),
    ("eventing.knative.dev/v1", "Broker"),
    ("eventing.knative.dev/v1", "Trigger"),
    ("eventing.knative.dev/v1alpha1", "RabbitmqBrokerConfig"),
    ("rabbitmq.com/v1beta1", "RabbitmqCluster"),
    ("keda.sh/v1alpha1", "ScaledObject"),
)
_PLATFORM = (
    Ref("v1", "ConfigMap", "config-defaults", "knative-serving"),
    Ref("v1", "ConfigMap", "config-features", "knative-serving"),
    Ref("v1", "ConfigMap", "config-autoscaler", "knative-serving"),
    Ref("v1", "ConfigMap", "config-network", "knative-serving"),
    Ref("v1", "ConfigMap", "inferenceservice-config", "kserve"),
    Ref("apps/v1", "Deployment", "activator", "knative-serving"),
    Ref("apps/v1", "Deployment", "keda-operator", "keda"),
    Ref("apps/v1", "Deployment", "kserve-controller-manager", "kserve"),
    Ref("apps/v1", "Deployment", "cluster-autoscaler", "kube-system"),
)
# Events that say what no object does: admission refused a pod, KServe a deployment mode.
_TELLING = ("FailedCreate", "ServerlessModeRejected")
_SHOWN = ("Deployment", "StatefulSet", "InferenceService", "Broker", "Trigger", "ScaledObject")


@dataclass(frozen=True, slots=True)
class Row:
    """One object in `status`."""

    ref: Ref
    replicas: str
    state: ObjectReadiness
    stuck: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Give the row for `--json`."""
        return {
            "kind": self.ref.kind,
            "name": self.ref.name,
            "replicas": self.replicas,
            "ready": self.state.is_ready,
            "reason": self.state.reason,
            "stuck": list(self.stuck),
        }


async def _listed(
    cluster: Cluster, api_version: str, kind: str, namespace: str, **selectors: str
) -> list[Resource]:
    try:
        found, _ = await cluster.list(api_version, kind, namespace, **selectors)
    except (MissingKind, ClusterForbidden, ObjectNotFound):
        return []
    return found


async def snapshot(cluster: Cluster, namespace: str) -> list[Resource]:
    """Give the doctor's input from a live cluster: our resources and the platforms' settings."""
    lists = await asyncio.gather(*(_listed(cluster, v, k, namespace) for v, k in _EXAMINED))
    own = [resource for found in lists for resource in found if not _is_by_controller(resource)]
    platform = await asyncio.gather(*(_got(cluster, ref) for ref in _PLATFORM))
    found = await asyncio.gather(
        *(
            _listed(cluster, "v1", "Event", namespace, fieldSelector=f"reason={reason}")
            for reason in _TELLING
        )
    )
    return [*own, *(r for r in platform if r), *(event for events in found for event in events)]


def over(seen: Sequence[Resource], planned: Sequence[Resource]) -> list[Resource]:
    """Give both together: the cluster's resources, and of the planned ones those that it does not have."""

    def address(resource: Resource) -> tuple[object, ...]:
        data = resource.get("metadata") or {}
        version, kind = resource.get("apiVersion"), resource.get("kind")
        return version, kind, data.get("namespace"), data.get("name")

    known = {address(resource) for resource in seen}
    return [*seen, *(resource for resource in planned if address(resource) not in known)]


async def _got(cluster: Cluster, ref: Ref) -> Resource | None:
    try:
        return await cluster.get(ref)
    except (MissingKind, ClusterForbidden):
        return None


def _is_by_controller(resource: Resource) -> bool:
    """Resources that KServe, Knative or KEDA made from ours are skipped, except Knative Services, which have the
    timeouts, and ReplicaSets and Pods, which show the result.
    """
    owned = bool(resource["metadata"].get("ownerReferences"))
    is_knative = str(resource["apiVersion"]).startswith("serving.knative.dev/")
    return owned and not is_knative and resource["kind"] not in ("ReplicaSet", "Pod")


async def rows(cluster: Cluster, namespace: str) -> list[Row]:
    """Give the deployed resources and their state, with reasons for those not ready."""
    kinds = [(version, kind) for version, kind in _EXAMINED if kind in _SHOWN]
    lists = await asyncio.gather(
        *(_listed(cluster, v, k, namespace, labelSelector=OURS) for v, k in kinds)
    )
    shown = (each for found in lists for each in found if not _is_asleep_revision(each))
    return [await _row(cluster, resource) for resource in shown]


def _is_asleep_revision(resource: Resource) -> bool:
    """Knative keeps the Deployments of old revisions, at zero; the InferenceService is shown for all of them."""
    labels = resource["metadata"].get("labels") or {}
    return (
        resource["kind"] == "Deployment"
        and knative_service.OF_REVISION in labels
        and (resource.get("spec") or {}).get("replicas") == 0
    )


async def _row(cluster: Cluster, resource: Resource) -> Row:
    ref = ref_of(resource)
    is_knative = is_in_knative_mode(resource)
    state = (
        await knative_service.readiness_of(cluster, resource) if is_knative else readiness(resource)
    )
    # A predictor at zero is ready by its conditions, and so is one whose only pod crashes again and again.
    is_quiet = state.is_ready and ref.kind != "InferenceService"
    stuck = () if is_quiet else tuple(await stuck_reasons(cluster, ref, is_ready=state.is_ready))
    return Row(ref, _replicas(resource), state, stuck)


def _replicas(resource: Resource) -> str:
    spec, status = resource.get("spec") or {}, resource.get("status") or {}
    match resource["kind"]:
        case "Deployment" | "StatefulSet":
            return f"{status.get('readyReplicas', 0)}/{spec.get('replicas', 1)}"
        case "InferenceService":
            bounds = spec.get("predictor") or {}
            return f"{bounds.get('minReplicas', 1)}..{bounds.get('maxReplicas', 1)}"
        case "ScaledObject":
            return f"{spec.get('minReplicaCount', 0)}..{spec.get('maxReplicaCount', 100)}"
        case _:
            return ""


async def set_bounds(
    cluster: Cluster, namespace: str, model: str, least: int | None, most: int | None
) -> list[str]:
    """Set a model's bounds on its InferenceService and, if there is one, its ScaledObject.

    Give one line an object. Raises NotFound when there is no such model.
    """
    service = Ref("serving.kserve.io/v1beta1", "InferenceService", model, namespace)
    scaled = Ref("keda.sh/v1alpha1", "ScaledObject", model, namespace)
    changes: dict[Ref, Resource] = {
        service: {"spec": {"predictor": _given(minReplicas=least, maxReplicas=most)}},
        scaled: {"spec": _given(minReplicaCount=least, maxReplicaCount=most)},
    }
    lines = []
    for ref, change in changes.items():
        try:
            await cluster.patch(ref, change)
        except (MissingKind, ObjectNotFound):
            if ref is service:
                raise
            continue
        lines.append(f"{ref}: min {_or_same(least)}, max {_or_same(most)}")
    return lines


def _given(**fields: int | None) -> dict[str, int]:
    return {name: value for name, value in fields.items() if value is not None}


def _or_same(value: int | None) -> str:
    return "as it was" if value is None else str(value)


async def log_lines(
    cluster: Cluster, namespace: str, component: str, *, follows: bool, tail: int
) -> AsyncIterator[tuple[str, str]]:
    """Give (pod, line) of all pods of a component as they come.

    Raises NotFound when there is no such pod.
    """
    selector = f"app.kubernetes.io/name=torpor,app.kubernetes.io/component={component}"
    pods, _ = await cluster.list("v1", "Pod", namespace, labelSelector=selector)
    if not pods:
        raise ObjectNotFound(f"no pod of component {component} in {namespace} (asleep?)", 404)
    lines: asyncio.Queue[tuple[str, str] | None] = asyncio.Queue(maxsize=1000)
    async with asyncio.TaskGroup() as group:
        readers = [
            group.create_task(_read_pod(cluster, pod, lines, follows=follows, tail=tail))
            for pod in pods
        ]
        for _ in range(len(readers)):
            while (item := await lines.get()) is not None:
                yield item


async def _read_pod(
    cluster: Cluster,
    pod: Resource,
    lines: asyncio.Queue[tuple[str, str] | None],
    *,
    follows: bool,
    tail: int,
) -> None:
    """Put a pod's lines into the queue, then None, also when the pod ends."""
    data = pod["metadata"]
    boxes: Sequence[Resource] = pod["spec"]["containers"]
    name = "kserve-container" if len(boxes) > 1 else boxes[0]["name"]
    names = [box["name"] for box in boxes]
    container = name if name in names else names[0]
    try:
        async for line in cluster.logs(
            data["namespace"], data["name"], container=container, follows=follows, tail=tail
        ):
            await lines.put((data["name"], line))
    except DeployError as error:
        await lines.put((data["name"], f"(no logs: {error})"))
    finally:
        await lines.put(None)
