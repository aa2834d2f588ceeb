"""Rules of the held path: activator, queue-proxy and the revision."""

from __future__ import annotations

from collections.abc import Iterator

from knative.deploy.doctor.field import at, at_least, field_rule, note
from knative.deploy.doctor.finding import Fault, Hop, Register, Severity, fault, needed
from knative.deploy.doctor.view import (
    ResourceView,
    argument,
    dig,
    engine,
    go_seconds,
    number,
)
from knative.deploy.emit import Resource

register = Register()


def _predictor_services(view: ResourceView) -> list[Resource]:
    """Give the Knative Services that KServe made, which a live cluster shows."""
    label = "serving.kserve.io/inferenceservice"
    return [
        s for s in view.knative_services if label in ((s.get("metadata") or {}).get("labels") or {})
    ]


register.rule(
    "hold-timeout",
    Hop.ACTIVATOR,
    why="The request waits in the activator while a pod wakes and then while it thinks; the "
    "default of 300 s answers 504, which brokers retry: the work is done twice.",
    source="docs/facts.md 3.3, 3.4, #3",
)(
    field_rule(
        ResourceView.in_knative_mode,
        at("spec.predictor.timeout"),
        at_least(lambda view: view.held_s),
    )
)


register.rule(
    "hold-response-start",
    Hop.ACTIVATOR,
    why="A silent answer is cut at responseStartTimeoutSeconds, which stays at 300 s when only "
    "timeoutSeconds is raised.",
    source="docs/facts.md 3.3, #3, #4 (kserve#3706)",
)(
    field_rule(
        _predictor_services,
        (
            at("spec.template.spec.timeoutSeconds"),
            at("spec.template.spec.responseStartTimeoutSeconds"),
        ),
        at_least(lambda view: view.held_s),
    )
)


register.rule(
    "hold-idle",
    Hop.ACTIVATOR,
    why="idleTimeoutSeconds cuts between two bytes; a thought may pause longer.",
    source="docs/facts.md 3.3",
)(
    field_rule(
        _predictor_services,
        at("spec.template.spec.idleTimeoutSeconds"),
        at_least(lambda view: view.held_s, unset=0, off=0),
    )
)


def _longest_timeout(view: ResourceView) -> float:
    """Give the longest timeout that any revision here asks for."""
    asked = [number(dig(p, "spec.predictor.timeout")) or 0 for p in view.in_knative_mode()]
    asked += [
        number(dig(s, "spec.template.spec.timeoutSeconds")) or 0 for s in view.knative_services
    ]
    return max(asked, default=0)


@register.rule(
    "max-revision-timeout",
    Hop.ACTIVATOR,
    why="Knative's webhook refuses a revision whose timeoutSeconds is over "
    "max-revision-timeout-seconds (600 by default).",
    source="docs/facts.md 3.3 defaults.yaml",
)
def max_revision_timeout(view: ResourceView) -> Iterator[Fault]:
    asked = _longest_timeout(view)
    if asked <= 600:
        return
    key, least = "data.max-revision-timeout-seconds", f"at least {asked:.0f}"
    found = view.named("ConfigMap", "config-defaults")
    if found is None:
        yield needed("ConfigMap/config-defaults (knative-serving)", key, least)
        return
    value = number((found.get("data") or {}).get("max-revision-timeout-seconds"))
    if (value or 600) < asked:
        yield fault(found, key, value, least)


@register.rule(
    "activator-grace",
    Hop.ACTIVATOR,
    why="A restarting activator kills the requests that it holds when its grace is over.",
    source="docs/facts.md 3.3",
)
def activator_grace(view: ResourceView) -> Iterator[Fault]:
    asked = _longest_timeout(view) if view.in_knative_mode() else 0
    if asked <= 600:
        return
    path = "spec.template.spec.terminationGracePeriodSeconds"
    least = f"more than {asked:.0f}"
    found = view.named("Deployment", "activator")
    if found is None:
        yield needed("Deployment/activator (knative-serving)", path, least)
    elif (number(dig(found, path)) or 600) <= asked:
        yield fault(found, path, dig(found, path), least)


register.rule(
    "progress-deadline",
    Hop.PREDICTOR,
    why="A revision that is not ready within its progress deadline (600 s) is given up while the "
    "model is still loading.",
    source="docs/facts.md 3.3 deployment.md, #12",
)(
    field_rule(
        ResourceView.in_knative_mode,
        note("serving.knative.dev/progress-deadline"),
        at_least(lambda view: view.cold_start_s, unset=600, unit=go_seconds, suffix="s"),
    )
)


@register.rule(
    "container-concurrency",
    Hop.PREDICTOR,
    why="0 means no limit: 100 generations pile up on one GPU before the KPA adds another.",
    source="docs/facts.md 3.3",
)
def container_concurrency(view: ResourceView) -> Iterator[Fault]:
    for predictor in view.in_knative_mode():
        path = "spec.predictor.containerConcurrency"
        value = number(dig(predictor, path)) or 0
        batch = number(argument(engine(predictor), "--max-num-seqs"))
        if value < 1:
            yield fault(predictor, path, dig(predictor, path), f"{batch or 'the useful batch'}")
        elif batch and value > batch:
            yield fault(
                predictor, path, value, f"at most --max-num-seqs ({batch:.0f})", Severity.WARNING
            )
