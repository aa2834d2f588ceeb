"""Rules of the api and the proxy in front of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from knative.deploy.doctor.field import at_least, field_rule, kind, note, one_of
from knative.deploy.doctor.finding import Fault, Hop, Register, Severity, fault
from knative.deploy.doctor.view import (
    ResourceView,
    dig,
    is_canary,
    number,
)
from knative.deploy.render import parts

register = Register()
_KPA = "autoscaling.knative.dev/"
_NGINX = "nginx.ingress.kubernetes.io/"
_INGRESSES = kind("Ingress", "networking.k8s.io/")


@register.rule(
    "api-behind-queue-proxy",
    Hop.FRONT,
    why="queue-proxy ends a request at timeoutSeconds even while it streams: readers of long "
    "answers are cut and must resume with Last-Event-ID.",
    source="docs/facts.md 3.3, #13",
)
def api_behind_queue_proxy(view: ResourceView) -> Iterator[Fault]:
    for service in view.knative_services:
        if service["metadata"]["name"] in (parts.API_PUBLIC, parts.API):
            yield fault(
                service, "kind", "Knative Service", "a Deployment, or accept cuts", Severity.WARNING
            )


@register.rule(
    "api-sleeps",
    Hop.FRONT,
    why="An api at zero re-publishes nothing: a job whose event did not leave waits for the next "
    "caller.",
    source="docs/reliability.md F01",
)
def api_sleeps(view: ResourceView) -> Iterator[Fault]:
    for service in view.knative_services:
        if service["metadata"]["name"] in (parts.API_PUBLIC, parts.API):
            least = dig(service, "spec.template.metadata.annotations") or {}
            if (number(least.get(f"{_KPA}min-scale")) or 0) < 1:
                yield fault(service, "min-scale", least.get(f"{_KPA}min-scale"), "at least 1")
    for scaler in view.of("HorizontalPodAutoscaler"):
        least_count = dig(scaler, "spec.minReplicas")
        if dig(scaler, "spec.scaleTargetRef.name") == parts.API and least_count == 0:
            yield fault(scaler, "spec.minReplicas", least_count, "at least 1")


@register.rule(
    "models-listed",
    Hop.FRONT,
    why="A model that the api does not know is refused when it is submitted; one that it knows and no predictor "
    "serves is accepted, and waits for ever.",
    source="docs/architecture.md; TORPOR_MODELS of the api",
)
def models_listed(view: ResourceView) -> Iterator[Fault]:
    settings = view.named("ConfigMap", parts.SETTINGS)
    if settings is None:
        return
    cards = cards_of(view)
    if cards is None:
        yield fault(settings, "data.TORPOR_MODELS", "not JSON", "a JSON list of models")
        return
    listed = set(cards)
    served = {p["metadata"]["name"] for p in view.predictors if not is_canary(p)}
    for name in sorted(served - listed):
        yield fault(settings, "data.TORPOR_MODELS", ", ".join(sorted(listed)), f"{name} too")
    for name in sorted(listed - served) if served else ():
        yield fault(settings, "data.TORPOR_MODELS", name, f"an InferenceService/{name}")


def cards_of(view: ResourceView) -> dict[str, dict[str, Any]] | None:
    """Give the models that the api will accept, by name; None when that cannot be read."""
    try:
        listed = json.loads(view.settings.get("TORPOR_MODELS") or "[]")
        return {str(card["name"]): dict(card) for card in listed}
    except (ValueError, TypeError, KeyError):
        return None


register.rule(
    "ingress-timeout",
    Hop.FRONT,
    why="The proxy cuts an answer that is silent for longer (60 s by default), and a job may be "
    "silent for a whole wake and thought.",
    source="docs/facts.md #3, #13",
)(
    field_rule(
        _INGRESSES,
        (note(_NGINX + "proxy-read-timeout"), note(_NGINX + "proxy-send-timeout")),
        at_least(lambda view: view.held_s),
    )
)


register.rule(
    "ingress-buffering",
    Hop.FRONT,
    why="A buffering proxy holds tokens back until a block is full.",
    source="docs/architecture.md",
)(field_rule(_INGRESSES, note(_NGINX + "proxy-buffering"), one_of("off"), Severity.WARNING))


register.rule(
    "ingress-retry",
    Hop.FRONT,
    why="A proxy that repeats a request by itself submits or runs it twice.",
    source="docs/facts.md #16 (kserve#1663)",
)(field_rule(_INGRESSES, note(_NGINX + "proxy-next-upstream"), one_of("off")))
