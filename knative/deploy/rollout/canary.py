"""Canary releases: a new version for a share of the jobs, chosen by the job's id. Pure.

Called by `deploy --canary`, `promote` and `rollback`. The split is a filter on the last digits of the event's id,
which are random hex digits in our own ids. So a job gets the same version on every retry, no table is needed, and
Knative's brokers and ours use the same Trigger.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import yaml

from knative.deploy.doctor.view import CANARY_OF, is_in_knative_mode
from knative.deploy.emit import Resource
from knative.deploy.errors import DeployError
from knative.deploy.render.broker.own_broker import TRIGGERS
from knative.deploy.render.model.inference import INITIAL_SCALE
from knative.deploy.render.parts import trigger_name

TRAFFIC = "canaryTrafficPercent"  # KServe's own: of all calls of the predictor's route, jobs too


class CanaryError(DeployError):
    """There is no canary, or no model to make one of."""


@dataclass(frozen=True, slots=True)
class Change:
    """The differences of the canary; None keeps the model's value."""

    image: str | None = None
    model_uri: str | None = None
    args: tuple[str, ...] | None = None


def suffixes(percent: float) -> list[str]:
    """Give the hex suffixes of ids that make up a share, in steps of 1/256."""
    share = round(percent * 256 / 100)
    if not 0 < share < 256:
        raise CanaryError(f"a canary takes more than 0 % and less than 100 %, not {percent:g} %")
    whole, part = divmod(share, 16)
    return [f"{digit:x}" for digit in range(whole)] + [
        f"{digit:x}{whole:x}" for digit in range(part)
    ]


def is_canary(job_id: str, percent: float) -> bool:
    """Say whether a job goes to the canary, as the filters decide."""
    return job_id.endswith(tuple(suffixes(percent)))


def canary_name(model: str) -> str:
    """Give the name of a model's canary."""
    return f"{model}-canary"


def with_canary(
    resources: Sequence[Resource], model: str, percent: float, change: Change
) -> list[Resource]:
    """Give the resources with a canary beside the model and the jobs split between them.

    Raises CanaryError when the model is not among them.
    """
    found = [r for r in without_canary(resources, model)]
    stable = _named(found, "InferenceService", model)
    if stable is None:
        raise CanaryError(f"there is no InferenceService/{model} to make a canary of")
    found.append(_service(stable, model, percent, change))
    scaled = _named(found, "ScaledObject", model)
    if scaled is not None:
        found.append(_renamed(scaled, model))
    endings = suffixes(percent)
    return [split for resource in found for split in _split(resource, model, endings)]


def with_traffic(
    resources: Sequence[Resource],
    model: str,
    percent: int,
    change: Change,
    before: Sequence[Resource],
) -> list[Resource]:
    """Give the resources with a share of all calls, jobs included, for the newest revision, split by KServe.

    Raises CanaryError when the predictor equals `before` (the last release): then there is no newer revision, and
    the split would be with an older one. The newest gets its share once a pod of it is ready: with no pod to start
    it would be ready untried, and jobs sent to one that cannot start wait in the activator.
    """
    found = copy.deepcopy(list(resources))
    stable = _named(found, "InferenceService", model)
    if stable is None:
        raise CanaryError(f"there is no InferenceService/{model}")
    if not is_in_knative_mode(stable):
        raise CanaryError("KServe splits traffic only in Knative mode; use --canary here")
    _change(stable["spec"]["predictor"]["containers"][0], change)
    last = _named(before, "InferenceService", model)
    if last is None or _unsplit(last["spec"]) == _unsplit(stable["spec"]):
        raise CanaryError(
            f"nothing is new in {model}: give --image or --model-uri with --traffic, or change the "
            "manifests"
        )
    stable["spec"]["predictor"][TRAFFIC] = percent
    _set_initial_scale(stable, "0", "1")
    return found


def _set_initial_scale(predictor: Resource, before: str, after: str) -> None:
    notes = predictor["metadata"].get("annotations") or {}
    if notes.get(INITIAL_SCALE) == before:
        notes[INITIAL_SCALE] = after


def _unsplit(spec: Mapping[str, Any]) -> Resource:
    """Give an InferenceService's spec without its traffic split."""
    predictor = {k: v for k, v in spec["predictor"].items() if k != TRAFFIC}
    return {**spec, "predictor": predictor}


def is_traffic_split(resources: Sequence[Resource]) -> bool:
    """Say whether a predictor's calls go to two revisions."""
    return any(
        r["kind"] == "InferenceService" and r["spec"]["predictor"].get(TRAFFIC, 100) != 100
        for r in resources
    )


def without_canary(resources: Sequence[Resource], model: str) -> list[Resource]:
    """Give the resources with all jobs going to the model again."""
    name = canary_name(model)
    found = []
    for resource in copy.deepcopy(list(resources)):
        own = resource["metadata"]["name"]
        if own in (name, trigger_name(name)) and resource["kind"] != "Namespace":
            continue
        found.append(_joined(resource, model))
    return found


def promoted(resources: Sequence[Resource], model: str) -> list[Resource]:
    """Give the resources with the canary's version as the model's.

    Raises CanaryError when there is no canary.
    """
    canary = _named(resources, "InferenceService", canary_name(model))
    split = _named(resources, "InferenceService", model)
    if canary is None and split is not None and is_traffic_split([split]):
        whole = {**copy.deepcopy(split), "spec": _unsplit(split["spec"])}
        _set_initial_scale(whole, "1", "0")
        return [whole if resource is split else resource for resource in resources]
    if canary is None:
        raise CanaryError(f"there is no canary of {model}: `torpor deploy --canary` makes one")
    found = without_canary(resources, model)
    stable = _named(found, "InferenceService", model)
    if stable is None:
        raise CanaryError(f"there is no InferenceService/{model} to promote to")
    new = canary["spec"]["predictor"]["containers"][0]
    old = stable["spec"]["predictor"]["containers"][0]
    for field in ("image", "args"):
        if field in new:
            old[field] = copy.deepcopy(new[field])
    _set_uri(old, _uri(new))
    return found


def _named(resources: Sequence[Resource], kind: str, name: str) -> Resource | None:
    found = [r for r in resources if r["kind"] == kind and r["metadata"]["name"] == name]
    return found[0] if found else None


def _service(stable: Resource, model: str, percent: float, change: Change) -> Resource:
    made = copy.deepcopy(stable)
    made["metadata"]["name"] = canary_name(model)
    made["metadata"].setdefault("labels", {})[CANARY_OF] = model
    predictor = made["spec"]["predictor"]
    predictor["maxReplicas"] = max(1, ceil(predictor.get("maxReplicas", 1) * percent / 100))
    _change(predictor["containers"][0], change)
    for other in predictor["containers"]:
        for entry in other.get("env") or []:
            if entry["name"] == "TORPOR_TRIGGER":
                entry["value"] = trigger_name(canary_name(model))
    return made


def _change(box: Resource, change: Change) -> None:
    if change.image:
        box["image"] = change.image
    if change.args is not None:
        box["args"] = list(change.args)
    if change.model_uri:
        _set_uri(box, change.model_uri)


def _uri(box: Mapping[str, Any]) -> str | None:
    values = [e.get("value") for e in box.get("env") or [] if e["name"] == "STORAGE_URI"]
    return values[0] if values else None


def _set_uri(box: Resource, uri: str | None) -> None:
    for entry in box.get("env") or []:
        if entry["name"] == "STORAGE_URI" and uri is not None:
            entry["value"] = uri


def _renamed(scaled: Resource, model: str) -> Resource:
    """Give a ScaledObject for the canary, with its own Deployment and stream."""
    made = copy.deepcopy(scaled)
    name = canary_name(model)
    made["metadata"]["name"] = name
    made["spec"]["scaleTargetRef"]["name"] = f"{name}-predictor"
    for trigger in made["spec"]["triggers"]:
        data = trigger["metadata"]
        for field in ("stream", "queue"):
            if field in data:
                data[field] = data[field].replace(trigger_name(model), trigger_name(name))
        if "query" in data:  # of the pods' own load
            data["query"] = data["query"].replace(f"{model}-predictor-", f"{name}-predictor-")
    return made


def _split(resource: Resource, model: str, endings: list[str]) -> list[Resource]:
    """Give a resource with the model's trigger split in two, if it contains that trigger."""
    if resource["kind"] == "Trigger" and resource["metadata"]["name"] == trigger_name(model):
        return _split_trigger(resource, model, endings)
    if resource["kind"] == "ConfigMap" and resource["metadata"]["name"] == TRIGGERS:
        held = list(yaml.safe_load_all(resource["data"]["triggers.yaml"]))
        split = [each for trigger in held for each in _split(trigger, model, endings)]
        resource["data"]["triggers.yaml"] = yaml.safe_dump_all(split, sort_keys=False)
    return [resource]


def _split_trigger(trigger: Resource, model: str, endings: list[str]) -> list[Resource]:
    chosen = {"any": [{"suffix": {"id": ending}} for ending in endings]}
    exact = {"exact": trigger["spec"].pop("filter")["attributes"]}
    canary = copy.deepcopy(trigger)
    canary["metadata"]["name"] = trigger_name(canary_name(model))
    canary["metadata"].setdefault("labels", {})[CANARY_OF] = model
    canary["spec"]["filters"] = [exact, chosen]
    trigger["spec"]["filters"] = [exact, {"not": chosen}]
    reference = canary["spec"]["subscriber"].get("ref")
    if reference:
        reference["name"] = f"{canary_name(model)}-predictor"
    return [trigger, canary]


def _joined(resource: Resource, model: str) -> Resource:
    """Give a resource with the model's trigger restored."""
    if resource["kind"] == "Trigger" and resource["metadata"]["name"] == trigger_name(model):
        filters = resource["spec"].pop("filters", None)
        if filters:
            resource["spec"]["filter"] = {"attributes": filters[0]["exact"]}
    if resource["kind"] == "ConfigMap" and resource["metadata"]["name"] == TRIGGERS:
        held = list(yaml.safe_load_all(resource["data"]["triggers.yaml"]))
        whole = without_canary(held, model)
        if whole != held:
            resource["data"]["triggers.yaml"] = yaml.safe_dump_all(whole, sort_keys=False)
    return resource
