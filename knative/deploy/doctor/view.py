"""A list of resources by kind and by their role for a job.

Used by every rule. Gives raw values; the rules judge them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from knative.deploy.emit import Resource
from knative.deploy.render import parts
from knative.deploy.render.broker.own_broker import API_PATH
from knative.deploy.render.tools.config import SERVER
from knative.deploy.timeouts import exponential_span, linear_span

MODE = "serving.kserve.io/deploymentMode"
CANARY_OF = "torpor.dev/canary-of"  # a canary serves the model's name
BROKER_CLASS = "eventing.knative.dev/broker.class"
_ISO = re.compile(r"^P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?$")
_GO = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_GO_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
DEFAULT_JOB_S = 1800
DEFAULT_COLD_START_S = 600


def iso_seconds(text: Any) -> float | None:
    """Give the seconds of an ISO-8601 duration such as PT90S; None for other text."""
    match = _ISO.match(text) if isinstance(text, str) else None
    if not match or text in ("P", "PT"):
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return days * 86_400 + hours * 3600 + minutes * 60 + seconds


def go_seconds(text: Any) -> float | None:
    """Give the seconds of a Go duration such as 10m30s; None for other text."""
    if not isinstance(text, str) or not text:
        return None
    found = _GO.findall(text)
    if "".join(number + unit for number, unit in found) != text:
        return None
    return sum(float(number) * _GO_SECONDS[unit] for number, unit in found)


def dig(node: Any, path: str) -> Any:
    """Give the value at a dotted path, or None where it ends early."""
    for step in path.split("."):
        if isinstance(node, list):
            node = node[int(step)] if int(step) < len(node) else None
        else:
            node = node.get(step) if isinstance(node, dict) else None
    return node


def number(value: Any) -> float | None:
    """Give a number, from a number or its text; None for anything else."""
    try:
        return None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def annotation(resource: Resource, key: str) -> Any:
    """Give an annotation, or None."""
    return (resource.get("metadata", {}).get("annotations") or {}).get(key)


def is_in_knative_mode(resource: Resource) -> bool:
    """Say whether a resource is a predictor in Knative mode."""
    is_predictor = resource.get("kind") == "InferenceService"
    return is_predictor and annotation(resource, MODE) in ("Knative", "Serverless")


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod template: its spec, the spec's path, and its own annotations."""

    owner: Resource
    spec: Resource
    path: str

    @property
    def containers(self) -> list[Resource]:
        return [*(self.spec.get("containers") or []), *(self.spec.get("initContainers") or [])]


@dataclass(frozen=True, slots=True)
class DeliverySpec:
    """The delivery that applies to a trigger: its own, else its broker's, else the default."""

    owner: Resource
    spec: Resource

    @property
    def span_s(self) -> float:
        """Seconds between the first and the last try; an unset policy is exponential, 0.2 s."""
        retries = int(number(self.spec.get("retry")) or 0)
        delay = iso_seconds(self.spec.get("backoffDelay", "PT0.2S")) or 0.0
        linear = self.spec.get("backoffPolicy", "exponential") == "linear"
        return linear_span(retries, delay) if linear else exponential_span(min(retries, 60), delay)

    @property
    def timeout_s(self) -> float | None:
        return iso_seconds(self.spec.get("timeout"))


class ResourceView:
    """All resources, by kind and role."""

    def __init__(
        self,
        resources: Sequence[Resource],
        *,
        job_s: int | None = None,
        cold_start_s: int | None = None,
    ) -> None:
        self.resources = [resource for resource in resources if _has_a_name(resource)]
        self.nameless = [resource for resource in resources if not _has_a_name(resource)]
        self._job_s = job_s
        self._cold_start_s = cold_start_s

    def of(self, kind: str, group: str = "") -> list[Resource]:
        """Give the resources of a kind; `group` is the beginning of the apiVersion."""
        return [
            r
            for r in self.resources
            if r.get("kind") == kind and str(r.get("apiVersion", "")).startswith(group)
        ]

    def named(self, kind: str, name: str, group: str = "") -> Resource | None:
        """Give the resource of that kind and name, if it is there."""
        found = [r for r in self.of(kind, group) if r.get("metadata", {}).get("name") == name]
        return found[0] if found else None

    def config(self, name: str) -> Resource | None:
        """Give a ConfigMap's data, if it is there."""
        found = self.named("ConfigMap", name, "v1")
        return None if found is None else found.get("data") or {}

    @cached_property
    def settings(self) -> Resource:
        return self.config(parts.SETTINGS) or {}

    @cached_property
    def job_s(self) -> int:
        """The longest job: as given, else from the settings, else the default."""
        given = self._job_s or number(self.settings.get("TORPOR_MAX_JOB_SECONDS"))
        return int(given or DEFAULT_JOB_S)

    @cached_property
    def cold_start_s(self) -> int:
        given = self._cold_start_s or number(self.settings.get("TORPOR_COLD_START_SECONDS"))
        return int(given or DEFAULT_COLD_START_S)

    @cached_property
    def held_s(self) -> int:
        """How long a request may be held: for a pod's start, then for the answer."""
        return self.job_s + self.cold_start_s

    @cached_property
    def predictors(self) -> list[Resource]:
        return self.of("InferenceService", "serving.kserve.io/")

    def in_knative_mode(self) -> list[Resource]:
        """Give the predictors whose deliveries are held by Knative Serving."""
        return [p for p in self.predictors if is_in_knative_mode(p)]

    @cached_property
    def knative_services(self) -> list[Resource]:
        return self.of("Service", "serving.knative.dev/")

    def in_standard_mode(self) -> list[Resource]:
        """Give the predictors that are plain Deployments."""
        return [p for p in self.predictors if annotation(p, MODE) in ("Standard", "RawDeployment")]

    @cached_property
    def brokers(self) -> list[Resource]:
        return self.of("Broker", "eventing.knative.dev/")

    @cached_property
    def triggers(self) -> list[Resource]:
        """The Triggers of the cluster."""
        return self.of("Trigger", "eventing.knative.dev/")

    @cached_property
    def own_triggers(self) -> list[Resource]:
        """The Triggers in the ConfigMap of our own broker."""
        text = (self.config("torpor-triggers") or {}).get("triggers.yaml", "")
        return [document for document in yaml.safe_load_all(text) if document]

    @property
    def all_triggers(self) -> list[Resource]:
        return [*self.triggers, *self.own_triggers]

    def request_triggers(self) -> list[Resource]:
        """Give the triggers that deliver jobs to a predictor."""
        return [t for t in self.all_triggers if not _is_for_others(t)]

    def delivery(self, trigger: Resource) -> DeliverySpec:
        """Give the delivery that applies; without any spec, Knative's default of 10 retries."""
        if own := dig(trigger, "spec.delivery"):
            return DeliverySpec(trigger, own)
        broker = self.named("Broker", str(dig(trigger, "spec.broker")), "eventing.knative.dev/")
        if broker and (given := dig(broker, "spec.delivery")):
            return DeliverySpec(broker, given)
        return DeliverySpec(trigger, {"retry": 10})

    def class_of(self, trigger: Resource) -> str:
        """Give the broker class of a trigger; "" for our own broker's."""
        if trigger in self.own_triggers:
            return ""
        broker = self.named("Broker", str(dig(trigger, "spec.broker")), "eventing.knative.dev/")
        return str(annotation(broker, BROKER_CLASS) or "MTChannelBasedBroker") if broker else "?"

    @cached_property
    def scaled_objects(self) -> list[Resource]:
        return self.of("ScaledObject", "keda.sh/")

    @cached_property
    def deployed_tools(self) -> dict[str, Resource]:
        """The Deployments of tools, by the label of their server."""
        found = ((dig(r, "spec.template.metadata.labels") or {}, r) for r in self.of("Deployment"))
        return {str(labels[SERVER]): r for labels, r in found if labels.get(SERVER)}

    def scales_tool(self, scaled: Resource) -> str:
        """Give the label of the tool server that a ScaledObject scales; empty for another's."""
        target = dig(scaled, "spec.scaleTargetRef.name")
        tools = self.deployed_tools.items()
        return next((label for label, r in tools if r["metadata"]["name"] == target), "")

    @cached_property
    def own(self) -> list[Resource]:
        """The resources outside the platforms' namespaces, of which a live cluster shows a part only."""
        return [r for r in self.resources if r["metadata"].get("namespace") not in _NOT_OURS]

    @cached_property
    def pods(self) -> list[Pod]:
        """Every pod template of the resources."""
        return list(self._pods())

    def _pods(self) -> Iterator[Pod]:
        for resource in self.own:
            kind, group = resource.get("kind"), str(resource.get("apiVersion", ""))
            if kind == "InferenceService":
                path = "spec.predictor"
            elif kind in ("Deployment", "StatefulSet", "Job", "DaemonSet") or (
                kind == "Service" and group.startswith("serving.knative.dev/")
            ):
                path = "spec.template.spec"
            else:
                continue
            if isinstance(spec := dig(resource, path), dict):
                yield Pod(resource, spec, path)


# Namespaces of the platforms: a live cluster shows them, their pods and names are not ours to judge.
_NOT_OURS = frozenset(
    {"knative-serving", "knative-eventing", "kserve", "keda", "kube-system", "kourier-system"}
)


def _is_for_others(trigger: Resource) -> bool:
    """Say whether a trigger's subscriber is not a predictor."""
    subscriber = str(dig(trigger, "spec.subscriber") or "")
    others = (API_PATH, "/healthz", f"{parts.BROKER}.", parts.STEPS)
    if any(place in subscriber for place in others):
        return True
    kind = str(dig(trigger, "spec.filter.attributes.type") or "")
    if kind:
        return kind not in (parts.REQUESTED, parts.PREPARED)
    listed = str(dig(trigger, "spec.filters") or "")
    return bool(listed) and not any(t in listed for t in (parts.REQUESTED, parts.PREPARED))


def argument(container: Resource, name: str) -> str | None:
    """Give the value of a command-line argument, written with `=` or after a space."""
    words = [str(word) for word in [*(container.get("command") or []), *container.get("args", [])]]
    for index, word in enumerate(words):
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
        if word == name and index + 1 < len(words):
            return words[index + 1]
    return None


def variable(container: Resource, name: str) -> Any:
    """Give the literal value of an environment variable, or None."""
    for entry in container.get("env") or []:
        if entry.get("name") == name:
            return entry.get("value")
    return None


def engine(predictor: Resource) -> Resource:
    """Give the engine's container: the one with KServe's name, else the first."""
    boxes = dig(predictor, "spec.predictor.containers") or [{}]
    named = [box for box in boxes if box.get("name") == "kserve-container"]
    found: Resource = (named or boxes)[0]
    return found


def _has_a_name(resource: Any) -> bool:
    """Say whether something is an object that an API server would accept."""
    metadata = resource.get("metadata") if isinstance(resource, dict) else None
    return isinstance(metadata, dict) and isinstance(metadata.get("name"), str)


def is_canary(predictor: Resource) -> bool:
    """Say whether a predictor is the canary of another."""
    return CANARY_OF in (dig(predictor, "metadata.labels") or {})
