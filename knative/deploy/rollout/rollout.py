"""Deploys resources: dry run, apply in order, wait, and report why something is stuck.

Called by the commands. Progress is reported through `Screen`; nothing is printed here. If the process dies
half-way, the same deploy again finishes the work: every step is an apply.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

import yaml

from eventing.errors import first_of
from knative.deploy.doctor.view import annotation, is_in_knative_mode
from knative.deploy.emit import Resource
from knative.deploy.errors import (
    ClusterForbidden,
    Conflict,
    DeployError,
    Invalid,
    MissingKind,
    ObjectNotFound,
)
from knative.deploy.errors import NotReady as NotReadyError
from knative.deploy.readiness import (
    READY,
    WITH_OWN_EVENTS,
    ObjectReadiness,
    is_made_from,
    readiness,
    waits_for,
    why_stuck,
)
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
STUCK_AFTER_S = 20.0


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


@dataclass
class _Watched:
    """An object that is waited for. For a predictor in Knative mode the Knative Service is followed, until it
    serves the version with the hash.
    """

    ref: Ref
    follows: Ref
    hash: str | None = None
    state: ObjectReadiness = field(
        default_factory=lambda: ObjectReadiness(False, "not looked at yet")
    )
    reported: list[str] = field(default_factory=list)


def _watched(resource: Resource) -> _Watched:
    ref = ref_of(resource)
    if is_in_knative_mode(resource):
        follows = knative_service.service_of(resource)
        return _Watched(ref, follows, annotation(resource, knative_service.HASH))
    return _Watched(ref, ref)


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

    Waiting is `wait`'s; a release that never becomes ready is recorded too, and can be rolled back.
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


async def wait(
    cluster: Cluster, resources: Sequence[Resource], terms: RolloutOptions, screen: Screen
) -> None:
    """Wait until everything is ready, reporting each change of state and the reason when something is stuck.

    Raises NotReady with all that is missing after `timeout_s`, or at once when an applied object is deleted
    meanwhile.
    """
    watched = [
        _watched(r) for r in in_order(knative_service.with_hashes(resources)) if waits_for(r)
    ]
    try:
        await _wait_for_all(cluster, watched, terms, screen)
    except ExceptionGroup as failed:
        raise first_of(failed) from None


async def _wait_for_all(
    cluster: Cluster, watched: Sequence[_Watched], terms: RolloutOptions, screen: Screen
) -> None:
    try:
        async with asyncio.timeout(terms.timeout_s), asyncio.TaskGroup() as group:
            for each in watched:
                group.create_task(_wait_for(cluster, each, screen))
    except TimeoutError as error:
        raise NotReadyError(await _what_is_missing(cluster, watched, terms)) from error


async def _wait_for(cluster: Cluster, each: _Watched, screen: Screen) -> None:
    """Follow one object until it is ready; report the reason when it stays unchanged for a while."""
    was_there = False
    while True:
        try:
            async with (
                asyncio.timeout(STUCK_AFTER_S),
                aclosing(cluster.follow(each.follows)) as states,
            ):
                async for live in states:
                    if live is None and each.ref.kind == "Job":
                        return  # it ended, and was cleaned up: one that was never made is refused
                    if live is None and was_there:
                        raise NotReadyError(f"{each.ref} was deleted while we waited for it")
                    was_there = was_there or live is not None
                    if _is_ready_now(each, live, screen):
                        await _drop_superseded(cluster, each, live, screen)
                        return
        except TimeoutError:
            reasons = await stuck_reasons(cluster, each.ref)
            if reasons != each.reported:  # a reason is reported once
                screen.waiting(each.ref, each.state, reasons)
            each.reported = reasons


async def _drop_superseded(
    cluster: Cluster, each: _Watched, live: Resource | None, screen: Screen
) -> None:
    if live is not None and each.follows != each.ref:
        for ref in await knative_service.drop_never_ready(cluster, live):
            screen.applied(RolloutStep(ref, "prune"))


def _is_ready_now(each: _Watched, live: Resource | None, screen: Screen) -> bool:
    if each.follows != each.ref:
        state = knative_service.service_readiness(live, each.hash)
    else:
        state = readiness(live) if live else ObjectReadiness(False, "not there yet")
    if state != each.state:
        each.state = state
        screen.waiting(each.ref, state, ())
    return state == READY


async def _what_is_missing(
    cluster: Cluster, watched: Sequence[_Watched], terms: RolloutOptions
) -> str:
    lines = [f"not ready after {terms.timeout_s:.0f} s:"]
    for each in watched:
        if not each.state.is_ready:
            lines.append(f"  {each.ref}: {each.state.reason}")
            lines += [f"    {reason}" for reason in await stuck_reasons(cluster, each.ref)]
    return "\n".join(lines)


async def stuck_reasons(cluster: Cluster, ref: Ref, *, is_ready: bool = False) -> list[str]:
    """Give why an object's pods are not ready, from the pods and the namespace's warnings."""
    try:
        pods, _ = await cluster.list("v1", "Pod", ref.namespace)
        events, _ = await cluster.list("v1", "Event", ref.namespace, fieldSelector="type=Warning")
    except DeployError as error:
        return [f"(cannot look into pods: {error})"]
    mine = [pod for pod in pods if is_made_from(ref.kind, ref.name, pod["metadata"]["name"])]
    about = [event for event in events if _is_about(event.get("involvedObject") or {}, ref)]
    return why_stuck(mine, about, is_ready=is_ready)


def _is_about(seen: Resource, ref: Ref) -> bool:
    """An InferenceService and the ScaledObject beside it have one name."""
    if seen.get("kind") in WITH_OWN_EVENTS and ref.kind in WITH_OWN_EVENTS:
        return (seen["kind"], seen.get("name")) == (ref.kind, ref.name)
    return is_made_from(ref.kind, ref.name, str(seen.get("name", "")))


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
