"""A model whose engine is a provider's endpoint: its container, its keys as files, and where its pods may go.

Called by `inference` and `network`. Its pods have the labels of every predictor, so that probes, scaling and metrics
are the same, and one of their own, by which they are let out to their provider and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from yarl import URL

from knative.deploy.emit import Resource, because
from knative.deploy.render import parts
from knative.deploy.values import FallbackValues, UpstreamValues, Values

PROVIDER = "torpor.dev/provider"  # the label of its pods; the value is the model
KEYS = "/etc/torpor/provider"
KEY = "key"  # in each Secret


def labels(values: Values) -> dict[str, str]:
    """Give the label of a provider's pods; none for a model with weights."""
    return {PROVIDER: values.model.name} if values.model.upstream else {}


def args(values: Values) -> list[str]:
    """Give the predictor's arguments."""
    return ["--engine=upstream", f"--served-model-name={values.model.name}"]


def env(values: Values, upstream: UpstreamValues) -> list[Resource]:
    """Give what a predictor must know of its provider."""
    given = {
        "URL": upstream.url,
        "MODEL": upstream.model,
        "TENANTS": json.dumps(upstream.tenants),
        "MAX_CONCURRENCY": str(values.model.concurrency),
        "CONTEXT_TOKENS": str(values.model.max_tokens),
    }
    if upstream.secret:
        given["KEY_FILE"] = _key_file(upstream.secret)
    if upstream.fallbacks:
        stand_ins = [_fallback(each, values) for each in upstream.fallbacks]
        given["FALLBACKS"] = json.dumps(stand_ins)
    if upstream.hedges:
        given["HEDGES"] = "true"
    if upstream.cache_salt:
        given["CACHE_SALT"] = "true"
    if inside := [*upstream.allowed, *([_own_host(values)] if upstream.own_models else [])]:
        given["ALLOW"] = json.dumps(inside)
    return [{"name": f"TORPOR_UPSTREAM_{name}", "value": value} for name, value in given.items()]


def _fallback(fallback: FallbackValues, values: Values) -> Resource:
    own = f"http://{_own_host(values)}:{parts.API_PORT}/v1"
    found: Resource = {"url": fallback.url or own, "model": fallback.model}
    if fallback.cache_salt:
        found["cache_salt"] = True
    return found | ({"key_file": _key_file(fallback.secret)} if fallback.secret else {})


def _own_host(values: Values) -> str:
    return f"{parts.API}.{values.namespace}.svc.cluster.local"


def _key_file(secret: str) -> str:
    return f"{KEYS}/{secret}/{KEY}"


def _secrets(upstream: UpstreamValues) -> list[str]:
    named = (upstream.secret, *(each.secret for each in upstream.fallbacks))
    return list(dict.fromkeys(name for name in named if name))


def volumes(upstream: UpstreamValues) -> list[Resource]:
    """Give the Secrets of its keys, as files: the predictor reads them for each call, so they can be rotated."""
    return [
        {
            "name": f"key-{place}",
            "secret": {"secretName": name, "items": [{"key": KEY, "path": KEY}]},
        }
        for place, name in enumerate(_secrets(upstream))
    ]


def mounts(upstream: UpstreamValues) -> list[Resource]:
    """Give the places of those files."""
    return [
        {"name": f"key-{place}", "mountPath": f"{KEYS}/{name}", "readOnly": True}
        for place, name in enumerate(_secrets(upstream))
    ]


def resources() -> Resource:
    """Give what a predictor asks for that computes nothing."""
    asked = {
        "requests": {"cpu": "250m", "memory": "512Mi"},
        "limits": {"cpu": "2", "memory": "1Gi"},
    }
    made: Resource = because(
        asked, "It waits for its provider. Without a limit of CPU KServe's webhook puts 1."
    )
    return made


def policies(values: Values, public: Resource) -> Iterator[Resource]:
    """Give one policy a provider: its pods are let out to it, and to what stands in for it. `public` is the peer of
    every public address.
    """
    for each in values.each():
        if upstream := each.model.upstream:
            spec = {
                "podSelector": {
                    "matchLabels": {**parts.labels("predictor"), PROVIDER: each.model.name}
                },
                "policyTypes": ["Egress"],
                "egress": _ways(upstream, public),
            }
            yield {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": parts.metadata(f"provider-{each.model.name}", "network", values),
                "spec": spec,
            }


def _ways(upstream: UpstreamValues, public: Resource) -> list[Resource]:
    ports = sorted({URL(url).port or 443 for url in upstream.urls})
    inside = [{"ipBlock": {"cidr": str(network)}} for network in upstream.networks]
    is_public = not inside or any(URL(url).scheme == "https" for url in upstream.urls)
    ways: list[Resource] = [
        {
            "to": [*inside, *([public] if is_public else [])],
            "ports": [{"protocol": "TCP", "port": port} for port in ports],
        }
    ]
    if upstream.own_models:
        chosen = {"podSelector": {"matchLabels": parts.labels("api")}}
        api = because(chosen, "A model of our own stands in.")
        ways.append({"to": [api], "ports": [{"protocol": "TCP", "port": parts.API_PORT}]})
    return ways
