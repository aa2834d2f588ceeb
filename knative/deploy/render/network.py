"""Who may talk to whom, as data; NetworkPolicies and the table in docs/security.md come from it.

Called by `tree` and by the test that holds the docs and the policies to this matrix.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from knative.deploy.emit import Resource
from knative.deploy.render import parts
from knative.deploy.render.model import provider
from knative.deploy.render.tools import config as tools
from knative.deploy.values import Values


class Peer(StrEnum):
    """A sender or receiver of connections."""

    API = "api"
    BROKER = "broker"
    PREDICTOR = "predictor"
    OWN_ENGINE = "own-engine"  # predictors with weights: all but those of providers
    REDIS = "redis"
    BACKUP = "backup"
    FIRST_SECRETS = "first-secrets"
    SCALER = "scaler"
    STEPS = "steps"
    TOOL = "tool"  # what we deploy of tools.yaml
    RABBITMQ = "rabbitmq"
    EVENT_MESH = "event-mesh"  # ingress and dispatcher pods of the Knative RabbitMQ broker
    ANYONE = "anyone"
    INTERNET = "internet"  # public addresses only
    KUBERNETES = "kubernetes api"
    KNATIVE_SERVING = "knative-serving"
    KNATIVE_EVENTING = "knative-eventing"
    KOURIER = "kourier-system"
    KEDA = "keda"
    MONITORING = "monitoring"
    RABBITMQ_SYSTEM = "rabbitmq-system"


@dataclass(frozen=True, slots=True)
class Flow:
    """One permitted connection and its reason. `part` is the folder whose manifests hold it."""

    source: Peer
    target: Peer
    ports: tuple[int, ...]
    reason: str
    part: str = "base"


OURS = frozenset(
    {
        Peer.API,
        Peer.BROKER,
        Peer.PREDICTOR,
        Peer.OWN_ENGINE,
        Peer.REDIS,
        Peer.BACKUP,
        Peer.FIRST_SECRETS,
        Peer.SCALER,
        Peer.STEPS,
        Peer.TOOL,
        Peer.RABBITMQ,
        Peer.EVENT_MESH,
    }
)
_NAMESPACES = frozenset(
    {
        Peer.KNATIVE_SERVING,
        Peer.KNATIVE_EVENTING,
        Peer.KOURIER,
        Peer.KEDA,
        Peer.MONITORING,
        Peer.RABBITMQ_SYSTEM,
    }
)
# Never reached as «the internet»: private, carrier, loopback and link-local (metadata) ranges. A
# second wall behind the api's own check of webhook addresses.
NOT_PUBLIC = (
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
)

# http, h2c, and https with Knative's `system-internal-tls`; then admin and metrics.
KNATIVE_HTTP = (8012, 8013, 8112)
QUEUE_PROXY = (8012, 8013, 8022, 8112, 9090)

_STEPS = ("steps-queue", "steps-knative")

_STORE = (6379, 26379)  # the server, and where it has replicas its sentinel

FLOWS: tuple[Flow, ...] = (
    Flow(Peer.ANYONE, Peer.API, (8000,), "clients; keys and tokens are checked inside"),
    Flow(Peer.API, Peer.REDIS, _STORE, "jobs, token streams, limits"),
    Flow(Peer.API, Peer.INTERNET, (443,), "webhooks, OIDC keys"),
    Flow(Peer.PREDICTOR, Peer.REDIS, _STORE, "leases, tokens, results"),
    Flow(Peer.REDIS, Peer.REDIS, _STORE, "replicas and sentinels", "store-of-three"),
    Flow(Peer.BACKUP, Peer.REDIS, _STORE, "the snapshot", "backup"),
    Flow(Peer.BACKUP, Peer.INTERNET, (443,), "the snapshot, to object storage", "backup"),
    Flow(Peer.OWN_ENGINE, Peer.INTERNET, (443,), "the model's files, once a pod"),
    Flow(Peer.FIRST_SECRETS, Peer.KUBERNETES, (443, 6443), "makes the Secrets that are missing"),
    Flow(Peer.API, Peer.BROKER, (8081,), "request and cancel events", "queue"),
    Flow(Peer.BROKER, Peer.REDIS, _STORE, "the durable log", "queue"),
    Flow(Peer.BROKER, Peer.API, (8000,), "requests that name no model", "queue"),
    Flow(Peer.KEDA, Peer.REDIS, _STORE, "queue lengths, as a user that may see no more", "keda"),
    Flow(Peer.KEDA, Peer.SCALER, (9090,), "how many replicas", "work-scaler"),
    Flow(Peer.SCALER, Peer.REDIS, _STORE, "the queue, as a user that may only read", "work-scaler"),
    Flow(Peer.BROKER, Peer.REDIS, _STORE, "the relay's log", "serverless"),
    Flow(
        Peer.BROKER, Peer.API, (8000,), "asked whether it takes events: it does not", "serverless"
    ),
    Flow(
        Peer.KNATIVE_SERVING,
        Peer.PREDICTOR,
        QUEUE_PROXY,
        "activator and autoscaler to queue-proxy",
        "serverless",
    ),
    Flow(Peer.KOURIER, Peer.PREDICTOR, KNATIVE_HTTP, "the ingress once awake", "serverless"),
    Flow(
        Peer.PREDICTOR,
        Peer.KNATIVE_SERVING,
        (8080,),
        "queue-proxy to the autoscaler",
        "serverless",
    ),
    Flow(Peer.KOURIER, Peer.API, KNATIVE_HTTP, "callers, by queue-proxy", "api-knative"),
    Flow(
        Peer.KNATIVE_SERVING,
        Peer.API,
        QUEUE_PROXY,
        "activator and autoscaler to queue-proxy",
        "api-knative",
    ),
    Flow(Peer.API, Peer.KNATIVE_SERVING, (8080,), "queue-proxy to the autoscaler", "api-knative"),
    Flow(Peer.API, Peer.EVENT_MESH, (8080,), "request events", "broker-rabbitmq"),
    Flow(Peer.EVENT_MESH, Peer.RABBITMQ, (5672, 15672), "publish and consume", "broker-rabbitmq"),
    Flow(Peer.EVENT_MESH, Peer.EVENT_MESH, (8080,), "replies go back in", "broker-rabbitmq"),
    Flow(Peer.EVENT_MESH, Peer.BROKER, (8081,), "what it gave up, to the relay", "broker-rabbitmq"),
    Flow(Peer.EVENT_MESH, Peer.KOURIER, (8081, 8444), "to the predictor", "broker-rabbitmq"),
    Flow(
        Peer.EVENT_MESH,
        Peer.KNATIVE_SERVING,
        KNATIVE_HTTP,
        "to the predictor asleep",
        "broker-rabbitmq",
    ),
    Flow(Peer.KNATIVE_EVENTING, Peer.EVENT_MESH, (8080, 9090), "readiness", "broker-rabbitmq"),
    Flow(
        Peer.RABBITMQ, Peer.RABBITMQ, (4369, 5672, 15672, 25672), "its cluster", "broker-rabbitmq"
    ),
    Flow(Peer.RABBITMQ, Peer.KUBERNETES, (443, 6443), "peer discovery", "broker-rabbitmq"),
    Flow(Peer.RABBITMQ_SYSTEM, Peer.RABBITMQ, (15671, 15672), "its operators", "broker-rabbitmq"),
    Flow(Peer.API, Peer.KNATIVE_EVENTING, (8080,), "request events", "broker-kafka"),
    Flow(
        Peer.KNATIVE_EVENTING, Peer.BROKER, (8081,), "what it gave up, to the relay", "broker-kafka"
    ),
    Flow(Peer.API, Peer.KNATIVE_EVENTING, (8443,), "request events, over TLS", "eventing-tls"),
    Flow(Peer.BROKER, Peer.STEPS, (8083,), "what steps are to do", "steps-queue"),
    Flow(Peer.STEPS, Peer.REDIS, _STORE, "jobs, queues, indexes", "steps-queue"),
    Flow(Peer.STEPS, Peer.API, (8000,), "guard models that are served here", "steps-queue"),
    Flow(Peer.MONITORING, Peer.STEPS, (8083,), "metrics", "steps-queue"),
    Flow(Peer.STEPS, Peer.REDIS, _STORE, "jobs, indexes", "steps-knative"),
    Flow(Peer.STEPS, Peer.API, (8000,), "guard models that are served here", "steps-knative"),
    Flow(Peer.STEPS, Peer.EVENT_MESH, (8080,), "the next step's event", "steps-knative"),
    Flow(
        Peer.STEPS,
        Peer.KNATIVE_EVENTING,
        (8080, 8443),
        "the next step's event, on Kafka",
        "steps-knative",
    ),
    Flow(
        Peer.KNATIVE_SERVING,
        Peer.STEPS,
        QUEUE_PROXY,
        "activator and autoscaler to queue-proxy",
        "steps-knative",
    ),
    Flow(Peer.KOURIER, Peer.STEPS, KNATIVE_HTTP, "the ingress once awake", "steps-knative"),
    Flow(
        Peer.STEPS, Peer.KNATIVE_SERVING, (8080,), "queue-proxy to the autoscaler", "steps-knative"
    ),
    Flow(Peer.MONITORING, Peer.STEPS, (8083,), "metrics", "steps-knative"),
    Flow(Peer.TOOL, Peer.REDIS, _STORE, "its caller and pump: calls, their queue", "tools-queue"),
    Flow(Peer.TOOL, Peer.API, (8000,), "progress, and results that come later", "tools-queue"),
    Flow(Peer.TOOL, Peer.API, (8000,), "progress, and results that come later", "tools-knative"),
    Flow(Peer.MONITORING, Peer.TOOL, (8082, 8083), "metrics", "tools-queue"),
    Flow(
        Peer.KNATIVE_SERVING,
        Peer.TOOL,
        QUEUE_PROXY,
        "activator and autoscaler to queue-proxy",
        "tools-knative",
    ),
    Flow(Peer.STEPS, Peer.KOURIER, (8081, 8444), "calls of a tool", "tools-knative"),
    Flow(Peer.STEPS, Peer.KNATIVE_SERVING, KNATIVE_HTTP, "calls of a tool asleep", "tools-knative"),
    Flow(Peer.KOURIER, Peer.TOOL, KNATIVE_HTTP, "the ingress once awake", "tools-knative"),
    Flow(
        Peer.TOOL, Peer.KNATIVE_SERVING, (8080,), "queue-proxy to the autoscaler", "tools-knative"
    ),
    Flow(Peer.MONITORING, Peer.API, (8000,), "metrics", "monitoring"),
    Flow(Peer.MONITORING, Peer.BROKER, (8081,), "metrics", "monitoring"),
    Flow(Peer.MONITORING, Peer.PREDICTOR, (8080, 8082), "metrics", "monitoring"),
)


def policies(part: str, values: Values) -> list[Resource]:
    """Give one part's policies: for each of our pods what this part lets in and out."""
    flows = [_open(flow, values) for flow in FLOWS if flow.part == part]
    found = [_policy(part, party, flows, values) for party in Peer if party in OURS]
    (public,) = _peers(Peer.INTERNET)
    if part in _STEPS:
        found += tools.policy(part, values, public)
    if part != "base":
        return [policy for policy in found if policy]
    return [*_shut(values), *filter(None, found), *provider.policies(values, public)]


def _open(flow: Flow, values: Values) -> Flow:
    """Give a flow without the sentinels' port where there are none."""
    if flow.target is not Peer.REDIS or values.store.replicas > 1:
        return flow
    return replace(flow, ports=(parts.REDIS_PORT,))


def _shut(values: Values) -> list[Resource]:
    """Give the two policies that all else adds to: nothing in, and out only to ask for names."""
    dns = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    everything: Resource = {"podSelector": {}}
    return [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": parts.metadata("nothing-by-default", "network", values),
            "spec": {**everything, "policyTypes": ["Ingress", "Egress"]},
        },
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": parts.metadata("names-for-all", "network", values),
            "spec": {
                **everything,
                "policyTypes": ["Egress"],
                "egress": [{"to": [_namespace_peer("kube-system")], "ports": dns}],
            },
        },
    ]


def _policy(part: str, party: Peer, flows: list[Flow], values: Values) -> Resource | None:
    arrives = [_rule("from", flow.source, flow) for flow in flows if flow.target == party]
    leaves = [_rule("to", flow.target, flow) for flow in flows if flow.source == party]
    if not arrives and not leaves:
        return None
    spec: Resource = {"podSelector": _selector(party), "policyTypes": []}
    if arrives:
        spec["policyTypes"].append("Ingress")
        spec["ingress"] = arrives
    if leaves:
        spec["policyTypes"].append("Egress")
        spec["egress"] = leaves
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": parts.metadata(f"{part}-{party}", "network", values),
        "spec": spec,
    }


def _rule(direction: str, other: Peer, flow: Flow) -> Resource:
    ports = [{"protocol": "TCP", "port": port} for port in flow.ports]
    peers = _peers(other)
    return {direction: peers, "ports": ports} if peers else {"ports": ports}


def _peers(party: Peer) -> list[Resource]:
    """Give a party as peers of a rule; none means every peer."""
    if party is Peer.INTERNET:
        return [{"ipBlock": {"cidr": "0.0.0.0/0", "except": list(NOT_PUBLIC)}}]
    if party in _NAMESPACES:
        return [_namespace_peer(party.value)]
    if party in OURS:
        return [{"podSelector": _selector(party)}]
    return []  # anyone; and the Kubernetes API, whose address no policy can know


def _namespace_peer(name: str) -> Resource:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _selector(party: Peer) -> Resource:
    match party:
        case Peer.RABBITMQ:
            return {"matchLabels": {"app.kubernetes.io/name": "torpor-rabbitmq"}}
        case Peer.EVENT_MESH:
            return {"matchLabels": {"eventing.knative.dev/broker": parts.EVENTS}}
        case Peer.OWN_ENGINE:
            return {
                "matchLabels": parts.labels(Peer.PREDICTOR.value),
                "matchExpressions": [{"key": provider.PROVIDER, "operator": "DoesNotExist"}],
            }
        case _:
            return {"matchLabels": parts.labels(party.value)}


def matrix() -> str:
    """Give the flows as a Markdown table, for docs/security.md."""
    lines = ["| from | to | ports | why | part |", "|---|---|---|---|---|"]
    for flow in FLOWS:
        ports = ", ".join(map(str, flow.ports))
        lines.append(f"| {flow.source} | {flow.target} | {ports} | {flow.reason} | {flow.part} |")
    return "\n".join(lines) + "\n"
