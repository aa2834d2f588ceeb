"""What the formula makes of work, waits and GPUs, computed by the simulator's own reader."""

from __future__ import annotations

import pytest

from knative.autoscaling.keda.formula import parse
from knative.deploy.render.scaling import WORK, pressure_formula
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
