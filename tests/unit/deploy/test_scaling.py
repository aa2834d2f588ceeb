"""What the formula makes of work, waits and GPUs, computed by the simulator's own reader."""

from __future__ import annotations

import pytest

from knative.autoscaling.keda import keda
from knative.autoscaling.keda.formula import parse
from knative.autoscaling.keda.scaledobject import read_scaled_object
from knative.deploy.emit import plain
from knative.deploy.render.scaling import WORK, pressure_formula, scaled_object
from knative.deploy.timeouts import derive
from knative.deploy.values import Values


@pytest.mark.parametrize(
    ("lag", "pend", "work"),
    [
        pytest.param(0, 0, 0, id="nothing to do"),
        pytest.param(1, 0, 1, id="one job wakes"),
        pytest.param(0, 1, 1, id="one in flight keeps awake"),
        pytest.param(10, 3, 13, id="waiting and in flight"),
        pytest.param(-1, 3, 3, id="a nil lag does not count against what runs"),
    ],
)
def test_work_is_what_waits_and_what_is_in_flight(lag: float, pend: float, work: float) -> None:
    assert parse(WORK).value({"lag": lag, "pend": pend}) == work


@pytest.mark.parametrize(
    ("p95", "gpu", "factor"),
    [
        pytest.param(0.0, 0.0, 1.0, id="calm"),
        pytest.param(61.0, 0.0, 1.5, id="the wait is over the objective"),
        pytest.param(60.0, 90.0, 1.0, id="at the limits"),
        pytest.param(0.0, 95.0, 1.25, id="the GPUs are full"),
        pytest.param(61.0, 95.0, 1.875, id="both"),
        pytest.param(None, None, 1.0, id="Prometheus is away"),
    ],
)
def test_pressure_raises_what_the_work_asks_for(
    p95: float | None, gpu: float | None, factor: float
) -> None:
    formula = parse(pressure_formula(Values()))

    assert formula.value({"lag": 6, "pend": 2, "p95": p95, "gpu": gpu}) == 8 * factor


def test_pressure_without_work_keeps_nothing_awake() -> None:
    formula = parse(pressure_formula(Values()))

    assert formula.value({"lag": 0, "pend": 0, "p95": 999.0, "gpu": 100.0}) == 0


def replicas_after_install(job_from_s: int, job_until_s: int, until_s: int) -> list[int]:
    """The replicas at each look of KEDA's, from KServe's one pod on; a job waits or runs between."""
    values = Values()
    spec = read_scaled_object(plain(scaled_object(values, derive(values))))
    state, count, seen = keda.start(spec, now=0.0), 1, []
    for now_s in range(0, until_s, 5):
        work = float(job_from_s <= now_s < job_until_s)
        state, decision = keda.poll(spec, state, {"lag": work, "pend": 0.0}, count, float(now_s))
        count = decision.replicas
        seen.append(count)
    return seen


def test_the_first_pod_of_an_install_ends_within_a_minute() -> None:
    assert replicas_after_install(0, 0, 60)[-1] == 0


def test_a_job_that_comes_with_the_install_keeps_its_loading_pod_through_the_worst_wake() -> None:
    cold_s = Values().cold_start_seconds

    assert set(replicas_after_install(10, 10 + cold_s, cold_s + 300)) == {1}
