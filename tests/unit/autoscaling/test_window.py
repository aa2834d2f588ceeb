"""Windows average over what was seen, and forget exactly when they should."""

import pytest

from knative.autoscaling.kpa import window as w
from knative.autoscaling.kpa.window import Aggregation


def filled(size: int, *values: tuple[float, float]) -> w.MetricWindow:
    window = w.empty_window(size)
    for t, value in values:
        window = w.record(window, t, value)
    return window


def test_after_a_window_without_values_only_the_burst_is_averaged() -> None:
    assert w.average(filled(60, (0, 9.0), (60, 5.0)), 60) == 5.0
    assert w.average(filled(60, (0, 9.0), (59, 5.0)), 59) == pytest.approx(14 / 60, abs=1e-6)


def test_values_of_one_second_add_up() -> None:
    assert w.average(filled(10, (3.1, 2.0), (3.9, 1.0)), 3.95) == 3.0


def test_a_late_value_lands_in_its_own_second() -> None:
    late = filled(10, (5, 4.0), (3, 2.0))
    assert w.average(late, 5) == pytest.approx(2.0)  # 2, 0 and 4 over seconds 3 to 5
    assert filled(10, (20, 4.0), (10, 9.0)) == filled(10, (20, 4.0))


@pytest.mark.parametrize(("now", "is_empty"), [(60, False), (60.9, False), (61, True)])
def test_a_window_is_empty_only_after_more_than_its_length(now: float, is_empty: bool) -> None:
    assert w.is_empty(filled(60, (0, 1.0)), now) is is_empty


def test_weights_favour_the_newest_second() -> None:
    rising, falling = filled(6, (0, 0.0), (1, 6.0)), filled(6, (0, 6.0), (1, 0.0))
    newest = w.average(rising, 1, Aggregation.WEIGHTED_EXPONENTIAL)
    oldest = w.average(falling, 1, Aggregation.WEIGHTED_EXPONENTIAL)
    # Six buckets: m = 1 - 0.0001^(1/6) = 0.785; the newest has m, the one before m(1-m).
    assert newest == pytest.approx(6 * 0.78456, rel=1e-4)
    assert oldest == pytest.approx(6 * 0.78456 * 0.21544, rel=1e-4)
