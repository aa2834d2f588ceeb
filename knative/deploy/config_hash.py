"""Pods that roll when a ConfigMap that they read at start changes.

Called by the renderer for the shipped overlays, and before every `torpor deploy`, since a canary or
an overlay of yours changes ConfigMaps too. Pure. Processes read settings and triggers once: a pod
that does not roll goes on with the old ones.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from knative.deploy.emit import Resource
from knative.deploy.render import parts
from knative.deploy.render.own_broker import TRIGGERS

_KNATIVE = "serving.knative.dev/"


def with_config_hash(resources: Sequence[Resource]) -> list[Resource]:
    """Give a copy in which each pod template carries the hash of what its pods read at start."""
    found = copy.deepcopy(list(resources))
    configs = _config_maps(found)
    for resource in found:
        place = pod_template(resource)
        if place is not None:
            metadata, spec = place
            notes = metadata.get("annotations") or {}
            metadata["annotations"] = {
                **notes,
                parts.CONFIG_HASH: _hash(read_at_start(spec, configs)),
            }
    return found


def config_hash(resource: Resource, resources: Iterable[Resource]) -> str:
    """Give the hash for one workload among the resources that it is applied with."""
    place = pod_template(resource)
    return "" if place is None else _hash(read_at_start(place[1], _config_maps(resources)))


def pod_template(resource: Resource) -> tuple[Resource, Resource] | None:
    """Give where a workload keeps its pods' metadata, and their spec; None for anything else.

    A Job's template cannot be changed, and its pods end by themselves.
    """
    is_knative = str(resource["apiVersion"]).startswith(_KNATIVE)
    if resource["kind"] == "InferenceService":
        predictor = resource["spec"]["predictor"]
        return predictor, predictor
    if resource["kind"] in ("Deployment", "StatefulSet") or (
        resource["kind"] == "Service" and is_knative
    ):
        template = resource["spec"]["template"]
        return template.setdefault("metadata", {}), template["spec"]
    return None


def read_at_start(spec: Resource, configs: Mapping[str, Resource]) -> dict[str, Any]:
    """Give what the containers of a pod read of the ConfigMaps, by name."""
    names = dict.fromkeys(name for name in config_names(spec) if name in configs)
    return {name: _own_part(name, configs[name], spec) for name in names}


def config_names(spec: Resource) -> Iterator[str]:
    """Give every ConfigMap that a pod mounts or takes its environment from."""
    for box in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
        for source in box.get("envFrom") or []:
            if "configMapRef" in source:
                yield source["configMapRef"]["name"]
        for entry in box.get("env") or []:
            reference = (entry.get("valueFrom") or {}).get("configMapKeyRef")
            if reference:
                yield reference["name"]
    for volume in spec.get("volumes") or []:
        for source in [volume, *((volume.get("projected") or {}).get("sources") or [])]:
            if "configMap" in source:
                yield source["configMap"].get("name", "")


def _own_part(name: str, data: Resource, spec: Resource) -> Any:
    """Give what of a ConfigMap matters to a pod: a new model beside theirs, or a canary's filter,
    is no reason to end predictors that think.
    """
    boxes = spec.get("containers") or []
    if "kserve-container" not in [box.get("name") for box in boxes]:
        return data
    served = _served_trigger(boxes)
    if name == parts.SETTINGS:
        return {key: value for key, value in data.items() if key != "TORPOR_MODELS"}
    if name == TRIGGERS and served:
        triggers = [each for each in yaml.safe_load_all(data["triggers.yaml"]) if each]
        return [_unfiltered(each) for each in triggers if each["metadata"]["name"] == served]
    return data


def _served_trigger(boxes: Sequence[Resource]) -> str:
    """Give the trigger that the pump beside an engine serves; "" where there is none."""
    for box in boxes:
        if box.get("args") == ["eventing.pump"]:
            return str({e["name"]: e.get("value") for e in box["env"]}.get("TORPOR_TRIGGER", ""))
    return ""


def _unfiltered(trigger: Resource) -> Resource:
    """Who puts events filters them; a pump takes what is in its queue."""
    spec = {k: v for k, v in trigger["spec"].items() if k not in ("filter", "filters")}
    return {**trigger, "spec": spec}


def _config_maps(resources: Iterable[Resource]) -> dict[str, Resource]:
    return {
        resource["metadata"]["name"]: resource.get("data") or {}
        for resource in resources
        if resource["kind"] == "ConfigMap"
    }


def _hash(content: Mapping[str, Any]) -> str:
    # With a word before it: digits with an `e` among them are a number to kubectl's YAML.
    return "sha256-" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
