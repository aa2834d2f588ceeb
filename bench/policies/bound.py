"""A lower bound on the cost of any policy, and the cost of a simulated player that knows every arrival.

Called by `policies_table.py`. For a list of requests, a cold start C and a wait target T that at least 95 of 100
requests keep:

* Replicas are up in one or more stretches. A stretch whose first kept request came at `a` is ready at `a + T` at
  the latest, lasts at least until its last request could be done with the engine to itself, and costs C besides.
  Requests in between ride for nothing. Any 5 % may wait as long as it takes, and ride with a later stretch for
  nothing; those after the last one need one of their own. The cheapest cut into stretches is found by dynamic
  programming.
* All work must be done, by replicas that are up, at the engine's best batch rate. The seconds that replicas are up
  are at least the stretches' and at least the work's, hence at least any mixture: each second of a stretch at
  weight 1 - w, plus all work at weight w. Every w gives a bound, and the largest counts.

Real schedules batch at lower rates, so it is never reached. How far the bound itself is from what can be done is told
by `Clairvoyant`, which plays the cheapest cut in the simulator. With `Setting.is_earned_first` the cut may leave
out a request only once so many have come that the kept share holds at that moment: what a policy that borrows
nothing could do at best if it knew all.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from torpor.simulator.engine import EngineModel
from torpor.simulator.view import PolicyView
from torpor.simulator.workload import Request

_WEIGHTS = (0.0, 0.5, 0.6, 0.7, 0.8)
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Stretch:
    """A replica runs: ready at `ready_at`, for requests until the one that arrives at `last_at`."""

    ready_at: float
    last_at: float


@dataclass(frozen=True, slots=True)
class Setting:
    """What requests meet; times in seconds."""

    engine: EngineModel
    slots: int
    start_s: float
    wait_s: float
    kept_share: float = 0.95
    is_earned_first: bool = False


def lower_bound_s(requests: Sequence[Request], setting: Setting) -> float:
    """GPU-seconds that any policy pays to start `kept_share` of `requests` within the wait."""
    engine = setting.engine
    best_rate = max(engine.batch_rate(size) for size in range(1, setting.slots + 1))
    # While a prompt is read the others' answers go on at a share of their speed.
    lost = 1 - engine.decode_during_prefill
    work_s = sum(
        lost * r.prompt_tokens / engine.prefill_tokens_per_s + (r.output_tokens - 1) / best_rate
        for r in requests
    )
    return max(w * work_s + _cheapest_cut(requests, setting, w)[0] for w in _WEIGHTS)


def stretches(requests: Sequence[Request], setting: Setting) -> list[Stretch]:
    """The cheapest cut of the requests into stretches, in order."""
    return _cheapest_cut(requests, setting, 0.0)[1]


def _cheapest_cut(
    requests: Sequence[Request], setting: Setting, weight: float
) -> tuple[float, list[Stretch]]:
    """The cheapest cut's cost and its stretches, with seconds of a stretch at 1 - `weight`."""
    table = _Table(requests, setting, weight)
    for p in range(len(requests)):
        table.leave_out(p)
        table.stretch_from(p)
    return table.cheapest()


class _Table:
    """costs[p][k]: of the first p requests with k of them left out; ended[p][k]: the same where the
    last of them was not, and began[p][k]: the request with which that cut's last stretch began.
    """

    def __init__(self, requests: Sequence[Request], setting: Setting, weight: float) -> None:
        count = len(requests)
        self._requests, self._setting, self._second = requests, setting, 1 - weight
        self._alone = [setting.engine.alone_s(r.prompt_tokens, r.output_tokens) for r in requests]
        late = count - math.ceil(setting.kept_share * count)
        self._late = range(late + 1)
        self._most_late = [late] * count
        if setting.is_earned_first:
            ats = [r.at for r in requests]
            share = 1 - setting.kept_share
            self._most_late = [
                math.floor(share * bisect_right(ats, at + setting.wait_s) + _ROUNDING) for at in ats
            ]
        self._ended = [[math.inf] * (late + 1) for _ in range(count + 1)]
        self._costs = [[math.inf] * (late + 1) for _ in range(count + 1)]
        self._began = [[-1] * (late + 1) for _ in range(count + 1)]
        self._costs[0][0] = 0.0

    def leave_out(self, p: int) -> None:
        """Close the books of the first p requests, and try to leave out the next."""
        row = self._costs[p] = [
            min(pair) for pair in zip(self._costs[p], self._ended[p], strict=True)
        ]
        passed = [math.inf, *row[:-1]]
        self._costs[p + 1] = [
            cost if k <= self._most_late[p] else math.inf for k, cost in enumerate(passed)
        ]

    def stretch_from(self, p: int) -> None:
        """Try every stretch that begins with request p."""
        row = self._costs[p]
        if min(row) == math.inf:
            return
        ready = self._requests[p].at + self._setting.wait_s
        for last in range(p, len(self._requests)):
            end = max(self._requests[last].at + self._alone[last], ready + self._alone[p])
            cost = self._setting.start_s + self._second * (end - ready)
            target, began = self._ended[last + 1], self._began[last + 1]
            for k in self._late:
                if row[k] + cost < target[k]:
                    target[k], began[k] = row[k] + cost, p

    def cheapest(self) -> tuple[float, list[Stretch]]:
        """The cheapest cut of all requests. Requests left out at the very end ride with no stretch: each
        costs a stretch of his own, as he must be served.
        """
        count = len(self._requests)
        own = self._setting.start_s + self._second * self._alone[-1]
        ways = [
            (self._ended[count - trailing][k] + (own if trailing else 0.0), trailing, k)
            for trailing in self._late
            for k in self._late[: len(self._late) - trailing]
        ]
        cost, trailing, k = min(ways)
        return cost, self._walked_back(count - trailing, k)

    def _walked_back(self, p: int, k: int) -> list[Stretch]:
        found: list[Stretch] = []
        while p:
            if self._ended[p][k] > self._costs[p][k]:
                p, k = p - 1, k - 1
                continue
            first = self._began[p][k]
            ready_at = self._requests[first].at + self._setting.wait_s
            found.append(Stretch(ready_at, self._requests[p - 1].at))
            p = first
        return found[::-1]


class Clairvoyant:
    """Plays stretches with one replica: up in time for each, down once its requests are served.

    At the end it serves the requests that were left out, as every policy must.
    """

    tick_s = 0.25

    def __init__(self, cut: Sequence[Stretch], start_s: float, horizon_s: float) -> None:
        self._left = [*cut, Stretch(horizon_s, horizon_s)]
        self._start_s = start_s

    def step(self, view: PolicyView, now: float) -> int:
        """One replica from a cold start before a stretch until its requests are served."""
        is_idle = not view.queued and not view.running
        if view.asked:
            if is_idle and now > self._left[0].last_at and view.ready:
                self._left.pop(0)
                return 0
            return 1
        if not self._left or (len(self._left) == 1 and is_idle):
            return 0
        return int(now >= self._left[0].ready_at - self._start_s - self.tick_s)

    def wake(self, view: PolicyView, now: float) -> int | None:
        """Nothing to do: every arrival is known."""
        return None
