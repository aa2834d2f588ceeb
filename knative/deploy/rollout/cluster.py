"""Settings outside our namespace that an administrator makes once.

Called by `tree`. Kept apart: `torpor deploy` and `kubectl apply -k overlays/...` do not need these rights.
"""

from __future__ import annotations

from knative.deploy import tls
from knative.deploy.emit import Resource, because, document
from knative.deploy.timeouts import Timeouts
from knative.deploy.values import Values

FEATURES = {
    "kubernetes.podspec-nodeselector": "GPU nodes are picked by label.",
    "kubernetes.podspec-tolerations": "GPU nodes are tainted.",
    "kubernetes.podspec-persistent-volume-claim": "The compile cache, with that component.",
    "kubernetes.podspec-persistent-volume-write": "The same, and it is written.",
    "kubernetes.podspec-securitycontext": "Seccomp profile of KServe's storage-initializer; fsGroup of that claim.",
}


def _knative_config(name: str, data: Resource, namespace: str = "knative-serving") -> Resource:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": data,
    }


def files(values: Values, times: Timeouts) -> dict[str, str]:
    """Give the folders of these settings, each with instructions in the header."""
    return _serving(times) | _eventing(values)


def _eventing(values: Values) -> dict[str, str]:
    header = (
        "Written by `torpor render` from manifests/values.yaml: change the value, not this file.\n"
        "For components eventing-tls and eventing-oidc, once, after Knative's\n"
        "certificates of transport encryption (docs/security.md):\n"
        "  kubectl apply --server-side --field-manager torpor \\\n"
        "    -k manifests/cluster/knative-eventing\n"
        f"  kubectl -n {values.namespace} get broker torpor \\\n"
        "    -o jsonpath='{.status.address.CACerts}' > ca.crt\n"
        f"  kubectl -n {values.namespace} create configmap {tls.AUTHORITY} --from-file=ca.crt"
    )
    features = _knative_config(
        "config-features",
        {
            "transport-encryption": because(
                "permissive",
                "https beside http: other tenants of the cluster still send plainly. `strict` "
                "when all of them know the authority.",
            ),
            "authentication-oidc": because("enabled", "Alpha. For eventing-oidc only."),
        },
        namespace="knative-eventing",
    )
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["config-features.yaml"],
    }
    folder = "cluster/knative-eventing"
    return {
        f"{folder}/kustomization.yaml": document(kustomization, header=header),
        f"{folder}/config-features.yaml": document(features, header=header.splitlines()[0]),
    }


def _activator_grace(times: Timeouts) -> Resource:
    """The patch of the activator's Deployment."""
    return {
        "spec": {
            "template": {
                "spec": {
                    "terminationGracePeriodSeconds": because(
                        times.activator_grace, "It holds requests that last this long."
                    )
                }
            }
        }
    }


def _serving(times: Timeouts) -> dict[str, str]:
    header = (
        "Written by `torpor render` from manifests/values.yaml: change the value, not this file.\n"
        "For the serverless overlays, once, by an administrator:\n"
        "  kubectl apply --server-side --field-manager torpor \\\n"
        "    -k manifests/cluster/knative-serving\n"
        "  kubectl -n knative-serving patch deployment activator --type merge --patch-file \\\n"
        "    manifests/cluster/knative-serving/activator-grace.yaml\n"
        "Server-side, so that only these keys are set and all others stay."
    )
    defaults = _knative_config(
        "config-defaults",
        {
            "max-revision-timeout-seconds": because(
                str(times.max_revision), "600 by default: the webhook would refuse our timeout."
            )
        },
    )
    autoscaler = _knative_config(
        "config-autoscaler",
        {
            "allow-zero-initial-scale": because(
                "true", "A new revision of a predictor does not load its model to be ready."
            )
        },
    )
    features = _knative_config(
        "config-features", {name: because("enabled", why) for name, why in FEATURES.items()}
    )
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["config-autoscaler.yaml", "config-defaults.yaml", "config-features.yaml"],
    }
    folder = "cluster/knative-serving"
    return {
        f"{folder}/kustomization.yaml": document(kustomization, header=header),
        f"{folder}/config-autoscaler.yaml": document(autoscaler, header=header.splitlines()[0]),
        f"{folder}/config-defaults.yaml": document(defaults, header=header.splitlines()[0]),
        f"{folder}/config-features.yaml": document(features, header=header.splitlines()[0]),
        f"{folder}/activator-grace.yaml": document(
            _activator_grace(times), header=header.splitlines()[0]
        ),
    }
