"""Rules of predictors that ask a provider: keys, whose data may leave, prices, who stands in, and the way out."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from yarl import URL

from eventing.job.plan import ROUTE_STEP, tiers_of
from knative.deploy.doctor.finding import Fault, Hop, Register, Severity, fault
from knative.deploy.doctor.rules.api import cards_of
from knative.deploy.doctor.rules.steps import PIPELINES, fallbacks_of, plans_of
from knative.deploy.doctor.view import ResourceView, dig, engine, is_canary, number, variable
from knative.deploy.emit import Resource
from knative.deploy.render import parts
from knative.deploy.timeouts import MAX_ATTEMPTS
from knative.deploy.values import way_back

register = Register()
_ALL: Final = "*"
_STALL_S: Final = 120.0  # the predictor's own, where it is not set
_SETTING: Final = "TORPOR_UPSTREAM_"


def _providers(view: ResourceView) -> list[Resource]:
    return [each for each in view.predictors if _given(each, "URL") and not is_canary(each)]


def _given(predictor: Resource, name: str) -> str:
    return str(variable(engine(predictor), f"{_SETTING}{name}") or "")


def _listed(predictor: Resource, name: str) -> list[Any] | None:
    """A setting that is a JSON list; None when it is something else."""
    try:
        found = json.loads(_given(predictor, name) or "[]")
    except ValueError:
        return None
    return found if isinstance(found, list) else None


def _endpoints(predictor: Resource) -> list[dict[str, Any]]:
    """The first endpoint, and those that stand in for it."""
    first = {name: _given(predictor, name.upper()) for name in ("url", "model", "key_file")}
    others = _listed(predictor, "FALLBACKS") or []
    return [first, *(each for each in others if isinstance(each, dict))]


def _is_ours(endpoint: Mapping[str, Any]) -> bool:
    return (_url(endpoint).host or "").partition(".")[0] == parts.API


def _url(endpoint: Mapping[str, Any]) -> URL:
    try:
        return URL(str(endpoint.get("url", "")))
    except ValueError:
        return URL()


@register.rule(
    "provider-key",
    Hop.PREDICTOR,
    why="A provider without its key refuses every call, and so does our own api; a key that is no Secret's file is "
    "in the manifest, or not in the pod.",
    source="docs/predictor.md",
)
def provider_key(view: ResourceView) -> Iterator[Fault]:
    for predictor in _providers(view):
        box = engine(predictor)
        secret = {
            v["name"] for v in dig(predictor, "spec.predictor.volumes") or [] if "secret" in v
        }
        places = [
            str(mount.get("mountPath"))
            for mount in box.get("volumeMounts") or []
            if mount.get("name") in secret
        ]
        for endpoint in _endpoints(predictor):
            file, where = str(endpoint.get("key_file") or ""), f"key_file of {_url(endpoint).host}"
            if not file and (_url(endpoint).scheme == "https" or _is_ours(endpoint)):
                yield fault(predictor, where, None, "a file of a Secret")
            elif file and not any(file.startswith(f"{place}/") for place in places):
                yield fault(predictor, where, file, "a file of a Secret that is mounted there")


@register.rule(
    "provider-tenants",
    Hop.PREDICTOR,
    why="A tenant's data leaves the cluster only where TORPOR_UPSTREAM_TENANTS says so: with none the predictor does "
    "not start, and a tier that sends another tenant there has its jobs refused.",
    source="docs/predictor.md",
)
def provider_tenants(view: ResourceView) -> Iterator[Fault]:
    for predictor in _providers(view):
        tenants, name = _listed(predictor, "TENANTS"), predictor["metadata"]["name"]
        if not tenants:
            shown = _given(predictor, "TENANTS") or None
            yield fault(predictor, f"{_SETTING}TENANTS", shown, 'a list of tenants, or ["*"]')
            continue
        file = view.named("ConfigMap", PIPELINES, "v1") or predictor
        for where, sent in _sent(view, name) if _ALL not in tenants else ():
            if others := "all tenants" if not sent else ", ".join(sorted({*sent} - {*tenants})):
                yield fault(file, where, others, f"tenants of {json.dumps(tenants)}")


def _sent(view: ResourceView, model: str) -> Iterator[tuple[str, Collection[str]]]:
    """Where jobs of others are sent to a model, and the tenants whose jobs may be; none for all."""
    for name, plan in plans_of(view).items():
        step = plan.step(ROUTE_STEP)
        for tier in step.settings["tiers"] if step and model in tiers_of(plan) else ():
            if tier == model:
                yield f"{name}: tier {model}", ()
            elif isinstance(tier, dict) and tier.get("model") == model:
                yield f"{name}: tier {model}", tier.get("tenants") or ()
        if any(model in (each.settings.get("cascade") or ()) for each in plan.after):
            yield f"{name}: cascade {model}", ()
    for name, fallback in fallbacks_of(view).items():
        if fallback.model == model:
            yield f"{name}: fallback {model}", fallback.tenants


@register.rule(
    "provider-price",
    Hop.FRONT,
    why="Without a price its jobs cost nothing in usage, and no budget ends them.",
    source="docs/adr/0315",
)
def provider_price(view: ResourceView) -> Iterator[Fault]:
    cards, settings = cards_of(view) or {}, view.named("ConfigMap", parts.SETTINGS, "v1")
    for predictor in _providers(view):
        card = cards.get(predictor["metadata"]["name"])
        if (
            card
            and settings
            and not any(card.get(f"{kind}_price_per_1m") for kind in ("input", "output"))
        ):
            where = f"data.TORPOR_MODELS: {card['name']}"
            yield fault(
                settings,
                where,
                "no price",
                "input_price_per_1m, output_price_per_1m",
                Severity.WARNING,
            )


@register.rule(
    "provider-fallback",
    Hop.PREDICTOR,
    why="A model that is not here answers no call when it is needed; and models that stand in for each other ask in "
    "a circle, each with jobs of its own, when none of them answers.",
    source="docs/predictor.md",
)
def provider_fallback(view: ResourceView) -> Iterator[Fault]:
    plans, providers = plans_of(view), _providers(view)
    known = {*(cards_of(view) or {}), *plans}
    file = view.named("ConfigMap", PIPELINES, "v1")
    for model, fallback in fallbacks_of(view).items():
        if file and known and fallback.model not in known:
            must = f"one of {', '.join(sorted(known))}"
            yield fault(file, f"{model}: fallback", fallback.model, must)
    asked = {model: tiers_of(plan) for model, plan in plans.items()}
    own = {each["metadata"]["name"]: _own_models(each) for each in providers}
    for predictor in providers:
        name, where = predictor["metadata"]["name"], f"{_SETTING}FALLBACKS"
        if _listed(predictor, "FALLBACKS") is None:
            yield fault(predictor, where, _given(predictor, "FALLBACKS"), "a JSON list")
        for model in own[name]:
            if known and model not in known:
                yield fault(predictor, where, model, f"one of {', '.join(sorted(known))}")
        if way := way_back(name, {**asked, **own}):
            yield fault(predictor, where, " -> ".join(way), "no way back to itself")


def _own_models(predictor: Resource) -> tuple[str, ...]:
    """The models of this installation that stand in for a provider."""
    _, *others = _endpoints(predictor)
    return tuple(str(each.get("model")) for each in others if _is_ours(each))


@register.rule(
    "provider-timeout",
    Hop.PREDICTOR,
    why="Endpoints that are silent are waited for in turn, in every attempt: together longer than the longest job, "
    "its deadline ends it before the last one was asked.",
    source="docs/predictor.md",
)
def provider_timeout(view: ResourceView) -> Iterator[Fault]:
    for predictor in _providers(view):
        stall_s = number(variable(engine(predictor), "TORPOR_STALL_S")) or _STALL_S
        count = len(_endpoints(predictor))
        whole_s = stall_s * count * MAX_ATTEMPTS
        if whole_s > view.job_s:
            shown = f"{whole_s:.0f} s for {count} endpoints in {MAX_ATTEMPTS} attempts"
            yield fault(predictor, "TORPOR_STALL_S", shown, f"at most {view.job_s} s in all")


@register.rule(
    "provider-way-out",
    Hop.SECURITY,
    why="Nothing leaves by default: a predictor that no policy lets out cannot reach its provider.",
    source="docs/security.md",
)
def provider_way_out(view: ResourceView) -> Iterator[Fault]:
    policies = view.of("NetworkPolicy", "networking.k8s.io/")
    for predictor in _providers(view):
        labels = {
            **(dig(predictor, "metadata.labels") or {}),
            **(dig(predictor, "spec.predictor.labels") or {}),
        }
        open_ports = {
            port.get("port")
            for policy in policies
            if _selects(dig(policy, "spec.podSelector") or {}, labels)
            for rule in dig(policy, "spec.egress") or []
            for port in rule.get("ports") or []
        }
        for endpoint in _endpoints(predictor) if policies else ():
            if (port := _url(endpoint).port) and port not in open_ports:
                must = f"a NetworkPolicy that lets it out at {port}"
                yield fault(predictor, f"{_url(endpoint).host}:{port}", "shut", must)


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    wanted = selector.get("matchLabels") or {}
    absent = [
        each.get("key")
        for each in selector.get("matchExpressions") or []
        if each.get("operator") == "DoesNotExist"
    ]
    return wanted.items() <= labels.items() and not any(key in labels for key in absent)
