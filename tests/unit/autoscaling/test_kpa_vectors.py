"""The KPA decides as the real controller does: every vector of `data/README.md`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from knative.autoscaling.kpa import kpa, reconciler
from knative.autoscaling.kpa.window import Aggregation

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "kpa_vectors.json").read_text()
)
# An even whole second, as in the recorded runs: the delay window's slots depend on it.
T0 = 1_700_000_000


def _spec(params: dict[str, Any]) -> kpa.KpaSpec:
    return kpa.KpaSpec(
        target=params["target"],
        total=params["total"],
        metric=kpa.ScaleMetric(params["metric"]),
        target_burst_capacity=params["target_burst_capacity"],
        panic_threshold=params["panic_threshold"],
        max_scale_up_rate=params["max_scale_up_rate"],
        max_scale_down_rate=params["max_scale_down_rate"],
        stable_window_s=params["stable_window_s"],
        panic_window_s=params["panic_window_s"],
        scale_down_delay_s=params["scale_down_delay_s"],
        activation_scale=params["activation_scale"],
        aggregation=Aggregation(params["aggregation"]),
    )


def _started(case: dict[str, Any]) -> kpa.KpaState:
    initial = case["initial"]
    state = kpa.start(_spec(case["params"]), ready_pods=initial["ready_pods"], now=T0)
    if "panic_since_s" in initial:
        since = initial["panic_since_s"]
        state = replace(state, panic_since=None if since is None else T0 + since)
    if "max_panic_pods" in initial:
        state = replace(state, max_panic_pods=initial["max_panic_pods"])
    return state


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_every_step_of_a_recorded_run_decides_the_same(case: dict[str, Any]) -> None:
    state = _started(case)
    params = dict(case["params"])
    for number, step in enumerate(case["steps"]):
        params |= step.get("update_params", {})
        state = replace(state, spec=_spec(params))
        now = T0 + step["t_s"]
        for at, value in step.get("samples", []):
            state = kpa.record(state, T0 + at, value)

        ready, reachable = step["ready_pods"], params["reachable"]
        if case["kind"] == "timeline":
            state, decision = kpa.decide(state, ready, now, is_reachable=reachable)
        else:
            averages = (step["stable"], step["panic"])
            state, decision = kpa.step(
                state, *averages, ready_pods=ready, now=now, is_reachable=reachable
            )

        _assert_same(step["expect"], state, decision, f"step {number} at {step['t_s']} s")


def _assert_same(
    expect: dict[str, Any], state: kpa.KpaState, decision: kpa.ScaleDecision, where: str
) -> None:
    assert decision.is_valid == expect["valid"], where
    if not expect["valid"]:
        return
    since = state.panic_since
    assert {
        "desired": decision.desired,
        "excess_burst_capacity": decision.excess_burst_capacity,
        "panic": decision.is_panicking,
        "panic_since_s": None if since is None else since - T0,
        "max_panic_pods": state.max_panic_pods,
        "stable_avg": decision.stable_average,
        "panic_avg": decision.panic_average,
    } == {k: v for k, v in expect.items() if k != "valid"}, where


@pytest.mark.parametrize("row", VECTORS["panic_window"], ids=str)
def test_the_panic_window_is_a_whole_share_of_the_stable_one(row: dict[str, Any]) -> None:
    assert kpa.panic_window_s(row["stable_window_s"], row["percentage"]) == row["expect_s"]


@pytest.mark.parametrize("row", VECTORS["metric_target"], ids=str)
def test_target_and_total_follow_container_and_annotation(row: dict[str, Any]) -> None:
    metric = kpa.ScaleMetric(row["metric"])
    percentage = row["annotation_utilization_pct"]
    target, total = kpa.resolve_target(
        metric=metric,
        container_concurrency=row["container_concurrency"],
        annotation_target=row["annotation_target"],
        utilization=0.7 if percentage is None else percentage / 100,
        default_total=200 if metric is kpa.ScaleMetric.RPS else 100,
    )
    assert (target, total) == (pytest.approx(row["expect_target"]), row["expect_total"])


@pytest.mark.parametrize("row", VECTORS["bounds"], ids=str)
def test_a_scale_is_clamped_to_its_bounds(row: dict[str, Any]) -> None:
    assert reconciler.bounded(row["x"], row["min"], row["max"]) == row["expect"]


@pytest.mark.parametrize(("load", "desired"), [(1.0, 3), (0.0, 0), (70.0, 10)])
def test_an_activation_scale_lifts_every_wake_up(load: float, desired: int) -> None:
    spec = kpa.KpaSpec(target=7, total=10, activation_scale=3)
    state = kpa.start(spec, ready_pods=0, now=T0)
    _, decision = kpa.step(state, load, load, ready_pods=0, now=T0)
    assert decision.desired == desired
