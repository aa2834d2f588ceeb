"""The init container that KServe adds to a predictor's pod to fetch the weights.

Used by the rules about pods: it is in none of our manifests, but the API server refuses the whole pod because of
it.
"""

from __future__ import annotations

from knative.deploy.doctor.view import ResourceView, dig, engine, variable
from knative.deploy.emit import Resource

INITIALIZER = "storage-initializer"
# Mounted, or an image beside the engine: nothing is fetched, so no init container.
_NOT_FETCHED = ("pvc://", "oci://")
# `kserve.storage.containerSecurityContext` of KServe's Helm chart, 0.20. No seccomp profile.
_BY_HELM = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "privileged": False,
    "runAsNonRoot": True,
}


def storage_initializer(view: ResourceView, predictor: Resource) -> Resource | None:
    """Give the init container of a predictor: from the cluster's ClusterStorageContainer, else as KServe's Helm
    chart installs it; None where KServe adds none.
    """
    uri = str(variable(engine(predictor), "STORAGE_URI") or "")
    if not uri or uri.startswith(_NOT_FETCHED):
        return None
    for found in view.of("ClusterStorageContainer", "serving.kserve.io/"):
        formats = dig(found, "spec.supportedUriFormats") or []
        if any(uri.startswith(str(each.get("prefix") or "\0")) for each in formats):
            return {**(dig(found, "spec.container") or {}), "name": INITIALIZER}
    return {"name": INITIALIZER, "securityContext": _BY_HELM}
