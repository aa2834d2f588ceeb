"""Rules of the held path: front door, activator, queue-proxy and the predictor's pod."""

from __future__ import annotations

from collections.abc import Iterator

from knative.autoscaling.annotations import read_knative
from knative.autoscaling.setting import RefusedSettingsError
from knative.deploy import parts
from knative.deploy.doctor.finding import Fault, Hop, Register, Severity, fault, needed
from knative.deploy.doctor.view import (
    MODE,
    View,
    annotation,
    argument,
    dig,
    engine,
    go_seconds,
    number,
)
from knative.deploy.emit import Resource

register = Register()
MODES = ("Knative", "Standard", "Serverless", "RawDeployment", "ModelMesh")
_KPA = "autoscaling.knative.dev/"
_NGINX = "nginx.ingress.kubernetes.io/"


def _knative_services(view: View) -> list[Resource]:
    return view.of("Service", "serving.knative.dev/")


def _predictor_services(view: View) -> list[Resource]:
    """Give the Knative Services that KServe made, which a live cluster shows."""
    label = "serving.kserve.io/inferenceservice"
    return [
        s
        for s in _knative_services(view)
        if label in ((s.get("metadata") or {}).get("labels") or {})
    ]


@register.rule(
    "api-behind-queue-proxy",
    Hop.FRONT,
    why="queue-proxy ends a request at timeoutSeconds even while it streams: readers of long "
    "answers are cut and must resume with Last-Event-ID.",
    source="facts 3.3, #13",
)
def api_behind_queue_proxy(view: View) -> Iterator[Fault]:
    for service in _knative_services(view):
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
    for service in _knative_services(view):
        if service["metadata"]["name"] == parts.API:
            least = dig(service, "spec.template.metadata.annotations") or {}
            if (number(least.get(f"{_KPA}min-scale")) or 0) < 1:
                yield fault(service, "min-scale", least.get(f"{_KPA}min-scale"), "at least 1")
    for scaler in view.of("HorizontalPodAutoscaler"):
        least_count = dig(scaler, "spec.minReplicas")
        if dig(scaler, "spec.scaleTargetRef.name") == parts.API and least_count == 0:
            yield fault(scaler, "spec.minReplicas", least_count, "at least 1")


@register.rule(
    "ingress-timeout",
    Hop.FRONT,
    why="The proxy cuts an answer that is silent for longer (60 s by default), and a job may be "
    "silent for a whole wake and thought.",
    source="facts #3, #13",
)
def ingress_timeout(view: View) -> Iterator[Fault]:
    for ingress in view.of("Ingress", "networking.k8s.io/"):
        for key in ("proxy-read-timeout", "proxy-send-timeout"):
            seconds = number(annotation(ingress, _NGINX + key))
            if seconds is None or seconds < view.held_s:
                yield fault(ingress, _NGINX + key, seconds, f"at least {view.held_s}")


@register.rule(
    "ingress-buffering",
    Hop.FRONT,
    why="A buffering proxy holds tokens back until a block is full.",
    source="design, Token streams",
)
def ingress_buffering(view: View) -> Iterator[Fault]:
    for ingress in view.of("Ingress", "networking.k8s.io/"):
        value = annotation(ingress, f"{_NGINX}proxy-buffering")
        if value != "off":
            yield fault(ingress, f"{_NGINX}proxy-buffering", value, "off", Severity.WARNING)


@register.rule(
    "ingress-retry",
    Hop.FRONT,
    why="A proxy that repeats a request by itself submits or runs it twice.",
    source="facts #16 (kserve#1663)",
)
def ingress_retry(view: View) -> Iterator[Fault]:
    for ingress in view.of("Ingress", "networking.k8s.io/"):
        value = annotation(ingress, f"{_NGINX}proxy-next-upstream")
        if value != "off":
            yield fault(ingress, f"{_NGINX}proxy-next-upstream", value, "off")


@register.rule(
    "hold-timeout",
    Hop.ACTIVATOR,
    why="The request waits in the activator while a pod wakes and then while it thinks; the "
    "default of 300 s answers 504, which brokers retry: the work is done twice.",
    source="facts 3.3, 3.4, #3",
)
def hold_timeout(view: View) -> Iterator[Fault]:
    for predictor in view.in_knative_mode():
        seconds = number(dig(predictor, "spec.predictor.timeout"))
        if seconds is None or seconds < view.held_s:
            yield fault(predictor, "spec.predictor.timeout", seconds, f"at least {view.held_s}")


@register.rule(
    "hold-response-start",
    Hop.ACTIVATOR,
    why="A silent answer is cut at responseStartTimeoutSeconds, which stays at 300 s when only "
    "timeoutSeconds is raised.",
    source="facts 3.3, #3, #4 (kserve#3706)",
)
def hold_response_start(view: View) -> Iterator[Fault]:
    for service in _predictor_services(view):
        for field in ("timeoutSeconds", "responseStartTimeoutSeconds"):
            path = f"spec.template.spec.{field}"
            seconds = number(dig(service, path))
            if seconds is None or seconds < view.held_s:
                yield fault(service, path, seconds, f"at least {view.held_s}")


@register.rule(
    "hold-idle",
    Hop.ACTIVATOR,
    why="idleTimeoutSeconds cuts between two bytes; a thought may pause longer.",
    source="facts 3.3",
)
def hold_idle(view: View) -> Iterator[Fault]:
    for service in _predictor_services(view):
        path = "spec.template.spec.idleTimeoutSeconds"
        seconds = number(dig(service, path)) or 0
        if 0 < seconds < view.held_s:
            yield fault(service, path, seconds, f"0 (off) or at least {view.held_s}")


def _longest_timeout(view: View) -> float:
    """Give the longest timeout that any revision here asks for."""
    asked = [number(dig(p, "spec.predictor.timeout")) or 0 for p in view.in_knative_mode()]
    asked += [
        number(dig(s, "spec.template.spec.timeoutSeconds")) or 0 for s in _knative_services(view)
    ]
    return max(asked, default=0)


@register.rule(
    "max-revision-timeout",
    Hop.ACTIVATOR,
    why="Knative's webhook refuses a revision whose timeoutSeconds is over "
    "max-revision-timeout-seconds (600 by default).",
    source="facts 3.3 defaults.yaml",
)
def max_revision_timeout(view: View) -> Iterator[Fault]:
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
    source="facts 3.3",
)
def activator_grace(view: View) -> Iterator[Fault]:
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


@register.rule(
    "scale-to-zero-enabled",
    Hop.SCALER,
    why="With enable-scale-to-zero off, the last GPU never sleeps.",
    source="facts 3.3 autoscaler.yaml",
)
def scale_to_zero_enabled(view: View) -> Iterator[Fault]:
    data = view.config("config-autoscaler")
    if data and str(data.get("enable-scale-to-zero", "true")).lower() == "false":
        found = view.named("ConfigMap", "config-autoscaler") or {}
        yield fault(found, "data.enable-scale-to-zero", "false", "true")


@register.rule(
    "knative-settings",
    Hop.SCALER,
    why="Knative's webhook refuses the value, or the name is not one that anything reads.",
    source="facts 3.3 (annotation_validation.go)",
)
def knative_settings(view: View) -> Iterator[Fault]:
    for resource in [*view.in_knative_mode(), *_knative_services(view)]:
        try:
            read_knative(resource)
        except RefusedSettingsError as refused:
            for refusal in refused.refusals:
                yield fault(resource, refusal.name, refusal.value, refusal.allowed)


@register.rule(
    "kpa-class",
    Hop.SCALER,
    why="The HPA class cannot reach zero and cannot see concurrency.",
    source="facts 3.3",
)
def kpa_class(view: View) -> Iterator[Fault]:
    for predictor in view.in_knative_mode():
        value = annotation(predictor, f"{_KPA}class")
        if value not in (None, "kpa.autoscaling.knative.dev"):
            yield fault(predictor, f"{_KPA}class", value, "kpa.autoscaling.knative.dev")


@register.rule(
    "kpa-window",
    Hop.SCALER,
    why="A window shorter than a wake ends pods that will be woken again at a higher price.",
    source="facts 3.3 (last pod goes after a full window without traffic)",
)
def kpa_window(view: View) -> Iterator[Fault]:
    least = min(view.cold_start_s, 3600)
    for predictor in view.in_knative_mode():
        value = annotation(predictor, f"{_KPA}window")
        if (go_seconds(value or "60s") or 0) < least:
            yield fault(predictor, f"{_KPA}window", value, f"at least {least}s", Severity.WARNING)


@register.rule(
    "progress-deadline",
    Hop.PREDICTOR,
    why="A revision that is not ready within its progress deadline (600 s) is given up while the "
    "model is still loading.",
    source="facts 3.3 deployment.md, #12",
)
def progress_deadline(view: View) -> Iterator[Fault]:
    key = "serving.knative.dev/progress-deadline"
    for predictor in view.in_knative_mode():
        value = annotation(predictor, key)
        if (go_seconds(value or "600s") or 0) < view.cold_start_s:
            yield fault(predictor, key, value, f"at least {view.cold_start_s}s")


@register.rule(
    "container-concurrency",
    Hop.PREDICTOR,
    why="0 means no limit: 100 generations pile up on one GPU before the KPA adds another.",
    source="facts 3.3",
)
def container_concurrency(view: View) -> Iterator[Fault]:
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


@register.rule(
    "deployment-mode",
    Hop.PREDICTOR,
    why="The default mode differs between KServe's constant, ConfigMap and Helm chart, and the "
    "names changed with 0.16.",
    source="facts 3.4 constants.go",
)
def deployment_mode(view: View) -> Iterator[Fault]:
    for predictor in view.predictors:
        value = annotation(predictor, MODE)
        if value not in MODES:
            yield fault(predictor, MODE, value, "Knative or Standard, explicitly")


@register.rule(
    "mode-name-by-version",
    Hop.PREDICTOR,
    why="KServe 0.15 and older know only Serverless and RawDeployment; from 0.16 the names are "
    "Knative and Standard.",
    source="facts 3.4",
)
def mode_name_by_version(view: View) -> Iterator[Fault]:
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


def _kserve_release(view: View) -> int | None:
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
    source="design, Hold and claim never mix; facts #15",
)
def hold_and_claim(view: View) -> Iterator[Fault]:
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
    source="facts #3 (serving#15352)",
)
def hold_mode_length(view: View) -> Iterator[Fault]:
    if view.in_knative_mode() and view.job_s > 600:
        yield fault(
            view.in_knative_mode()[0],
            "max_job_seconds",
            view.job_s,
            "at most 600 here; beyond, the queue overlay",
            Severity.WARNING,
        )
