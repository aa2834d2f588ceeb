"""What has to be there before anything runs: namespace, accounts, rights, first secrets.

Called by `tree`. No manifest holds a secret: a Job makes them in the cluster, once, with the right
to create Secrets and to read none but its own three.
"""

from __future__ import annotations

from knative.deploy.emit import Resource, because
from knative.deploy.render import parts
from knative.deploy.values import Values

FIRST_SECRETS = "torpor-first-secrets"
DEPLOYER = "torpor-deployer"
VIEWER = "torpor-viewer"

_READ = ["get", "list", "watch"]
_WRITE = [*_READ, "create", "patch", "delete"]


def namespace(values: Values) -> Resource:
    """Give the namespace, with the strictest pod standard enforced."""
    standard = {
        f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")
    }
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": values.namespace,
            "labels": {"app.kubernetes.io/part-of": "torpor", **standard},
        },
    }


def service_accounts(values: Values) -> list[Resource]:
    """Give one account per process. None but the first-secrets job talks to the API server."""
    names = {
        parts.API: "api",
        parts.BROKER: "broker",
        parts.PREDICTOR: "predictor",
        parts.REDIS: "redis",
        FIRST_SECRETS: "first-secrets",
        DEPLOYER: "deployer",
    }
    return [parts.service_account(name, component, values) for name, component in names.items()]


def _role(name: str, component: str, values: Values, rules: list[Resource]) -> Resource:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": parts.metadata(name, component, values),
        "rules": rules,
    }


def _binding(name: str, component: str, values: Values) -> Resource:
    subject = {"kind": "ServiceAccount", "name": name, "namespace": values.namespace}
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": parts.metadata(name, component, values),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [subject],
    }


def _rule(groups: list[str], kinds: list[str], verbs: list[str]) -> Resource:
    return {"apiGroups": groups, "resources": kinds, "verbs": verbs}


def _viewer_rules() -> list[Resource]:
    return [
        _rule([""], ["pods", "pods/log", "events", "services", "configmaps"], _READ),
        _rule(["apps"], ["deployments", "statefulsets", "replicasets"], _READ),
        _rule(["serving.kserve.io"], ["inferenceservices"], _READ),
        _rule(["serving.knative.dev"], ["services", "revisions", "routes"], _READ),
        _rule(["eventing.knative.dev"], ["brokers", "triggers"], _READ),
        _rule(["keda.sh"], ["scaledobjects"], _READ),
        _rule(["autoscaling"], ["horizontalpodautoscalers"], _READ),
    ]


def _deployer_rules() -> list[Resource]:
    """Everything `torpor deploy`, `scale`, `promote` and `rollback` touch; no Secret, no Role."""
    return [
        _rule([""], ["pods", "pods/log", "events"], _READ),
        _rule(["apps"], ["replicasets"], _READ),
        _rule(["serving.knative.dev"], ["routes"], _READ),
        because(
            _rule(["serving.knative.dev"], ["revisions"], [*_READ, "delete"]),
            "Superseded before they came up: Knative goes on trying them.",
        ),
        _rule([""], ["configmaps", "services", "persistentvolumeclaims"], _WRITE),
        _rule(["apps"], ["deployments", "statefulsets"], _WRITE),
        _rule(["autoscaling"], ["horizontalpodautoscalers"], _WRITE),
        _rule(["batch"], ["jobs"], _WRITE),
        _rule(["policy"], ["poddisruptionbudgets"], _WRITE),
        _rule(["networking.k8s.io"], ["networkpolicies", "ingresses"], _WRITE),
        _rule(["serving.kserve.io"], ["inferenceservices"], _WRITE),
        _rule(["serving.knative.dev"], ["services"], _WRITE),
        _rule(
            ["eventing.knative.dev"],
            ["brokers", "triggers", "eventpolicies", "rabbitmqbrokerconfigs"],
            _WRITE,
        ),
        _rule(["rabbitmq.com"], ["rabbitmqclusters"], _WRITE),
        _rule(["keda.sh"], ["scaledobjects", "triggerauthentications"], _WRITE),
        _rule(
            ["monitoring.coreos.com"],
            ["servicemonitors", "podmonitors", "prometheusrules"],
            _WRITE,
        ),
    ]


def rights(values: Values) -> list[Resource]:
    """Give the roles and who holds them."""
    own_secrets = [parts.REDIS_SECRET, parts.KEYS_SECRET, parts.INTERNAL_SECRET]
    first = [
        because(
            _rule([""], ["secrets"], ["create"]),
            "`create` cannot be limited by name (the name is not known yet); `get` can.",
        ),
        {**_rule([""], ["secrets"], ["get"]), "resourceNames": own_secrets},
    ]
    return [
        _role(FIRST_SECRETS, "first-secrets", values, first),
        _binding(FIRST_SECRETS, "first-secrets", values),
        _role(DEPLOYER, "deployer", values, _deployer_rules()),
        _binding(DEPLOYER, "deployer", values),
        _role(VIEWER, "viewer", values, _viewer_rules()),
    ]


def first_secrets_job(values: Values) -> Resource:
    """Give the Job that makes the Secrets which are not there yet. Running it again is harmless."""
    container = {
        "name": "first-secrets",
        "image": values.images.reference("broker"),
        "args": ["knative.deploy.first_secrets"],
        "env": [
            {
                "name": "TORPOR_NAMESPACE",
                "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}},
            },
            {"name": "TORPOR_STORE_REPLICAS", "value": str(values.store.replicas)},
        ],
        "resources": parts.resources("50m", "128Mi"),
        "securityContext": parts.hardened(),
    }
    pod = {
        "metadata": {"labels": parts.labels("first-secrets")},
        "spec": {
            "serviceAccountName": FIRST_SECRETS,
            "automountServiceAccountToken": because(
                True, "The one pod that speaks to the API server."
            ),
            "enableServiceLinks": parts.NO_SERVICE_LINKS,
            "restartPolicy": "OnFailure",
            "securityContext": parts.hardened_pod(),
            "containers": [container],
        },
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": parts.metadata(FIRST_SECRETS, "first-secrets", values),
        "spec": {
            "backoffLimit": 20,
            "ttlSecondsAfterFinished": because(
                600, "Gone before the next `apply`: a Job's template cannot be changed."
            ),
            "template": pod,
        },
    }
