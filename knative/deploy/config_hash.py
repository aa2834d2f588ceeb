"""Adds a hash of ConfigMaps to pod templates, so that pods restart when their configuration changes.

Called by the renderer for the shipped overlays, and before every `torpor deploy`, since a canary or an overlay of
the user changes ConfigMaps too. Pure. Processes read settings and triggers once, at start: a pod that is not
restarted goes on with the old ones.
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
from knative.deploy.render.broker.own_broker import TRIGGERS

_KNATIVE = "serving.knative.dev/"


def with_config_hash(resources: Sequence[Resource]) -> list[Resource]:
    """Give a copy in which each pod template has the hash of the ConfigMaps that its pods read at start."""
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
    """Give the hash for one workload, with the resources that it is applied with."""
    place = pod_template(resource)
    return "" if place is None else _hash(read_at_start(place[1], _config_maps(resources)))


def pod_template(resource: Resource) -> tuple[Resource, Resource] | None:
    """Give the metadata and the spec of a workload's pods; None for other resources.

    A Job is not included: its template cannot be changed, and its pods end by themselves.
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
    """Give the part of a ConfigMap that concerns a pod: another model's data or a canary's filter is no reason to
    restart a predictor with running jobs.
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
    """Give the trigger of the pump in the engine's pod; "" where there is none."""
    for box in boxes:
        if box.get("args") == ["eventing.pump"]:
            return str({e["name"]: e.get("value") for e in box["env"]}.get("TORPOR_TRIGGER", ""))
    return ""


def _unfiltered(trigger: Resource) -> Resource:
    """Filters are applied when events are put; a pump takes whatever is in its queue."""
    spec = {k: v for k, v in trigger["spec"].items() if k not in ("filter", "filters")}
    return {**trigger, "spec": spec}


def _config_maps(resources: Iterable[Resource]) -> dict[str, Resource]:
    return {
        resource["metadata"]["name"]: resource.get("data") or {}
        for resource in resources
        if resource["kind"] == "ConfigMap"
    }


def _hash(content: Mapping[str, Any]) -> str:
    # With a prefix, because YAML reads digits with an `e` among them as a number.
    return "sha256-" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
