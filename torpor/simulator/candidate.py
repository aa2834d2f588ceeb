"""Candidate policies: their settings, how each is built, and its manifest patch.

Called by the command line, `plan.py` and the benches. It must not run anything.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from knative.autoscaling.hpa.spec import read_hpa
from knative.autoscaling.keda.scaledobject import read_scaled_object
from knative.autoscaling.kpa.annotations import GROUP, read_knative
from knative.autoscaling.setting import Refusal, RefusedSettingsError
from knative.autoscaling.work.work import WorkSpec
from knative.deploy.build import load
from knative.deploy.emit import Resource
from torpor.simulator.engine import EngineModel
from torpor.simulator.policy import (
    FixedPolicy,
    HpaPolicy,
    KedaPolicy,
    KpaPolicy,
    WorkOverKeda,
    WorkPolicy,
)
from torpor.simulator.view import Autoscaler

_SCALING_KINDS = ("Service", "InferenceService", "ScaledObject", "HorizontalPodAutoscaler")
_NEEDS_SCALER = "add the component work-scaler to the overlay: it serves this policy to KEDA"


@dataclass(frozen=True, slots=True)
class Place:
    """Which model's objects a patch is for, as `manifests/values.yaml` names them."""

    model: str = "thinker"
    namespace: str = "torpor"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One policy with its settings: a name, a way to build it, and its manifest patch.

    `start_s` overrides the scenario's cold start, for a candidate with a warm parent. `initial_replicas` run at the
    start. `remarks` are further requirements of the patch.
    """

    name: str
    build: Callable[[], Autoscaler]
    patch: Callable[[Place], Mapping[str, Any]] | None = None
    initial_replicas: int = 0
    start_s: float | None = None
    container_concurrency: int | None = None
    remarks: tuple[str, ...] = field(default=())

    def patch_text(self, place: Place) -> str:
        """The patch as YAML, to be merged into the rendered object of that name; "" for none."""
        if self.patch is None:
            return ""
        document = dict(self.patch(place))
        document["metadata"] = {
            "name": place.model,
            "namespace": place.namespace,
            **document.get("metadata", {}),
        }
        return yaml.safe_dump(document, sort_keys=False)


def kpa_candidate(
    name: str, annotations: Mapping[str, str], concurrency: int, *, start_s: float | None = None
) -> Candidate:
    """The KPA with these annotations (without their prefix) on a predictor in Knative mode."""
    notes = {GROUP + key: value for key, value in annotations.items() if key != "min-scale"}
    least = int(annotations.get("min-scale", "0"))
    patch = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"annotations": notes},
        # KServe writes min-scale from this; left out it would be 1.
        "spec": {"predictor": {"minReplicas": least, "containerConcurrency": concurrency}},
    }
    scaling = read_knative(patch)
    return Candidate(
        name=name,
        build=lambda: KpaPolicy(scaling),
        patch=lambda _: patch,
        initial_replicas=scaling.policy.min_scale,
        start_s=start_s,
        container_concurrency=concurrency,
    )


def keda_candidate(
    name: str,
    fields: Mapping[str, Any],
    target: int,
    *,
    is_fast: bool = False,
    start_s: float | None = None,
) -> Candidate:
    """A ScaledObject on lag and pending entries; `is_fast` adds a behaviour without stabilisation.

    `fields` are settings of the ScaledObject's spec.
    """
    advanced: dict[str, Any] = {
        "scalingModifiers": {
            "formula": "(lag > 0 ? lag : 0) + pend",
            "target": str(target),
            "activationTarget": "0",
            "metricType": "AverageValue",
        }
    }
    if is_fast:
        advanced["horizontalPodAutoscalerConfig"] = {"behavior": _fast_behavior(60)}
    # The rendered triggers stay: where they look is theirs to say, and the formula counts.
    patch = _scaled_object({**fields, "advanced": advanced})
    triggers = [
        _stream_trigger("lag", "lagCount", target),
        _stream_trigger("pend", "pendingEntriesCount", target),
    ]
    spec = read_scaled_object({**patch, "spec": {**patch["spec"], "triggers": triggers}})
    return Candidate(
        name=name,
        build=lambda: KedaPolicy(spec),
        patch=lambda _: patch,
        initial_replicas=spec.min_replicas,
        start_s=start_s,
    )


def work_candidate(
    name: str, engine: EngineModel, slots: int, *, start_s: float, p95_wait_s: float
) -> Candidate:
    """Our own policy, and the ScaledObject that lets KEDA ask it."""
    spec = work_spec(engine, slots, start_s=start_s, p95_wait_s=p95_wait_s)
    return Candidate(
        name=name,
        build=lambda: WorkPolicy(spec),
        patch=lambda place: _asking_scaler(spec, place),
        # An objective shorter than a cold start keeps a replica running from the first job on.
        initial_replicas=0 if spec.can_hide_cold_start else 1,
        start_s=start_s,
        remarks=(_NEEDS_SCALER,),
    )


def _asking_scaler(spec: WorkSpec, place: Place) -> dict[str, Any]:
    """A ScaledObject that asks our external scaler and counts nothing by itself."""
    metadata = {
        "scalerAddress": f"torpor-scaler.{place.namespace}.svc.cluster.local:9090",
        "queue": f"requests-{place.model}",
        "model": place.model,
        "prefillTokensPerSecond": f"{spec.prefill_tokens_per_s:g}",
        "decodeTokensPerSecond": f"{spec.decode_tokens_per_s:g}",
        "slots": str(spec.slots),
        "coldStartSeconds": f"{spec.cold_start_s:g}",
        "p95WaitSeconds": f"{spec.p95_wait_s:g}",
    }
    fields = {
        "pollingInterval": 2,
        "cooldownPeriod": 0,
        "advanced": {
            "scalingModifiers": None,
            "horizontalPodAutoscalerConfig": {"behavior": _fast_behavior(0)},
        },
        "triggers": [{"type": "external-push", "name": "work", "metadata": metadata}],
    }
    return _scaled_object(fields)


def work_over_keda_candidate(
    name: str, engine: EngineModel, slots: int, *, start_s: float, p95_wait_s: float
) -> Candidate:
    """Our own policy through KEDA: polls and HPA syncs come in between, so its margin is longer."""
    direct = work_candidate(name, engine, slots, start_s=start_s, p95_wait_s=p95_wait_s)
    spec = work_spec(engine, slots, start_s=start_s, p95_wait_s=p95_wait_s)
    scaled_object = read_scaled_object(_asking_scaler(spec, Place()))
    spec = replace(spec, margin_s=1 + scaled_object.polling_interval_s)
    return replace(direct, build=lambda: WorkOverKeda(spec, scaled_object))


def work_spec(engine: EngineModel, slots: int, *, start_s: float, p95_wait_s: float) -> WorkSpec:
    """What our policy must know of an engine."""
    return WorkSpec(
        prefill_tokens_per_s=engine.prefill_tokens_per_s,
        decode_tokens_per_s=engine.batch_rate(slots),
        slots=slots,
        cold_start_s=start_s,
        p95_wait_s=p95_wait_s,
    )


def fixed_candidate(replicas: int) -> Candidate:
    """A fixed number of replicas."""
    return Candidate(f"fixed {replicas}", lambda: FixedPolicy(replicas), initial_replicas=replicas)


def manifest_candidates(paths: Iterable[Path]) -> list[Candidate]:
    """A candidate for every scaled object in these YAML files and folders; a kustomize folder is built, else every
    YAML file in it is read.

    Raises RefusedSettingsError for settings that the cluster would refuse, or when nothing is scaled, and
    BuildError for what cannot be read.
    """
    found = [_from_manifest(each) for path in paths for each in _objects(path) if _is_scaled(each)]
    if not found:
        names = ", ".join(str(path) for path in paths)
        raise RefusedSettingsError((Refusal("manifest", names, f"one of {_SCALING_KINDS}"),))
    return found


def _objects(path: Path) -> list[Resource]:
    is_plain = path.is_dir() and not (path / "kustomization.yaml").is_file()
    sources = sorted(path.rglob("*.y*ml")) if is_plain else [path]
    return [each for source in sources for each in asyncio.run(load(str(source)))]


def _is_scaled(document: Mapping[str, Any]) -> bool:
    """A Service of the core API is not scaled."""
    kind = document.get("kind")
    is_core = kind == "Service" and "knative" not in str(document.get("apiVersion"))
    return kind in _SCALING_KINDS and not is_core


def _from_manifest(document: Mapping[str, Any]) -> Candidate:
    name = str(document.get("metadata", {}).get("name", "unnamed"))
    match document["kind"]:
        case "ScaledObject":
            keda_spec = read_scaled_object(document)
            return Candidate(
                f"keda {name}",
                lambda: KedaPolicy(keda_spec),
                initial_replicas=keda_spec.min_replicas,
            )
        case "HorizontalPodAutoscaler":
            hpa_spec = read_hpa(document)
            return Candidate(
                f"hpa {name}",
                lambda: HpaPolicy(hpa_spec),
                initial_replicas=hpa_spec.min_replicas,
            )
        case _:
            scaling = read_knative(document)
            return Candidate(
                f"kpa {name}",
                lambda: KpaPolicy(scaling),
                initial_replicas=scaling.policy.min_scale,
                container_concurrency=scaling.container_concurrency,
            )


def _scaled_object(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "spec": dict(fields)}


def _stream_trigger(name: str, mode: str, target: int) -> dict[str, Any]:
    metadata = {"stream": "torpor:jobs", "consumerGroup": "predictors", mode: str(target)}
    return {"type": "redis-streams", "name": name, "metadata": metadata}


def _fast_behavior(down_window_s: int) -> dict[str, Any]:
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "policies": [{"type": "Pods", "value": 100, "periodSeconds": 15}],
        },
        "scaleDown": {"stabilizationWindowSeconds": down_window_s},
    }
