"""Redis (Valkey) in the cluster: the jobs, the token streams and, in `queue`, the broker's log.

Called by `tree`. For production a managed Redis with the same settings is as good: point the Secret
torpor-redis at it and delete these objects (docs/operations.md).
"""

from __future__ import annotations

from typing import Any

from knative.deploy.emit import Resource, because
from knative.deploy.render import parts
from knative.deploy.values import Values

MEMORY_MIB = 2048
CONFIG = """\
# Jobs are promises: what got its 202 must survive the process.
appendonly yes
# A power cut costs at most one second; submits are repeated under their Idempotency-Key.
appendfsync everysec
# A lost tail is cut, anything worse stops the start instead of half a state.
aof-load-truncated yes
dir /data
# Users come from a Secret: `default` for our processes, `keda` may only look at queues.
aclfile /etc/valkey-users/users.acl
# Full is an error that the api answers with 503; eviction would lose jobs silently.
maxmemory-policy noeviction
maxmemory {limit}mb
tcp-keepalive 60
"""


def redis(values: Values) -> list[Resource]:
    """Give the store: configuration, StatefulSet with its disk, Service.

    No PodDisruptionBudget: of one replica it would block every node upgrade for ever, and the
    disk brings all back within seconds.
    """
    config = CONFIG.format(limit=MEMORY_MIB * 3 // 4)
    headless = because(
        "None", "The StatefulSet's. Its name is gone from DNS, and stays so for 30 s, while the "
        "pod is away: clients use the Service below, whose address stays."
    )  # fmt: skip
    return [
        parts.config_map(parts.REDIS, "redis", values, {"valkey.conf": config}),
        _service(parts.REDIS, values, clusterIP=headless),
        _service(parts.STORE, values),
        _stateful_set(values),
    ]


def _service(name: str, values: Values, **more: Any) -> Resource:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": parts.metadata(name, "redis", values),
        "spec": {
            **more,
            "selector": parts.labels("redis"),
            "ports": [{"name": "redis", "port": parts.REDIS_PORT, "targetPort": "redis"}],
        },
    }


def _stateful_set(values: Values) -> Resource:
    claim: Resource = {
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "10Gi"}},
        },
    }
    if values.platform.storage_class:
        claim["spec"]["storageClassName"] = values.platform.storage_class
    pod = {
        "serviceAccountName": parts.REDIS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": parts.NO_SERVICE_LINKS,
        "terminationGracePeriodSeconds": 60,
        "securityContext": parts.hardened_pod(
            fsGroup=parts.USER_ID, fsGroupChangePolicy="OnRootMismatch"
        ),
        "containers": [_container(values)],
        "volumes": [
            {"name": "config", "configMap": {"name": parts.REDIS}},
            {
                "name": "users",
                "secret": {
                    "secretName": parts.REDIS_SECRET,
                    "items": [{"key": "users.acl", "path": "users.acl"}],
                },
            },
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": parts.metadata(parts.REDIS, "redis", values),
        "spec": {
            "serviceName": parts.REDIS,
            "replicas": 1,
            "selector": {"matchLabels": parts.labels("redis")},
            "template": {"metadata": parts.pod_metadata("redis"), "spec": pod},
            "volumeClaimTemplates": [claim],
        },
    }


def _container(values: Values) -> Resource:
    # NOAUTH is an answer too: the server is up. Credentials in a probe would be in `ps`.
    ping = {"tcpSocket": {"port": "redis"}, "periodSeconds": 5}
    return {
        "name": "redis",
        "image": values.images.valkey,
        "command": ["valkey-server", "/etc/valkey/valkey.conf"],
        "ports": [{"name": "redis", "containerPort": parts.REDIS_PORT}],
        "startupProbe": because(
            {**ping, "failureThreshold": 120}, "Ten minutes to read a long append-only file back."
        ),
        "readinessProbe": dict(ping),
        "livenessProbe": {**ping, "failureThreshold": 6},
        "resources": parts.resources("250m", f"{MEMORY_MIB // 1024}Gi"),
        "securityContext": parts.hardened(),
        "volumeMounts": [
            {"name": "data", "mountPath": "/data"},
            {"name": "config", "mountPath": "/etc/valkey", "readOnly": True},
            {"name": "users", "mountPath": "/etc/valkey-users", "readOnly": True},
        ],
    }
