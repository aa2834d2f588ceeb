"""Measures stay small and right, however long a run is."""

import random

import pytest

from torpor.simulator.measure import QuantileSketch, Recent, Series


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_a_quantile_is_right_within_one_percent(share: float) -> None:
    rng = random.Random(1)
    values = sorted(rng.lognormvariate(0, 2) for _ in range(10_000))
    sketch = QuantileSketch()
    for value in values:
        sketch.add(value)
    exact = values[int(share * len(values)) - 1]
    assert sketch.quantile(share) == pytest.approx(exact, rel=0.01)


def test_no_wait_counts_as_none() -> None:
    sketch = QuantileSketch()
    for value in (0.0, 0.0, 5.0):
        sketch.add(value)
    assert (sketch.quantile(0.5), sketch.largest, sketch.mean) == (0.0, 5.0, pytest.approx(5 / 3))


def test_recent_values_are_forgotten_after_their_window() -> None:
    recent = Recent(60)
    recent.add(9.0, now=0)
    recent.add(1.0, now=45)
    assert recent.quantile(0.95, now=50) == pytest.approx(9, rel=0.01)
    assert recent.quantile(0.95, now=70) == pytest.approx(1, rel=0.01)
    assert recent.quantile(0.95, now=500) is None


def test_a_series_halves_its_resolution_and_keeps_its_peaks() -> None:
    series = Series(("x",))
    for now in range(10_000):
        if series.is_due(now):
            series.add(now, 100.0 if now == 4096 else 1.0)
    assert len(series.points) < 1200
    assert max(value for _, value in series.points) == 100.0
