"""Tools that the steps call: their queues, the file that names them, their keys as files, and where calls may go.

Called by `steps`, `network` and the doctor. Calls of one server have a queue of their own, so that a slow one holds up
no other; the process that runs them is that of the steps.
"""

from __future__ import annotations

import ipaddress

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
_SETTLES_S = 30  # a send that runs into its limit is settled after it


def steps(values: Values) -> list[str]:
    """Give the steps that a job with tools has."""
    return [LIST_TOOLS_STEP, TOOLS_STEP] if values.tool_config.queues else []


def queues(values: Values) -> dict[str, dict[str, str]]:
    """Give the names of the triggers of calls, with the attributes of the events that each takes."""
    return {
        f"tool-{label}": {"type": CALLED, "toolserver": label}
        for label in values.tool_config.queues
    }


def timeout_s(values: Values, queue: str) -> int:
    """Give how long a delivery of this queue may take."""
    longest_ms = values.tool_config.queues[queue.removeprefix("tool-")]
    return -(-longest_ms // 1000) + _SETTLES_S


def parallelism(values: Values, queue: str) -> int:
    """Give how many calls of this queue one pump delivers at once."""
    server = values.tool_config.servers.get(queue.removeprefix("tool-"))
    return server.parallelism if server else values.steps.concurrency


def config_map(values: Values) -> Resource:
    """Give the file that api, broker and steps read."""
    text = yaml.safe_dump(values.tools, sort_keys=False)
    return parts.config_map(CONFIG, "steps", values, {"tools.yaml": text})


def _env(values: Values, *, runs_calls: bool) -> list[Resource]:
    found = [{"name": "TORPOR_TOOLS_FILE", "value": FILE}]
    if runs_calls:
        found.append({"name": "TORPOR_TOOL_CREDENTIALS_DIR", "value": CREDENTIALS_FOLDER})
    if values.tool_config.url_tenants:
        found.append({"name": "TORPOR_TOOL_SEAL_KEY_FILE", "value": f"{SEAL_FOLDER}/key"})
    return found


def _mounts(values: Values, *, runs_calls: bool) -> list[tuple[Resource, Resource]]:
    """Give mounts with their volumes."""
    found: list[tuple[Resource, Resource]] = [
        (_mount("tools", FOLDER), {"name": "tools", "configMap": {"name": CONFIG}})
    ]
    if runs_calls:
        secret = {"secretName": CREDENTIALS, "optional": True}
        mount = _mount("tool-credentials", CREDENTIALS_FOLDER)
        found.append((mount, {"name": "tool-credentials", "secret": secret}))
    if values.tool_config.url_tenants:
        secret = {"secretName": SEAL, "items": [{"key": "key", "path": "key"}]}
        found.append((_mount("tool-seal", SEAL_FOLDER), {"name": "tool-seal", "secret": secret}))
    return found


def _mount(name: str, folder: str) -> Resource:
    return {"name": name, "mountPath": folder, "readOnly": True}


def into_pod(box: Resource, pod: Resource, values: Values) -> None:
    """Give the steps' container and pod the file, and the keys of the servers."""
    if not values.tool_config.queues:
        return
    box["env"] += _env(values, runs_calls=True)
    for mount, volume in _mounts(values, runs_calls=True):
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
    ways = [_way(server, public) for server in config.servers.values()]
    if config.url_tenants:
        any_server = because(
            dict(public), "Servers that requests name: their addresses are checked."
        )
        ways.append({"to": [any_server], "ports": [{"protocol": "TCP", "port": 443}]})
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
        own = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
        return {"to": [own, *_KNATIVE]}
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return {"to": [public], "ports": ports}
    return {"to": [{"ipBlock": {"cidr": f"{address}/{address.max_prefixlen}"}}], "ports": ports}


_KNATIVE = [
    {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
    for name in ("kourier-system", "knative-serving")
]


def namespace_of(host: str) -> str:
    """Give the namespace of a Service's host name; empty for another host."""
    labels = host.removesuffix(".cluster.local").split(".")
    return labels[1] if len(labels) == 3 and labels[2] == "svc" else ""
