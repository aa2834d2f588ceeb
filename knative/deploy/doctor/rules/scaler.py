"""Rules of KEDA and its ScaledObject."""

from __future__ import annotations

from collections.abc import Iterator

from knative.autoscaling.keda.scaledobject import read_scaled_object
from knative.deploy.doctor.field import at, at_least, field_rule, note, one_of, readable_rule
from knative.deploy.doctor.finding import Fault, Hop, Register, Severity, fault, needed
from knative.deploy.doctor.rules.trigger import triggers
from knative.deploy.doctor.view import ResourceView, dig, number
from knative.deploy.emit import Resource

register = Register()
CLASS = "serving.kserve.io/autoscalerClass"
_FORMULA = "spec.advanced.scalingModifiers.formula"
_BEHAVIOR = "spec.advanced.horizontalPodAutoscalerConfig.behavior"
_KEDA = "autoscaling.keda.sh/"


def _scaled(view: ResourceView) -> list[Resource]:
    return view.scaled_objects


def _counting(view: ResourceView) -> list[Resource]:
    """Those that count by themselves: an external scaler says when it is done, a count does not. Not those of tools,
    which start as fast as their operator says, and are counted while they do.
    """
    return [
        scaled
        for scaled in view.scaled_objects
        if not view.scales_tool(scaled)
        and any(t.get("type") != "external-push" for t in dig(scaled, "spec.triggers") or [{}])
    ]


@register.rule(
    "keda-version",
    Hop.SCALER,
    why="KEDA 2.16 refuses an activation of 0 with lagCount: it takes two jobs to wake one pod.",
    source="docs/facts.md 3.6 (#6478, PR #6481), #9",
)
def keda_version(view: ResourceView) -> Iterator[Fault]:
    if not view.scaled_objects:
        return
    found = view.named("Deployment", "keda-operator")
    if found is None:
        yield needed("Deployment/keda-operator (keda)", "image", "KEDA 2.17.0 or newer")
        return
    for box in dig(found, "spec.template.spec.containers") or []:
        tag = str(box.get("image", "")).partition("@")[0].rpartition(":")[2].lstrip("v")
        pieces = tag.split(".")
        if pieces[0] == "2" and pieces[1:] and pieces[1].isdigit() and int(pieces[1]) < 17:
            yield fault(found, "image", box["image"], "KEDA 2.17.0 or newer")


register.rule(
    "autoscaler-class",
    Hop.SCALER,
    why="KServe's own keda class knows no redis trigger, no cooldown and no formula, and reverts "
    "what is added; its hpa class scales by CPU, which says nothing about a GPU's queue.",
    source="docs/facts.md 3.4 keda_reconciler.go",
)(field_rule(ResourceView.in_standard_mode, note(CLASS), one_of("external")))


@register.rule(
    "nothing-wakes",
    Hop.SCALER,
    why="A Standard predictor at zero is woken by a ScaledObject on its Deployment, or by nothing.",
    source="docs/facts.md 3.4, 3.5",
)
def nothing_wakes(view: ResourceView) -> Iterator[Fault]:
    targets = {dig(s, "spec.scaleTargetRef.name") for s in view.scaled_objects}
    for predictor in view.in_standard_mode():
        name = f"{predictor['metadata']['name']}-predictor"
        if name not in targets:
            must = f"a ScaledObject on Deployment/{name}"
            yield fault(predictor, "spec.scaleTargetRef", ", ".join(map(str, targets)), must)


@register.rule(
    "two-scalers",
    Hop.SCALER,
    why="Two scalers on one Deployment undo each other's work.",
    source="docs/facts.md 3.4, 3.5",
)
def two_scalers(view: ResourceView) -> Iterator[Fault]:
    targets = {dig(s, "spec.scaleTargetRef.name") for s in view.scaled_objects}
    for hpa in view.of("HorizontalPodAutoscaler"):
        name = dig(hpa, "spec.scaleTargetRef.name")
        if name in targets and not hpa["metadata"]["name"].startswith("keda-hpa-"):
            yield fault(hpa, "spec.scaleTargetRef.name", name, "not what KEDA scales")
    knative = {f"{p['metadata']['name']}-predictor" for p in view.in_knative_mode()}
    for scaled in view.scaled_objects:
        if dig(scaled, "spec.scaleTargetRef.name") in knative:
            yield fault(
                scaled, "spec.scaleTargetRef.name", "a predictor in Knative mode", "left to the KPA"
            )


@register.rule(
    "keda-formula",
    Hop.SCALER,
    why="Work is what waits plus what is in flight; a lag of -1 (nil after a deletion) must count "
    "as 0, not against the pending.",
    source="docs/facts.md 3.6 scalingModifiers; 3.6b",
)
def keda_formula(view: ResourceView) -> Iterator[Fault]:
    for scaled in view.scaled_objects:
        if not triggers(scaled, "redis-streams"):
            continue
        formula = str(dig(scaled, _FORMULA) or "")
        tight = formula.replace(" ", "")
        if not all(term in tight for term in _terms(scaled)):
            yield fault(scaled, _FORMULA, formula or None, "(lag > 0 ? lag : 0) + pend")


def _terms(scaled: Resource) -> list[str]:
    """What the formula must have for each trigger: a lag as it is when positive, a pending as it is."""
    found = []
    for _, trigger in triggers(scaled, "redis-streams"):
        is_lag = "lagCount" in (trigger.get("metadata") or {})
        name = str(trigger.get("name") or ("lag" if is_lag else "pend"))
        found.append(f"{name}>0?{name}:0" if is_lag else name)
    return found


@register.rule(
    "keda-activation",
    Hop.SCALER,
    why="Activation is strictly greater and beats the target: above 0, the first jobs wait for "
    "company.",
    source="docs/facts.md 3.5, 3.6, #9",
)
def keda_activation(view: ResourceView) -> Iterator[Fault]:
    for scaled in view.scaled_objects:
        path = "spec.advanced.scalingModifiers.activationTarget"
        value = dig(scaled, path)
        if value is not None and number(value) != 0:
            yield fault(scaled, path, value, "0")
        for index, trigger in triggers(scaled, "redis-streams"):
            own = (trigger.get("metadata") or {}).get("activationLagCount")
            if own is not None and number(own) != 0:
                field = f"spec.triggers[{index}].metadata.activationLagCount"
                yield fault(scaled, field, own, "0")


register.rule(
    "keda-settings",
    Hop.SCALER,
    why="KEDA's webhook or scaler refuses the value: the object is there and nothing scales.",
    source="docs/facts.md 3.5, 3.6; KEDA 2.20.2 scalers",
)(readable_rule(_scaled, read_scaled_object))


register.rule(
    "keda-cooldown",
    Hop.SCALER,
    why="The cooldown counts from the last active trigger: shorter than a wake, the pod is ended "
    "while its model loads, for ever.",
    source="docs/facts.md 3.5, #11",
)(
    field_rule(
        _counting, at("spec.cooldownPeriod"), at_least(lambda view: view.cold_start_s, unset=300)
    )
)


register.rule(
    "keda-initial-cooldown",
    Hop.SCALER,
    why="KServe's new Deployment starts a pod without a job, and it keeps its GPU for so long "
    "after each install.",
    source="docs/facts.md 3.5 scale_scaledobjects.go; ADR 167",
)(
    field_rule(
        _scaled,
        at("spec.initialCooldownPeriod"),
        lambda _, value: None if (number(value) or 0) <= 60 else "at most 60",
        Severity.WARNING,
    )
)


register.rule(
    "keda-scale-up",
    Hop.SCALER,
    why="Without a behaviour the HPA may only go to max(2n, 4) a sync: 30 s instead of 10 s to six "
    "replicas.",
    source="docs/facts.md 3.6b",
)(
    field_rule(
        _scaled,
        at(f"{_BEHAVIOR}.scaleUp"),
        lambda _, value: None if value else "stabilization 0 and a Pods policy",
        Severity.WARNING,
    )
)


register.rule(
    "keda-scale-down",
    Hop.SCALER,
    why="The HPA picks its victim blindly, busy or idle; one step too early costs a wake.",
    source="docs/facts.md 3.5, #6",
)(
    field_rule(
        _counting,
        at(f"{_BEHAVIOR}.scaleDown.stabilizationWindowSeconds"),
        at_least(lambda view: min(view.cold_start_s, 3600), unset=300),
        Severity.WARNING,
    )
)


register.rule(
    "keda-fallback",
    Hop.SCALER,
    why="With a fallback of 0 replicas a store that is down for a minute ends every busy pod.",
    source="docs/facts.md 3.5 (fallback.replicas)",
)(
    field_rule(
        _scaled,
        at("spec.fallback.replicas"),
        lambda _, value: "no fallback, or currentReplicas" if number(value) == 0 else None,
    )
)


register.rule(
    "keda-paused",
    Hop.SCALER,
    why="A paused ScaledObject wakes nothing.",
    source="docs/facts.md 3.5",
)(
    field_rule(
        _scaled,
        (note(f"{_KEDA}paused"), note(f"{_KEDA}paused-replicas"), note(f"{_KEDA}paused-scale-out")),
        one_of(None, "false", words="not set"),
        Severity.WARNING,
    )
)


@register.rule(
    "replica-limits",
    Hop.SCALER,
    why="The smaller of two limits wins silently.",
    source="docs/facts.md 3.4, 3.5",
)
def replica_limits(view: ResourceView) -> Iterator[Fault]:
    for predictor in view.in_standard_mode():
        most = number(dig(predictor, "spec.predictor.maxReplicas"))
        for scaled in view.scaled_objects:
            name = f"{predictor['metadata']['name']}-predictor"
            value = number(dig(scaled, "spec.maxReplicaCount")) or 100
            if dig(scaled, "spec.scaleTargetRef.name") == name and most and value != most:
                must = f"maxReplicas of the InferenceService ({most:.0f})"
                yield fault(scaled, "spec.maxReplicaCount", value, must, Severity.WARNING)
