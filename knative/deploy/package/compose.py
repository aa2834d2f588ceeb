"""The compose file: the containers of the overlay `queue-cpu` on one machine with a container engine.

Called by `render`. Pure. Images, arguments, settings and triggers are those of the pods. What is different follows
from what compose has not: the predictor stays (nothing scales to zero), secrets are variables of an `.env` file, keys
lie in Redis, and the weights are a folder of this machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from knative.deploy.emit import Resource, because, document
from knative.deploy.render import parts, steps
from knative.deploy.render.model import provider
from knative.deploy.render.tools import config as tools
from knative.deploy.render.tree import HEADER, finished
from knative.deploy.values import Values

OVERLAY: Final = "queue-cpu"
_REDIS_URL: Final = "redis://redis:6379/0"
_TOKEN: Final = "${TORPOR_DELIVERY_TOKEN:?a random text of 24 characters or more, in .env}"  # noqa: S105 (a variable)
_SECRETS: Final = {("torpor-redis", "url"): _REDIS_URL, ("torpor-internal", "token"): _TOKEN}
_TRIGGERS: Final = "/etc/torpor/triggers/triggers.yaml"
_FILES: Final = {
    _TRIGGERS: "triggers",
    steps.FILE: "pipelines",
    tools.FILE: "tools",
}  # a mounted file to its config here
_HARDENED: Final[Resource] = {
    "restart": "unless-stopped",
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "tmpfs": ["/tmp"],  # noqa: S108 (of the container)
}


def files(values: Values) -> dict[str, str]:
    """The compose file by its path under manifests/."""
    return {"compose/compose.yaml": document(_project(values), header=HEADER)}


def _project(values: Values) -> Resource:
    objects = finished(OVERLAY, values)
    settings = _config(objects, "torpor-settings")
    services: dict[str, Any] = {"redis": _redis(objects)}
    services |= {
        "api": _api(objects, settings, values),
        "broker": _service(_box(objects, "Deployment", parts.BROKER), settings)
        | _known_as(parts.BROKER, values),
    }
    for each in values.each():
        services |= _predictor(objects, settings, each)
    configs = {
        "triggers": {"content": _config(objects, "torpor-triggers")["triggers.yaml"]},
        "valkey": {"content": _valkey(objects)},
    }
    if values.steps.max_replicas:
        services["steps"] = _steps(objects, settings, values)
        configs["pipelines"] = {"content": _config(objects, steps.PIPELINES)["pipelines.yaml"]}
        if values.tool_config.queues:
            configs["tools"] = {"content": _config(objects, tools.CONFIG)["tools.yaml"]}
        for label in values.tool_config.deployed:
            services |= _tool(objects, settings, label, values)
    return {
        "name": "torpor",
        "services": services,
        "configs": configs,
        "volumes": {"redis": {}, "files": {}},
    }


def _redis(objects: Sequence[Resource]) -> Resource:
    box = _box(objects, "StatefulSet", "torpor-redis")
    return {
        "image": box["image"],
        "command": box["command"],
        "restart": "unless-stopped",
        "stop_grace_period": f"{box['grace_s']}s",
        "configs": [{"source": "valkey", "target": "/etc/valkey/valkey.conf"}],
        "volumes": ["redis:/data"],
    }


def _valkey(objects: Sequence[Resource]) -> str:
    """The store's settings without the users of a Secret; only this project's network reaches it."""
    text = str(_config(objects, "torpor-redis")["valkey.conf"])
    kept = [line for line in text.splitlines() if not line.startswith(("aclfile", "# Users"))]
    return "\n".join([*kept, "protected-mode no", ""])


def _api(objects: Sequence[Resource], settings: Mapping[str, str], values: Values) -> Resource:
    box = _box(objects, "Deployment", parts.API)
    service = _service(box, settings)
    service["environment"] |= {
        "TORPOR_KEYS_SOURCE": because("redis", "docker compose exec api torpor keys create NAME"),
    }
    volumes = ["files:/var/lib/torpor", *_seal(values)]
    more = {"ports": ["127.0.0.1:8000:8000"], "volumes": volumes}
    return service | more | _known_as(parts.API, values)


def _steps(objects: Sequence[Resource], settings: Mapping[str, str], values: Values) -> Resource:
    service = _service(_box(objects, "Deployment", parts.STEPS), settings)
    volumes: list[Any] = ["files:/var/lib/torpor"]
    if values.tool_config.queues:
        keys = f"./secrets/tool-credentials:{tools.CREDENTIALS_FOLDER}:ro"
        volumes.append(because(keys, "A file a credential that the tools name."))
    shared = {
        "volumes": [*volumes, *_seal(values)],
        "depends_on": ["redis", because("api", "Its image has the folder's owner.")],
    }
    return service | shared | _known_as(parts.STEPS, values)


def _tool(
    objects: Sequence[Resource], settings: Mapping[str, str], label: str, values: Values
) -> dict[str, Resource]:
    """A tool that is deployed, with its caller and its pump; nothing scales it."""
    name, server = f"tool-{label}", values.tool_config.servers[label]
    found = [
        _box(objects, "Deployment", tools.object_name(label), box)
        for box in ("tool", "caller", "pump")
    ]
    tool, caller, pump = (_service(box, settings) for box in found)
    tool["environment"] = {each["name"]: each["value"] for each in found[0]["env"]}
    if server.deployment and (secret := server.deployment.secret):
        tool["env_file"] = because([f"./secrets/{secret}.env"], "Lines NAME=value.")
    beside = because(f"service:{name}", "Beside the tool, as in the pod.")
    for each in (caller, pump):
        each |= {"network_mode": beside, "depends_on": ["redis", name]}
    volumes: list[Any] = ["files:/var/lib/torpor", *_seal(values)]
    if server.credential:
        path = f"{tools.CREDENTIALS_FOLDER}/{server.credential}"
        volumes.append(f"./secrets/tool-credentials/{server.credential}:{path}:ro")
    caller["volumes"] = volumes
    return {name: tool, f"{name}-caller": caller, f"{name}-pump": pump}


def _seal(values: Values) -> list[Any]:
    """The key by which what a request brings for its tool servers is sealed, for those who seal and open it."""
    if not values.tool_config.url_tenants:
        return []
    return [because(f"./secrets/tool-seal:{tools.SEAL_FOLDER}:ro", "A file `key`.")]


def _known_as(name: str, values: Values) -> Resource:
    """The name by which settings and triggers know it in a cluster."""
    alias = f"{name}.{values.namespace}.svc.cluster.local"
    return {"networks": {"default": {"aliases": [alias]}}}


def _predictor(
    objects: Sequence[Resource], settings: Mapping[str, str], values: Values
) -> dict[str, Resource]:
    model = values.model.name
    engine = _service(_box(objects, "InferenceService", model), settings)
    if values.model.upstream:
        engine["volumes"] = [
            because(f"./secrets/{each['mountPath'].rpartition('/')[2]}:{each['mountPath']}:ro", "A file `key`.")
            for each in provider.mounts(values.model.upstream)
        ]  # fmt: skip
    else:
        del engine["environment"]["STORAGE_URI"]
        engine |= {
            "volumes": [
                because(f"./models/{model}:/mnt/models:ro", "config.json, tokenizer and weights.")
            ],
            "tmpfs": ["/tmp", "/var/cache/torpor:uid=10001,gid=10001"],  # noqa: S108
            "shm_size": "4gb",
        }
    pump = _service(_box(objects, "InferenceService", model, "pump"), settings)
    pump["network_mode"] = because(f"service:{model}", "Beside its engine, as in the pod.")
    pump["depends_on"] = ["redis", model]
    return {model: engine, f"{model}-pump": pump}


def _service(box: Resource, settings: Mapping[str, str]) -> Resource:
    service: Resource = {"image": box["image"]}
    if arguments := box.get("args"):
        service["command"] = list(arguments)
    own = {each["name"]: _value(each) for each in box["env"]}
    service["environment"] = {**settings, **own}
    service |= _HARDENED | {"stop_grace_period": f"{box['grace_s']}s"}
    read = [path for path in _FILES if path in own.values()]
    if read:
        service["configs"] = [{"source": _FILES[path], "target": path} for path in read]
    service["depends_on"] = ["redis"]
    return service


def _value(entry: Resource) -> str:
    if "value" in entry:
        return str(entry["value"])
    secret = entry["valueFrom"]["secretKeyRef"]
    name, key = secret["name"], secret["key"]
    # A Secret that the operator makes, such as the token for direct calls.
    own = f"${{{entry['name']}:?{key} of the Secret {name}, in .env}}"
    return _SECRETS.get((name, key), own)


def _config(objects: Sequence[Resource], name: str) -> Mapping[str, str]:
    data: Mapping[str, str] = _one(objects, "ConfigMap", name)["data"]
    return data


def _box(objects: Sequence[Resource], kind: str, name: str, box: str = "") -> Resource:
    """A container of an object, with its pod's grace; the first, if none is named."""
    spec = _one(objects, kind, name)["spec"]
    pod = spec["predictor" if kind == "InferenceService" else "template"]
    pod = pod.get("spec", pod)
    found: Iterator[Resource] = (e for e in pod["containers"] if not box or e["name"] == box)
    return {**next(found), "grace_s": pod.get("terminationGracePeriodSeconds", 30)}


def _one(objects: Sequence[Resource], kind: str, name: str) -> Resource:
    return next(o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name))
