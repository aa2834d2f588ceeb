"""A manifest is read as the cluster reads it, and refused where its webhook would refuse it."""

import pytest

from knative.autoscaling.kpa.annotations import read_knative
from knative.autoscaling.kpa.autoscaler_config import AutoscalerConfig, read_autoscaler_config
from knative.autoscaling.setting import RefusedSettingsError, duration_s


def service(annotations: dict[str, str], concurrency: int = 0) -> dict[str, object]:
    prefixed = {
        key if "/" in key else f"autoscaling.knative.dev/{key}": value
        for key, value in annotations.items()
    }
    return {
        "kind": "Service",
        "metadata": {"name": "thinker"},
        "spec": {
            "template": {
                "metadata": {"annotations": prefixed},
                "spec": {"containerConcurrency": concurrency, "containers": []},
            }
        },
    }


def test_a_service_without_annotations_gets_the_clusters_defaults() -> None:
    scaling = read_knative(service({}))

    assert (scaling.name, scaling.spec.target, scaling.spec.total) == ("thinker", 70.0, 100.0)
    assert (scaling.spec.stable_window_s, scaling.spec.panic_window_s) == (60, 6)
    assert (scaling.policy.min_scale, scaling.policy.max_scale) == (0, 0)


def test_annotations_override_the_defaults() -> None:
    scaling = read_knative(
        service(
            {
                "target-utilization-percentage": "100",
                "window": "2m",
                "panic-window-percentage": "20",
                "panic-threshold-percentage": "150",
                "min-scale": "1",
                "max-scale": "8",
                "scale-down-delay": "90s",
                "scale-to-zero-pod-retention-period": "5m",
                "target-burst-capacity": "-1",
                "activation-scale": "3",
                "metric-aggregation-algorithm": "weighted-exponential",
                "serving.knative.dev/progress-deadline": "1200s",
            },
            concurrency=4,
        )
    )

    spec, policy = scaling.spec, scaling.policy
    assert (spec.target, spec.stable_window_s, spec.panic_window_s) == (4.0, 120, 24)
    assert (spec.panic_threshold, spec.scale_down_delay_s, spec.activation_scale) == (1.5, 90, 3)
    assert (spec.has_scrape_target, spec.aggregation) == (False, "weighted-exponential")
    assert (policy.min_scale, policy.max_scale, policy.pod_retention_s) == (1, 8, 300)
    assert policy.progress_deadline_s == 1200


def test_the_older_camel_case_names_still_count() -> None:
    assert read_knative(service({"minScale": "2", "maxScale": "3"})).policy.max_scale == 3


def test_an_inference_service_becomes_what_kserve_would_write() -> None:
    scaling = read_knative(
        {
            "kind": "InferenceService",
            "metadata": {
                "name": "thinker",
                "annotations": {"autoscaling.knative.dev/window": "30s"},
            },
            "spec": {
                "predictor": {
                    "minReplicas": 0,
                    "maxReplicas": 4,
                    "scaleTarget": 2,
                    "scaleMetric": "concurrency",
                    "containerConcurrency": 8,
                }
            },
        }
    )

    assert (scaling.policy.min_scale, scaling.policy.max_scale) == (0, 4)
    assert (scaling.spec.total, scaling.spec.stable_window_s) == (2.0, 30)
    assert scaling.container_concurrency == 8


def test_kserve_drops_an_initial_scale_of_zero_where_the_cluster_does_not_allow_it() -> None:
    annotations = {"autoscaling.knative.dev/initial-scale": "0"}
    isvc = {
        "kind": "InferenceService",
        "metadata": {"name": "a", "annotations": annotations},
        "spec": {"predictor": {"minReplicas": 0}},
    }
    allowed = AutoscalerConfig(allow_zero_initial_scale=True)

    assert read_knative(isvc).policy.initial_scale == 1
    assert read_knative(isvc, allowed).policy.initial_scale == 0


def test_an_inference_service_keeps_one_replica_by_default() -> None:
    isvc = {"kind": "InferenceService", "metadata": {"name": "a"}, "spec": {"predictor": {}}}
    assert read_knative(isvc).policy.min_scale == 1


@pytest.mark.parametrize(
    ("annotation", "value", "allowed"),
    [
        ("window", "5s", "6s to 3600s"),
        ("window", "61m", "6s to 3600s"),
        ("window", "6.5s", "whole seconds"),
        ("window", "sixty", "a duration"),
        ("panic-window-percentage", "0.5", "from 1 to 100"),
        ("panic-threshold-percentage", "109", "from 110 to 1000"),
        ("panic-threshold-percentage", "1001", "from 110 to 1000"),
        ("target", "0.001", "from 0.01"),
        ("target-utilization-percentage", "101", "from 1 to 100"),
        ("target-utilization-percentage", "0", "from 1"),
        ("target-burst-capacity", "-2", "-1 (always)"),
        ("min-scale", "-1", "from 0"),
        ("min-scale", "one", "a whole number"),
        ("initial-scale", "0", "from 1"),
        ("activation-scale", "1", "from 2"),
        ("scale-down-delay", "2h", "0s to 3600s"),
        ("metric", "cpu", "concurrency, rps"),
        ("class", "hpa.autoscaling.knative.dev", "kpa.autoscaling.knative.dev"),
        ("metric-aggregation-algorithm", "median", "linear, weighted-exponential"),
        ("target-utilization", "70", "unknown setting"),
    ],
)
def test_a_bad_annotation_is_refused_with_name_value_and_range(
    annotation: str, value: str, allowed: str
) -> None:
    with pytest.raises(RefusedSettingsError) as refused:
        read_knative(service({annotation: value}))

    text = str(refused.value)
    assert f"autoscaling.knative.dev/{annotation}" in text
    assert value.rstrip("s") in text
    assert allowed in text


def test_all_refusals_come_at_once() -> None:
    with pytest.raises(RefusedSettingsError) as refused:
        read_knative(service({"window": "1s", "target": "0", "min-scale": "3", "max-scale": "2"}))
    assert len(refused.value.refusals) == 3


def test_scaling_annotations_belong_to_the_template() -> None:
    manifest = service({})
    manifest["metadata"] = {"annotations": {"autoscaling.knative.dev/min-scale": "1"}}
    with pytest.raises(RefusedSettingsError, match=r"spec\.template\.metadata\.annotations"):
        read_knative(manifest)


def test_a_max_scale_limit_forbids_unbounded_revisions() -> None:
    with pytest.raises(RefusedSettingsError, match="max-scale-limit"):
        read_knative(service({}), AutoscalerConfig(max_scale_limit=10))


def test_the_config_map_sets_the_defaults() -> None:
    config = read_autoscaler_config(
        {"stable-window": "120s", "container-concurrency-target-percentage": "0.8"}
    )
    assert (config.stable_window_s, config.target_utilization) == (120, 0.8)


def test_an_unknown_config_map_key_is_refused() -> None:
    with pytest.raises(RefusedSettingsError, match="stabel-window"):
        read_autoscaler_config({"stabel-window": "60s"})


def test_a_scale_down_rate_of_one_would_never_end_and_is_refused() -> None:
    with pytest.raises(RefusedSettingsError, match="max-scale-down-rate"):
        read_autoscaler_config({"max-scale-down-rate": "1"})


@pytest.mark.parametrize(("text", "seconds"), [("1m30s", 90), ("1.5h", 5400), ("250ms", 0.25)])
def test_go_durations_are_read(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)
