"""Where requests come from: seeded profiles of arrival rates, as streams that need no memory.

Called by the command line, the benches and tests. It must not know what becomes of a request.
Traces are read by `trace.py`.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Request:
    """One request: when it comes (seconds from the start) and how long prompt and answer are. `same_as` is equal for
    requests that an exact cache answers alike; empty where that is not known. A batch request has `deadline_s`: its
    answer must be complete so long after it came; all others are interactive. `blocks` are hashes of the blocks of its
    prompt, each of all before it too; none where they are not known.
    """

    at: float
    prompt_tokens: int
    output_tokens: int
    same_as: str = ""
    deadline_s: float | None = None
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal lengths in tokens, cut to [1, longest]."""

    prompt_median: float = 1020.0
    prompt_sigma: float = 0.7
    output_median: float = 129.0
    output_sigma: float = 0.9
    longest: int = 16_000

    def draw(self, rng: random.Random) -> tuple[int, int]:
        """One prompt's and one answer's length."""
        prompt = rng.lognormvariate(math.log(self.prompt_median), self.prompt_sigma)
        output = rng.lognormvariate(math.log(self.output_median), self.output_sigma)
        return self._whole(prompt), self._whole(output)

    def _whole(self, value: float) -> int:
        return max(1, min(self.longest, round(value)))


class ProfileKind(StrEnum):
    """The shapes of load that `torpor simulate --profile` knows."""

    STEADY = "steady"  #: the base rate all the time
    STEP = "step"  #: from base to peak at a third of the time, and back at two thirds
    BURST = "burst"  #: silence, and every quarter of the time thirty seconds at the peak
    RAMP = "ramp"  #: from base to peak in a straight line
    BLACK_FRIDAY = (
        "black-friday"  #: a quiet start, a climb to the peak, a plateau, and a slow way down
    )


@dataclass(frozen=True, slots=True)
class Profile:
    """A rate over time with lengths; rates in requests a second."""

    kind: ProfileKind
    duration_s: float
    base_per_s: float
    peak_per_s: float
    lengths: Lengths = Lengths()


_BURST_S = 30.0
# (share of the time, share of the way from base to peak), straight lines in between.
_BLACK_FRIDAY = ((0.0, 0.0), (0.2, 0.0), (0.5, 1.0), (0.65, 1.0), (0.85, 0.2), (1.0, 0.0))


def arrivals(profile: Profile, seed: int) -> Iterator[Request]:
    """Poisson arrivals with the profile's rate: the same seed gives the same requests."""
    rng = random.Random(seed)  # noqa: S311 - a model, no secret
    rate = _rate_of(profile)
    highest = max(profile.base_per_s, profile.peak_per_s)
    now = 0.0
    if highest <= 0:
        return
    while True:
        # Thinning: candidates at the highest rate, each kept with its share of it.
        now += rng.expovariate(highest)
        if now >= profile.duration_s:
            return
        if rng.random() * highest < rate(now):
            yield Request(now, *profile.lengths.draw(rng))


def _rate_of(profile: Profile) -> Callable[[float], float]:
    base, peak, whole = profile.base_per_s, profile.peak_per_s, profile.duration_s
    match profile.kind:
        case ProfileKind.STEADY:
            return lambda t: base
        case ProfileKind.STEP:
            return lambda t: peak if whole / 3 <= t < whole * 2 / 3 else base
        case ProfileKind.BURST:
            quarter = whole / 4
            return lambda t: peak if t % quarter < _BURST_S else base
        case ProfileKind.RAMP:
            return lambda t: base + (peak - base) * t / whole
        case ProfileKind.BLACK_FRIDAY:
            return lambda t: base + (peak - base) * _between(_BLACK_FRIDAY, t / whole)


def _between(line: tuple[tuple[float, float], ...], at: float) -> float:
    for (x0, y0), (x1, y1) in pairwise(line):
        if at <= x1:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    return line[-1][1]
