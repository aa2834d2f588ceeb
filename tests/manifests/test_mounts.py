"""Everything that a container reads exists: its volumes, files, module and token."""

# ruff: noqa: E501  a table of mistakes is read by row

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest

from knative.deploy.render import parts
from tests.manifests.conftest import Resources
from tests.manifests.objects import OVERLAYS, Pod, named, planted, pods, texts

BY_KSERVE = "/mnt/models"  # its initializer's volume
TOKEN = {"secretKeyRef": {"name": parts.INTERNAL_SECRET, "key": "token"}}


def volumes(pod: Pod) -> dict[str, dict[str, Any]]:
    """The pod's volumes by name, a StatefulSet's claims among them."""
    claims = pod.owner["spec"].get("volumeClaimTemplates", [])
    return {v["name"]: v for v in pod.spec.get("volumes", [])} | {
        claim["metadata"]["name"]: claim for claim in claims
    }


def files(volume: dict[str, Any], data: dict[str, Any]) -> set[str] | None:
    """The files in a volume, where objects say; None where a process writes them."""
    match volume:
        case {"configMap": {"name": name}}:
            return set(data[name]) if name in data else None  # the installer's
        case {"secret": {"items": items}}:
            return {item["path"] for item in items}
    return None


def told(box: dict[str, Any], at: dict[str, dict[str, Any]], data: dict[str, Any]) -> set[str]:
    """The paths in a container's command, variables and mounted configuration."""
    said = [texts(box.get("command", [])), texts([e.get("value") for e in box.get("env", [])])]
    said += [texts(data.get(v["configMap"]["name"])) for v in at.values() if "configMap" in v]
    words = " ".join(said).replace("file://", "").split()
    return {word for word in words if word.startswith("/")}


def unread(resources: Resources) -> set[str]:
    """Mounts of nothing, volumes that nobody mounts, and files that are not where they are sought."""
    data = {r["metadata"]["name"]: r["data"] for r in named(resources, "ConfigMap")}
    found: set[str] = set()
    for pod in pods(resources):
        there = volumes(pod)
        mounted = {mount["name"] for box in pod.boxes for mount in box.get("volumeMounts", [])}
        found |= {f"{pod.name}: {name} not on both sides" for name in mounted ^ there.keys()}
        for box in pod.boxes:
            at = {
                mount["mountPath"]: there.get(mount["name"], {})
                for mount in box.get("volumeMounts", [])
            }
            found |= {
                f"{pod.name}: nothing at {p}" for p in told(box, at, data) if gone(p, at, data)
            }
    return found


def gone(path: str, at: dict[str, dict[str, Any]], data: dict[str, Any]) -> bool:
    """Whether no mount holds the path."""
    for place, volume in at.items():
        if PurePosixPath(path).is_relative_to(place):
            inside = files(volume, data)
            return inside is not None and path.removeprefix(f"{place}/") not in inside
    return not path.startswith(BY_KSERVE)


def unstarted(resources: Resources) -> Iterator[str]:
    """Modules that are not there, and who delivers or is delivered to without our token."""
    is_queue = not any(named(resources, "Broker"))
    for pod in pods(resources):
        for box in pod.boxes:
            module = box.get("args", ["--"])[0]
            if not module.startswith("--") and importlib.util.find_spec(module) is None:
                yield f"{pod.name}: no module {module}"
            env = {entry["name"]: entry.get("valueFrom") for entry in box.get("env", [])}
            speaks = box["name"] in ("api", "broker", "pump") or (
                is_queue and box["name"] == "kserve-container"
            )
            if speaks and env.get("TORPOR_DELIVERY_TOKEN") != TOKEN:
                yield f"{pod.name}: {box['name']} without the token"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_that_a_container_reads_is_there(overlays: dict[str, Resources], overlay: str) -> None:
    assert unread(overlays[overlay]) | set(unstarted(overlays[overlay])) == set()


POD = "spec>template>spec"
BOX = f"{POD}>containers>0"
API, BROKER, STORE = "Deployment/torpor-api", "Deployment/torpor-broker", "StatefulSet/torpor-redis"
BREAKS = [
    (API, f"{POD}>volumes>2>name", "key", "keys not on both sides"),
    (API, f"{BOX}>volumeMounts>0", None, "tmp not on both sides"),
    (API, f"{POD}>volumes>2>secret>items>0>path", "keys", "nothing at /etc/torpor/keys/keys.json"),
    (API, f"{BOX}>volumeMounts>1>mountPath", "/files", "nothing at /var/lib/torpor/files"),
    (API, f"{BOX}>env>6>value", "/etc/torpor/triggers.yaml", "nothing at /etc/torpor/triggers.yaml"),
    (BROKER, f"{BOX}>env>1>value", "/etc/torpor/triggers/all.yaml", "nothing at /etc/torpor/triggers/all.yaml"),
    (BROKER, f"{BOX}>args>0", "eventing.brokers", "no module eventing.brokers"),
    (BROKER, f"{BOX}>env>3", None, "broker without the token"),
    (STORE, f"{BOX}>command>1", "/etc/valkey.conf", "nothing at /etc/valkey.conf"),
    (STORE, f"{BOX}>volumeMounts>0>mountPath", "/var/data", "nothing at /data"),
    (STORE, f"{BOX}>volumeMounts>2>mountPath", "/etc/users", "nothing at /etc/valkey-users/users.acl"),
    (STORE, "spec>volumeClaimTemplates>0>metadata>name", "disk", "data not on both sides"),
    ("InferenceService/thinker", "spec>predictor>containers>0>volumeMounts>1>mountPath", "/cache", "nothing at /var/cache/torpor/models"),
    ("InferenceService/thinker", "spec>predictor>containers>1>args>0", "eventing.pumps", "no module"),
]  # fmt: skip


@pytest.mark.parametrize(("who", "path", "value", "said"), BREAKS)
def test_what_is_not_there_is_named(
    overlays: dict[str, Resources], who: str, path: str, value: Any, said: str
) -> None:
    broken = planted(overlays["queue"], who, path, value)

    found = unread(broken) | set(unstarted(broken))

    assert any(said in each for each in found)
