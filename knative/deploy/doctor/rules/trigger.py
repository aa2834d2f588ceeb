"""Rules of a ScaledObject's triggers: what each counts, and where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from eventing.redis import keys
from knative.autoscaling.setting import RefusedSettingsError
from knative.deploy.doctor.finding import Fault, Hop, Register, Severity, fault
from knative.deploy.doctor.view import ResourceView, dig, variable
from knative.deploy.emit import Resource
from knative.deploy.render import parts
from knative.deploy.render.tools.config import queue_of
from knative.external_scaler.scaler import read_metadata

register = Register()


_BEHIND_SENTINELS: Final = {"redis-streams": "redis-sentinel-streams"}


def triggers(scaled: Resource, kind: str) -> list[tuple[int, Resource]]:
    """Give a ScaledObject's triggers of a type, also behind sentinels, each with its place in the list."""
    listed = dig(scaled, "spec.triggers") or []
    return [
        (i, t) for i, t in enumerate(listed) if t.get("type") in (kind, _BEHIND_SENTINELS.get(kind))
    ]


def _external(scaled: Resource) -> list[tuple[int, Resource]]:
    return [*triggers(scaled, "external"), *triggers(scaled, "external-push")]


@register.rule(
    "keda-lag-alone",
    Hop.SCALER,
    why="Lag counts entries that are not delivered: it is 0 while a job runs, and the pod was seen "
    "to be ended within 9 s.",
    source="docs/facts.md 3.6, 3.6b, #7, #8",
)
def keda_lag_alone(view: ResourceView) -> Iterator[Fault]:
    for scaled in view.scaled_objects:
        kinds = [
            ("lagCount" in (t.get("metadata") or {}), "pendingEntriesCount" in t["metadata"])
            for _, t in triggers(scaled, "redis-streams")
        ]
        if not kinds:
            continue
        if not any(lag for lag, _ in kinds):
            yield fault(scaled, "spec.triggers", "no lagCount", "a lag trigger: it wakes from zero")
        if not any(pending and not lag for lag, pending in kinds):
            yield fault(
                scaled, "spec.triggers", "lag alone", "a second trigger with pendingEntriesCount"
            )


@register.rule(
    "keda-both-counts",
    Hop.SCALER,
    why="One trigger with both counts reads lag only.",
    source="docs/facts.md 3.6",
)
def keda_both_counts(view: ResourceView) -> Iterator[Fault]:
    for scaled in view.scaled_objects:
        for index, trigger in triggers(scaled, "redis-streams"):
            data = trigger.get("metadata") or {}
            if "lagCount" in data and "pendingEntriesCount" in data:
                yield fault(scaled, f"spec.triggers[{index}]", "both counts", "two named triggers")


def _steps_streams(scaled: Resource, wanted: set[str]) -> Iterator[Fault]:
    """One process runs every step: a queue that is not counted starts no process."""
    counted = {
        str((t.get("metadata") or {}).get("stream")) for _, t in triggers(scaled, "redis-streams")
    }
    if counted != wanted:
        shown, must = ", ".join(sorted(counted)), ", ".join(sorted(wanted))
        yield fault(scaled, "spec.triggers", shown, must)


@register.rule(
    "keda-stream",
    Hop.SCALER,
    why="A stream or group of another name reads 0 for ever: nothing wakes, and no error says so.",
    source="docs/facts.md 3.6 (missing stream reads 0)",
)
def keda_stream(view: ResourceView) -> Iterator[Fault]:
    streams = {
        f"torpor:{{{t['metadata']['name']}}}:tickets"
        for t in view.request_triggers()
        if t in view.own_triggers
    }
    of_steps = {
        f"torpor:{{{t['metadata']['name']}}}:tickets"
        for t in view.own_triggers
        if parts.STEPS in str(dig(t, "spec.subscriber"))
    }
    for scaled in view.scaled_objects:
        target = str(dig(scaled, "spec.scaleTargetRef.name"))
        if target == parts.STEPS:
            yield from _steps_streams(scaled, of_steps)
            continue
        # Another model's stream would wake this one for nothing, and that one never.
        own = parts.stream_key(target.removesuffix("-predictor"))
        known = streams
        if label := view.scales_tool(scaled):
            own = keys.queue(queue_of(label), "tickets")
            known = {own}
        for index, trigger in triggers(scaled, "redis-streams"):
            data = trigger.get("metadata") or {}
            field = f"spec.triggers[{index}].metadata"
            if known and (data.get("stream") != own or own not in known):
                yield fault(scaled, f"{field}.stream", data.get("stream"), own)
            if data.get("consumerGroup") != parts.GROUP:
                yield fault(
                    scaled, f"{field}.consumerGroup", data.get("consumerGroup"), parts.GROUP
                )


@register.rule(
    "queue-served",
    Hop.SCALER,
    why="A queue of our broker without a pump, or at zero without a scaler that reads it, takes "
    "jobs that are never run.",
    source="docs/operations.md, Canary",
)
def queue_served(view: ResourceView) -> Iterator[Fault]:
    pumped = {
        str(variable(box, "TORPOR_TRIGGER")): predictor
        for predictor in view.predictors
        for box in dig(predictor, "spec.predictor.containers") or []
        if box.get("args") == ["eventing.pump"]
    }
    scaled = {
        str(read)
        for scaled_object in view.scaled_objects
        for trigger in dig(scaled_object, "spec.triggers") or []
        for read in queues_read(trigger.get("metadata") or {})
    }
    for trigger in view.request_triggers():
        if trigger not in view.own_triggers:
            continue
        name = str(trigger["metadata"]["name"])
        if (predictor := pumped.get(name)) is None:
            yield fault(trigger, "pump", None, f"a predictor whose pump has TORPOR_TRIGGER {name}")
        elif not dig(predictor, "spec.predictor.minReplicas") and name not in scaled:
            yield fault(trigger, "scaler", None, f"a ScaledObject that reads {name}")


def queues_read(metadata: Resource) -> Iterator[str]:
    """Give the queues that a scaler's trigger counts: of a stream's key, or by name."""
    stream = str(metadata.get("stream") or "")
    if stream.startswith("torpor:{"):
        yield stream.removeprefix("torpor:{").partition("}")[0]
    if "queue" in metadata:
        yield str(metadata["queue"])


@register.rule(
    "keda-rabbitmq-amqp",
    Hop.SCALER,
    why="Over amqp only ready messages are counted; the dispatcher's prefetch of 100 makes the "
    "queue look empty.",
    source="docs/facts.md 3.2, 3.6",
)
def keda_rabbitmq_amqp(view: ResourceView) -> Iterator[Fault]:
    for scaled in view.scaled_objects:
        for index, trigger in triggers(scaled, "rabbitmq"):
            value = (trigger.get("metadata") or {}).get("protocol", "auto")
            if value != "http":
                yield fault(scaled, f"spec.triggers[{index}].metadata.protocol", value, "http")


@register.rule(
    "scaler-address",
    Hop.SCALER,
    why="Without an answer KEDA's trigger errs: nothing is ended, and nothing wakes. Two "
    "servers learn apart, and answer unlike.",
    source="ADR 23; KEDA external scalers",
)
def scaler_address(view: ResourceView) -> Iterator[Fault]:
    for scaled in view.scaled_objects:
        for index, trigger in _external(scaled):
            address = str((trigger.get("metadata") or {}).get("scalerAddress"))
            host, _, port = address.partition(":")
            service = view.named("Service", host.partition(".")[0], "v1")
            if port not in [str(each.get("port")) for each in dig(service, "spec.ports") or []]:
                field = f"spec.triggers[{index}].metadata.scalerAddress"
                yield fault(scaled, field, address, "a Service here, and its port")
    server = view.named("Deployment", parts.SCALER)
    if server is not None and dig(server, "spec.replicas") != 1:
        yield fault(server, "spec.replicas", dig(server, "spec.replicas"), "1", Severity.WARNING)


@register.rule(
    "scaler-settings",
    Hop.SCALER,
    why="What the scaler refuses it answers with INVALID_ARGUMENT, for ever; another model's queue "
    "is another model's work.",
    source="ADR 23 (read_metadata)",
)
def scaler_settings(view: ResourceView) -> Iterator[Fault]:
    for scaled in view.scaled_objects:
        own = str(dig(scaled, "spec.scaleTargetRef.name")).removesuffix("-predictor")
        for index, trigger in _external(scaled):
            metadata = trigger.get("metadata") or {}
            if not str(metadata.get("scalerAddress")).startswith(f"{parts.SCALER}."):
                continue  # another scaler has settings of its own
            field = f"spec.triggers[{index}]"
            try:
                queue = read_metadata(metadata, queue="", model="").queue
            except RefusedSettingsError as refused:
                for refusal in refused.refusals:
                    yield fault(scaled, f"{field}.{refusal.name}", refusal.value, refusal.allowed)
                continue
            if queue != parts.trigger_name(own):
                yield fault(scaled, f"{field}.metadata.queue", queue, parts.trigger_name(own))


@register.rule(
    "keda-sleeping-metric",
    Hop.SCALER,
    why="The engine's metrics vanish at zero replicas and a missing series reads as 0: what wakes "
    "must be measured at the api or the broker.",
    source="docs/facts.md 3.6 prometheus (llm-d PR #2492)",
)
def keda_sleeping_metric(view: ResourceView) -> Iterator[Fault]:
    for scaled in view.scaled_objects:
        for index, trigger in triggers(scaled, "prometheus"):
            query = str((trigger.get("metadata") or {}).get("query"))
            if "vllm:" in query:
                field = f"spec.triggers[{index}].metadata.query"
                yield fault(scaled, field, query, "a metric of the api or the broker")
