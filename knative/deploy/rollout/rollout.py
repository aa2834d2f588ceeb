"""Deploys resources: dry run, and apply in order.

Called by the commands. Progress is reported through `Screen`; nothing is printed here. If the process dies
half-way, the same deploy again finishes the work: every step is an apply.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import yaml

from knative.deploy.doctor.view import is_in_knative_mode
from knative.deploy.emit import Resource
from knative.deploy.errors import ClusterForbidden, Conflict, Invalid, MissingKind, ObjectNotFound
from knative.deploy.errors import NotReady as NotReadyError
from knative.deploy.readiness import READY, ObjectReadiness, readiness
from knative.deploy.rollout import knative_service
from knative.deploy.rollout import release as history
from knative.deploy.rollout.canary import is_traffic_split
from knative.deploy.rollout.client import FIELD_MANAGER, Cluster, Ref, ref_of
from knative.deploy.rollout.release import Release

# Applied in this order; everything that others refer to comes first.
_ORDER = ("Namespace", "ServiceAccount", "Role", "RoleBinding", "Secret", "ConfigMap",
          "PersistentVolumeClaim", "NetworkPolicy", "Service", "TriggerAuthentication",
          "RabbitmqCluster", "RabbitmqBrokerConfig", "Job", "StatefulSet", "Broker", "Deployment",
          "InferenceService", "Trigger", "ScaledObject")  # fmt: skip
# Made once at install; a deployer without the right to touch them leaves them as they are.
_BY_INSTALLER = frozenset({"Namespace", "Role", "RoleBinding", "ServiceAccount", "NodePool",
                           "LocalModelCache", "LocalModelNodeGroup"})  # fmt: skip
_NOISE = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink")
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


@dataclass(frozen=True, slots=True)
class RolloutStep:
    """The effect of applying one object: `create`, `change`, `same`, `leave` (no right), or `done` (a Job that
    ended and was cleaned up). `takes_over`: another manager's fields become ours.
    """

    ref: Ref
    action: str
    difference: str = ""
    takes_over: bool = False


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """The effect of a deploy, from a dry run on the server."""

    steps: tuple[RolloutStep, ...]
    prune: tuple[Ref, ...] = ()

    @property
    def is_empty(self) -> bool:
        """True when no object would change; fields may still change managers."""
        return not self.prune and all(
            step.action in ("same", "leave", "done") for step in self.steps
        )

    @property
    def takes_over(self) -> bool:
        return any(step.takes_over for step in self.steps)


class Screen(Protocol):
    """Receives progress."""

    def applied(self, step: RolloutStep) -> None: ...
    def waiting(self, ref: Ref, state: ObjectReadiness, stuck: Sequence[str]) -> None: ...


@dataclass(frozen=True, slots=True)
class RolloutOptions:
    """How to deploy."""

    namespace: str
    takes_over: bool = False
    timeout_s: float = 900.0
    note: str = ""


def in_order(resources: Iterable[Resource]) -> list[Resource]:
    """Give the resources in the order in which they may be applied."""

    def rank(resource: Resource) -> int:
        kind = resource["kind"]
        return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)

    return sorted(resources, key=rank)


async def missing_kinds(cluster: Cluster, resources: Sequence[Resource]) -> list[MissingKind]:
    """Give every kind that the cluster does not know, each with how to install it."""
    wanted = dict.fromkeys((r["apiVersion"], r["kind"]) for r in resources)
    if any(is_in_knative_mode(r) for r in resources):  # no object of ours is of this kind
        wanted[knative_service.API_VERSION, "Service"] = None
    found = []
    for api_version, kind in wanted:
        try:
            await cluster.kind(api_version, kind)
        except MissingKind as missing:
            found.append(missing)
    return found


async def plan(
    cluster: Cluster, resources: Sequence[Resource], terms: RolloutOptions
) -> RolloutPlan:
    """Give the effect of a deploy, by a dry run of every apply.

    Raises what the server would refuse: Conflict, Invalid, ClusterForbidden.
    """
    resources = knative_service.with_hashes(resources)
    known = await _known_releases(cluster, terms.namespace)
    before = known[-1] if known else None
    done = [r for r in before.resources if r["kind"] == "Job"] if before else []
    steps = [await _look(cluster, resource, terms, done) for resource in in_order(resources)]
    return RolloutPlan(tuple(steps), tuple(history.to_prune(before, list(resources))))


async def _known_releases(cluster: Cluster, namespace: str) -> list[Release]:
    try:
        return await history.releases(cluster, namespace)
    except ObjectNotFound:
        return []


async def _look(
    cluster: Cluster, resource: Resource, terms: RolloutOptions, done: Sequence[Resource]
) -> RolloutStep:
    ref = ref_of(resource)
    try:
        live = await cluster.get(ref)
    except ClusterForbidden:
        if ref.kind in _BY_INSTALLER:
            return RolloutStep(ref, "leave")
        raise
    if ref.kind == "Job" and (readiness(live) == READY if live else resource in done):
        return RolloutStep(ref, "done")  # a Job's template cannot be changed, and its work is done
    try:
        made, takes_over = await _try(cluster, resource, live, terms)
    except ObjectNotFound:  # its namespace will only be there after the real apply
        return RolloutStep(ref, "create", _shown({}, resource, ref))
    except ClusterForbidden:
        if live is not None and ref.kind in _BY_INSTALLER:
            return RolloutStep(ref, "leave")
        raise
    except Conflict as conflict:
        raise _explained(conflict, ref) from conflict
    except Invalid as refused:
        raise Invalid(f"{ref} is refused: {refused}", refused.status) from refused
    difference = _shown(live or {}, made, ref)
    if live is None:
        return RolloutStep(ref, "create", difference)
    return RolloutStep(ref, "change" if difference else "same", difference, takes_over)


async def _try(
    cluster: Cluster, resource: Resource, live: Resource | None, terms: RolloutOptions
) -> tuple[Resource, bool]:
    """Give the result of a dry run, and whether fields change managers by it.

    Fields that we set by another command (`scale`) are ours. Fields of another manager are taken over when their
    value, defaults included, stays the same.
    """
    try:
        return await cluster.apply(resource, is_dry_run=True), False
    except Conflict as conflict:
        made = await cluster.apply(resource, is_dry_run=True, takes_over=True)
        is_ours = all(cause.manager == FIELD_MANAGER for cause in conflict.causes)
        is_same = _bare(made) == _bare(live or {})
        if terms.takes_over or is_same or (is_ours and conflict.causes):
            return made, True
        raise


def _explained(conflict: Conflict, ref: Ref) -> Conflict:
    causes = "; ".join(map(str, conflict.causes)) or str(conflict)
    return Conflict(
        f"{ref}: fields to be set belong to another manager: {causes}. --take-over takes them over",
        409,
        causes=conflict.causes,
    )


def _shown(before: Resource, after: Resource, ref: Ref) -> str:
    """Give a unified diff of two states, without fields that the server adds."""
    left, right = (
        yaml.safe_dump(_bare(state), sort_keys=True).splitlines() if state else []
        for state in (before, after)
    )
    return "\n".join(difflib.unified_diff(left, right, f"live/{ref}", f"new/{ref}", lineterm=""))


def _bare(state: Resource) -> Resource:
    made = {key: value for key, value in state.items() if key != "status"}
    data = {key: value for key, value in state["metadata"].items() if key not in _NOISE}
    notes = {k: v for k, v in (data.pop("annotations", None) or {}).items() if k != _LAST_APPLIED}
    made["metadata"] = {**data, "annotations": notes} if notes else data
    return made


async def deploy(
    cluster: Cluster, resources: Sequence[Resource], terms: RolloutOptions, screen: Screen
) -> Release:
    """Apply everything, prune what only the last release had, record this release; give the last one when nothing
    has changed.

    Waiting is `wait_until_ready`'s; a release that never becomes ready is recorded too, and can be rolled back.
    """
    resources = knative_service.with_hashes(resources)
    made = await plan(cluster, resources, terms)
    by_ref = {step.ref: step for step in made.steps}
    for resource in in_order(resources):
        step = by_ref[ref_of(resource)]
        if step.action not in ("leave", "done"):
            await cluster.apply(resource, takes_over=step.takes_over)
        screen.applied(step)
    for ref in made.prune:
        await cluster.delete(ref)
        screen.applied(RolloutStep(ref, "prune"))
    known = await history.releases(cluster, terms.namespace)
    if made.is_empty and known:  # a change of field managers only is not a release
        return known[-1]
    return await history.record(cluster, terms.namespace, list(resources), terms.note)


async def roll_back(
    cluster: Cluster, terms: RolloutOptions, screen: Screen, *, to: int | None = None
) -> Release:
    """Deploy an earlier release again: the one before the newest, or the given one.

    Raises NotReady when there is none.
    """
    known = await history.releases(cluster, terms.namespace)
    earlier = [r for r in known if (r.number == to if to else r.number < known[-1].number)]
    if to is None:
        earlier = [r for r in earlier if not is_traffic_split(r.resources)]
    elif earlier and is_traffic_split(earlier[0].resources):
        raise NotReadyError(f"release {to} split the traffic with the one before it; name another")
    if not earlier:
        numbers = ", ".join(str(r.number) for r in known) or "none"
        raise NotReadyError(f"there is no release to go back to (kept: {numbers})")
    chosen = earlier[-1]
    note = f"back to {chosen.number}"
    return await deploy(
        cluster,
        chosen.resources,
        RolloutOptions(terms.namespace, terms.takes_over, terms.timeout_s, note),
        screen,
    )


async def remove(
    cluster: Cluster, terms: RolloutOptions, screen: Screen, *, with_data: bool = False
) -> list[Ref]:
    """Delete the newest release's objects in reverse order, and all releases.

    Namespace, disks and Secrets stay unless `with_data`. Give what was kept.
    """
    known = await history.releases(cluster, terms.namespace)
    resources = list(known[-1].resources) if known else []
    kept = []
    for resource in reversed(in_order(resources)):
        ref = ref_of(resource)
        if ref.kind in ("Namespace", "PersistentVolumeClaim", "Secret") and not with_data:
            kept.append(ref)
            continue
        await cluster.delete(ref)
        screen.applied(RolloutStep(ref, "delete"))
    for old in known:
        name = f"torpor-release-{old.number:06d}"
        await cluster.delete(Ref("v1", "ConfigMap", name, terms.namespace))
    return kept
