"""Sliding windows that the autoscaler averages over: one bucket a second.

Called by `kpa.py` for its stable and panic averages and for the scale-down delay. Seconds are arguments. The
arithmetic is that of knative/serving v1.23 `pkg/autoscaler/aggregation`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

# Averages are rounded so that two ways to add the same numbers up cannot differ by one pod.
_DIGITS = 10**6
# The oldest bucket's share of a weighted average is below one in ten thousand.
_MIN_EXPONENT = 0.9999
_MIN_WEIGHT = 0.2


class Aggregation(StrEnum):
    """How the seconds of a window are weighted."""

    LINEAR = "linear"  #: every second counts the same (the default)
    WEIGHTED_EXPONENTIAL = "weighted-exponential"
    """The newest second counts most; a second at the window's edge counts almost nothing."""


@dataclass(frozen=True, slots=True)
class MetricWindow:
    """The last `size` seconds of a measure, oldest first; `last` is the second of the newest.

    `first` and `last` are None until something was recorded.
    """

    buckets: tuple[float, ...]
    first: int | None = None
    last: int | None = None

    @property
    def size(self) -> int:
        """The length of the window in seconds."""
        return len(self.buckets)


def empty_window(size_s: int) -> MetricWindow:
    """A window of `size_s` seconds in which nothing was recorded yet."""
    return MetricWindow(buckets=(0.0,) * size_s)


def record(window: MetricWindow, t: float, value: float) -> MetricWindow:
    """The window with `value` added to the second of `t`.

    Values of the same second add up; skipped seconds count as zero; a value older than the window is dropped; after
    a whole window without values everything starts anew.
    """
    second = math.floor(t)
    first, last = window.first, window.last
    if first is None or last is None or second - last >= window.size:
        return MetricWindow((0.0,) * (window.size - 1) + (value,), first=second, last=second)
    if second > last:
        skipped = second - last
        moved = window.buckets[skipped:] + (0.0,) * (skipped - 1) + (value,)
        return MetricWindow(moved, first=first, last=second)
    if second <= last - window.size:
        return window
    at = window.size - 1 - (last - second)
    added = (*window.buckets[:at], window.buckets[at] + value, *window.buckets[at + 1 :])
    return MetricWindow(added, first=min(first, second), last=last)


def average(
    window: MetricWindow, now: float, aggregation: Aggregation = Aggregation.LINEAR
) -> float:
    """The average over the window that ends at `now`; 0.0 when all of it is older."""
    if window.first is None or window.last is None:
        return 0.0
    lag = math.floor(now) - window.last
    if lag >= window.size:
        return 0.0
    if aggregation is Aggregation.WEIGHTED_EXPONENTIAL:
        return _weighted(window.buckets, max(lag, 0))
    lag = max(lag, 0)
    # Seconds after the last value are not counted as zeros: they only shrink the divisor. And a
    # fresh burst is averaged over the seconds seen so far, not diluted over the whole window.
    seen = min(window.last - window.first + 1, window.size - lag)
    return _rounded(sum(window.buckets[lag:]) / seen)


def is_empty(window: MetricWindow, now: float) -> bool:
    """Whether nothing was recorded for longer than the window."""
    return window.last is None or math.floor(now) - window.last > window.size


def _weighted(buckets: Sequence[float], lag: int) -> float:
    size = len(buckets)
    weight = max(1 - (1 - _MIN_EXPONENT) ** (1 / size), _MIN_WEIGHT)
    total = 0.0
    share = weight * (1 - weight) ** lag
    for age in range(size - lag):
        total += buckets[size - 1 - age] * share
        share *= 1 - weight
    return total


def _rounded(value: float) -> float:
    return math.floor(value * _DIGITS + 0.5) / _DIGITS


@dataclass(frozen=True, slots=True)
class MaxWindow:
    """The largest value of the last `slots` slots of `slot_s` seconds each.

    `entries` are (slot, value) with falling values: the first is the maximum.
    """

    slots: int
    slot_s: int = 2
    entries: tuple[tuple[int, int], ...] = ()


def max_window(length_s: float, slot_s: int) -> MaxWindow:
    """An empty window of maxima that covers `length_s` seconds."""
    return MaxWindow(slots=math.ceil(length_s / slot_s), slot_s=slot_s)


def record_max(window: MaxWindow, t: float, value: int) -> tuple[MaxWindow, int]:
    """The window with `value` at `t`, and the maximum that holds at `t`."""
    slot = math.floor(t) // window.slot_s
    kept = [e for e in window.entries if e[0] > slot - window.slots]
    while kept and kept[-1][1] <= value:
        kept.pop()
    kept.append((slot, value))
    return replace(window, entries=tuple(kept)), kept[0][1]
