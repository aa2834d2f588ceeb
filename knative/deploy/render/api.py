"""The api in the cluster: a Deployment with its own autoscaling, and a Knative Service variant.

Called by `tree` and `component`. A Deployment by default: a stream of tokens outlives queue-proxy's
hard total (timeoutSeconds ends even a flowing answer), and an api at zero starts no predictor.
"""

from __future__ import annotations

from knative.deploy.emit import Resource, because
from knative.deploy.render import parts
from knative.deploy.timeouts import Timeouts
from knative.deploy.values import Values

GRACE_S = 60
FILES = "/var/lib/torpor/files"
FILES_CLAIM = "torpor-files"


def container(values: Values) -> Resource:
    """Give the api's container, the same in both variants."""
    return {
        "name": "api",
        "image": values.images.reference("api"),
        "ports": [{"name": "http", "containerPort": parts.API_PORT}],
        "envFrom": parts.settings_from(),
        "env": [
            parts.redis_url_env(),
            parts.secret_env("TORPOR_DELIVERY_TOKEN", parts.INTERNAL_SECRET, "token"),
            {"name": "TORPOR_HOST", "value": "0.0.0.0"},  # noqa: S104  inside its own pod
            {"name": "TORPOR_PORT", "value": str(parts.API_PORT)},
            {"name": "TORPOR_FILES_URL", "value": values.platform.files_url},
            {"name": "TORPOR_KEYS_SOURCE", "value": "/etc/torpor/keys/keys.json"},
        ],
        "readinessProbe": parts.http_get("/readyz", parts.API_PORT, periodSeconds=5),
        "livenessProbe": parts.http_get(
            "/healthz", parts.API_PORT, periodSeconds=10, failureThreshold=6
        ),
        "resources": parts.resources("500m", "512Mi"),
        "securityContext": parts.hardened(),
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  the container's own
            {"name": "files", "mountPath": FILES},
            {"name": "keys", "mountPath": "/etc/torpor/keys", "readOnly": True},
        ],
    }


def volumes() -> list[Resource]:
    """Give the api's volumes: scratch for uploads on their way, and the hashed keys."""
    return [
        parts.scratch("tmp", "2Gi"),
        {"name": "files", "persistentVolumeClaim": {"claimName": FILES_CLAIM}},
        {
            "name": "keys",
            "secret": {
                "secretName": parts.KEYS_SECRET,
                "items": because(
                    [{"key": "keys.json", "path": "keys.json"}],
                    "The hashes alone; the keys' texts in the same Secret are for people.",
                ),
            },
        },
    ]


def files_claim(values: Values) -> Resource:
    """Give the disk of batch files; with an s3:// or gs:// `files_url` it stays empty."""
    return parts.shared_disk(FILES_CLAIM, "api", values, "Every api replica reads every file.")


def deployment(values: Values) -> Resource:
    """Give the api's Deployment. No `replicas`: they belong to its HPA."""
    box = container(values)
    box["startupProbe"] = parts.http_get(
        "/healthz", parts.API_PORT, periodSeconds=2, failureThreshold=60
    )
    box["lifecycle"] = {
        "preStop": because(
            {"sleep": {"seconds": 5}}, "Endpoints forget the pod first, then it stops listening."
        )
    }
    pod = {
        "serviceAccountName": parts.API,
        "automountServiceAccountToken": False,
        "enableServiceLinks": parts.NO_SERVICE_LINKS,
        "terminationGracePeriodSeconds": because(
            GRACE_S, "Readers of a stream reconnect with Last-Event-ID and miss nothing."
        ),
        "securityContext": parts.hardened_pod(
            fsGroup=parts.USER_ID, fsGroupChangePolicy="OnRootMismatch"
        ),
        "topologySpreadConstraints": parts.spread("api"),
        "containers": [box],
        "volumes": volumes(),
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": parts.metadata(parts.API, "api", values),
        "spec": {
            "selector": {"matchLabels": parts.labels("api")},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": parts.pod_metadata("api"), "spec": pod},
        },
    }


def autoscaler(values: Values) -> Resource:
    """Give the api's HPA: its work is many small sends, so CPU measures its load."""
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": parts.metadata(parts.API, "api", values),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": parts.API},
            "minReplicas": because(2, "The api never scales to zero: it is what wakes the rest."),
            "maxReplicas": 10,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {
                        "name": "cpu",
                        "target": {"type": "Utilization", "averageUtilization": 70},
                    },
                }
            ],
            "behavior": {
                "scaleDown": because(
                    {"stabilizationWindowSeconds": 600}, "Each step down breaks open streams once."
                )
            },
        },
    }


def budget(values: Values) -> Resource:
    """Give the api's disruption budget."""
    return parts.disruption_budget(
        parts.API, "api", values, {"maxUnavailable": parts.ONE_AT_A_TIME}
    )


def ingress(values: Values, times: Timeouts) -> Resource:
    """Give the way in from outside, with timeouts that no thought outlasts."""
    seconds = str(times.stream)
    backend = {"service": {"name": parts.API, "port": {"name": "http"}}}
    annotations = {
        "cert-manager.io/cluster-issuer": "letsencrypt",
        "nginx.ingress.kubernetes.io/proxy-read-timeout": because(
            seconds, "A stream may be silent while a GPU wakes and thinks; nginx cuts at 60 s."
        ),
        "nginx.ingress.kubernetes.io/proxy-send-timeout": seconds,
        "nginx.ingress.kubernetes.io/proxy-buffering": because("off", "Tokens, not blocks."),
        "nginx.ingress.kubernetes.io/proxy-body-size": "200m",
        "nginx.ingress.kubernetes.io/proxy-next-upstream": because(
            "off", "The proxy must not repeat a submit by itself (docs/facts.md #16)."
        ),
        "nginx.ingress.kubernetes.io/ssl-redirect": "true",
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": parts.metadata(parts.API, "api", values, annotations=annotations),
        "spec": {
            "ingressClassName": values.platform.ingress_class,
            "tls": [{"hosts": [values.host], "secretName": "torpor-tls"}],
            "rules": [
                {
                    "host": values.host,
                    "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
                }
            ],
        },
    }


def knative_service(values: Values, times: Timeouts) -> Resource:
    """Give the variant for those who accept that a stream is cut and resumed."""
    box = container(values)
    box["ports"] = [{"containerPort": parts.API_PORT}]  # Knative allows only its own port names
    annotations = {
        "autoscaling.knative.dev/min-scale": because(
            "1", "At zero no sweep would publish a job whose event did not leave (the outbox)."
        ),
        "autoscaling.knative.dev/max-scale": "10",
        "autoscaling.knative.dev/target": "200",
        "autoscaling.knative.dev/target-burst-capacity": because(
            "0", "Never through the activator once awake: it would hold thousands of streams."
        ),
    }
    seconds = because(
        times.request, "Streams are cut here, even flowing ones; clients resume by Last-Event-ID."
    )
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": parts.metadata(parts.API_PUBLIC, "api", values),
        "spec": {
            "template": {
                "metadata": parts.pod_metadata("api", **annotations),
                "spec": {
                    "serviceAccountName": parts.API,
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": parts.NO_SERVICE_LINKS,
                    "containerConcurrency": 0,
                    "timeoutSeconds": seconds,
                    "responseStartTimeoutSeconds": times.request,
                    "containers": [box],
                    "volumes": volumes(),
                },
            }
        },
    }
