"""All timeouts on a job's path, derived from one number.

Pure. Called by the renderer (which writes the seconds into manifests), by the doctor (which compares what it finds
with them) and by `torpor render --explain`. Must not know YAML.

Order of the hops, inner to outer. Each is longer than the one inside it, so that the innermost always ends first
and work that is still running is not retried: drain < pod grace < node grace; job + cold start < request
(queue-proxy, activator) < delivery (Trigger).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import ceil

from knative.deploy.values import Values

MAX_ATTEMPTS = 3  # of one job, by our own counter; after that it is a dead letter
HOP_MARGIN_S = 30  # by how much a hop is longer than the one inside it
INITIAL_COOLDOWN_S = 30  # until the first pod of an install, started without a job, is ended
RABBITMQ_PREFETCH = 100  # fixed in eventing-rabbitmq, whatever the parallelism (docs/facts.md 3.2)


@dataclass(frozen=True, slots=True)
class Why:
    """The purpose of a derived number, its formula and its source."""

    formula: str
    reason: str
    source: str


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds, unless the name says otherwise. Made by `derive`, explained by `EXPLANATIONS`."""

    job: int
    lease: int
    drain: int
    pod_grace: int
    request: int
    delivery: int
    max_revision: int
    activator_grace: int
    retries: int
    retry_delay: int
    retry_span: int
    rabbitmq_ack: int
    stable_window: int
    progress_deadline: int
    startup_probe: int
    polling: int
    cooldown: int
    initial_cooldown: int
    scale_down_window: int
    stream: int
    node_grace: int
    node_idle: int


def linear_span(retries: int, delay_s: float) -> float:
    """Give the seconds that a Knative `linear` policy waits in all: delay x n, n from 0."""
    return delay_s * retries * (retries - 1) / 2


def exponential_span(retries: int, delay_s: float) -> float:
    """Give the seconds that a Knative `exponential` policy waits in all: delay x 2^n, n from 0."""
    return delay_s * ((1 << retries) - 1)


def linear_retries(span_s: int, delay_s: int) -> int:
    """Give the fewest retries whose linear waits add up to the span."""
    retries = 1
    while linear_span(retries, delay_s) < span_s:
        retries += 1
    return retries


def rabbitmq_ack_s(delivery_s: float, retry_span_s: float, parallelism: int) -> int:
    """Give the longest wait of the last of 100 prefetched messages for its ack.

    The dispatcher holds 100 messages unacked and works on `parallelism` of them at a time; each may be held for
    MAX_ATTEMPTS full deliveries plus all its waits between retries.
    """
    waves = ceil(RABBITMQ_PREFETCH / parallelism)
    return ceil(waves * (MAX_ATTEMPTS * delivery_s + retry_span_s))


def parallelism(values: Values) -> int:
    """Give the number of concurrent deliveries to predictors, within RabbitMQ's 1..1000."""
    return min(1000, values.max_replicas * values.model.concurrency)


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


def derive(values: Values) -> Timeouts:
    """Give all timeouts that follow from the values."""
    job, cold = values.max_job_seconds, values.cold_start_seconds
    lease = _clamp(job // 60, 15, 60)
    request = cold + job + 60
    delivery = request + HOP_MARGIN_S
    retry_delay = 2
    retries = linear_retries(job + cold + lease, retry_delay)
    span = ceil(linear_span(retries, retry_delay))
    drain = min(job, 3600)
    pod_grace = drain + HOP_MARGIN_S
    cooldown = max(300, cold + 60)
    return Timeouts(
        job=job,
        lease=lease,
        drain=drain,
        pod_grace=pod_grace,
        request=request,
        delivery=delivery,
        max_revision=request,
        activator_grace=request + HOP_MARGIN_S,
        retries=retries,
        retry_delay=retry_delay,
        retry_span=span,
        rabbitmq_ack=max(
            rabbitmq_ack_s(delivery, span, parallelism(each)) for each in values.each()
        ),
        stable_window=_clamp(cold, 60, 3600),
        progress_deadline=cold + 60,
        startup_probe=cold + 60,
        polling=2,
        cooldown=cooldown,
        initial_cooldown=INITIAL_COOLDOWN_S,
        scale_down_window=_clamp(cold, 300, 3600),
        stream=request,
        node_grace=pod_grace + HOP_MARGIN_S,
        node_idle=cooldown,
    )


EXPLANATIONS: dict[str, Why] = {
    "job": Why(
        "max_job_seconds",
        "The one number: TORPOR_MAX_JOB_SECONDS everywhere.",
        "docs/topologies.md",
    ),
    "lease": Why(
        "job / 60, within 15..60",
        "Renewed at a third: a dead pod's job starts elsewhere within this, a slow one keeps it.",
        "docs/reliability.md F07, F12",
    ),
    "drain": Why(
        "job, at most 3600",
        "After SIGTERM a job that began this second may still end. Nodes rarely wait longer than "
        "an hour; what is left is handed over and goes on elsewhere at the same token.",
        "docs/facts.md #14, #23",
    ),
    "pod_grace": Why(
        "drain + 30",
        "KServe's Standard mode would give 30 s and kill a thinking pod.",
        "docs/facts.md 3.4 deployment_reconciler.go:283",
    ),
    "request": Why(
        "cold start + job + 60",
        "The request waits in the activator while a pod wakes, then while it thinks; KServe copies "
        "it to timeoutSeconds and responseStartTimeoutSeconds.",
        "docs/facts.md 3.3, 3.4, #3, #4",
    ),
    "delivery": Why(
        "request + 30",
        "The broker must outlast queue-proxy, or it retries a job that is running.",
        "docs/facts.md 3.1, #5",
    ),
    "max_revision": Why(
        "request",
        "Knative's webhook refuses a longer timeoutSeconds (600 by default).",
        "docs/facts.md 3.3 defaults.yaml",
    ),
    "activator_grace": Why(
        "request + 30",
        "A restarting activator must outlive the requests that it holds.",
        "docs/facts.md 3.3",
    ),
    "retries": Why(
        "fewest n with 2 s x n(n-1)/2 >= job + cold start + lease",
        "409 and 503 are answers for «later»; the broker must ask until the job has ended. Linear: "
        "an exponential span this long would end in one wait of half of it.",
        "docs/facts.md trap 3; docs/facts.md 3.1; docs/reliability.md F10b",
    ),
    "retry_delay": Why(
        "2", "First waits are short: a handed-over job starts at once.", "docs/facts.md 3.1"
    ),
    "retry_span": Why(
        "2 s x n(n-1)/2", "What the doctor compares with the deadline.", "docs/facts.md 3.1"
    ),
    "rabbitmq_ack": Why(
        "ceil(100 / parallelism) x (3 deliveries + retry span)",
        "The dispatcher prefetches 100 whatever its parallelism; RabbitMQ closes the channel of a "
        "message unacked for 1800 s and all of them run twice.",
        "docs/facts.md 3.2 Qos(100,0,false); celery#6760",
    ),
    "stable_window": Why(
        "cold start, within 60..3600",
        "A pod is kept idle as long as waking another would take: never worse than twice the best.",
        "docs/facts.md 3.3 window 6s..1h",
    ),
    "progress_deadline": Why(
        "cold start + 60",
        "A revision that loads longer than the global 600 s is given up.",
        "docs/facts.md 3.3 deployment.md, #12",
    ),
    "startup_probe": Why(
        "cold start + 60",
        "Until then not ready is not dead: no restart while loading.",
        "docs/facts.md #12",
    ),
    "polling": Why("2", "KEDA's 30 s would be added to every wake from zero.", "docs/facts.md 3.5"),
    "cooldown": Why(
        "max(300, cold start + 60)",
        "Longer than the worst wake, or KEDA ends a pod that is still loading.",
        "docs/facts.md 3.5, #11",
    ),
    "initial_cooldown": Why(
        "30",
        "KServe's new Deployment starts one pod without a job: it ends after this. One that a "
        "job woke is held by that job, and then by the cooldown.",
        "docs/facts.md 3.5; ADR 167",
    ),
    "scale_down_window": Why(
        "cold start, within 300..3600",
        "The HPA picks its victim blindly: let it wait as long as a wake costs.",
        "docs/facts.md #6; HPA stabilisation <= 3600",
    ),
    "stream": Why(
        "request", "An answer may be silent for a whole wake and thought.", "docs/facts.md #3, #13"
    ),
    "node_grace": Why(
        "pod grace + 30",
        "A node may not be taken before its pods have drained.",
        "docs/facts.md #14",
    ),
    "node_idle": Why(
        "cooldown", "An empty GPU node is given back when no wake is expected.", "docs/facts.md #11"
    ),
}


def explain(timeouts: Timeouts) -> list[tuple[str, int, Why]]:
    """Give every derived number with its reason, in the order of the path."""
    return [(f.name, getattr(timeouts, f.name), EXPLANATIONS[f.name]) for f in fields(timeouts)]
