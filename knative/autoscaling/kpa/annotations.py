"""Reads the scaling settings of a Knative Service or a KServe InferenceService.

Called by the local stack, the simulator and the doctor. Rules: knative/serving
`pkg/apis/autoscaling/annotation_validation.go`; KServe's Knative mode as in
`pkg/controller/v1beta1/inferenceservice/reconcilers/knative`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from knative.autoscaling.kpa.autoscaler_config import (
    WINDOW_MAX_S,
    WINDOW_MIN_S,
    AutoscalerConfig,
)
from knative.autoscaling.kpa.kpa import KpaSpec, ScaleMetric, panic_window_s, resolve_target
from knative.autoscaling.kpa.reconciler import ScalePolicy
from knative.autoscaling.kpa.window import Aggregation
from knative.autoscaling.setting import SettingReader

GROUP = "autoscaling.knative.dev/"
KPA_CLASS = "kpa.autoscaling.knative.dev"
PROGRESS_DEADLINE = "serving.knative.dev/progress-deadline"

# Names that older manifests use for the same annotation.
_ALIASES = {
    "minScale": "min-scale",
    "maxScale": "max-scale",
    "initialScale": "initial-scale",
    "scaleDownDelay": "scale-down-delay",
    "scaleToZeroPodRetentionPeriod": "scale-to-zero-pod-retention-period",
    "metricAggregationAlgorithm": "metric-aggregation-algorithm",
    "panicWindowPercentage": "panic-window-percentage",
    "panicThresholdPercentage": "panic-threshold-percentage",
    "targetBurstCapacity": "target-burst-capacity",
    "targetUtilizationPercentage": "target-utilization-percentage",
    "min-activate-scale": "activation-scale",
}
# The InferenceService fields that KServe turns into annotations.
_ISVC_FIELDS = {"scaleTarget": "target", "scaleMetric": "metric"}
_ISVC_MIN_REPLICAS = 1
_NO_INITIAL_SCALE = (GROUP + "initial-scale", "0")
_MAX_CONTAINER_CONCURRENCY = 1000


@dataclass(frozen=True, slots=True)
class KnativeScaling:
    """The KPA settings of one revision: decision, reconciliation, and the pod's hard limit.

    `container_concurrency` 0 means no limit.
    """

    name: str
    spec: KpaSpec
    policy: ScalePolicy
    container_concurrency: int


def read_knative(
    manifest: Mapping[str, Any], config: AutoscalerConfig | None = None
) -> KnativeScaling:
    """The KPA settings of a Knative Service, Revision or InferenceService.

    Raises RefusedSettingsError naming every unknown or out-of-range annotation, with its range.
    """
    config = config or AutoscalerConfig()
    annotations, concurrency, reader = _sources(manifest)
    if manifest.get("kind") == "InferenceService" and not config.allow_zero_initial_scale:
        # KServe drops it, and Knative's default of 1 holds (ValidateInitialScaleAnnotation).
        annotations = {k: v for k, v in annotations.items() if (k, str(v)) != _NO_INITIAL_SCALE}
    name = str(manifest.get("metadata", {}).get("name", ""))
    scaling = _read(name, annotations, concurrency, config)
    reader.finish()
    return scaling


def _sources(manifest: Mapping[str, Any]) -> tuple[dict[str, Any], int, SettingReader]:
    kind = manifest.get("kind")
    spec = manifest.get("spec") or {}
    if kind == "InferenceService":
        return _from_inference_service(manifest, spec.get("predictor") or {})
    template = spec.get("template") or {} if kind == "Service" else manifest
    pod = template.get("spec") or {}
    metadata = template.get("metadata") or {}
    fields = SettingReader(
        {k: v for k, v in pod.items() if k == "containerConcurrency"}, prefix="spec."
    )
    concurrency = fields.integer("containerConcurrency", 0, high=_MAX_CONTAINER_CONCURRENCY)
    if kind == "Service":
        _refuse_outside_template(fields, manifest)
    return dict(metadata.get("annotations") or {}), concurrency, fields


def _refuse_outside_template(reader: SettingReader, manifest: Mapping[str, Any]) -> None:
    outside = (manifest.get("metadata") or {}).get("annotations") or {}
    for key, value in outside.items():
        if key.startswith(GROUP):
            reader.refuse(key, value, 'only under "spec.template.metadata.annotations"')


def _from_inference_service(
    manifest: Mapping[str, Any], predictor: Mapping[str, Any]
) -> tuple[dict[str, Any], int, SettingReader]:
    """The annotations that KServe's Knative mode would write, and the container's limit."""
    names = ("minReplicas", "maxReplicas", "containerConcurrency")
    fields = {name: predictor[name] for name in names if name in predictor}
    reader = SettingReader(fields, prefix="spec.predictor.")
    annotations = dict((manifest.get("metadata") or {}).get("annotations") or {})
    annotations |= predictor.get("annotations") or {}
    least = reader.integer("minReplicas", _ISVC_MIN_REPLICAS)
    most = reader.integer("maxReplicas", 0)
    annotations[GROUP + "min-scale"] = str(least)
    if most:
        annotations[GROUP + "max-scale"] = str(most)
    for field, annotation in _ISVC_FIELDS.items():
        if field in predictor:
            annotations[GROUP + annotation] = str(predictor[field])
    concurrency = reader.integer("containerConcurrency", 0, high=_MAX_CONTAINER_CONCURRENCY)
    return annotations, concurrency, reader


def _read(
    name: str, annotations: Mapping[str, Any], concurrency: int, config: AutoscalerConfig
) -> KnativeScaling:
    own = {k.removeprefix(GROUP): v for k, v in annotations.items() if k.startswith(GROUP)}
    reader = SettingReader(_canonical(own), prefix=GROUP)
    reader.choice("class", KPA_CLASS, (KPA_CLASS,))
    spec = _spec(reader, concurrency, config)
    policy = _policy(reader, spec, config, annotations)
    reader.finish()
    return KnativeScaling(name, spec, policy, concurrency)


def _canonical(own: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {_ALIASES[k]: v for k, v in own.items() if k in _ALIASES}
    return renamed | {k: v for k, v in own.items() if k not in _ALIASES}


def _spec(reader: SettingReader, concurrency: int, config: AutoscalerConfig) -> KpaSpec:
    metric = ScaleMetric(reader.choice("metric", "concurrency", ("concurrency", "rps")))
    is_rps = metric is ScaleMetric.RPS
    utilization = reader.maybe_number("target-utilization-percentage", low=1)
    if utilization is not None and utilization > 100:
        reader.refuse("target-utilization-percentage", utilization, "a number from 1 to 100")
    target, total = resolve_target(
        metric=metric,
        container_concurrency=concurrency,
        annotation_target=reader.maybe_number("target", low=0.01),
        utilization=config.target_utilization if utilization is None else utilization / 100,
        default_total=config.rps_target if is_rps else config.concurrency_target,
    )
    window_s = int(
        reader.duration("window", config.stable_window_s, low=WINDOW_MIN_S, high=WINDOW_MAX_S)
    )
    panic_share = reader.number(
        "panic-window-percentage", config.panic_window_percentage, low=1, high=100
    )
    threshold = reader.number(
        "panic-threshold-percentage", config.panic_threshold_percentage, low=110, high=1000
    )
    return KpaSpec(
        target=target,
        total=total,
        metric=metric,
        target_burst_capacity=_burst(reader, config),
        panic_threshold=threshold / 100,
        max_scale_up_rate=config.max_scale_up_rate,
        max_scale_down_rate=config.max_scale_down_rate,
        stable_window_s=window_s,
        panic_window_s=panic_window_s(window_s, panic_share),
        scale_down_delay_s=reader.duration("scale-down-delay", config.scale_down_delay_s),
        activation_scale=reader.integer("activation-scale", 1, low=2),
        aggregation=_aggregation(reader),
    )


def _aggregation(reader: SettingReader) -> Aggregation:
    allowed = tuple(member.value for member in Aggregation)
    return Aggregation(reader.choice("metric-aggregation-algorithm", allowed[0], allowed))


def _burst(reader: SettingReader, config: AutoscalerConfig) -> float:
    burst = reader.number("target-burst-capacity", config.target_burst_capacity)
    if burst < 0 and burst != -1:
        reader.refuse("target-burst-capacity", burst, "-1 (always), 0 (at zero only) or above")
    return burst


def _policy(
    reader: SettingReader,
    spec: KpaSpec,
    config: AutoscalerConfig,
    annotations: Mapping[str, Any],
) -> ScalePolicy:
    least = reader.integer("min-scale", config.min_scale)
    most = reader.integer("max-scale", config.max_scale)
    if most != 0 and most < least:
        reader.refuse("max-scale", most, f"0 (no bound) or at least min-scale ({least})")
    if config.max_scale_limit and not 1 <= most <= config.max_scale_limit:
        reader.refuse("max-scale", most, f"1 to {config.max_scale_limit} (max-scale-limit)")
    if spec.activation_scale > 1 and (
        least > spec.activation_scale or (most != 0 and most < spec.activation_scale)
    ):
        reader.refuse("activation-scale", spec.activation_scale, "within min-scale and max-scale")
    initial = reader.integer(
        "initial-scale", config.initial_scale, low=0 if config.allow_zero_initial_scale else 1
    )
    deadlines = {k: v for k, v in annotations.items() if k == PROGRESS_DEADLINE}
    deadline = SettingReader(deadlines)
    policy = ScalePolicy(
        min_scale=least,
        max_scale=most,
        initial_scale=initial,
        stable_window_s=spec.stable_window_s,
        target_burst_capacity=spec.target_burst_capacity,
        enable_scale_to_zero=config.enable_scale_to_zero,
        scale_to_zero_grace_s=config.scale_to_zero_grace_s,
        pod_retention_s=reader.duration(
            "scale-to-zero-pod-retention-period", config.pod_retention_s, whole=False
        ),
        progress_deadline_s=deadline.duration(
            PROGRESS_DEADLINE, config.progress_deadline_s, low=1, high=86_400
        ),
    )
    deadline.finish()
    return policy
