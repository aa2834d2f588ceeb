"""Chiron's autoscaling rules (arXiv 2501.08090), to compare ours with. Not a policy of the product.

Called by `literature.py`. What the paper does, and what is kept of it here:

* two classes: interactive requests, and batch requests, which may wait until their deadline;
* the local autoscaler sets an instance's batch size by its backpressure: the observed inter-token latency over its
  objective, or the throughput before the last change over the one after it, whichever is larger (`batch_size`);
* the global autoscaler keeps more instances than interactive requests take, for spikes: the interactive backpressure is
  the share of the interactive and mixed instances that run interactive requests, held at an over-provisioning share
  (`interactive_pool`);
* batch requests run where the others leave room. They are put in groups of like deadlines, and a waiting time is
  estimated for each group from the tokens before it. The batch backpressure is how many groups would miss their
  deadline; batch instances are added until it is 0, and removed when no batch request waits (`batch_instances`).

The paper does not scale to zero, and evicts batch requests from mixed instances. Here `least` 0 lets the pool go to
zero after `hold_s` without interactive requests, and nothing is evicted: with free places at every few tokens an
interactive request waits for tenths of a second.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torpor.simulator.engine import EngineModel, SimulatedJob
from torpor.simulator.view import PolicyView

_GROWTH = 2
_MOST_INSTANCES = 100


@dataclass(frozen=True, slots=True)
class ChironSpec:
    """`over_provisioning`: which share of the interactive and mixed instances runs interactive requests. Batch requests
    whose deadlines fall in the same `group_s` are one group. An instance makes `tokens_per_s` at `slots` requests.
    """

    slots: int
    tokens_per_s: float
    start_s: float
    over_provisioning: float = 1 / 3
    tolerance: float = 0.1
    least: int = 1
    hold_s: float = 60.0
    group_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Group:
    """Batch requests of like deadlines that wait: their tokens, and the time until the first deadline."""

    tokens: float
    left_s: float


def batch_size(size: int, most: int, backpressure: float) -> int:
    """The local autoscaler's next batch size: more below a backpressure of 1, less above it."""
    if backpressure > 1:
        return max(1, math.floor(size / backpressure))
    return min(most, size * _GROWTH)


def local_backpressure(itl_s: float, slo_s: float, before: float, after: float) -> float:
    """How much is asked of an instance: latency over its objective, or throughput lost by the last growth."""
    return max(itl_s / slo_s, before / after)


def settled_batch_size(engine: EngineModel, itl_slo_s: float) -> int:
    """The largest batch size that the local autoscaler comes to on an engine's table."""
    size, before, best = 1, 0.0, 1
    while True:
        rate = engine.batch_rate(size)
        backpressure = local_backpressure(size / rate, itl_slo_s, before, rate)
        if backpressure > 1:
            return best
        best, before = size, rate
        following = batch_size(size, engine.max_batch, backpressure)
        if following == size:
            return size
        size = following


def interactive_pool(spec: ChironSpec, pool: int, needed: int) -> int:
    """Interactive and mixed instances, when `needed` would hold all interactive requests: unchanged while the
    backpressure is within the tolerance.
    """
    if not needed:
        return min(pool, spec.least) if spec.least else 0
    share = needed / pool if pool else math.inf
    if abs(share - spec.over_provisioning) <= spec.tolerance:
        return pool
    return max(spec.least, math.ceil(needed / spec.over_provisioning - 1e-9))


def groups_of(jobs: Iterable[tuple[float, float]], group_s: float) -> list[Group]:
    """Groups, the earliest deadline first, of (tokens, time left) of each batch request."""
    found: dict[int, Group] = {}
    for tokens, left_s in jobs:
        at = math.floor(left_s / group_s)
        known = found.get(at, Group(0.0, left_s))
        found[at] = Group(known.tokens + tokens, min(known.left_s, left_s))
    return [found[at] for at in sorted(found)]


def batch_backpressure(groups: Sequence[Group], tokens_per_s: float, starting_s: float) -> int:
    """How many groups would not be done at their deadline, when `tokens_per_s` are free after `starting_s`."""
    before, late = 0.0, 0
    for group in groups:
        before += group.tokens
        waits_s = starting_s + before / tokens_per_s if tokens_per_s > 0 else math.inf
        late += waits_s > group.left_s
    return late


def batch_instances(
    spec: ChironSpec, groups: Sequence[Group], instances: int, spare_tokens_per_s: float
) -> int:
    """Batch instances beside the pool's spare tokens: none while no request waits, else the fewest that leave as few
    groups late as any number could.
    """
    if not groups:
        return 0

    def late(count: int) -> int:
        rate = spare_tokens_per_s + count * spec.tokens_per_s
        return batch_backpressure(groups, rate, spec.start_s if count > instances else 0.0)

    least_late = late(_MOST_INSTANCES)
    if not instances and spare_tokens_per_s <= 0 and not late(1):
        return 0  # one that starts later will do
    count = instances
    while late(count) > least_late:
        count += 1
    is_none = not count and spare_tokens_per_s <= 0
    return 1 if is_none else count


@dataclass(frozen=True, slots=True)
class ChironState:
    """The instances of both kinds."""

    pool: int = 0
    batch: int = 0


def decide(
    spec: ChironSpec, state: ChironState, needed: int, groups: Sequence[Group], share_free: float
) -> ChironState:
    """The instances to ask for; `share_free` of the pool's places are not taken by interactive requests."""
    pool = interactive_pool(spec, state.pool, needed)
    spare = pool * share_free * spec.tokens_per_s
    return replace(state, pool=pool, batch=batch_instances(spec, groups, state.batch, spare))


class ChironPolicy:
    """The rules in the simulated world, asked every second; lengths of answers are learnt as one mean."""

    tick_s = 1.0

    def __init__(self, spec: ChironSpec) -> None:
        self._spec = spec
        self._state = ChironState(pool=spec.least)
        self._needed: deque[tuple[float, int]] = deque()
        self._count, self._mean = 0, 200.0

    def arrived(self, job: SimulatedJob, now: float) -> None:
        """Nothing is learnt of a request before its answer."""

    def finished(self, job: SimulatedJob, now: float) -> None:
        """Learn the length of its answer."""
        self._count += 1
        self._mean += (job.output_tokens - self._mean) / self._count

    def step(self, view: PolicyView, now: float) -> int:
        """The instances of both kinds together."""
        running = view.running - view.running_batch
        taken = running + len(view.queue)
        needed = self._most_needed(math.ceil(taken / self._spec.slots), now)
        jobs = ((self._mean, job.void_at - now) for job in view.batch if job.void_at is not None)
        groups = groups_of(jobs, self._spec.group_s)
        places = max(1, self._state.pool * self._spec.slots)
        free = max(0.0, 1 - taken / places)
        self._state = decide(self._spec, self._state, needed, groups, free)
        # Batch instances stay for what they run.
        kept = math.ceil(view.running / self._spec.slots) if view.running_batch else 0
        return max(self._state.pool + self._state.batch, kept)

    def wake(self, view: PolicyView, now: float) -> int | None:
        """At once, as ours and the KPA."""
        return self.step(view, now)

    def _most_needed(self, needed: int, now: float) -> int:
        """The most of the last `hold_s`."""
        while self._needed and self._needed[0][0] < now - self._spec.hold_s:
            self._needed.popleft()
        while self._needed and self._needed[-1][1] <= needed:
            self._needed.pop()
        self._needed.append((now, needed))
        return self._needed[0][1]
