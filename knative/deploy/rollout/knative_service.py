"""The readiness of a predictor in Knative mode: its Knative Service, revisions and traffic.

Called by `rollout` and `cluster_view`. KServe's own status is not reliable here: it copies the Knative Service's
generation into its `observedGeneration`, so an InferenceService can look ready or not ready wrongly. What was
applied has a hash, which KServe copies to the revision.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Sequence

from knative.deploy.config_hash import with_config_hash
from knative.deploy.doctor.view import annotation, dig, is_in_knative_mode
from knative.deploy.emit import Resource
from knative.deploy.errors import ClusterForbidden, MissingKind, ObjectNotFound
from knative.deploy.readiness import READY, ObjectReadiness
from knative.deploy.rollout.client import Cluster, Ref

API_VERSION = "serving.knative.dev/v1"
HASH = "torpor.dev/revision"
_OF_SERVICE = "serving.knative.dev/service"
OF_REVISION = "serving.knative.dev/revision"


def with_hashes(resources: Sequence[Resource]) -> list[Resource]:
    """Give the resources as a deploy applies them: with the hashes of `with_config_hash` and `with_hash`."""
    return with_hash(with_config_hash(resources))


def with_hash(resources: Iterable[Resource]) -> list[Resource]:
    """Give the resources with a hash of itself on each predictor in Knative mode."""
    return [_hashed(r) if is_in_knative_mode(r) else r for r in resources]


def _hashed(predictor: Resource) -> Resource:
    made = copy.deepcopy(predictor)
    notes = made["metadata"].setdefault("annotations", {})
    notes.pop(HASH, None)
    content = json.dumps([made["spec"], notes, made["metadata"].get("labels")], sort_keys=True)
    notes[HASH] = "sha256-" + hashlib.sha256(content.encode()).hexdigest()[:12]
    return made


def service_of(predictor: Resource) -> Ref:
    """Give the Knative Service that KServe makes for a predictor."""
    data = predictor["metadata"]
    return Ref(API_VERSION, "Service", f"{data['name']}-predictor", data.get("namespace"))


def service_readiness(live: Resource | None, wanted: str | None) -> ObjectReadiness:
    """Give whether the Knative Service serves the applied version; `wanted` is its hash, if known."""
    if live is None:
        return ObjectReadiness(False, "KServe has made no Knative Service yet")
    shown = dig(live, "spec.template.metadata.annotations") or {}
    if wanted is not None and shown.get(HASH) != wanted:
        return ObjectReadiness(False, "KServe has not handed the change on to Knative yet")
    status = live.get("status") or {}
    if status.get("observedGeneration") != live["metadata"].get("generation"):
        return ObjectReadiness(False, "Knative has not looked at the change yet")
    created, ready = (status.get(f"latest{word}RevisionName") for word in ("Created", "Ready"))
    conditions = {c.get("type"): c for c in status.get("conditions") or []}
    if created != ready:
        return ObjectReadiness(False, _why(conditions, f"revision {created} is not ready"))
    if (conditions.get("Ready") or {}).get("status") != "True":
        return ObjectReadiness(False, _why(conditions, "the Knative Service is not ready"))
    return READY


def _why(conditions: dict[str, Resource], otherwise: str) -> str:
    said = [
        str(c.get("message") or c.get("reason"))
        for c in conditions.values()
        if c.get("status") != "True" and (c.get("message") or c.get("reason"))
    ]
    return "; ".join(dict.fromkeys(said)) or otherwise


async def readiness_of(cluster: Cluster, predictor: Resource) -> ObjectReadiness:
    """Give the readiness of a live predictor in Knative mode."""
    try:
        live = await cluster.get(service_of(predictor))
    except MissingKind:
        return ObjectReadiness(False, "Knative Serving is not installed")
    return service_readiness(live, annotation(predictor, HASH))


def never_ready(
    service: Resource, revisions: Sequence[Resource], deployments: Sequence[Resource]
) -> list[str]:
    """Give the superseded revisions that never became ready, which Knative goes on trying.

    One that was ready once may have calls that wait for its pods. Without the revision the activator would hold them
    until they time out.
    """
    status = service.get("status") or {}
    kept = {status.get("latestCreatedRevisionName"), status.get("latestReadyRevisionName")}
    kept |= {route.get("revisionName") for route in status.get("traffic") or []}
    kept |= {_revision_of(each) for each in deployments if _came_up(each)}
    return [
        revision["metadata"]["name"]
        for revision in revisions
        if revision["metadata"]["name"] not in kept and not _is_ready(revision)
    ]


def _is_ready(revision: Resource) -> bool:
    conditions = dig(revision, "status.conditions") or []
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def _revision_of(deployment: Resource) -> str | None:
    return (deployment["metadata"].get("labels") or {}).get(OF_REVISION)


def _came_up(deployment: Resource) -> bool:
    """Say whether all pods were available once. The reason stays when pods end, wait or crash later."""
    conditions = dig(deployment, "status.conditions") or []
    return any(c.get("reason") == "NewReplicaSetAvailable" for c in conditions)


async def drop_never_ready(cluster: Cluster, service: Resource) -> list[Ref]:
    """Delete superseded revisions that never became ready; give them. Without the right to, none."""
    data = service["metadata"]
    namespace = data.get("namespace")
    label = f"{_OF_SERVICE}={data['name']}"
    try:
        found, _ = await cluster.list(API_VERSION, "Revision", namespace, labelSelector=label)
        made, _ = await cluster.list("apps/v1", "Deployment", namespace, labelSelector=label)
        names = never_ready(service, found, made)
        gone = [Ref(API_VERSION, "Revision", name, namespace) for name in names]
        for ref in gone:
            await cluster.delete(ref)
    except (ClusterForbidden, MissingKind, ObjectNotFound):
        return []
    return gone
