"""Rules of KServe's deployment modes: their names, and that held and pulled deliveries are not mixed."""

from __future__ import annotations

from collections.abc import Iterator

from knative.deploy.doctor.field import field_rule, note, one_of
from knative.deploy.doctor.finding import Fault, Hop, Register, Severity, fault
from knative.deploy.doctor.view import (
    MODE,
    ResourceView,
    annotation,
    dig,
)

register = Register()
MODES = ("Knative", "Standard", "Serverless", "RawDeployment", "ModelMesh")


register.rule(
    "deployment-mode",
    Hop.PREDICTOR,
    why="The default mode differs between KServe's constant, ConfigMap and Helm chart, and the "
    "names changed with 0.16.",
    source="docs/facts.md 3.4 constants.go",
)(
    field_rule(
        lambda view: view.predictors,
        note(MODE),
        one_of(*MODES, words="Knative or Standard, explicitly"),
    )
)


@register.rule(
    "mode-name-by-version",
    Hop.PREDICTOR,
    why="KServe 0.15 and older know only Serverless and RawDeployment; from 0.16 the names are "
    "Knative and Standard.",
    source="docs/facts.md 3.4",
)
def mode_name_by_version(view: ResourceView) -> Iterator[Fault]:
    release = _kserve_release(view)
    if release is None:
        return
    wrong = ("Knative", "Standard") if release < 16 else ("Serverless", "RawDeployment")
    new = {"Knative": "Serverless", "Standard": "RawDeployment"}
    pairs = new if release < 16 else {old: name for name, old in new.items()}
    severity = Severity.ERROR if release < 16 else Severity.WARNING  # old names are normalised
    for predictor in view.predictors:
        value = annotation(predictor, MODE)
        if value in wrong:
            yield fault(predictor, MODE, value, f"{pairs[value]} on 0.{release}", severity)


def _kserve_release(view: ResourceView) -> int | None:
    """Give KServe's minor version by its controller's image, which a live cluster shows."""
    found = view.named("Deployment", "kserve-controller-manager")
    for box in dig(found, "spec.template.spec.containers") or []:
        tag = str(box.get("image", "")).rpartition(":")[2].lstrip("v")
        pieces = tag.split(".")
        if pieces[0] == "0" and len(pieces) > 1 and pieces[1].isdigit():
            return int(pieces[1])
    return None


@register.rule(
    "hold-and-claim",
    Hop.PREDICTOR,
    why="A pump under the KPA answers early: Knative sees no work and ends a busy pod. A push to a "
    "pod that KEDA scales is work that KEDA cannot see.",
    source="docs/topologies.md (hold and claim never mix); docs/facts.md #15",
)
def hold_and_claim(view: ResourceView) -> Iterator[Fault]:
    for predictor in view.in_knative_mode():
        for box in dig(predictor, "spec.predictor.containers") or []:
            if "eventing.pump" in " ".join(map(str, box.get("args") or [])):
                yield fault(predictor, "spec.predictor.containers", box["name"], "no pump here")
    for predictor in view.in_standard_mode():
        host = f"{predictor['metadata']['name']}-predictor"
        for trigger in view.triggers:
            subscriber = dig(trigger, "spec.subscriber") or {}
            if host in str(subscriber):
                yield fault(
                    trigger, "spec.subscriber", host, "no push to a predictor in Standard mode"
                )


@register.rule(
    "hold-mode-length",
    Hop.PREDICTOR,
    why="Every hop holds a connection for as long as a job thinks; one restart of any of them "
    "costs a retry. Above ten minutes the queue topology is calmer.",
    source="docs/facts.md #3 (serving#15352)",
)
def hold_mode_length(view: ResourceView) -> Iterator[Fault]:
    if view.in_knative_mode() and view.job_s > 600:
        yield fault(
            view.in_knative_mode()[0],
            "max_job_seconds",
            view.job_s,
            "at most 600 here; beyond, the queue overlay",
            Severity.WARNING,
        )
