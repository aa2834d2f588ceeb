"""Redis (Valkey) in the cluster: the jobs, the token streams and, in `queue`, the broker's log.

Called by `tree`. One server with its disk, or three that fail over: each with a sentinel beside it, started by the
scripts in `knative/deploy/store`. A managed Redis with the same settings is as good: point the Secret torpor-redis at
it and delete these objects (docs/operations.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from knative.deploy.emit import Resource, because
from knative.deploy.render import parts
from knative.deploy.values import Values

MEMORY_MIB = 2048
BACKUP = "torpor-backup"
SCRIPTS = "torpor-redis-scripts"
_BACKUP_S = 1800
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
_SCRIPTS_AT = "/etc/valkey-scripts"
_USERS_AT = "/etc/valkey-users"
_SNAPSHOT_AT = "/snapshot"


def redis(values: Values) -> list[Resource]:
    """Give the store: configuration, StatefulSet with its disks, Services.

    No PodDisruptionBudget for one server: it would block every node upgrade for ever, and the
    disk brings all back within seconds.
    """
    config = CONFIG.format(limit=MEMORY_MIB * 3 // 4)
    headless = because(
        "None", "The StatefulSet's. Its name is gone from DNS, and stays so for 30 s, while the "
        "pod is away: clients use the Services below, whose addresses stay."
    )  # fmt: skip
    found = [
        parts.config_map(parts.REDIS, "redis", values, {"valkey.conf": config}),
        _service(parts.REDIS, values, clusterIP=headless),
    ]
    if values.store.replicas > 1:
        found += [
            *(_service_of_pod(number, values) for number in range(values.store.replicas)),
            parts.disruption_budget(
                parts.REDIS, "redis", values, {"maxUnavailable": parts.ONE_AT_A_TIME}
            ),
        ]
    else:
        found.append(_service(parts.STORE, values))
    if values.store.replicas > 1 or values.store.backup_url:
        found.append(_scripts(values))
    return [*found, _stateful_set(values)]


def _scripts(values: Values) -> Resource:
    folder = Path(__file__).parents[1] / "store"
    texts = {each.name: each.read_text(encoding="utf-8") for each in sorted(folder.glob("*.sh"))}
    return parts.config_map(SCRIPTS, "redis", values, texts)


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


def _service_of_pod(number: int, values: Values) -> Resource:
    name = f"{parts.REDIS}-{number}"
    found = _service(name, values)
    found["spec"]["selector"] = {"statefulset.kubernetes.io/pod-name": name}
    found["spec"]["publishNotReadyAddresses"] = because(
        True, "A server that is not in step yet is reached by its primary and by the sentinels."
    )
    found["spec"]["ports"].append(
        {"name": "sentinel", "port": parts.SENTINEL_PORT, "targetPort": "sentinel"}
    )
    return found


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
    spec: Resource = {
        "serviceName": parts.REDIS,
        "replicas": values.store.replicas,
        "selector": {"matchLabels": parts.labels("redis")},
        "template": {"metadata": parts.pod_metadata("redis"), "spec": _pod(values)},
        "volumeClaimTemplates": [claim],
    }
    if values.store.replicas > 1:
        spec["podManagementPolicy"] = because(
            "Parallel", "A server comes back while the one before it cannot."
        )
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": parts.metadata(parts.REDIS, "redis", values),
        "spec": spec,
    }


def _pod(values: Values) -> Resource:
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
    if values.store.replicas > 1:
        pod["containers"] = [_watched(_container(values), values), _sentinel(values)]
        pod["volumes"].append({"name": "scripts", "configMap": {"name": SCRIPTS}})
        pod["affinity"] = because(
            {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [_apart()]}},
            "A node that dies takes one server of three.",
        )
    return pod


def _apart() -> Resource:
    return {
        "labelSelector": {"matchLabels": parts.labels("redis")},
        "topologyKey": "kubernetes.io/hostname",
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
            {"name": "users", "mountPath": _USERS_AT, "readOnly": True},
        ],
    }


def _watched(box: Resource, values: Values) -> Resource:
    """Give the server as one of three: it starts as the sentinels say, and hands over before it ends."""
    run = _run("ready.sh")
    return {
        **box,
        "command": _run("start-server.sh"),
        "env": _script_env(values),
        "readinessProbe": because(
            {"exec": {"command": run}, "periodSeconds": 5, "timeoutSeconds": 3},
            "Ready is in step with the primary: a drain of the next node waits for it.",
        ),
        "lifecycle": {"preStop": {"exec": {"command": _run("stop.sh")}}},
        "volumeMounts": [*box["volumeMounts"], _scripts_mount()],
    }


def _sentinel(values: Values) -> Resource:
    listens = {"tcpSocket": {"port": "sentinel"}, "periodSeconds": 5}
    return {
        "name": "sentinel",
        "image": values.images.valkey,
        "command": _run("start-sentinel.sh"),
        "ports": [{"name": "sentinel", "containerPort": parts.SENTINEL_PORT}],
        "env": _script_env(values),
        "startupProbe": {**listens, "failureThreshold": 24},
        "livenessProbe": {**listens, "failureThreshold": 6},
        "resources": parts.resources("50m", "64Mi"),
        "securityContext": parts.hardened(),
        "volumeMounts": [
            {"name": "data", "mountPath": "/data"},
            {"name": "users", "mountPath": _USERS_AT, "readOnly": True},
            _scripts_mount(),
        ],
    }


def _run(script: str) -> list[str]:
    return ["sh", f"{_SCRIPTS_AT}/{script}"]


def _scripts_mount() -> Resource:
    return {"name": "scripts", "mountPath": _SCRIPTS_AT, "readOnly": True}


def _script_env(values: Values) -> list[Resource]:
    """Give what the scripts in `knative/deploy/store` read."""
    hosts = parts.store_hosts(values.namespace, values.store.replicas)
    return [
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "HOSTS", "value": " ".join(hosts)},
        {"name": "SERVER_PORT", "value": str(parts.REDIS_PORT)},
        {"name": "SENTINEL_PORT", "value": str(parts.SENTINEL_PORT)},
        {"name": "BIND", "value": "* -::*"},
        {"name": "LOCALHOST", "value": "127.0.0.1"},
        {"name": "DATA", "value": "/data"},
        {"name": "CONFIG", "value": "/etc/valkey"},
        {"name": "USERS", "value": f"{_USERS_AT}/users.acl"},
        parts.secret_env("PASSWORD", parts.REDIS_SECRET, "password"),
    ]


def _dump(values: Values) -> Resource:
    """The container that takes the snapshot."""
    return {
        "name": "snapshot",
        "image": values.images.valkey,
        "command": _run("snapshot.sh"),
        "env": [*_script_env(values), {"name": "SNAPSHOT", "value": f"{_SNAPSHOT_AT}/dump.rdb"}],
        "resources": parts.resources("50m", "64Mi"),
        "securityContext": parts.hardened(),
        "volumeMounts": [{"name": "snapshot", "mountPath": _SNAPSHOT_AT}, _scripts_mount()],
    }


def _upload(values: Values) -> Resource:
    """The container that puts it into object storage."""
    return {
        "name": "upload",
        "image": values.images.reference("api"),
        "command": ["python", "-m", "eventing.store.objects.backup"],
        "env": [
            {"name": "TORPOR_BACKUP_URL", "value": values.store.backup_url},
            {"name": "TORPOR_BACKUPS_KEPT", "value": str(values.store.backups_kept)},
        ],
        "envFrom": [{"secretRef": {"name": BACKUP, "optional": True}}],
        "resources": parts.resources("50m", "256Mi"),
        "securityContext": parts.hardened(),
        "volumeMounts": [
            {"name": "snapshot", "mountPath": _SNAPSHOT_AT},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    }


def backup(values: Values) -> list[Resource]:
    """Give the CronJob that puts a snapshot into object storage; nothing without a `backup_url`."""
    if not values.store.backup_url:
        return []
    pod = {
        "serviceAccountName": parts.REDIS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": parts.NO_SERVICE_LINKS,
        "restartPolicy": "Never",
        "securityContext": parts.hardened_pod(fsGroup=parts.USER_ID),
        "initContainers": [_dump(values)],
        "containers": [_upload(values)],
        "volumes": [
            parts.scratch("snapshot", f"{MEMORY_MIB}Mi"),
            parts.scratch("tmp", "64Mi"),
            {"name": "scripts", "configMap": {"name": SCRIPTS}},
        ],
    }
    template = {"metadata": {"labels": parts.labels("backup")}, "spec": pod}
    return [
        {
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": parts.metadata(BACKUP, "backup", values),
            "spec": {
                "schedule": values.store.backup_schedule,
                "concurrencyPolicy": "Forbid",
                "successfulJobsHistoryLimit": 1,
                "failedJobsHistoryLimit": 3,
                "jobTemplate": {
                    "spec": {
                        "backoffLimit": 2,
                        "activeDeadlineSeconds": because(
                            _BACKUP_S, "One that hangs would be the last: the next waits for it."
                        ),
                        "template": template,
                    }
                },
            },
        }
    ]
