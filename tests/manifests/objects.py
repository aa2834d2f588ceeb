"""Reading built overlays: what is in them, which pods come of them, and one fault put in.

For the manifest tests whose rules are pure functions over the objects of an overlay.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from knative.deploy.first_secrets import internal_secret, keys_secret, redis_secret
from knative.deploy.render import parts
from tests.manifests.conftest import Resources

OVERLAYS = (
    "queue", "queue-cpu", "queue+nodes", "queue+work", "queue+openshift", "serverless",
    "serverless-cpu", "serverless-kafka", "serverless+api-knative", "serverless+oidc",
)  # fmt: skip
WORKLOADS = ("Deployment", "StatefulSet", "Job")
KNATIVE = "serving.knative.dev/v1"
OWN_HOST = re.compile(r"([\w-]+)\.torpor\.svc(?:\.cluster\.local)?(?::(\d+))?")


@dataclass(frozen=True, slots=True)
class Pod:
    """What one object makes run. `spec` is empty where an operator decides it."""

    owner: dict[str, Any]
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.owner["metadata"]["name"])

    @property
    def boxes(self) -> list[dict[str, Any]]:
        return list(self.spec.get("containers", []))

    @property
    def ports(self) -> dict[str | int, int]:
        """The declared ports, each by its number and by its name."""
        found: dict[str | int, int] = {}
        for box in self.boxes:
            for port in box.get("ports", []):
                found[port["containerPort"]] = port["containerPort"]
                found[port.get("name", "")] = port["containerPort"]
        return found

    @property
    def is_knatives(self) -> bool:
        notes = self.owner["metadata"].get("annotations") or {}
        return self.owner["apiVersion"] == KNATIVE or (
            notes.get("serving.kserve.io/deploymentMode") in ("Knative", "Serverless")
        )


def fields(node: Any) -> Iterator[tuple[str, Any]]:
    """Every field below, by its name."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from fields(value)
    elif isinstance(node, list):
        for value in node:
            yield from fields(value)


def texts(node: Any) -> str:
    """Every text below, a line each."""
    if isinstance(node, str):
        return node
    below = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return "\n".join(filter(None, map(texts, below)))


def named(resources: Resources, *kinds: str) -> Iterator[dict[str, Any]]:
    return (r for r in resources if r["kind"] in kinds)


def services(resources: Resources) -> list[dict[str, Any]]:
    """Kubernetes' Services, not Knative's."""
    return [s for s in named(resources, "Service") if s["apiVersion"] == "v1"]


def pods(resources: Resources) -> list[Pod]:
    """All that will run in the namespace."""
    found: list[Pod] = []
    for r in resources:
        if r["kind"] in WORKLOADS or r["apiVersion"] == KNATIVE:
            template = r["spec"]["template"]
            found.append(Pod(r, template["metadata"]["labels"], template["spec"]))
        elif r["kind"] == "InferenceService":
            spec = r["spec"]["predictor"]
            labels = {**r["metadata"].get("labels", {}), **spec.get("labels", {})}
            found.append(Pod(r, labels, spec))
        elif r["kind"] == "RabbitmqCluster":
            found.append(Pod(r, {"app.kubernetes.io/name": r["metadata"]["name"]}, {}))
        elif r["kind"] == "Broker":
            found.append(Pod(r, {"eventing.knative.dev/broker": r["metadata"]["name"]}, {}))
    return found


def secrets() -> dict[str, dict[str, str]]:
    """What the Job `torpor-first-secrets` makes."""
    return {
        parts.REDIS_SECRET: redis_secret("torpor", str),
        parts.KEYS_SECRET: keys_secret(0),
        parts.INTERNAL_SECRET: internal_secret(str),
    }


def takes(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def planted(resources: Resources, who: str, path: str, value: Any) -> Resources:
    """Give a copy with one field of one object (`Kind/name`) changed; None takes it away."""
    made = copy.deepcopy(resources)
    node: Any = next(r for r in made if f"{r['kind']}/{r['metadata']['name']}" == who)
    *steps, last = path.split(">")
    for step in steps:
        node = node[int(step)] if isinstance(node, list) else node[step]
    key: Any = int(last) if isinstance(node, list) else last
    if value is None:
        del node[key]
    else:
        node[key] = value
    return made
