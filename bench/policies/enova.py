"""ENOVA's autoscaling rules (arXiv 2407.09486), to compare ours with. Not a policy of the product.

Called by `literature.py`. The paper detects abnormal load with a model trained on labelled metrics, and then asks a
recommendation module for new settings. The code that its authors published (Emerging-AI/ENOVA, `enova/algo/service.py`)
has constant rules in the detector's place, and these are what stands here:

* metrics are read every 30 s, in steps of a minute; the last three steps count;
* overload: at least 10 requests wait in each of them. Underload, with more than one replica: at most 10 % of the memory
  of keys and values, and 10 % of the places, are used in each;
* overload recommends replicas in proportion to the requests that came over those that succeeded (90th percentiles), and
  never fewer than now; underload recommends half, rounded up.

It never goes to zero. The simulator has no memory of keys and values; the share of used places stands for both.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from torpor.simulator.engine import SimulatedJob
from torpor.simulator.view import PolicyView

DETECT_S = 30.0
STEP_S = 60.0
WINDOW = 3
_QUANTILE = 0.9


@dataclass(frozen=True, slots=True)
class EnovaSpec:
    """The published defaults."""

    pending_threshold: int = 10
    idle_share: float = 0.1
    least: int = 1
    most: int = 100


@dataclass(frozen=True, slots=True)
class Minute:
    """One step's metrics of all replicas: requests that wait, the used share of places, requests that came and that
    succeeded.
    """

    pending: int
    used_share: float
    came: int
    succeeded: int


def is_overloaded(spec: EnovaSpec, minutes: Sequence[Minute]) -> bool:
    """Whether too many requests have waited in each of the last steps."""
    last = minutes[-WINDOW:]
    return len(last) == WINDOW and all(each.pending >= spec.pending_threshold for each in last)


def is_underloaded(spec: EnovaSpec, minutes: Sequence[Minute], replicas: int) -> bool:
    """Whether more than the least of the replicas were nearly unused in each of the last steps."""
    last = minutes[-WINDOW:]
    is_seen = len(last) == WINDOW and replicas > spec.least
    return is_seen and all(each.used_share <= spec.idle_share for each in last)


def recommended(spec: EnovaSpec, minutes: Sequence[Minute], replicas: int) -> int:
    """The replicas to run."""
    if is_overloaded(spec, minutes):
        came = _quantile([each.came for each in minutes[-WINDOW:]])
        succeeded = max(1.0, _quantile([each.succeeded for each in minutes[-WINDOW:]]))
        return min(max(math.ceil(came / succeeded * replicas), replicas), spec.most)
    if is_underloaded(spec, minutes, replicas):
        return max(spec.least, math.ceil(replicas / 2))
    return replicas


def _quantile(values: Sequence[int]) -> float:
    """The 90th percentile, linear in between."""
    ordered = sorted(values)
    at = _QUANTILE * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


class EnovaPolicy:
    """The rules in the simulated world."""

    tick_s = 1.0

    def __init__(self, spec: EnovaSpec) -> None:
        self._spec = spec
        self._minutes: deque[Minute] = deque(maxlen=WINDOW)
        self._came = self._succeeded = 0
        self._next_step, self._next_detection = STEP_S, DETECT_S
        self._wanted = spec.least

    def arrived(self, job: SimulatedJob, now: float) -> None:
        """Count it."""
        self._came += 1

    def finished(self, job: SimulatedJob, now: float) -> None:
        """Count it."""
        self._succeeded += 1

    def step(self, view: PolicyView, now: float) -> int:
        """Read a minute when it has passed, detect every half."""
        if now >= self._next_step:
            self._next_step += STEP_S
            self._minutes.append(Minute(view.queued, view.slot_share, self._came, self._succeeded))
            self._came = self._succeeded = 0
        if now >= self._next_detection:
            self._next_detection += DETECT_S
            wanted = recommended(self._spec, tuple(self._minutes), self._wanted)
            if wanted != self._wanted:
                # A recommendation that was followed is judged on metrics of its own.
                self._minutes.clear()
            self._wanted = wanted
        return self._wanted

    def wake(self, view: PolicyView, now: float) -> int | None:
        """It never goes to zero."""
        return None
