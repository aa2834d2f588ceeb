"""The wait until everything that was deployed is ready, with the reason where something is stuck."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from eventing.errors import first_of
from knative.deploy.doctor.view import annotation, is_in_knative_mode
from knative.deploy.emit import Resource
from knative.deploy.errors import DeployError
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
from knative.deploy.rollout.client import Cluster, Ref, ref_of
from knative.deploy.rollout.rollout import RolloutOptions, RolloutStep, Screen, in_order

STUCK_AFTER_S = 20.0


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


async def wait_until_ready(
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
