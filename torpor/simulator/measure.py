"""Measures of a run, in memory that does not grow with its length.

Called by the world.
"""

import math
from dataclasses import dataclass, field

from torpor.simulator.cluster import GpuSeconds
from torpor.simulator.engine import SimulatedJob

# Neighbouring buckets differ by one percent, so a quantile is right within half a percent.
_GROWTH = 1.01
_LOG_GROWTH = math.log(_GROWTH)
# Below a tenth of a millisecond a wait is none.
_SMALLEST = 1e-4
_MOST_POINTS = 1200


@dataclass(slots=True)
class QuantileSketch:
    """A distribution of durations in buckets of one percent; mean and maximum are exact."""

    count: int = 0
    total: float = 0.0
    largest: float = 0.0
    _buckets: dict[int, int] = field(default_factory=dict)

    def add(self, value: float) -> None:
        """Count one duration."""
        self.count += 1
        self.total += value
        if value > self.largest:
            self.largest = value
        bucket = -(10**6) if value < _SMALLEST else math.ceil(math.log(value) / _LOG_GROWTH)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1

    def quantile(self, share: float) -> float:
        """The duration that `share` of all stay at or below; 0.0 when nothing was counted."""
        if not self.count:
            return 0.0
        rank = max(1, math.ceil(share * self.count))
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                break
        if bucket == -(10**6):
            return 0.0
        middle = math.exp((bucket - 0.5) * _LOG_GROWTH)
        return min(middle, self.largest)

    @property
    def mean(self) -> float:
        """The mean of all durations; 0.0 when there are none."""
        return self.total / self.count if self.count else 0.0


@dataclass(slots=True)
class Recent:
    """The quantile of the last `window_s` seconds, for policies that scale on latency."""

    window_s: float
    _older: QuantileSketch = field(default_factory=QuantileSketch)
    _newer: QuantileSketch = field(default_factory=QuantileSketch)
    _turned: float = 0.0

    def add(self, value: float, now: float) -> None:
        """Count one duration at `now`."""
        self._turn(now)
        self._newer.add(value)

    def quantile(self, share: float, now: float) -> float | None:
        """The quantile of between one half and one whole window; None when nothing was counted."""
        self._turn(now)
        worst = max(self._older.quantile(share), self._newer.quantile(share))
        return worst if self._older.count + self._newer.count else None

    def _turn(self, now: float) -> None:
        half = self.window_s / 2
        while now - self._turned >= half:
            if now - self._turned >= 2 * self.window_s:
                self._turned = now
                self._newer = QuantileSketch()
            else:
                self._turned += half
            self._older, self._newer = self._newer, QuantileSketch()


@dataclass(slots=True)
class Series:
    """A few named values over time; halves its resolution when it would grow too long."""

    names: tuple[str, ...]
    interval_s: float = 1.0
    points: list[tuple[float, ...]] = field(default_factory=list)
    _next: float = 0.0

    def is_due(self, now: float) -> bool:
        """Whether the next point should be taken."""
        return now >= self._next

    def add(self, now: float, *values: float) -> None:
        """Take a point."""
        self.points.append((now, *values))
        self._next = now + self.interval_s
        if len(self.points) >= _MOST_POINTS:
            self.points = self._halved()
            self.interval_s *= 2

    def _halved(self) -> list[tuple[float, ...]]:
        """Of each two points the highest values, so that a short peak is not lost."""
        halved: list[tuple[float, ...]] = []
        for at in range(0, len(self.points) - 1, 2):
            one, two = self.points[at], self.points[at + 1]
            halved.append((one[0], *(max(a, b) for a, b in zip(one[1:], two[1:], strict=True))))
        return halved


@dataclass(frozen=True, slots=True)
class StoodIn:
    """What another model answers: what has waited for too long here, or has a longer prompt than this tier takes."""

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    def plus(self, prompt_tokens: int, output_tokens: int) -> "StoodIn":
        """With one more."""
        return StoodIn(
            self.requests + 1,
            self.prompt_tokens + prompt_tokens,
            self.output_tokens + output_tokens,
        )


@dataclass(slots=True)
class BatchCount:
    """How many batch requests came, and how many were not complete at their deadline."""

    requests: int = 0
    late: int = 0


_LATENCY_WINDOW_S = 60.0


@dataclass(slots=True)
class Tally:
    """What has become of the requests so far; durations of interactive ones only."""

    requests: int = 0
    served: int = 0
    timed_out: int = 0
    refused: int = 0
    output_tokens: int = 0
    stood_in: StoodIn = field(default_factory=StoodIn)
    wait: QuantileSketch = field(default_factory=QuantileSketch)
    first_token: QuantileSketch = field(default_factory=QuantileSketch)
    total: QuantileSketch = field(default_factory=QuantileSketch)
    recent: Recent = field(default_factory=lambda: Recent(_LATENCY_WINDOW_S))
    batch: BatchCount = field(default_factory=BatchCount)

    def count_end(self, job: SimulatedJob, now: float, timeout_s: float | None) -> bool:
        """Count a job whose answer is complete; False when its client has left before."""
        total = now - job.arrived
        if job.void_at is not None:
            self.batch.late += now > job.void_at
        else:
            self.recent.add(total, now)
            if timeout_s is not None and total > timeout_s:
                self.timed_out += 1
                return False
            self.total.add(total)
            if job.first_token is not None:
                self.first_token.add(job.first_token - job.arrived)
        self.served += 1
        self.output_tokens += job.output_tokens
        return True


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What a run gave; durations are distributions over served interactive requests, in seconds."""

    requests: int
    served: int
    timed_out: int
    refused: int
    unserved: int
    output_tokens: int
    stood_in: StoodIn
    wait: QuantileSketch
    first_token: QuantileSketch
    total: QuantileSketch
    gpu: GpuSeconds
    cold_starts: int
    node_launches: int
    handed_over: int
    most_replicas: int
    end_s: float
    series: Series
    batch: BatchCount
