"""Rules of the front door: the api and the proxy before it."""

from __future__ import annotations

from collections.abc import Iterator

from knative.deploy import parts
from knative.deploy.doctor.field import at_least, field_rule, kind, note, one_of
from knative.deploy.doctor.finding import Fault, Hop, Register, Severity, fault
from knative.deploy.doctor.view import (
    View,
    dig,
    number,
)

register = Register()
register = Register()
_KPA = "autoscaling.knative.dev/"
_NGINX = "nginx.ingress.kubernetes.io/"
_INGRESSES = kind("Ingress", "networking.k8s.io/")


@register.rule(
    "api-behind-queue-proxy",
    Hop.FRONT,
    why="queue-proxy ends a request at timeoutSeconds even while it streams: readers of long "
    "answers are cut and must resume with Last-Event-ID.",
    source="facts 3.3, #13",
)
def api_behind_queue_proxy(view: View) -> Iterator[Fault]:
    for service in view.knative_services:
        if service["metadata"]["name"] == parts.API:
            yield fault(
                service, "kind", "Knative Service", "a Deployment, or accept cuts", Severity.WARNING
            )


@register.rule(
    "api-sleeps",
    Hop.FRONT,
    why="An api at zero re-publishes nothing: a job whose event did not leave waits for the next "
    "caller.",
    source="reliability F01",
)
def api_sleeps(view: View) -> Iterator[Fault]:
    for service in view.knative_services:
        if service["metadata"]["name"] == parts.API:
            least = dig(service, "spec.template.metadata.annotations") or {}
            if (number(least.get(f"{_KPA}min-scale")) or 0) < 1:
                yield fault(service, "min-scale", least.get(f"{_KPA}min-scale"), "at least 1")
    for scaler in view.of("HorizontalPodAutoscaler"):
        least_count = dig(scaler, "spec.minReplicas")
        if dig(scaler, "spec.scaleTargetRef.name") == parts.API and least_count == 0:
            yield fault(scaler, "spec.minReplicas", least_count, "at least 1")


register.rule(
    "ingress-timeout",
    Hop.FRONT,
    why="The proxy cuts an answer that is silent for longer (60 s by default), and a job may be "
    "silent for a whole wake and thought.",
    source="facts #3, #13",
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
    source="design, Token streams",
)(field_rule(_INGRESSES, note(_NGINX + "proxy-buffering"), one_of("off"), Severity.WARNING))


register.rule(
    "ingress-retry",
    Hop.FRONT,
    why="A proxy that repeats a request by itself submits or runs it twice.",
    source="facts #16 (kserve#1663)",
)(field_rule(_INGRESSES, note(_NGINX + "proxy-next-upstream"), one_of("off")))
