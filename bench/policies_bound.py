"""What no policy can pay less than, and what somebody who knows every arrival was seen to pay.

Called by `policies_table.py`. For a list of requests, a cold start C and a wait target T that at
least 95 of 100 requests keep:

* Replicas are up in one or more stretches. A stretch whose first kept request came at `a` is ready
  at `a + T` at the latest, lasts at least until its last request could be done with the engine to
  itself, and costs C besides. Requests in between ride for nothing. Any 5 % may be served for
  nothing (they may wait for ever). The cheapest cut into stretches is found by dynamic programming.
* All work must be done, by replicas that are up, at the engine's best batch rate. The seconds that
  replicas are up are at least the stretches' and at least the work's, hence at least any mixture:
  each second of a stretch at weight 1 - w, plus all work at weight w. Every w gives a bound, and
  the largest counts.

Real schedules batch at lower rates, so nobody reaches it. How far the bound itself is from what can
be done is told by `Clairvoyant`, which plays the cheapest cut in the simulator.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from knative.simulator.engine import EngineModel
from knative.simulator.view import View
from knative.simulator.workload import Request

_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Somebody is up: ready at `ready_at`, for requests until the one that comes at `last_at`."""

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


def lower_bound_s(requests: Sequence[Request], setting: Setting) -> float:
    """GPU-seconds that any policy pays to start `kept_share` of `requests` within the wait."""
    engine = setting.engine
    best_rate = max(engine.batch_rate(size) for size in range(1, setting.slots + 1))
    work_s = sum(
        r.prompt_tokens / engine.prefill_tokens_per_s + (r.output_tokens - 1) / best_rate
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
    count = len(requests)
    late = count - math.ceil(setting.kept_share * count)
    alone = [setting.engine.alone_s(r.prompt_tokens, r.output_tokens) for r in requests]
    # costs[p][k]: of the first p requests with k of them left out; came[p][k]: the request before
    # which that cut's last stretch began, or None when the last request was left out.
    costs = [[math.inf] * (late + 1) for _ in range(count + 1)]
    came: list[list[int | None]] = [[None] * (late + 1) for _ in range(count + 1)]
    costs[0][0] = 0.0
    for p in range(count):
        row = costs[p]
        for k in range(late):
            if row[k] < costs[p + 1][k + 1]:
                costs[p + 1][k + 1], came[p + 1][k + 1] = row[k], None
        if min(row) == math.inf:
            continue
        ready = requests[p].at + setting.wait_s
        for last in range(p, count):
            end = max(requests[last].at + alone[last], ready + alone[p])
            cost = setting.start_s + (1 - weight) * (end - ready)
            target, origin = costs[last + 1], came[last + 1]
            for k in range(late + 1):
                if row[k] + cost < target[k]:
                    target[k], origin[k] = row[k] + cost, p
    k = min(range(late + 1), key=costs[count].__getitem__)
    return costs[count][k], _walked_back(requests, setting, came, k)


def _walked_back(
    requests: Sequence[Request], setting: Setting, came: list[list[int | None]], k: int
) -> list[Stretch]:
    found: list[Stretch] = []
    p = len(requests)
    while p:
        first = came[p][k]
        if first is None:
            p, k = p - 1, k - 1
        else:
            found.append(Stretch(requests[first].at + setting.wait_s, requests[p - 1].at))
            p = first
    return found[::-1]


class Clairvoyant:
    """Plays stretches with one replica: up in time for each, down once its requests are served.

    At the end it serves whoever was left out, as every policy must.
    """

    tick_s = 0.25

    def __init__(self, cut: Sequence[Stretch], start_s: float, horizon_s: float) -> None:
        self._left = [*cut, Stretch(horizon_s, horizon_s)]
        self._start_s = start_s

    def step(self, view: View, now: float) -> int:
        """One from a cold start before a stretch until nobody of it is left."""
        is_idle = not view.queued and not view.running
        if view.asked:
            if is_idle and now > self._left[0].last_at and view.ready:
                self._left.pop(0)
                return 0
            return 1
        if not self._left or (len(self._left) == 1 and is_idle):
            return 0
        return int(now >= self._left[0].ready_at - self._start_s - self.tick_s)

    def wake(self, view: View, now: float) -> int | None:
        """It knew."""
        return None
