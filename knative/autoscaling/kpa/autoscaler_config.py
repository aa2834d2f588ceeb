"""Knative's cluster-wide autoscaler settings: the ConfigMap `config-autoscaler`, with its defaults.

Called by `annotations.py`, which lets a revision's annotations override them. Source: knative/serving
knative-v1.23.0 `pkg/autoscaler/config`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from knative.autoscaling.setting import SettingReader

WINDOW_MIN_S = 6
WINDOW_MAX_S = 3600


@dataclass(frozen=True, slots=True)
class AutoscalerConfig:
    """The settings of revisions without annotations; percentages as fractions, times in seconds."""

    target_utilization: float = 0.7
    concurrency_target: float = 100.0
    rps_target: float = 200.0
    target_burst_capacity: float = 211.0
    stable_window_s: int = 60
    panic_window_percentage: float = 10.0
    panic_threshold_percentage: float = 200.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0
    enable_scale_to_zero: bool = True
    scale_to_zero_grace_s: float = 30.0
    pod_retention_s: float = 0.0
    initial_scale: int = 1
    allow_zero_initial_scale: bool = False
    min_scale: int = 0
    max_scale: int = 0
    max_scale_limit: int = 0
    scale_down_delay_s: float = 0.0
    progress_deadline_s: float = 600.0


def read_autoscaler_config(data: Mapping[str, object]) -> AutoscalerConfig:
    """The settings in a `config-autoscaler` ConfigMap's `data`.

    Raises RefusedSettingsError naming every unknown or out-of-range key.
    """
    default = AutoscalerConfig()
    reader = SettingReader(data)
    reader.ignore("_example", "pod-autoscaler-class", "activator-capacity")
    config = AutoscalerConfig(
        target_utilization=_fraction(
            reader.number("container-concurrency-target-percentage", 70, low=0, high=100)
        ),
        concurrency_target=reader.number("container-concurrency-target-default", 100, low=0.01),
        rps_target=reader.number("requests-per-second-target-default", 200, low=0.01),
        target_burst_capacity=reader.number("target-burst-capacity", 211, low=-1),
        stable_window_s=int(
            reader.duration("stable-window", 60, low=WINDOW_MIN_S, high=WINDOW_MAX_S)
        ),
        panic_window_percentage=reader.number("panic-window-percentage", 10, low=1, high=100),
        panic_threshold_percentage=reader.number("panic-threshold-percentage", 200, low=110),
        max_scale_up_rate=_above_one(reader, "max-scale-up-rate", default.max_scale_up_rate),
        max_scale_down_rate=_above_one(reader, "max-scale-down-rate", default.max_scale_down_rate),
        enable_scale_to_zero=reader.flag("enable-scale-to-zero", True),
        scale_to_zero_grace_s=reader.duration("scale-to-zero-grace-period", 30, low=6),
        pod_retention_s=reader.duration("scale-to-zero-pod-retention-period", 0, whole=False),
        initial_scale=reader.integer("initial-scale", 1),
        allow_zero_initial_scale=reader.flag("allow-zero-initial-scale", False),
        min_scale=reader.integer("min-scale", 0),
        max_scale=reader.integer("max-scale", 0),
        max_scale_limit=reader.integer("max-scale-limit", 0),
        scale_down_delay_s=reader.duration("scale-down-delay", 0),
    )
    if config.initial_scale == 0 and not config.allow_zero_initial_scale:
        reader.refuse("initial-scale", 0, "at least 1 unless allow-zero-initial-scale is true")
    reader.finish()
    return config


def _fraction(percentage: float) -> float:
    """Percentages in (0, 1] are taken as fractions, as older clusters wrote them."""
    return percentage if 0 < percentage <= 1 else percentage / 100


def _above_one(reader: SettingReader, name: str, default: float) -> float:
    value = reader.number(name, default)
    if value <= 1:
        reader.refuse(name, value, "a number above 1")
        return default
    return value
