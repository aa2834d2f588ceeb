"""Rules of a delivery: how long, how often, to whom, and what comes back."""

from __future__ import annotations

from collections.abc import Iterator

from knative.deploy.doctor.finding import Fault, Hop, Register, Severity, fault
from knative.deploy.doctor.view import (
    ResourceView,
    annotation,
    argument,
    dig,
    engine,
    is_canary,
    iso_seconds,
    number,
    variable,
)
from knative.deploy.emit import Resource
from knative.deploy.render import parts
from knative.deploy.render.broker import own_broker

register = Register()
_KNOWN = {"deadLetterSink", "retry", "backoffPolicy", "backoffDelay", "timeout", "retryAfterMax",
          "format"}  # fmt: skip


@register.rule(
    "delivery-timeout",
    Hop.DELIVERY,
    why="A delivery that ends before the job does is retried while the job runs; Kafka's default "
    "is 10 minutes.",
    source="docs/facts.md 3.1, 3.2, #5",
)
def delivery_timeout(view: ResourceView) -> Iterator[Fault]:
    for trigger in view.request_triggers():
        delivery = view.delivery(trigger)
        own = trigger in view.own_triggers
        # Our pump delivers to a predictor that is awake: no wake inside the request.
        least = view.job_s if own else max(view.held_s, *_asked_timeouts(view))
        if own and delivery.timeout_s is None:
            yield fault(trigger, "spec.delivery.timeout", None, f"at least PT{least:.0f}S")
        elif delivery.timeout_s is None and view.class_of(trigger).startswith("Kafka"):
            yield fault(delivery.owner, "spec.delivery.timeout", None, f"at least PT{least:.0f}S")
        elif delivery.timeout_s is not None and delivery.timeout_s < least:
            shown = delivery.spec["timeout"]
            yield fault(delivery.owner, "spec.delivery.timeout", shown, f"at least PT{least:.0f}S")


def _asked_timeouts(view: ResourceView) -> list[float]:
    return [number(dig(p, "spec.predictor.timeout")) or 0 for p in view.in_knative_mode()] or [0]


@register.rule(
    "retry-span",
    Hop.DELIVERY,
    why="409 and 503 mean «later»; a broker that stops asking before the job or the wake has ended "
    "dead-letters a job that is running well. Knative's default waits 205 s in all.",
    source="docs/facts.md trap 3; docs/facts.md 3.1; docs/reliability.md F10b",
)
def retry_span(view: ResourceView) -> Iterator[Fault]:
    for trigger in view.request_triggers():
        delivery = view.delivery(trigger)
        if delivery.span_s < view.held_s:
            shown = f"{delivery.span_s:.0f} s in all"
            yield fault(
                delivery.owner, "spec.delivery.retry", shown, f"at least {view.held_s} s in all"
            )


@register.rule(
    "retry-waits",
    Hop.DELIVERY,
    why="An exponential span long enough for a job ends in one wait of half of it: a job that was "
    "handed over sits idle that long.",
    source="docs/facts.md 3.1 (delay x 2^n)",
)
def retry_waits(view: ResourceView) -> Iterator[Fault]:
    for trigger in view.request_triggers():
        delivery = view.delivery(trigger)
        policy = delivery.spec.get("backoffPolicy", "exponential")
        if policy == "exponential" and delivery.span_s > 600:
            yield fault(
                delivery.owner, "spec.delivery.backoffPolicy", policy, "linear", Severity.WARNING
            )


@register.rule(
    "dead-letter-sink",
    Hop.DELIVERY,
    why="Without a sink RabbitMQ's broker drops what it gives up; our record comes first, this is "
    "the net under it.",
    source="docs/facts.md 3.2 (ack, then DLX; lost if none)",
)
def dead_letter_sink(view: ResourceView) -> Iterator[Fault]:
    for trigger in view.triggers:
        delivery = view.delivery(trigger)
        if not delivery.spec.get("deadLetterSink"):
            yield fault(delivery.owner, "spec.delivery.deadLetterSink", None, "a ref or a uri")


@register.rule(
    "delivery-form",
    Hop.DELIVERY,
    why="The CRD keeps unknown fields here, and Knative's webhook refuses them: the apply fails.",
    source="docs/facts.md 3.1 delivery_types.go",
)
def delivery_form(view: ResourceView) -> Iterator[Fault]:
    for owner in [*view.brokers, *view.all_triggers]:
        spec = dig(owner, "spec.delivery") or {}
        for name in sorted(spec.keys() - _KNOWN):
            yield fault(owner, f"spec.delivery.{name}", spec[name], "not a field of delivery")
        for name in ("backoffDelay", "timeout", "retryAfterMax"):
            if name in spec and iso_seconds(spec[name]) is None:
                yield fault(owner, f"spec.delivery.{name}", spec[name], "ISO 8601, such as PT30S")
        if spec.get("backoffPolicy", "linear") not in ("linear", "exponential"):
            value = spec["backoffPolicy"]
            yield fault(owner, "spec.delivery.backoffPolicy", value, "linear or exponential")
        if "retryAfterMax" in spec and owner not in view.own_triggers:
            yield from _alpha_field(view, owner, "retryAfterMax", "delivery-retryafter")


def _alpha_field(view: ResourceView, owner: Resource, field: str, flag: str) -> Iterator[Fault]:
    features = view.named("ConfigMap", "config-features")
    in_eventing = dig(features, "metadata.namespace") == "knative-eventing" if features else False
    if not in_eventing or str((features or {}).get("data", {}).get(flag)) != "enabled":
        yield fault(owner, f"spec.delivery.{field}", "set", f"unset, or {flag} enabled (alpha)")


@register.rule(
    "trigger-filter",
    Hop.DELIVERY,
    why="A predictor that gets every event gets its own results, and one model's jobs reach "
    "another.",
    source="docs/architecture.md",
)
def trigger_filter(view: ResourceView) -> Iterator[Fault]:
    names = {p["metadata"]["name"] for p in view.predictors}
    for trigger in view.request_triggers():
        wanted = str(dig(trigger, "spec.filter") or "") + str(dig(trigger, "spec.filters") or "")
        if not any(type_ in wanted for type_ in (parts.REQUESTED, parts.PREPARED)):
            yield fault(trigger, "spec.filter.attributes.type", None, parts.REQUESTED)
        model = dig(trigger, "spec.filter.attributes.model")
        if model is not None and names and model not in names:
            must = "one of " + ", ".join(sorted(names))
            yield fault(trigger, "spec.filter.attributes.model", model, must)


@register.rule(
    "models-split",
    Hop.DELIVERY,
    why="With several models behind one broker a trigger that does not ask for its own takes the "
    "jobs of all.",
    source="docs/architecture.md",
)
def models_split(view: ResourceView) -> Iterator[Fault]:
    if len([p for p in view.predictors if not is_canary(p)]) < 2:
        return
    for trigger in view.request_triggers():
        asked = dig(trigger, "spec.filter.attributes.model")
        if asked is None and "'model'" not in str(dig(trigger, "spec.filters") or ""):
            yield fault(trigger, "spec.filter.attributes.model", None, "the model of its predictor")


@register.rule(
    "pump-trigger",
    Hop.DELIVERY,
    why="A pump that serves another model's trigger brings this engine jobs that it must refuse.",
    source="docs/architecture.md",
)
def pump_trigger(view: ResourceView) -> Iterator[Fault]:
    for predictor in view.in_standard_mode():
        wanted = parts.trigger_name(predictor["metadata"]["name"])
        for box in dig(predictor, "spec.predictor.containers") or []:
            value = variable(box, "TORPOR_TRIGGER")
            if "eventing.pump" in (box.get("args") or []) and value != wanted:
                yield fault(predictor, f"{box.get('name')}: env TORPOR_TRIGGER", value, wanted)


@register.rule(
    "rabbitmq-filters",
    Hop.DELIVERY,
    why="eventing-rabbitmq reads `filter` only: a trigger with `filters` gets every event, its own "
    "results too.",
    source="knative-extensions/eventing-rabbitmq#1434, #624",
)
def rabbitmq_filters(view: ResourceView) -> Iterator[Fault]:
    for trigger in view.triggers:
        if view.class_of(trigger) == "RabbitMQBroker" and dig(trigger, "spec.filters"):
            yield fault(trigger, "spec.filters", "set", "`filter` alone, or a Kafka broker")


@register.rule(
    "reference-port",
    Hop.DELIVERY,
    why="Knative calls port 80 of a referenced Service; ours listen elsewhere: every delivery "
    "fails to connect until the retries are spent.",
    source="Knative, Destination (a Service is addressed as http://NAME.NAMESPACE.svc)",
)
def reference_port(view: ResourceView) -> Iterator[Fault]:
    for owner in [*view.brokers, *view.triggers]:
        for path in ("spec.subscriber.ref", "spec.delivery.deadLetterSink.ref"):
            reference = dig(owner, path) or {}
            if (reference.get("apiVersion"), reference.get("kind")) != ("v1", "Service"):
                continue
            target = view.named("Service", str(reference.get("name")), "v1")
            ports = [port.get("port") for port in dig(target, "spec.ports") or []]
            if target is not None and 80 not in ports:
                yield fault(owner, path, f"port {ports}", "a uri with the port")


@register.rule(
    "subscriber",
    Hop.DELIVERY,
    why="A trigger that points at nothing retries until it dead-letters everything.",
    source="docs/facts.md 3.1",
)
def subscriber(view: ResourceView) -> Iterator[Fault]:
    hosts = {f"{p['metadata']['name']}-predictor" for p in view.predictors}
    for trigger in view.triggers:
        if trigger not in view.request_triggers() or not hosts:
            continue
        name = dig(trigger, "spec.subscriber.ref.name")
        uri = str(dig(trigger, "spec.subscriber.uri") or "")
        if name is not None and name not in hosts:
            must = "one of " + ", ".join(sorted(hosts))
            yield fault(trigger, "spec.subscriber.ref.name", name, must)
        if not uri.endswith("/events"):
            yield fault(trigger, "spec.subscriber.uri", uri or None, "/events")


@register.rule(
    "pump-parallelism",
    Hop.DELIVERY,
    why="A pump that claims more than the engine batches holds jobs that another replica could "
    "think about.",
    source="docs/architecture.md",
)
def pump_parallelism(view: ResourceView) -> Iterator[Fault]:
    for predictor in view.in_standard_mode():
        batch = number(argument(engine(predictor), "--max-num-seqs"))
        for trigger in view.own_triggers:
            if dig(trigger, "spec.filter.attributes.model") != predictor["metadata"]["name"]:
                continue
            value = number(annotation(trigger, own_broker.OWN_PARALLELISM)) or 1
            if batch and value != batch:
                must = f"--max-num-seqs ({batch:.0f})"
                yield fault(trigger, own_broker.OWN_PARALLELISM, value, must, Severity.WARNING)
