"""Rules of predictors in Knative mode: visibility, who creates them, and what starts them."""

from __future__ import annotations

import json
from collections.abc import Iterator

from knative.deploy.doctor.finding import Fault, Hop, Register, Severity, fault
from knative.deploy.doctor.view import ResourceView, annotation, dig
from knative.deploy.emit import Resource
from knative.deploy.render.model.inference import CLUSTER_LOCAL, INITIAL_SCALE, VISIBILITY

register = Register()
_OF_PREDICTOR = "serving.kserve.io/inferenceservice"
_REJECTED = "ServerlessModeRejected"


@register.rule(
    "predictor-visibility",
    Hop.SECURITY,
    why="Knative publishes every Service on the external gateway by default: any client of "
    "that gateway has the model, its metrics and its event route without a key.",
    source="Knative Serving, private services (networking.knative.dev/visibility)",
)
def predictor_visibility(view: ResourceView) -> Iterator[Fault]:
    services = [s for s in view.knative_services if _OF_PREDICTOR in _labels(s)]
    for owner in [*view.in_knative_mode(), *services]:
        value = _labels(owner).get(VISIBILITY)
        if value != CLUSTER_LOCAL:
            yield fault(owner, f"metadata.labels.{VISIBILITY}", value, CLUSTER_LOCAL)


def _labels(resource: Resource) -> Resource:
    return dig(resource, "metadata.labels") or {}


@register.rule(
    "knative-before-kserve",
    Hop.PREDICTOR,
    why="KServe's manager looks for Knative once, when it starts. Installed before Knative, it "
    "refuses Knative mode for ever, and no change of the predictor helps.",
    source="KServe inferenceservice controller, event ServerlessModeRejected",
)
def knative_before_kserve(view: ResourceView) -> Iterator[Fault]:
    rejected = {
        dig(event, "involvedObject.name")
        for event in view.of("Event", "v1")
        if event.get("reason") == _REJECTED
    }
    for predictor in view.in_knative_mode():
        name = predictor["metadata"]["name"]
        is_made = view.named("Service", f"{name}-predictor", "serving.knative.dev/")
        # Of a live object only: in a folder nothing has a uid.
        is_ignored = "uid" in predictor["metadata"] and not dig(predictor, "status.conditions")
        if not is_made and (is_ignored or name in rejected):
            yield fault(
                predictor,
                "status",
                _REJECTED if name in rejected else "none: KServe has not looked at it",
                "a Knative Service: install Knative Serving first, then `kubectl -n kserve rollout "
                "restart deployment kserve-controller-manager`",
            )


@register.rule(
    "initial-scale",
    Hop.SCALER,
    why="Every change of a predictor is a new revision, which loads a model once before it is "
    "ready, while the one before it is awake for another window.",
    source="Knative Serving, initial-scale and allow-zero-initial-scale",
)
def initial_scale(view: ResourceView) -> Iterator[Fault]:
    sleeping = [p for p in view.in_knative_mode() if not dig(p, "spec.predictor.minReplicas")]
    for predictor in sleeping:
        value = annotation(predictor, INITIAL_SCALE)
        if str(value) != "0":
            yield fault(predictor, INITIAL_SCALE, value, "0", Severity.WARNING)
    key = "allow-zero-initial-scale"
    config = view.named("ConfigMap", "config-autoscaler", "v1")
    if sleeping and config is not None and (config.get("data") or {}).get(key) != "true":
        value = (config.get("data") or {}).get(key)
        yield fault(config, f"data.{key}", value, "true", Severity.WARNING)


@register.rule(
    "istio-virtual-host",
    Hop.PREDICTOR,
    why="Without Istio KServe warns of a VirtualService that it cannot make, and leaves a Service "
    "and an address that lead to a gateway which is not there.",
    source="KServe inferenceservice-config, ingress.disableIstioVirtualHost",
)
def istio_virtual_host(view: ResourceView) -> Iterator[Fault]:
    network = view.config("config-network") or {}
    ingress_class = str(network.get("ingress-class") or network.get("ingress.class") or "istio")
    config = view.named("ConfigMap", "inferenceservice-config", "v1")
    if config is None or not view.in_knative_mode() or "istio" in ingress_class:
        return
    ingress = json.loads((config.get("data") or {}).get("ingress") or "{}")
    value = ingress.get("disableIstioVirtualHost")
    if value is not True:
        yield fault(
            config, "data.ingress: disableIstioVirtualHost", value, "true", Severity.WARNING
        )
