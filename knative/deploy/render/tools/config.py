"""Tools that the steps call: their queues, the file that names them, their keys as files, and where calls may go.

Called by `steps`, `network`, `tools.pods` and the doctor. Calls of one server have a queue of their own, so that a slow
one holds up no other; the process that runs them is that of the steps, or for a server that is deployed with a queue,
one beside it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

import yaml
from yarl import URL

from eventing.cloudevent.tool_event import CALLED
from eventing.job.plan import LIST_TOOLS_STEP, TOOLS_STEP
from eventing.job.tools.server import ToolServer
from knative.deploy.emit import Patch, Resource, because
from knative.deploy.render import parts
from knative.deploy.values import Values

CONFIG = "torpor-tools"
FOLDER = "/etc/torpor/tools"
FILE = f"{FOLDER}/tools.yaml"
CREDENTIALS = "torpor-tool-credentials"  # a Secret: one key a credential that tools.yaml names
CREDENTIALS_FOLDER = "/etc/torpor/tool-credentials"
SEAL = "torpor-tool-seal"  # a Secret with `key`, by which what a request brings for its servers is sealed
SEAL_FOLDER = "/etc/torpor/tool-seal"
SERVER = "torpor.dev/tool-server"
"""Label of a deployed server's pods: by it policies of the operator's own find them."""
SETTLES_S = 30  # a send that runs into its limit is settled after it


def steps(values: Values) -> list[str]:
    """Give the steps that a job with tools has."""
    return [LIST_TOOLS_STEP, TOOLS_STEP] if values.tool_config.queues else []


def queues(values: Values) -> dict[str, dict[str, str]]:
    """Give the names of the triggers of calls, with the attributes of the events that each takes."""
    return {
        queue_of(label): {"type": CALLED, "toolserver": label}
        for label in values.tool_config.queues
    }


def queue_of(label: str) -> str:
    """Give the name of the queue, and of the trigger, of a server's calls."""
    return f"tool-{label}"


def object_name(label: str) -> str:
    """Give the name of a deployed server's objects."""
    return f"torpor-tool-{label}"


def timeout_s(values: Values, queue: str) -> int:
    """Give how long a delivery of this queue may take."""
    longest_ms = values.tool_config.queues[queue.removeprefix("tool-")]
    return -(-longest_ms // 1000) + SETTLES_S


def parallelism(values: Values, queue: str) -> int:
    """Give how many calls of this queue one pump delivers at once."""
    server = values.tool_config.servers.get(queue.removeprefix("tool-"))
    return server.parallelism if server else values.steps.concurrency


def config_map(values: Values, *, knative: bool) -> Resource:
    """Give the file that api, broker and steps read."""
    servers = {
        label: _resolved(label, dict(entry), values, knative=knative)
        for label, entry in (values.tools.get("servers") or {}).items()
    }
    text = yaml.safe_dump({**values.tools, "servers": servers}, sort_keys=False)
    return parts.config_map(CONFIG, "steps", values, {"tools.yaml": text})


def _resolved(label: str, entry: Resource, values: Values, *, knative: bool) -> Resource:
    """Give a server as processes know it: one that is deployed is at an address, and none of them is restarted when its
    image is another.
    """
    if (deployed := values.tool_config.servers[label].deployment) is None:
        return entry
    del entry["deploy"]
    if knative:
        host = f"{object_name(label)}.{values.namespace}.svc.cluster.local"
        entry |= {
            "url": f"http://{host}{deployed.path}",
            "wake_ms": deployed.cold_start_s * 1000,
        }
    else:
        # By number: the first address of `localhost` may be IPv6's, where few containers listen.
        entry["url"] = f"http://127.0.0.1:{deployed.port}{deployed.path}"
    return entry


def _env(values: Values, *, runs_calls: bool) -> list[Resource]:
    found = [{"name": "TORPOR_TOOLS_FILE", "value": FILE}]
    if runs_calls:
        found.append({"name": "TORPOR_TOOL_CREDENTIALS_DIR", "value": CREDENTIALS_FOLDER})
    if values.tool_config.url_tenants:
        found.append({"name": "TORPOR_TOOL_SEAL_KEY_FILE", "value": f"{SEAL_FOLDER}/key"})
    return found


def _mounts(
    values: Values, *, runs_calls: bool, of: Iterable[ToolServer] | None = None
) -> list[tuple[Resource, Resource]]:
    """Give mounts with their volumes. Credentials are those of all servers, or those `of` some."""
    found: list[tuple[Resource, Resource]] = [
        (_mount("tools", FOLDER), {"name": "tools", "configMap": {"name": CONFIG}})
    ]
    if runs_calls:
        secret: Resource = {"secretName": CREDENTIALS, "optional": True}
        if of is not None:
            names = dict.fromkeys(each.credential for each in of if each.credential)
            secret["items"] = [{"key": name, "path": name} for name in names]
        mount = _mount("tool-credentials", CREDENTIALS_FOLDER)
        found.append((mount, {"name": "tool-credentials", "secret": secret}))
    if values.tool_config.url_tenants:
        secret = {"secretName": SEAL, "items": [{"key": "key", "path": "key"}]}
        found.append((_mount("tool-seal", SEAL_FOLDER), {"name": "tool-seal", "secret": secret}))
    return found


def _mount(name: str, folder: str) -> Resource:
    return {"name": name, "mountPath": folder, "readOnly": True}


def into_pod(box: Resource, pod: Resource, values: Values, *, knative: bool) -> None:
    """Give the steps' container and pod the file, and the keys of the servers whose calls they run."""
    config = values.tool_config
    if not config.queues:
        return
    elsewhere = {} if knative else config.deployed
    own = [each for label, each in config.servers.items() if label not in elsewhere]
    _put(box, pod, values, own if elsewhere else None)


def into_caller(box: Resource, pod: Resource, values: Values, server: ToolServer) -> None:
    """Give the caller beside a server the file, and the key of that server."""
    _put(box, pod, values, [server])


def _put(
    box: Resource, pod: Resource, values: Values, servers: Sequence[ToolServer] | None
) -> None:
    has_keys = servers is None or any(each.credential for each in servers)
    box["env"] += _env(values, runs_calls=has_keys)
    for mount, volume in _mounts(values, runs_calls=has_keys, of=servers):
        box["volumeMounts"].append(mount)
        pod["volumes"].append(volume)


def patch(values: Values, *, seals: bool) -> Patch:
    """Give the file to a process that takes jobs; one that `seals` gets the key for that."""
    if not values.tool_config.queues:
        return []
    box = "/spec/template/spec/containers/0"
    env, mounts = _env(values, runs_calls=False), _mounts(values, runs_calls=False)
    if not seals:
        env, mounts = env[:1], mounts[:1]
    added = [(f"{box}/env/-", each) for each in env]
    for mount, volume in mounts:
        added.append((f"{box}/volumeMounts/-", mount))
        added.append(("/spec/template/spec/volumes/-", volume))
    return [{"op": "add", "path": path, "value": value} for path, value in added]


def policy(part: str, values: Values, public: Resource) -> list[Resource]:
    """Give the policy that lets the steps out to the servers, and nowhere else. `public` is the peer of every public
    address.
    """
    config = values.tool_config
    if not config.queues:
        return []
    ways = [_way(server, public) for server in config.servers.values() if not server.deployment]
    if config.url_tenants:
        any_server = because(
            dict(public), "Servers that requests name: their addresses are checked."
        )
        ways.append({"to": [any_server], "ports": [{"protocol": "TCP", "port": 443}]})
    if not ways:
        return []
    unique = {str(way): way for way in ways}
    return [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": parts.metadata(f"{part}-tools", "network", values),
            "spec": {
                "podSelector": {"matchLabels": parts.labels("steps")},
                "policyTypes": ["Egress"],
                "egress": list(unique.values()),
            },
        }
    ]


def _way(server: ToolServer, public: Resource) -> Resource:
    url = URL(server.url)
    host = url.host or ""
    ports = [{"protocol": "TCP", "port": url.port}]
    if namespace := namespace_of(host):
        # A Service's port is not its pods', and those of Knative are reached by its ingress.
        return {"to": [_namespace(namespace), *_KNATIVE]}
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return {"to": [public], "ports": ports}
    return {"to": [{"ipBlock": {"cidr": f"{address}/{address.max_prefixlen}"}}], "ports": ports}


def _namespace(name: str) -> Resource:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


_KNATIVE = [_namespace(name) for name in ("kourier-system", "knative-serving")]


def namespace_of(host: str) -> str:
    """Give the namespace of a Service's host name; empty for another host."""
    labels = host.removesuffix(".cluster.local").split(".")
    return labels[1] if len(labels) == 3 and labels[2] == "svc" else ""
