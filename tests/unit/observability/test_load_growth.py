"""Leak detection of a soak run."""

import math

import pytest

from torpor.load.growth import growing, trend

SPAN_S = 1800


def filling(at_s: float) -> float:
    """A cache that fills up: ninety per cent of it in the first ten minutes."""
    return 1e8 + 2e7 * (1 - math.exp(-at_s / 260))


def leaking(at_s: float) -> float:
    """The same with thirty megabytes an hour on top."""
    return filling(at_s) + 3e7 * at_s / 3600


def coming_and_going(at_s: float) -> float:
    """Connections: more in the last minutes than in the first, and given back in between."""
    return 21 + (at_s / SPAN_S) * (at_s % 37)


def left_open(at_s: float) -> float:
    return 21 + at_s // 120 + at_s % 7


def points(value: object) -> list[tuple[float, float]]:
    return [(float(at_s), value(at_s)) for at_s in range(0, SPAN_S, 2)]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "value", "is_leak"),
    [
        pytest.param("api memory_bytes", filling, False, id="a_cache_that_fills"),
        pytest.param("api memory_bytes", leaking, True, id="memory_that_a_day_would_eat"),
        pytest.param("api open_files", coming_and_going, False, id="connections"),
        pytest.param("api open_files", left_open, True, id="files_left_open"),
    ],
)
def test_a_soak_run_says_no_to_what_is_never_given_back(
    name: str, value: object, is_leak: bool
) -> None:
    seen = points(value)
    found = trend(seen)
    assert found is not None
    figures = {"first": seen[0][1], "per_hour": found.per_hour, "is_sure": found.is_sure}

    said = growing({"span_s": SPAN_S, "sent": 1000, "growth": {name: figures}})

    assert bool(said) is is_leak


@pytest.mark.parametrize(
    ("last", "is_too_much"),
    [
        pytest.param(2004, False, id="a_record_and_a_stream_a_job"),
        pytest.param(3304, True, id="keys_that_no_job_accounts_for"),
    ],
)
def test_keys_are_counted_against_jobs(last: int, is_too_much: bool) -> None:
    figures = {"first": 4, "last": last, "per_hour": 9000.0, "is_sure": True}

    said = growing({"span_s": SPAN_S, "sent": 1000, "growth": {"store keys": figures}})

    assert bool(said) is is_too_much


def test_a_short_run_cannot_tell() -> None:
    assert "too short" in growing({"span_s": 600.0, "sent": 1, "growth": {}})[0]


def test_a_level_line_does_not_grow() -> None:
    found = trend([(float(x), 5.0) for x in range(50)])

    assert found is not None
    assert found.per_hour == pytest.approx(0)


def test_a_trend_within_its_own_noise_is_not_sure() -> None:
    found = trend([(float(x), 100.0 + (x * 7919 % 13)) for x in range(240)])

    assert found is not None
    assert not found.is_sure


def test_two_points_are_no_trend() -> None:
    assert trend([(0.0, 1.0), (1.0, 2.0)]) is None
