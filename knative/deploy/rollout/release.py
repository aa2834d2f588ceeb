"""Earlier releases, kept in the cluster: one ConfigMap a release, the newest ten.

Called by `rollout`. A release is the whole list of applied objects, so a rollback needs no repository and prunes
what was added later.
"""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass

from knative.deploy.emit import Resource
from knative.deploy.rollout.client import Cluster, Ref, ref_of

LABEL = "torpor.dev/release"
KEPT = 10
# Objects with data are never pruned; `delete --data` deletes them.
NEVER_PRUNED = frozenset({"Namespace", "StatefulSet", "PersistentVolumeClaim", "Secret"})


@dataclass(frozen=True, slots=True)
class Release:
    """One deploy: its number, its objects, and a note."""

    number: int
    resources: tuple[Resource, ...]
    note: str = ""


def to_config_map(release: Release, namespace: str) -> Resource:
    """Give the ConfigMap of a release: JSON, packed, a few KiB."""
    packed = gzip.compress(json.dumps(list(release.resources)).encode(), mtime=0)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"torpor-release-{release.number:06d}",
            "namespace": namespace,
            "labels": {LABEL: str(release.number), "app.kubernetes.io/part-of": "torpor"},
            "annotations": {"torpor.dev/note": release.note},
        },
        "binaryData": {"resources": base64.b64encode(packed).decode()},
    }


def from_config_map(found: Resource) -> Release:
    """Give the release of a ConfigMap."""
    packed = base64.b64decode(found["binaryData"]["resources"])
    data = found["metadata"]
    return Release(
        int(data["labels"][LABEL]),
        tuple(json.loads(gzip.decompress(packed))),
        (data.get("annotations") or {}).get("torpor.dev/note", ""),
    )


async def releases(cluster: Cluster, namespace: str) -> list[Release]:
    """Give all kept releases, the newest last."""
    found, _ = await cluster.list("v1", "ConfigMap", namespace, labelSelector=LABEL)
    return sorted((from_config_map(item) for item in found), key=lambda release: release.number)


async def record(cluster: Cluster, namespace: str, resources: list[Resource], note: str) -> Release:
    """Keep a new release and forget those beyond the newest ten."""
    known = await releases(cluster, namespace)
    release = Release(known[-1].number + 1 if known else 1, tuple(resources), note)
    await cluster.apply(to_config_map(release, namespace))
    for old in known[: max(0, len(known) + 1 - KEPT)]:
        name = f"torpor-release-{old.number:06d}"
        await cluster.delete(Ref("v1", "ConfigMap", name, namespace))
    return release


def to_prune(before: Release | None, now: list[Resource]) -> list[Ref]:
    """Give the objects of the last release that this one does not have, newest kinds first."""
    if before is None:
        return []
    kept = {ref_of(resource) for resource in now}
    gone = [ref_of(resource) for resource in before.resources]
    return [ref for ref in reversed(gone) if ref not in kept and ref.kind not in NEVER_PRUNED]
